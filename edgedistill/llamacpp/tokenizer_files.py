"""A vocabulary as the files of a Hugging Face folder: tokenizer.json, tokenizer_config.json, tokenizer.model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from .sentencepiece import SPACE, Piece, model_file
from .vocabulary import CONTROL, ROLES, UNKNOWN, UNUSED, USER_DEFINED, Vocabulary

__all__ = ["tokenizer_files"]


def tokenizer_files(vocabulary: Vocabulary, context: int) -> dict[str, bytes]:
    """The files by name; `context` is the longest input in tokens."""
    texts = {role: vocabulary.tokens[vocabulary.ids[role]] for role in ROLES if role in vocabulary.ids}
    added = [
        _added_token(vocabulary, number)
        for number, kind in enumerate(vocabulary.types)
        if kind in (CONTROL, USER_DEFINED, UNKNOWN)
    ]
    tokenizer: dict[str, Any] = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added}
    tokenizer |= _sentencepiece(vocabulary) if vocabulary.model == "llama" else _byte_level(vocabulary)
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": bool(vocabulary.add_bos),
        "add_eos_token": bool(vocabulary.add_eos),
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
        **{f"{role}_token": text for role, text in texts.items()},
    }
    if vocabulary.chat_template:
        settings["chat_template"] = vocabulary.chat_template
    files = {"tokenizer.json": _json(tokenizer)}
    if vocabulary.model == "llama":  # llama.cpp's converter looks for added tokens there
        settings["added_tokens_decoder"] = {str(entry.pop("id")): entry for entry in map(dict, added)}
        files["tokenizer.model"] = model_file(list(_pieces(vocabulary)), vocabulary.space_prefix)
    return files | {"tokenizer_config.json": _json(settings)}


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"


def _byte_level(vocabulary: Vocabulary) -> dict[str, Any]:
    byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    return {
        "normalizer": None,
        "pre_tokenizer": vocabulary.pre.as_json(),
        "post_processor": _post_processor(vocabulary, [byte_level]),
        "decoder": byte_level,
        "model": _bpe(vocabulary, ignore_merges=vocabulary.pre.ignore_merges),
    }


def _sentencepiece(vocabulary: Vocabulary) -> dict[str, Any]:
    """As transformers converts it: the space before a text, the mark for spaces, bytes for what is in no token."""
    normalizers: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": " "}, "content": SPACE}]
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if vocabulary.space_prefix:
        normalizers.insert(0, {"type": "Prepend", "prepend": SPACE})
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    unknown = vocabulary.tokens[vocabulary.ids["unk"]]
    return {
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "post_processor": _post_processor(vocabulary, []),
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": _bpe(vocabulary, unk_token=unknown, fuse_unk=True, byte_fallback=True),
    }


def _bpe(vocabulary: Vocabulary, **settings: Any) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        **settings,
        "vocab": {
            token: number for number, token in enumerate(vocabulary.tokens) if vocabulary.types[number] != UNUSED
        },
        "merges": [list(merge) for merge in vocabulary.merges],
    }


def _pieces(vocabulary: Vocabulary) -> Iterator[Piece]:
    """What tokenizer.model holds; the padding at its end is left out."""
    kinds = vocabulary.types
    used = max((number for number, kind in enumerate(kinds) if kind != UNUSED), default=-1) + 1
    for number in range(used):
        kind = CONTROL if kinds[number] == UNKNOWN else kinds[number]  # SentencePiece has one unknown token
        kind = UNKNOWN if number == vocabulary.ids["unk"] else kind
        yield Piece(vocabulary.tokens[number], vocabulary.scores[number], kind)


def _added_token(vocabulary: Vocabulary, number: int) -> dict[str, Any]:
    kind = vocabulary.types[number]
    return {
        "id": number,
        "content": vocabulary.tokens[number],
        "single_word": False,
        "lstrip": False,
        "rstrip": number in vocabulary.swallowing,
        "normalized": False,
        "special": kind != USER_DEFINED,
    }


def _post_processor(vocabulary: Vocabulary, steps: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The given steps, then what is put around a text: nothing, or bos and eos."""
    around = [vocabulary.ids.get("bos") if vocabulary.add_bos else None]
    around.append(vocabulary.ids.get("eos") if vocabulary.add_eos else None)
    if around == [None, None]:
        return steps[0] if steps else None
    first, last = (None if number is None else vocabulary.tokens[number] for number in around)

    def wrapped(sequence: str, kind: int) -> list[dict[str, Any]]:
        parts = [{"SpecialToken": {"id": token, "type_id": kind}} if token else None for token in (first, last)]
        return [part for part in (parts[0], {"Sequence": {"id": sequence, "type_id": kind}}, parts[1]) if part]

    special = {
        token: {"id": token, "ids": [number], "tokens": [token]}
        for token, number in zip((first, last), around, strict=True)
        if token
    }
    template = {
        "type": "TemplateProcessing",
        "single": wrapped("A", 0),
        "pair": wrapped("A", 0) + wrapped("B", 1),
        "special_tokens": special,
    }
    return {"type": "Sequence", "processors": [*steps, template]}
