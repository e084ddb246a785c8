"""A byte-level BPE vocabulary: read from a Hugging Face folder or a GGUF, written as the other.

Both sides hold the same things under other names. Ordinary tokens are spelled in GPT-2's byte alphabet on both sides;
added ones (`<|im_start|>`) in plain text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import GateMissed, InvalidInput
from ..records import read_json
from .pretokenizers import PreTokenizer, by_name, by_structure

if TYPE_CHECKING:
    from gguf import GGUFWriter

__all__ = ["Vocabulary", "add_to_gguf", "from_folder", "from_metadata", "tokenizer_files"]

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Token types of the GGUF specification."""

ROLES = ("bos", "eos", "unk", "pad")
GGUF_ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
CHECKOUT = "Use llama.cpp's own converter: --llama-cpp PATH, the folder of a llama.cpp checkout."


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The tokens in the order of their ids, and how text becomes them."""

    tokens: list[str]
    types: list[int]
    merges: list[tuple[str, str]]
    pre: PreTokenizer
    ids: dict[str, int]
    """The ids of bos, eos, unk and pad, as far as there are such tokens."""
    add_bos: bool | None = None
    """Whether every text begins with bos; None where the source does not say."""
    add_eos: bool | None = None
    chat_template: str | None = None


def from_folder(folder: Path, size: int) -> Vocabulary:
    """The vocabulary of a Hugging Face folder, padded with unused tokens up to `size`, the rows of the embedding.

    Raises GateMissed where llama.cpp would read text as other tokens, InvalidInput where a file does not hold.
    """
    path = folder / "tokenizer.json"
    tokenizer = read_json(path)
    settings = read_json(folder / "tokenizer_config.json", required=False)
    model = _byte_level_model(path, tokenizer)
    added = {entry["id"]: entry for entry in tokenizer.get("added_tokens") or []}
    spelled = {number: token for token, number in model["vocab"].items()}
    spelled.update({number: entry["content"] for number, entry in added.items()})
    if spelled and max(spelled) >= size:
        raise InvalidInput(
            f"{path}: token id {max(spelled)} is past the embedding's {size} rows", "Resize the model's embeddings."
        )
    tokens = [spelled.get(number, f"[PAD{number}]") for number in range(size)]
    if len(set(tokens)) != size:
        raise InvalidInput(f"{path}: a token is there under two ids", "Fetch the file again.")
    ids = _special_ids(folder, settings, {entry["content"]: number for number, entry in added.items()}, size)
    add_bos, add_eos = _added_around(path, tokenizer, settings, {role: tokens[number] for role, number in ids.items()})
    return Vocabulary(
        tokens=tokens,
        types=[_type(number, spelled, added) for number in range(size)],
        merges=[_merge(path, merge) for merge in model["merges"]],
        pre=by_structure(tokenizer),
        ids=ids,
        add_bos=add_bos,
        add_eos=add_eos,
        chat_template=_chat_template(folder, settings),
    )


def _byte_level_model(path: Path, tokenizer: dict[str, Any]) -> dict[str, Any]:
    model: dict[str, Any] = tokenizer.get("model") or {}
    decoder = (tokenizer.get("decoder") or {}).get("type")
    if model.get("type", "BPE") != "BPE" or not model.get("vocab") or model.get("byte_fallback"):
        raise GateMissed(f"{path}: not a byte-level BPE tokenizer ({model.get('type')})", CHECKOUT)
    if decoder != "ByteLevel":
        raise GateMissed(f"{path}: the decoder is {decoder}, not ByteLevel", CHECKOUT)
    # llama.cpp does not normalize; NFC changes rare texts only, and its converter drops it for Qwen too.
    normalizer = (tokenizer.get("normalizer") or {"type": "NFC"}).get("type")
    if normalizer != "NFC":
        raise GateMissed(f"{path}: llama.cpp has no normalizer {normalizer}", CHECKOUT)
    added = tokenizer.get("added_tokens") or []
    if (
        not _numbered(model["vocab"])
        or not isinstance(model.get("merges"), list)
        or not isinstance(added, list)
        or not all(isinstance(entry, dict) and _numbered({entry.get("content"): entry.get("id")}) for entry in added)
    ):
        raise InvalidInput(f"{path}: its vocab, merges or added_tokens are not of the form", "Fetch the file again.")
    return model


def _numbered(value: Any) -> bool:
    """Whether this is an object of token -> id."""
    if not isinstance(value, dict):
        return False
    return all(isinstance(token, str) and type(number) is int and number >= 0 for token, number in value.items())


def _type(number: int, spelled: dict[int, str], added: dict[int, Any]) -> int:
    if number not in spelled:
        return UNUSED
    if number not in added:
        return NORMAL
    special = added[number].get("special") or _looks_special(spelled[number])
    return CONTROL if special else USER_DEFINED


def _looks_special(token: str) -> bool:
    """Added tokens that are control tokens in all but their mark; the rule of llama.cpp's converter."""
    return token in ("<pad>", "<mask>") or (token.startswith("<|") and token.endswith("|>"))


