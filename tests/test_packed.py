"""Encoded examples in files: the same as in memory, rebuilt where anything is missing or has changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pico import pico_hf_folder

from edgedistill.errors import InvalidInput
from edgedistill.recipe import Recipe
from edgedistill.records import json_lines
from edgedistill.run import Run
from edgedistill.stages.taught import TaughtRows
from edgedistill.students.batching import epoch_batches, padded_share
from edgedistill.students.encode import EncodedExample, Encoder
from edgedistill.students.packed import PackedExamples, packed

ANSWER = st.lists(st.integers(0, 2**32 - 1), max_size=3).map(tuple)
EXAMPLES = st.lists(
    st.builds(
        EncodedExample,
        st.text("0123456789abcdef", max_size=32),
        st.lists(st.integers(0, 2**32 - 1), max_size=9).map(tuple),
        st.integers(0, 2**32 - 1),
        st.text("0123456789abcdef", max_size=4),
        st.lists(
            st.tuples(st.lists(st.integers(0, 2**32 - 1), max_size=3).map(tuple), st.floats(0, 1)), max_size=3
        ).map(tuple),
    ),
    max_size=12,
)


@pytest.fixture
def encoder(tmp_path: Path) -> Encoder:
    pytest.importorskip("tokenizers")
    return Encoder(pico_hf_folder(tmp_path / "base"))


def recipe(**train: int) -> Recipe:
    return Recipe.model_validate(
        {"name": "packed", "teacher": {"model": "t"}, "student": {"model": "s", "system": "Be brief."}, "train": train}
    )


def encoded(encoder: Encoder, path: Path, settings: Recipe) -> PackedExamples:
    with TaughtRows(settings, Run(path.parent.parent), encoder) as rows:
        return rows.examples(path.stem)


def rows_of(folder: Path, *questions: str) -> Path:
    path = folder / "curate" / "train.jsonl"
    path.parent.mkdir(exist_ok=True)
    turns = ([{"role": "user", "content": one}, {"role": "assistant", "content": "yes"}] for one in questions)
    path.write_bytes(json_lines({"messages": one, "_ed": {"id": f"row{n}"}} for n, one in enumerate(turns)))
    return path


def forbidden() -> Iterator[EncodedExample]:
    raise AssertionError("made again")
    yield


@given(EXAMPLES)
def test_examples_come_back_as_they_were_and_are_not_made_again(
    tmp_path_factory: pytest.TempPathFactory, examples: list[EncodedExample]
) -> None:
    folder = tmp_path_factory.mktemp("packed") / "rows" / "key"
    for source in (iter(examples), forbidden()):
        found = packed(folder, source)
        assert list(found) == examples == found[:]
        assert found.lengths.tolist() == [len(one.tokens) for one in examples]
    assert [item.name for item in folder.parent.iterdir()] == ["key"]


def test_batches_of_packed_examples_are_those_of_a_list(tmp_path: Path) -> None:
    examples = [EncodedExample(str(n), (1,) * (n * 7 % 13), 0) for n in range(1, 40)]
    found = packed(tmp_path / "rows" / "key", iter(examples))
    batches = epoch_batches(examples, 4, seed=3)
    assert epoch_batches(found, 4, seed=3) == batches
    assert padded_share(found, batches) == padded_share(examples, batches)


@pytest.mark.parametrize("name", ["tokens.u32", "lengths.u32", "starts.u32", "ids.s32", "more.u32"])
def test_what_is_not_whole_is_made_again(tmp_path: Path, name: str) -> None:
    examples = [EncodedExample(str(n), (1, 2, 3), 1) for n in range(5)]
    folder = tmp_path / "rows" / "key"
    packed(folder, iter(examples))
    for damage in (lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:-3])):
        damage(folder / name)
        assert list(packed(folder, iter(examples))) == examples


def test_an_error_half_way_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        packed(tmp_path / "rows" / "key", forbidden())
    assert not list((tmp_path / "rows").iterdir())


def test_rows_are_encoded_once_and_again_when_anything_changes(tmp_path: Path, encoder: Encoder) -> None:
    path, scratch = rows_of(tmp_path, "light on", "light off"), tmp_path / ".cache" / "tokens"

    def made(settings: Recipe) -> tuple[str, int]:
        found = encoded(encoder, path, settings)
        (folder,) = (scratch / "train").iterdir()
        return folder.name, len(found)

    first = made(recipe())
    assert made(recipe()) == first
    assert made(recipe(max_length=500))[0] != first[0]
    rows_of(tmp_path, "light on", "light off", "light on, please")
    assert made(recipe())[1] == 3


def test_the_tokens_are_those_of_the_conversation_behind_the_students_system_text(
    tmp_path: Path, encoder: Encoder
) -> None:
    found = encoded(encoder, rows_of(tmp_path, "light on"), recipe())
    text = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nlight on<|im_end|>\n<|im_start|>assistant\n"
    before, whole = encoder.ids(text), encoder.ids(f"{text}yes<|im_end|>")
    assert list(found) == [EncodedExample("row0", tuple(whole), len(before))]


def test_a_row_that_is_too_long_is_named_and_nothing_is_kept(tmp_path: Path, encoder: Encoder) -> None:
    path = rows_of(tmp_path, "short", "long " * 50)
    with pytest.raises(InvalidInput, match=r"row row1 has \d+ tokens, train.max_length is 60"):
        encoded(encoder, path, recipe(max_length=60))
    assert not list((tmp_path / ".cache" / "tokens" / "train").iterdir())
    shutil.rmtree(tmp_path / ".cache")
    assert len(encoded(encoder, path, recipe(max_length=600))) == 2
    assert json.loads(path.read_text().splitlines()[0])["_ed"]["id"] == "row0"
