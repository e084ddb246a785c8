"""Byte-level BPE vocabularies on their way into a GGUF, and those that llama.cpp would read otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pico import (
    SPECIAL,
    Edit,
    edited,
    pico_gguf,
    pico_hf_folder,
    reconfigured,
    written,
)

from edgedistill.errors import GateMissed, InvalidInput
from edgedistill.llamacpp import pretokenizers, vocabulary


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
@pytest.mark.parametrize("tied", [True, False])
def test_llama_cpp_tokenizes_as_the_tokenizer_json(tmp_path: Path, architecture: str, tied: bool) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    tokenizers = pytest.importorskip("tokenizers")
    gguf = pico_gguf(tmp_path / "m.gguf", architecture, tied)
    model = llama_cpp.Llama(str(gguf), n_ctx=64, verbose=False)
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "m-hf" / "tokenizer.json"))
    text = "hello world, turn on\n\n  the light<|im_end|> 123 Üñï 😀"
    assert model.tokenize(text.encode(), add_bos=False, special=True) == tokenizer.encode(text).ids
    assert model.create_completion("hello", max_tokens=2)["usage"]["completion_tokens"] >= 1


def add_tokens(tokenizer: dict[str, Any]) -> None:
    first = len(tokenizer["model"]["vocab"])
    for number, (content, special) in enumerate([("<tool>", False), ("<|tool|>", False), ("ünï x", True)]):
        entry = {**tokenizer["added_tokens"][0], "id": first + number, "content": content, "special": special}
        tokenizer["added_tokens"].append(entry)


def test_added_tokens_have_their_type_and_the_padding_is_unused(tmp_path: Path) -> None:
    folder = reconfigured(pico_hf_folder(tmp_path / "m"), lambda c: c.update(vocab_size=320))
    metadata = written(edited(folder, "tokenizer.json", add_tokens)).metadata
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    kinds = dict(zip(tokens, types, strict=True))
    assert [kinds[token] for token in SPECIAL] == [vocabulary.CONTROL] * 3
    assert kinds["Ġthe"] == vocabulary.NORMAL
    assert (kinds["<tool>"], kinds["<|tool|>"], kinds["ünï x"]) == (4, 3, 3)  # <|...|> is control in all but its mark
    assert len(tokens) == 320
    assert tokens[-1] == "[PAD319]"
    assert types[-1] == vocabulary.UNUSED


def test_merges_in_both_spellings_give_the_same_file(tmp_path: Path) -> None:
    def as_texts(tokenizer: dict[str, Any]) -> None:
        tokenizer["model"]["merges"] = [" ".join(merge) for merge in tokenizer["model"]["merges"]]

    pairs = written(pico_hf_folder(tmp_path / "pairs"))
    texts = written(edited(pico_hf_folder(tmp_path / "texts"), "tokenizer.json", as_texts))
    assert pairs.path.read_bytes() == texts.path.read_bytes()


def bos_first(tokenizer: dict[str, Any], token: str = "<|im_start|>") -> None:
    single = [{"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    template = {"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": {}}
    tokenizer["post_processor"] = {"type": "Sequence", "processors": [tokenizer["post_processor"], template]}


def test_a_first_token_of_the_post_processor_is_written(tmp_path: Path) -> None:
    found = written(edited(pico_hf_folder(tmp_path / "m"), "tokenizer.json", bos_first)).metadata
    assert found["tokenizer.ggml.add_bos_token"] is True


@pytest.mark.parametrize(
    ("edit", "error", "word"),
    [
        (lambda t: t.update(normalizer={"type": "Lowercase"}), GateMissed, "Lowercase"),
        (lambda t: t.update(pre_tokenizer={"type": "Whitespace"}), GateMissed, "Whitespace"),
        (lambda t: t["pre_tokenizer"]["pretokenizers"][0].update(individual_digits=False), GateMissed, "Digits"),
        (lambda t: t["model"].update(ignore_merges=True), GateMissed, "ignore_merges true"),
        (lambda t: t["model"].update(type="Unigram"), GateMissed, "Unigram"),
        (lambda t: t["model"].update(byte_fallback=True), GateMissed, "256 bytes are no token"),
        (lambda t: t.update(decoder={"type": "Metaspace"}), GateMissed, "Metaspace"),
        (lambda t: bos_first(t, "<|endoftext|>"), GateMissed, "around"),
        (lambda t: t["model"]["merges"].append("a b c"), InvalidInput, "no merge"),
        (lambda t: t["model"]["merges"].append(["a b", "c"]), GateMissed, "space"),
        (lambda t: t["model"]["vocab"].update(x=10**6), InvalidInput, "1000000"),
        (lambda t: t["model"]["vocab"].update(x="7"), InvalidInput, "not of the form"),
        (lambda t: t["added_tokens"].append({"content": "x"}), InvalidInput, "not of the form"),
    ],
)
def test_a_tokenizer_that_llama_cpp_would_read_otherwise_is_refused(
    tmp_path: Path, edit: Edit, error: type[Exception], word: str
) -> None:
    with pytest.raises(error, match=word):
        written(edited(pico_hf_folder(tmp_path / "m"), "tokenizer.json", edit))


@pytest.mark.parametrize("row", pretokenizers.PRE_TOKENIZERS, ids=lambda row: row.name)
def test_a_pre_tokenizer_is_known_by_its_rules(row: pretokenizers.PreTokenizer) -> None:
    model = {"ignore_merges": row.ignore_merges}
    assert pretokenizers.by_structure({"pre_tokenizer": row.as_json(), "model": model}) is row
    for name in (row.name, *row.also):
        assert pretokenizers.by_name(name) is row


def test_the_end_token_comes_from_wherever_it_is_given(tmp_path: Path) -> None:
    folder = pico_hf_folder(tmp_path / "m")
    edited(folder, "tokenizer_config.json", lambda c: c.update(eos_token={"content": "<|endoftext|>"}))
    assert written(folder).metadata["tokenizer.ggml.eos_token_id"] == 0
    edited(folder, "tokenizer_config.json", lambda c: c.pop("eos_token"))
    edited(folder, "config.json", lambda c: c.update(eos_token_id=[1, 0]))
    assert written(folder).metadata["tokenizer.ggml.eos_token_id"] == 1
    edited(folder, "config.json", lambda c: c.pop("eos_token_id"))
    assert written(folder).metadata["tokenizer.ggml.eos_token_id"] == 2


def test_the_template_of_its_own_file_wins(tmp_path: Path) -> None:
    folder = pico_hf_folder(tmp_path / "m")
    (folder / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    assert written(folder).metadata["tokenizer.chat_template"] == "{{ messages }}"
