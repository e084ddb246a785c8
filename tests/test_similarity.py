"""Texts that say nearly the same are found, and texts that do not are left alone."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgedistill.similarity import SimilarTexts, jaccard, normalised, shingles

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
def test_case_spacing_punctuation_and_unicode_forms_make_no_difference(one: str, other: str) -> None:
    seen = SimilarTexts(0.9)
    seen.add("first", one)
    assert seen.exact(other) == "first"
    assert seen.near(other) == "first"


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
def test_texts_that_mean_something_else_are_left_alone(one: str, other: str) -> None:
    seen = SimilarTexts(0.9)
    seen.add("first", one)
    assert seen.exact(other) is None
    assert seen.near(other) is None


def test_the_first_text_of_the_same_words_is_named() -> None:
    seen = SimilarTexts(0.9)
    for number in range(3):
        seen.add(str(number), "the very same words")
    assert seen.exact("The very same words.") == "0"


def test_near_texts_above_the_threshold_are_found_and_none_below_it() -> None:
    """Against comparing every pair: nothing below the threshold is ever named, and hardly one above it is missed."""
    source = random.Random(0)
    texts = [" ".join(source.choices(WORDS, k=9)) for _ in range(120)]
    texts += [f"{text} {source.choice(WORDS)}" for text in texts]
    seen = SimilarTexts(0.7)
    found = missed = 0
    for number, text in enumerate(texts):
        above = {str(i) for i, other in enumerate(texts[:number]) if jaccard(shingles(text), shingles(other)) >= 0.7}
        twin = seen.near(text)
        assert twin is None or twin in above
        found += twin is not None
        missed += twin is None and bool(above)
        seen.add(str(number), text)
    assert found > 80
    assert missed <= 1


def test_the_same_texts_are_found_in_every_run() -> None:
    source = random.Random(1)
    texts = [" ".join(source.choices(WORDS, k=6)) for _ in range(200)]

    def twins() -> list[str | None]:
        seen = SimilarTexts(0.5)
        found = []
        for number, text in enumerate(texts):
            found.append(seen.near(text))
            seen.add(str(number), text)
        return found

    assert twins() == twins()
