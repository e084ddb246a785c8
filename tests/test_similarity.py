"""Texts that say nearly the same are found, and texts that do not are left alone."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgedistill.errors import Stopped
from edgedistill.similarity import SimilarTexts, Twin, in_blocks, jaccard, normalised, postings, shingles
from edgedistill.similarity import seen as seen_texts
from edgedistill.similarity.postings import Postings
from edgedistill.similarity.sketches import LARGEST_MISS, MOST_BANDS, PERMUTATIONS, Sketcher, banding

WORDS: tuple[str, ...] = (
    "please",
    "turn",
    "on",
    "off",
    "the",
    "light",
    "lamp",
    "in",
    "kitchen",
    "hall",
    "warmer",
    "volume",
    "radio",
)
WORDS += ("blind", "door", "now", "half", "open", "garage")


@given(st.text(), st.text())
def test_jaccard_is_symmetric_and_between_0_and_1(one: str, other: str) -> None:
    mine, theirs = shingles(one), shingles(other)
    assert jaccard(mine, theirs) == jaccard(theirs, mine)
    assert 0.0 <= jaccard(mine, theirs) <= 1.0
    assert jaccard(mine, mine) == 1.0


def test_jaccard_of_nothing_is_no_error() -> None:
    assert jaccard(set(), set()) == 0.0


@given(st.text())
def test_normalising_twice_changes_nothing(text: str) -> None:
    assert normalised(normalised(text)) == normalised(text)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Turn on the light!", "turn on   the LIGHT"),
        ("ﬁne", "fine"),
        ("Ｌａｍｐ", "lamp"),
        ("cafe\u0301", "caf\u00e9"),
        ("what's up?", "What s up"),
    ],
)
def test_case_spacing_punctuation_and_unicode_forms_make_no_difference(one: str, other: str, tmp_path: Path) -> None:
    with SimilarTexts(0.9, tmp_path) as seen:
        seen.add([("first", one)])
        assert seen.twins([other]) == [Twin("first", is_exact=True)]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Turn on the light in the kitchen", "Turn off the light in the kitchen"),
        ("Set it to 20 degrees", "Set it to 21 degrees"),
        ("on", "off"),
        ("👍", "👎"),
        ("🚀", ""),
        ("?", "!"),
        ("开灯", "关灯"),
    ],
)
def test_texts_that_mean_something_else_are_left_alone(one: str, other: str, tmp_path: Path) -> None:
    with SimilarTexts(0.9, tmp_path) as seen:
        assert seen.screen([("first", one), ("second", other)]) == [None, None]
    with SimilarTexts(0.9, tmp_path) as seen:
        seen.add([("first", one)])
        assert seen.twins([other]) == [None]


def test_the_first_text_of_the_same_words_is_named(tmp_path: Path) -> None:
    with SimilarTexts(0.9, tmp_path) as seen:
        seen.add([(str(number), "the very same words") for number in range(3)])
        assert seen.twins(["The very same words."]) == [Twin("0", is_exact=True)]


def test_near_texts_above_the_threshold_are_found_and_none_below_it(tmp_path: Path) -> None:
    """Against comparing every pair: nothing below the threshold is ever named, and hardly one above it is missed."""
    source = random.Random(0)
    texts = [" ".join(source.choices(WORDS, k=9)) for _ in range(120)]
    texts += [f"{text} {source.choice(WORDS)}" for text in texts]
    found = missed = 0
    with SimilarTexts(0.7, tmp_path) as seen:
        for number, text in enumerate(texts):
            above = {str(i) for i, other in enumerate(texts[:number]) if alike(text, other) >= 0.7}
            (twin,) = seen.twins([text])
            assert twin is None or twin.id in above
            found += twin is not None
            missed += twin is None and bool(above)
            seen.add([(str(number), text)])
    assert found > 80
    assert missed <= 1


def alike(one: str, other: str) -> float:
    return jaccard(shingles(one), shingles(other))


@pytest.mark.parametrize("size", [1, 7, 300])
def test_blocks_of_any_size_find_the_same(size: int, tmp_path: Path) -> None:
    source = random.Random(1)
    texts = [" ".join(source.choices(WORDS, k=6)) for _ in range(200)]
    rows = [(str(number), text) for number, text in enumerate(texts)]

    def twins(count: int) -> list[Twin | None]:
        with SimilarTexts(0.5, tmp_path) as seen:
            blocks = [rows[start : start + count] for start in range(0, len(rows), count)]
            return [twin for block in blocks for twin in seen.screen(block)]

    assert twins(size) == twins(50)


def texts_of_all_lengths(count: int, longest: int) -> list[str]:
    """Texts of which many are others with a word or two changed, some behind punctuation that means nothing."""
    source = random.Random(2)
    words = ["".join(source.choices("abcdefghijklmnopqrstuvwxyz", k=source.randint(2, 8))) for _ in range(150)]
    texts: list[str] = []
    for _ in range(count):
        if texts and source.random() < 0.5:
            changed = source.choice(texts).split()
            for _ in range(source.randint(0, 2)):
                changed[source.randrange(len(changed))] = source.choice(words)
            texts.append(" ".join(changed) + source.choice(["", "!", " yes"]))
        else:
            texts.append(" ".join(source.choices(words, k=source.randint(1, longest))))
    return texts


def first_twins(texts: list[str], threshold: float) -> list[Twin | None]:
    """What `screen` must find, by comparing every text with all that were kept before it."""
    kept: list[tuple[str, str, set[str]]] = []
    found: list[Twin | None] = []
    for number, text in enumerate(texts):
        mine, words = shingles(text), normalised(text)
        similar = [(words != other, name) for name, other, theirs in kept if jaccard(mine, theirs) >= threshold]
        twin = min(similar, default=None, key=lambda one: (one[0], int(one[1])))
        if twin is None:
            kept.append((str(number), words, mine))
        found.append(None if twin is None else Twin(twin[1], not twin[0]))
    return found


@pytest.mark.parametrize(
    ("threshold", "longest"), [(0.5, 12), (0.7, 12), (0.85, 12), (0.85, 160), (0.9, 160), (1.0, 160)]
)
def test_screening_finds_what_comparing_every_pair_finds(
    threshold: float, longest: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("IN_MEMORY", "MERGED", "PAIRS"):
        monkeypatch.setattr(postings, name, 37)  # so that keys are in files, merged and found in several parts
    texts = texts_of_all_lengths(300, longest)
    rows = [(str(number), text) for number, text in enumerate(texts)]
    with SimilarTexts(threshold, tmp_path, texts[::10]) as seen:
        found = [twin for start in range(0, len(rows), 90) for twin in seen.screen(rows[start : start + 90])]
    wanted = first_twins(texts, threshold)
    assert found == wanted
    assert 30 < sum(twin is not None for twin in wanted) < 270


def test_blocks_hold_so_many_rows_or_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seen_texts, "BLOCK", 3)
    monkeypatch.setattr(seen_texts, "BLOCK_CHARACTERS", 10)
    texts = ["a", "bb", "c", "d", "a" * 30, "e"]
    assert list(in_blocks(iter(texts), str)) == [["a", "bb", "c"], ["d", "a" * 30], ["e"]]


@given(st.lists(st.lists(st.integers(0, 2**32 - 1) | st.integers(0, 5), max_size=9), max_size=12), st.integers(2, 40))
def test_postings_find_every_text_with_the_same_key(
    tmp_path_factory: pytest.TempPathFactory, added: list[list[int]], size: int
) -> None:
    """Of keys added in any parts, held in memory or in files: each pair that shares one, and no other."""
    asked = [0, 3, 2**32 - 1, *(keys[0] for keys in added if keys)]
    folder = tmp_path_factory.mktemp("postings")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("IN_MEMORY", "MERGED", "PAIRS"):
            patch.setattr(postings, name, size)
        there = Postings(folder)
        for text, keys in enumerate(added):
            there.add(np.array(keys, dtype=np.uint32), np.full(len(keys), text))
        found = there.pairs(np.array(asked, dtype=np.uint32), np.arange(len(asked)))
        pairs = {pair for mine, theirs in found for pair in zip(mine.tolist(), theirs.tolist(), strict=True)}
    files = len(list(folder.iterdir()))
    there.close()
    assert pairs == {(one, text) for one, key in enumerate(asked) for text, keys in enumerate(added) if key in keys}
    assert files <= sum(map(len, added)).bit_length()


@pytest.mark.parametrize("threshold", [0.8, 0.85, 0.9, 0.95, 0.99, 1.0])
def test_long_texts_have_as_many_bands_as_their_threshold_needs(threshold: float) -> None:
    bands, size = banding(threshold)
    assert bands <= MOST_BANDS
    assert bands * size <= PERMUTATIONS
    assert (1 - threshold**size) ** bands <= LARGEST_MISS


@pytest.mark.parametrize("threshold", [0.0, 1e-200, 0.3])
def test_bands_for_low_thresholds_are_few_enough(threshold: float) -> None:
    assert banding(threshold) == (MOST_BANDS, 4)


def test_long_texts_of_the_same_common_words_share_hardly_a_key() -> None:
    """Else each of many texts is looked at for each of as many others."""
    source = random.Random(3)
    common = ["".join(source.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(150)]
    texts = [" ".join(source.choices(common, k=100)) for _ in range(400)]
    similar = sorted(jaccard(shingles(texts[0]), shingles(text)) for text in texts[1:])
    assert 0.15 < similar[200] < 0.4  # they are not so different
    (sketches,) = Sketcher(texts).sketch(texts, 0.85)
    there = Postings(Path())  # too few for a file
    there.add(sketches.keys, sketches.owners)
    pairs = sum(len(mine) for mine, _ in there.pairs(sketches.keys, sketches.owners))
    assert len(texts) <= pairs < 1.5 * len(texts)


def test_a_full_disk_stops_in_one_line(small_disk: Callable[[int], Path]) -> None:
    disk = small_disk(1 << 18)
    rows = [(str(one), f"{one * 7919} and {one * 104729}") for one in range(5000)]
    with SimilarTexts(0.9, disk) as seen, pytest.raises(Stopped, match=r"\(0 MB free\)"):
        seen.screen(rows)
    assert not list(disk.iterdir())