def _merge(path: Path, merge: Any) -> tuple[str, str]:
    """One merge, from either of its two spellings: "a b" or ["a", "b"]."""
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) and part for part in parts):
        raise InvalidInput(f"{path}: {merge!r} is no merge", "Fetch the file again.")
    if any(" " in part for part in parts):
        raise GateMissed(f"{path}: the merge {merge!r} holds a space, so this is no byte-level BPE", CHECKOUT)
    return parts[0], parts[1]


def _special_ids(folder: Path, settings: dict[str, Any], added: dict[str, int], size: int) -> dict[str, int]:
    """Ids of the special tokens: tokenizer_config's where they are added tokens, else config's, else generation's."""
    configs = [read_json(folder / name, required=False) for name in ("config.json", "generation_config.json")]
    ids = {}
    for role in ROLES:
        token = settings.get(f"{role}_token")
        token = token.get("content") if isinstance(token, dict) else token
        candidates: list[Any] = [added.get(token) if isinstance(token, str) else None]
        for config in configs:
            found = config.get(f"{role}_token_id")
            candidates.append(found[0] if isinstance(found, list) and found else found)
        number = next((found for found in candidates if type(found) is int and 0 <= found < size), None)
        if number is not None:
            ids[role] = number
    return ids


def _added_around(
    path: Path, tokenizer: dict[str, Any], settings: dict[str, Any], special: dict[str, str]
) -> tuple[bool | None, bool | None]:
    """Whether bos and eos are put around every text: the post-processor says, else tokenizer_config.

    Raises GateMissed where other tokens than these are put there.
    """
    add_bos, add_eos = settings.get("add_bos_token"), settings.get("add_eos_token")
    processor = tokenizer.get("post_processor") or {}
    steps = processor.get("processors", [processor]) if processor else []
    for step in steps:
        if step.get("type") == "TemplateProcessing" and any("Sequence" in part for part in step.get("single") or []):
            single = [part.get("SpecialToken", {}).get("id") for part in step.get("single") or []]
            before, after = single[: single.index(None)], single[single.index(None) + 1 :]
            if before not in ([], [special.get("bos")]) or after not in ([], [special.get("eos")]):
                raise GateMissed(f"{path}: llama.cpp cannot put {single} around a text", CHECKOUT)
            return bool(before), bool(after)
    if steps:
        return False, False
    return (add_bos if isinstance(add_bos, bool) else None), (add_eos if isinstance(add_eos, bool) else None)


def _chat_template(folder: Path, settings: dict[str, Any]) -> str | None:
    """The template that transformers uses: the file of its own first, then the one in tokenizer_config."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def add_to_gguf(vocabulary: Vocabulary, writer: GGUFWriter) -> None:
    """Put the vocabulary into a GGUF's metadata."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre.name)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.merges:
        writer.add_token_merges([" ".join(merge) for merge in vocabulary.merges])
    adders: dict[str, Callable[[int], None]] = {
        "bos": writer.add_bos_token_id,
        "eos": writer.add_eos_token_id,
        "unk": writer.add_unk_token_id,
        "pad": writer.add_pad_token_id,
    }
    for role, number in vocabulary.ids.items():
        adders[role](number)
    writer.add_add_bos_token(bool(vocabulary.add_bos))
    if vocabulary.add_eos is not None:
        writer.add_add_eos_token(vocabulary.add_eos)
    if vocabulary.chat_template:
        writer.add_chat_template(vocabulary.chat_template)


