"""SentencePiece vocabularies: the `tokenizer.model` file, and scores in place of merges.

A tokenizer.json knows which pair is merged first by its list of merges, llama.cpp (tokenizer model 'llama') by a score
a token. The file is a protobuf message, sentencepiece_model.proto's ModelProto; it is read with bounds, as it comes
from outside.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InvalidInput
from .places import CHECKOUT

__all__ = ["BYTE_TOKEN", "SPACE", "Piece", "merges_by_score", "model_file", "read_pieces", "scores_by_merge"]

SPACE = "\u2581"
"""What stands for a space in tokens."""

BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
MOST_PIECES = 2**20
BPE = 2  # TrainerSpec.ModelType
VARINT, EIGHT_BYTES, LENGTH, FOUR_BYTES = 0, 1, 2, 5  # protobuf's wire types


@dataclass(frozen=True, slots=True)
class Piece:
    """One token: `kind` is SentencePiece's type, which GGUF numbers alike but for 4, user-defined, and 3, control."""

    text: str
    score: float
    kind: int = 1


class _Damaged(Exception):
    """The file does not hold."""


def read_pieces(path: Path) -> list[Piece]:
    """The pieces of a tokenizer.model, in the order of their ids.

    Raises InvalidInput where the file does not hold, or is of another kind than BPE.
    """
    data = path.read_bytes()
    try:
        fields = list(_fields(data))
        pieces = [_piece(value) for number, value in fields if number == 1 and isinstance(value, bytes)]
        trainer = b"".join(value for number, value in fields if number == 2 and isinstance(value, bytes))
        kinds = [value for number, value in _fields(trainer) if number == 3]
    except (_Damaged, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path}: no SentencePiece model that holds ({error})", "Fetch the file again.") from error
    if not 1 <= len(pieces) <= MOST_PIECES or kinds[-1:] != [BPE]:
        raise InvalidInput(
            f"{path}: {len(pieces)} pieces, type {kinds[-1:] or 'Unigram'}; only BPE is known",
            CHECKOUT,
        )
    return pieces


def _fields(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Number and value of each field of a protobuf message; four and eight bytes are given as they are."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == VARINT:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        size, at = (8, at) if kind == EIGHT_BYTES else (4, at) if kind == FOUR_BYTES else _varint(data, at)
        if kind not in (EIGHT_BYTES, FOUR_BYTES, LENGTH) or size > len(data) - at:
            raise _Damaged(f"at byte {at}")
        yield tag >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for place in range(10):
        if at + place >= len(data):
            break
        byte = data[at + place]
        value |= (byte & 127) << (7 * place)
        if byte < 128:
            return value, at + place + 1
    raise _Damaged(f"at byte {at}")


def _piece(data: bytes) -> Piece:
    text, score, kind = "", 0.0, 1
    for number, value in _fields(data):
        if number == 1 and isinstance(value, bytes):
            text = value.decode("utf-8")
        elif number == 2 and isinstance(value, bytes) and len(value) == 4:
            score = struct.unpack("<f", value)[0]
        elif number == 3 and isinstance(value, int):
            kind = value
    return Piece(text, score, kind)


def model_file(pieces: Sequence[Piece], space_prefix: bool) -> bytes:
    """A tokenizer.model of these pieces; `space_prefix` says whether a text gets a space before it."""
    written = b"".join(
        _message(
            1, _message(1, piece.text.encode()) + b"\x15" + struct.pack("<f", piece.score) + _number(3, piece.kind)
        )
        for piece in pieces
    )
    trainer = _number(3, BPE) + _number(4, len(pieces)) + _number(35, 1)
    normalizer = _message(1, b"identity") + _number(3, int(space_prefix)) + _number(4, 0) + _number(5, 1)
    return written + _message(2, trainer) + _message(3, normalizer)


def _message(number: int, data: bytes) -> bytes:
    return _encoded(number << 3 | LENGTH) + _encoded(len(data)) + data


def _number(number: int, value: int) -> bytes:
    return _encoded(number << 3) + _encoded(value)


def _encoded(value: int) -> bytes:
    """A varint.

    >>> _encoded(300).hex()
    'ac02'
    """
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def scores_by_merge(merges: Sequence[tuple[str, str]]) -> dict[str, float]:
    """The score of each token that a merge makes: the earlier it is made, the higher.

    >>> scores_by_merge([("a", "b"), ("ab", "c"), ("a", "bc")])
    {'ab': -0.0, 'abc': -1.0}
    """
    found: dict[str, float] = {}
    for rank, (first, second) in enumerate(merges):
        found.setdefault(first + second, -float(rank))
    return found


def merges_by_score(scores: dict[str, float], ids: dict[str, int]) -> list[tuple[str, str]]:
    """All merges of two tokens to a third, best first: the rule of transformers' `generate_merges`.

    `scores` are those of the tokens that may be made, `ids` those of all that they may be made of.
    """
    found = []
    for token, score in scores.items():
        parts = ((token[:at], token[at:]) for at in range(1, len(token)))
        pairs = [pair for pair in parts if pair[0] in ids and pair[1] in ids]
        found += [(score, pair) for pair in sorted(pairs, key=lambda pair: (ids[pair[0]], ids[pair[1]]))]
    found.sort(key=lambda merge: (merge[0], len(merge[1][0]), len(merge[1][1])), reverse=True)
    return [pair for _, pair in found]
