"""Two tokenizers are the same where equal texts have equal ids: not by name, not by size."""

from __future__ import annotations

import json
import unicodedata
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from pico import CHAT_TEMPLATE, WORDS, edited, pico_hf_folder, pico_tokenizer, reconfigured, written
from required import required_or_skipped

from edgedistill.chat import ChatTemplate
from edgedistill.llamacpp import pretokenizers
from edgedistill.students.same_tokenizer import PROBES, Difference, answer_end, difference, probe_texts
from edgedistill.students.tokens import FolderTokens, opened_tokens

pytest.importorskip("tokenizers")

TEMPLATE = ChatTemplate(CHAT_TEMPLATE)


def folder_with(path: Path, tokenizer: dict[str, Any]) -> FolderTokens:
    """A pico folder with another tokenizer."""
    return FolderTokens(edited(pico_hf_folder(path), "tokenizer.json", lambda old: old.update(tokenizer)))


def compared(one: FolderTokens, other: FolderTokens, prompts: tuple[str, ...] = ()) -> Difference | None:
    return difference(one.ids, other.ids, probe_texts(other.template, prompts))


def test_a_padded_vocabulary_is_the_same_tokenizer(tmp_path: Path) -> None:
    required_or_skipped("llamacpp", ("llama_cpp",))
    folder = pico_hf_folder(tmp_path / "student")
    padded = reconfigured(pico_hf_folder(tmp_path / "teacher"), lambda config: config.update(vocab_size=512))
    with opened_tokens(written(padded).path) as teacher, opened_tokens(folder) as student:
        assert difference(teacher.ids, student.ids, probe_texts(student.template, ["turn on the light"])) is None
        assert student.ends == {2} <= teacher.ends
        assert teacher.template.source == student.template.source
        assert len(teacher.pieces) == 512 > len(student.pieces)
        assert teacher.pieces[: len(student.pieces)] == student.pieces


def test_two_vocabularies_of_one_size_are_different_ones(tmp_path: Path) -> None:
    one = folder_with(tmp_path / "one", pico_tokenizer(words=WORDS))
    other = folder_with(tmp_path / "other", pico_tokenizer(words=tuple(reversed(WORDS))))
    assert len(one.pieces) == len(other.pieces)
    assert compared(one, other, ("turn on the kitchen light",)) is not None


def test_a_vocabulary_that_only_the_own_prompts_tell_apart_is_told_apart(tmp_path: Path) -> None:
    one = folder_with(tmp_path / "one", pico_tokenizer(words=(*WORDS, "zzyzx")))
    other = folder_with(tmp_path / "other", pico_tokenizer(words=(*WORDS, "zzyzy")))
    assert compared(one, other) is None
    found = compared(one, other, ("turn on", "go to zzyzx", "go to zzyzy"))
    assert found is not None
    assert found.text == "go to zzyzx"


def test_another_end_of_the_answer_is_another_tokenizer(tmp_path: Path) -> None:
    def swapped(tokenizer: dict[str, Any]) -> None:
        """The ids of <|endoftext|> and <|im_end|> change places."""
        for entry in tokenizer["added_tokens"]:
            entry["id"] = {0: 2, 2: 0}.get(entry["id"], entry["id"])
        vocab = tokenizer["model"]["vocab"]
        vocab["<|endoftext|>"], vocab["<|im_end|>"] = 2, 0

    one = FolderTokens(pico_hf_folder(tmp_path / "one"))
    other = FolderTokens(edited(pico_hf_folder(tmp_path / "other"), "tokenizer.json", swapped))
    found = compared(one, other)
    assert found is not None
    assert found.text == "Yes.<|im_end|>\n"
    assert difference(one.ids, other.ids, PROBES) is None


def test_the_corpus_tells_every_pre_tokenizer_from_every_other() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    # a vocabulary whose merges go over all borders, so that only the rules of splitting hold them back
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trained = tokenizers.Tokenizer(tokenizers.models.BPE())
    trained.pre_tokenizer = byte_level
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=4000, min_frequency=1, initial_alphabet=alphabet, show_progress=False
    )
    trained.train_from_iterator(PROBES, trainer)
    spelled = json.loads(trained.to_str())
    made = {}
    for row in {json.dumps(row.as_json()): row for row in pretokenizers.PRE_TOKENIZERS}.values():  # some split alike
        spelled["pre_tokenizer"] = row.as_json()
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(spelled))
        made[row.name] = [tokenizer.encode(text).ids for text in PROBES]
    alike = [(one, other) for one, other in combinations(made, 2) if made[one] == made[other]]
    assert not alike


def test_the_corpus_is_composed_and_has_nothing_twice() -> None:
    assert [text for text in PROBES if unicodedata.normalize("NFC", text) != text] == []
    assert len(set(PROBES)) == len(PROBES) >= 60


def test_own_prompts_are_composed_shortened_and_not_all_taken() -> None:
    texts = probe_texts(TEMPLATE, (f"e\u0301{number}" + "x" * 9000 for number in range(10_000)))
    own = texts[len(PROBES) : -1]
    assert len(own) == 200
    assert own[7].startswith("\u00e97x")
    assert max(map(len, own)) == 2000
    assert texts[-1] == f"Yes.{answer_end(TEMPLATE)}" == "Yes.<|im_end|>\n"


def test_a_difference_is_told_in_one_short_line() -> None:
    assert str(Difference("  42", (220, 19, 17), (256, 2983))) == "'  42' is [220, 19, 17] and [256, 2983]"
    late = Difference("a\n" * 30, (*range(20), 7, *[9] * 20), (*range(20), 8, 9))
    shown = "a\\n" * 18 + "a..."
    assert str(late) == f"'{shown}' is [..., 19, 7, 9, 9, 9, 9, 9, 9, ...] and [..., 19, 8, 9]"


@pytest.mark.slow
def test_qwen_of_two_sizes_is_one_tokenizer_and_smollm_another() -> None:
    from edgedistill.models import fetch

    names = ("qwen2.5-coder-1.5b-instruct", "qwen2.5-coder-0.5b-instruct", "smollm2-135m-instruct")
    paths = [fetch(name, ("gguf",), False, lambda what, done, total: None).path for name in names]
    with opened_tokens(paths[0]) as teacher, opened_tokens(paths[1]) as like, opened_tokens(paths[2]) as unlike:
        assert difference(teacher.ids, like.ids, probe_texts(like.template, ())) is None
        found = difference(teacher.ids, unlike.ids, probe_texts(unlike.template, ()))
    assert found is not None