def from_metadata(path: Path, metadata: dict[str, Any]) -> Vocabulary:
    """The vocabulary in a GGUF's metadata; `path` is named in errors.

    Raises InvalidInput where it is of another kind, or where its parts do not fit together.
    """
    model = metadata.get("tokenizer.ggml.model")
    if model != "gpt2":
        raise InvalidInput(f"{path}: no importer for tokenizer '{model}'; there is one for 'gpt2' (byte-level BPE)")
    tokens, merges = metadata.get("tokenizer.ggml.tokens"), metadata.get("tokenizer.ggml.merges", [])
    if not _texts(tokens) or not _texts(merges) or not tokens:
        raise InvalidInput(f"{path}: the GGUF holds no list of tokens and merges", "Fetch the file again.")
    types = metadata.get("tokenizer.ggml.token_type", [NORMAL] * len(tokens))
    if not isinstance(types, list) or len(types) != len(tokens) or len(set(tokens)) != len(tokens):
        raise InvalidInput(f"{path}: the tokens repeat, or have not one type each", "Fetch the file again.")
    known = {token for token, kind in zip(tokens, types, strict=True) if kind != UNUSED}
    pre = by_name(str(metadata.get("tokenizer.ggml.pre", "default")))
    ids = {role: metadata.get(f"tokenizer.ggml.{name}_token_id") for role, name in GGUF_ROLES.items()}
    template = metadata.get("tokenizer.chat_template")
    return Vocabulary(
        tokens=tokens,
        types=types,
        merges=[_gguf_merge(path, merge, known) for merge in merges],
        pre=pre,
        ids={role: number for role, number in ids.items() if type(number) is int and 0 <= number < len(tokens)},
        add_bos=bool(metadata.get("tokenizer.ggml.add_bos_token", pre.adds_bos)),
        add_eos=bool(metadata.get("tokenizer.ggml.add_eos_token", False)),
        chat_template=template if isinstance(template, str) else None,
    )


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _gguf_merge(path: Path, merge: str, known: set[str]) -> tuple[str, str]:
    first, _, second = merge.partition(" ")
    if not {first, second, first + second} <= known:
        raise InvalidInput(f"{path}: {merge!r} is no merge", "Fetch the file again.")
    return first, second


def tokenizer_files(vocabulary: Vocabulary, context: int) -> dict[str, dict[str, Any]]:
    """tokenizer.json and tokenizer_config.json, by file name; `context` is the longest input in tokens."""
    texts = {role: vocabulary.tokens[number] for role, number in vocabulary.ids.items()}
    added = [
        _added_token(number, token, kind)
        for number, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True))
        if kind in (CONTROL, USER_DEFINED, UNKNOWN)
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": vocabulary.pre.as_json(),
        "post_processor": _post_processor(vocabulary, byte_level),
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": vocabulary.pre.ignore_merges,
            "vocab": {
                token: number for number, token in enumerate(vocabulary.tokens) if vocabulary.types[number] != UNUSED
            },
            "merges": [list(merge) for merge in vocabulary.merges],
        },
    }
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
    return {"tokenizer.json": tokenizer, "tokenizer_config.json": settings}


def _added_token(number: int, token: str, kind: int) -> dict[str, Any]:
    return {
        "id": number,
        "content": token,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": kind != USER_DEFINED,
    }


def _post_processor(vocabulary: Vocabulary, byte_level: dict[str, Any]) -> dict[str, Any]:
    """What is put around a text: nothing, or bos and eos."""
    around = [vocabulary.ids.get("bos") if vocabulary.add_bos else None]
    around.append(vocabulary.ids.get("eos") if vocabulary.add_eos else None)
    if around == [None, None]:
        return byte_level
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
    return {"type": "Sequence", "processors": [byte_level, template]}
