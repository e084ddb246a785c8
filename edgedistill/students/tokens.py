"""A model's tokens, read without its weights: how it splits text, each token's exact bytes, what ends an answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from ..chat import ChatTemplate
from ..errors import InvalidInput
from ..llamacpp.model import LlamaModel
from ..records import read_json
from .encode import Encoder

__all__ = ["FolderTokens", "GgufTokens", "Tokens", "opened_tokens"]


class Tokens(Protocol):
    """The tokens of a model."""

    @property
    def template(self) -> ChatTemplate:
        """How a conversation is written."""

    @property
    def ends(self) -> frozenset[int]:
        """All tokens that may end an answer."""

    @property
    def pieces(self) -> list[bytes]:
        """The bytes that each token puts into a text; none for special tokens and for ids that are no token."""

    def ids(self, text: str) -> list[int]:
        """Token ids of a text in which the names of special tokens stand for these tokens."""


@contextmanager
def opened_tokens(path: Path) -> Iterator[Tokens]:
    """The tokens of a GGUF file or of a Hugging Face folder.

    Raises what `Encoder` and `LlamaModel` raise.
    """
    if path.is_dir():
        yield FolderTokens(path)
        return
    with LlamaModel(path, vocab_only=True) as model:
        yield GgufTokens(model)


class GgufTokens:
    """The tokens of a GGUF, as llama.cpp itself reads them."""

    def __init__(self, model: LlamaModel) -> None:
        self._model = model

    @property
    def template(self) -> ChatTemplate:
        return self._model.chat_template()

    @cached_property
    def ends(self) -> frozenset[int]:
        return frozenset(filter(self._model.ends, range(self._model.vocab_size)))

    @cached_property
    def pieces(self) -> list[bytes]:
        return [self._model.piece(token) for token in range(self._model.vocab_size)]

    def ids(self, text: str) -> list[int]:
        return self._model.tokenize(text)


class FolderTokens:
    """The tokens of a Hugging Face folder."""

    def __init__(self, folder: Path, encoder: Encoder | None = None) -> None:
        self._folder = folder
        self._encoder = encoder or Encoder(folder)

    @property
    def template(self) -> ChatTemplate:
        return self._encoder.template

    @cached_property
    def ends(self) -> frozenset[int]:
        found: set[Any] = {self._encoder.completion("Yes.")[-1]}
        for name in ("generation_config.json", "config.json"):
            stated = read_json(self._folder / name, required=False).get("eos_token_id")
            found.update(stated if isinstance(stated, list) else [stated])
        return frozenset(token for token in found if type(token) is int)

    @cached_property
    def pieces(self) -> list[bytes]:
        return _pieces(self._folder / "tokenizer.json")

    def ids(self, text: str) -> list[int]:
        return self._encoder.ids(text)


def _pieces(path: Path) -> list[bytes]:
    """The bytes of each token of a tokenizer.json, whose decoder says how tokens are spelled.

    Raises InvalidInput where tokens do not stand for fixed bytes, as in WordPiece.
    """
    tokenizer = read_json(path)
    model: dict[str, Any] = tokenizer.get("model") or {}
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, list):  # Unigram: token and score, in the order of the ids
        vocabulary = {token: number for number, (token, _) in enumerate(vocabulary)}
    if not isinstance(vocabulary, dict):
        raise InvalidInput(f"{path}: no vocabulary", "Fetch the file again.")
    spelling = _spelling(path, tokenizer.get("decoder") or {}, bool(model.get("byte_fallback")))
    spelled = {number: spelling(token) for token, number in vocabulary.items()}
    for entry in tokenizer.get("added_tokens") or []:
        spelled[entry["id"]] = b"" if entry.get("special") else entry["content"].encode()
    return [spelled.get(number, b"") for number in range(max(spelled) + 1)]


def _spelling(path: Path, decoder: dict[str, Any], fallback: bool) -> Callable[[str], bytes]:
    """How the entries of a vocabulary stand for bytes."""
    steps = decoder.get("decoders", [decoder])
    if any(step.get("type") == "ByteLevel" for step in steps):
        return _byte_level
    for step in steps:
        marker = step.get("replacement") if step.get("type") == "Metaspace" else None
        if step.get("type") == "Replace" and step.get("content") == " ":
            marker = (step.get("pattern") or {}).get("String")
        if marker:
            return lambda token: _marked(token, marker, fallback)
    raise InvalidInput(
        f"{path}: its tokens do not stand for fixed bytes (decoder {decoder.get('type')})",
        "Learn from the text alone: train.loss = 'hard'.",
    )


def _gpt2_bytes() -> dict[str, int]:
    """The byte of each character in which a byte-level vocabulary is spelled.

    The table of GPT-2's bytes_to_unicode: printable bytes stand for themselves, the others for characters from 256 on.
    """
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(others)}


BYTES = _gpt2_bytes()


def _byte_level(token: str) -> bytes:
    """As the ByteLevel decoder does it: a token with any other character is plain text.

    >>> _byte_level("Ġthe"), _byte_level("Ã¼"), _byte_level("日")
    (b' the', b'\\xc3\\xbc', b'\\xe6\\x97\\xa5')
    """
    try:
        return bytes([BYTES[letter] for letter in token])
    except KeyError:
        return token.encode()


def _marked(token: str, marker: str, fallback: bool) -> bytes:
    """A token of SentencePiece: the marker is a space; with `fallback`, <0xNN> is a byte.

    >>> _marked("▁the", "▁", True), _marked("<0x0A>", "▁", True)
    (b' the', b'\\n')
    """
    if fallback and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes.fromhex(token[3:5])
    return token.replace(marker, " ").encode()
