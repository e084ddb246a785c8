"""What of an example is learnt, and how examples are put together into batches."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pico import CHAT_TEMPLATE, edited
from pico_lessons import example
from pico_recipe import PicoModels

from edgedistill.errors import InvalidInput
from edgedistill.records import Message
from edgedistill.students.batching import epoch_batches, padded_share
from edgedistill.students.encode import EncodedExample, Encoder

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


# -- what carries the loss


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(TEXT, TEXT)
def test_the_answer_and_the_token_that_ends_it_carry_the_loss(encoder: Encoder, question: str, answer: str) -> None:
    row = encoder.example(example(1, question, answer))
    before = encoder.template.render([Message("system", ""), Message("user", question)])
    assert list(row.tokens[: row.start]) == encoder.ids(before)
    assert list(row.tokens[row.start :]) == encoder.ids(f"{answer}<|im_end|>")
    assert row.tokens[-1] == encoder.ids("<|im_end|>")[0]
    assert row.start < len(row.tokens)


def test_what_is_trained_is_what_is_asked_later(encoder: Encoder) -> None:
    row = encoder.example(example(1, "\n light", "on"))
    assert encoder.prompt((Message("system", ""), Message("user", "\n light"))) == list(row.tokens[: row.start])


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (
            CHAT_TEMPLATE.replace("message['content']", "(message['content'] if loop.last else 'old')"),
            "rewrites the prompt",
        ),
        (CHAT_TEMPLATE.replace("<|im_end|>", ""), "without a special token"),
    ],
)
def test_a_template_that_cannot_be_trained_with_is_refused(
    models: PicoModels, tmp_path: Path, template: str, words: str
) -> None:
    pytest.importorskip("tokenizers")
    folder = Path(shutil.copytree(models.student, tmp_path / "student"))
    edited(folder, "tokenizer_config.json", lambda config: config.update(chat_template=template))
    with pytest.raises(InvalidInput, match=words):
        Encoder(folder).example(example(1, "light", "on"))


def test_a_folder_without_tokenizer_or_template_is_refused(models: PicoModels, tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    folder = Path(shutil.copytree(models.student, tmp_path / "student"))
    edited(folder, "tokenizer_config.json", lambda config: config.pop("chat_template"))
    with pytest.raises(InvalidInput, match="no chat template"):
        Encoder(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(InvalidInput, match=r"no tokenizer\.json"):
        Encoder(folder)


# -- batches


LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=50)


@given(LENGTHS, st.integers(1, 9), st.integers(0, 5))
def test_every_row_is_in_one_batch_an_epoch(lengths: list[int], size: int, seed: int) -> None:
    rows = [EncodedExample(str(n), (0,) * length, 0) for n, length in enumerate(lengths)]
    batches = epoch_batches(rows, size, seed)
    assert sorted(index for batch in batches for index in batch) == list(range(len(rows)))
    assert sum(len(batch) < size for batch in batches) <= 1
    assert batches == epoch_batches(rows, size, seed)


@given(LENGTHS, st.integers(1, 9))
def test_batches_of_like_length_hold_little_padding(lengths: list[int], size: int) -> None:
    rows = [EncodedExample(str(n), (0,) * length, 0) for n, length in enumerate(lengths)]
    batches = epoch_batches(rows, size, 0)
    cells = sum(len(batch) * max(lengths[index] for index in batch) for batch in batches)
    assert cells - sum(lengths) <= size * (max(lengths) - min(lengths))
    assert padded_share(rows, batches) == pytest.approx(1 - sum(lengths) / cells)
