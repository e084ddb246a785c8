"""The header of a GGUF file, read without trust.

Own code, because the loaders believe the counts and offsets that a file states. Here every count is held against the
bytes that are left before anything is read or allocated, so a hostile file costs no more than its own size. The format
is that of ggml's docs/gguf.md, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from ..errors import InvalidInput, Unsafe
from .content import plain_text

__all__ = ["GgufHeader", "read_gguf_header"]

MAGIC = b"GGUF"
MAX_HEADER = 64 << 20
MAX_KEY = 65_535
MAX_TEXT = 1 << 16
MAX_ALIGNMENT = 1 << 20
MAX_DIMS = 4
STRING, ARRAY, BOOL = 8, 9, 7

# The arrays that llama.cpp reads by the number of tokens, with the item types that it expects.
VOCABULARY: dict[str, tuple[int, ...]] = {
    "tokenizer.ggml.tokens": (STRING,),
    "tokenizer.ggml.scores": (6,),
    "tokenizer.ggml.token_type": (4, 5),
}

SCALARS: dict[int, struct.Struct] = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    BOOL: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}

# ggml type -> (elements in a block, bytes of a block)
BLOCKS: dict[int, tuple[int, int]] = {
    0: (1, 4),  # F32
    1: (1, 2),  # F16
    2: (32, 18),  # Q4_0
    3: (32, 20),  # Q4_1
    6: (32, 22),  # Q5_0
    7: (32, 24),  # Q5_1
    8: (32, 34),  # Q8_0
    9: (32, 40),  # Q8_1
    10: (256, 84),  # Q2_K
    11: (256, 110),  # Q3_K
    12: (256, 144),  # Q4_K
    13: (256, 176),  # Q5_K
    14: (256, 210),  # Q6_K
    15: (256, 292),  # Q8_K
    16: (256, 66),  # IQ2_XXS
    17: (256, 74),  # IQ2_XS
    18: (256, 98),  # IQ3_XXS
    19: (256, 50),  # IQ1_S
    20: (32, 18),  # IQ4_NL
    21: (256, 110),  # IQ3_S
    22: (256, 82),  # IQ2_S
    23: (256, 136),  # IQ4_XS
    24: (1, 1),  # I8
    25: (1, 2),  # I16
    26: (1, 4),  # I32
    27: (1, 8),  # I64
    28: (1, 8),  # F64
    29: (256, 56),  # IQ1_M
    30: (1, 2),  # BF16
    34: (256, 54),  # TQ1_0
    35: (256, 66),  # TQ2_0
    39: (32, 17),  # MXFP4
    40: (64, 36),  # NVFP4
    41: (128, 18),  # Q1_0
}

U32 = SCALARS[4]
U64 = SCALARS[10]
Scalar = str | int | float | bool


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What a GGUF file says of itself.

    `metadata` holds its numbers, flags and texts up to 64 KiB, without the arrays; `array_lengths` holds how many items
    each array has; `file_type` is llama.cpp's number for the mix of quant types, None where the file has none.
    """

    architecture: str
    name: str
    license: str | None
    file_type: int | None
    tensor_count: int
    metadata: dict[str, Scalar]
    array_lengths: dict[str, int]


@dataclass(slots=True)
class _Reader:
    """The first bytes of a file, and how far they have been read."""

    path: Path
    data: bytes
    file_size: int
    position: int = 0

    def refuse(self, why: str) -> NoReturn:
        raise Unsafe(f"{self.path}: a corrupt or hostile GGUF file: {why}", "Fetch it again from a source you trust.")

    def skip(self, count: int, what: str) -> int:
        """The position of the next `count` bytes, which are passed over."""
        start = self.position
        if count > len(self.data) - start:
            self.refuse(f"{what} ({count} bytes) is beyond the end of the header")
        self.position = start + count
        return start

    def number(self, form: struct.Struct, what: str) -> int:
        value: int = form.unpack_from(self.data, self.skip(form.size, what))[0]
        return value

    def text(self, limit: int, what: str) -> bytes:
        length = self.number(U64, what)
        if length > limit:
            self.refuse(f"{what} has {length} bytes, more than {limit}")
        start = self.skip(length, what)
        return self.data[start : self.position]


def read_gguf_header(path: Path) -> GgufHeader:
    """The header of a GGUF file of one piece whose every count, length and extent holds.

    Raises InvalidInput for a file that is no GGUF, or one of a split, an adapter or a vocabulary; Unsafe for a GGUF
    whose header contradicts itself or the file's size.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            reader = _Reader(path, file.read(min(size, MAX_HEADER)), size)
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror or error}", "Check the path in the recipe.") from error
    if reader.data[:4] != MAGIC:
        raise InvalidInput(
            f"{path}: not a GGUF file (starts with {reader.data[:4]!r})", "Give a .gguf file, or a catalogue name."
        )
    reader.skip(4, "the magic")
    version = reader.number(U32, "the version")
    if version not in (2, 3):
        big = " (a big-endian file?)" if version in (2 << 24, 3 << 24) else ""
        reader.refuse(f"version {version} is neither 2 nor 3{big}")
    tensors = reader.number(U64, "the tensor count")
    entries = reader.number(U64, "the metadata count")
    # A tensor's record has at least 32 bytes, a metadata entry 13.
    if tensors * 32 + entries * 13 > size:
        reader.refuse(f"{tensors} tensors and {entries} metadata entries cannot fit in {size} bytes")
    metadata, lengths = _read_metadata(reader, entries)
    _check_vocabulary(reader, lengths)
    _read_tensors(reader, tensors, _alignment(reader, metadata))
    return _header(reader, tensors, metadata, lengths)


def _read_metadata(reader: _Reader, entries: int) -> tuple[dict[str, Scalar], dict[str, int]]:
    metadata: dict[str, Scalar] = {}
    lengths: dict[str, int] = {}
    for index in range(entries):
        key = _name(reader, f"the key of entry {index}")
        if key in metadata or key in lengths:
            reader.refuse(f"the key {key!r} is there twice")
        kind = reader.number(U32, f"the type of {key!r}")
        if kind == ARRAY:
            lengths[key] = _skip_array(reader, key)
        elif key in VOCABULARY:
            reader.refuse(f"{key!r} is not an array")
        elif kind == STRING:
            text = reader.text(MAX_HEADER, f"the value of {key!r}")
            metadata[key] = text[:MAX_TEXT].decode("utf-8", errors="replace")
        elif kind in SCALARS:
            metadata[key] = _scalar(reader, kind, key)
        else:
            reader.refuse(f"{key!r} has the unknown type {kind}")
    return metadata, lengths


def _name(reader: _Reader, what: str) -> str:
    raw = reader.text(MAX_KEY, what)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        reader.refuse(f"{what} is not UTF-8")


def _scalar(reader: _Reader, kind: int, key: str) -> Scalar:
    start = reader.skip(SCALARS[kind].size, f"the value of {key!r}")
    if kind == BOOL and reader.data[start] > 1:
        reader.refuse(f"{key!r} is a flag, but its byte is {reader.data[start]}")
    value: Scalar = SCALARS[kind].unpack_from(reader.data, start)[0]
    return value


def _skip_array(reader: _Reader, key: str) -> int:
    """How many items the array has; they are passed over."""
    kind = reader.number(U32, f"the item type of {key!r}")
    count = reader.number(U64, f"the length of {key!r}")
    if kind not in VOCABULARY.get(key, (kind,)):
        reader.refuse(f"the array {key!r} has items of type {kind}")
    if kind in SCALARS:
        reader.skip(count * SCALARS[kind].size, f"the array {key!r}")
    elif kind == STRING:
        if count * 8 > len(reader.data) - reader.position:
            reader.refuse(f"the array {key!r} states {count} texts, more than its file can hold")
        _skip_texts(reader, key, count)
    else:
        reader.refuse(f"the array {key!r} has items of type {kind}")
    return count


def _skip_texts(reader: _Reader, key: str, count: int) -> None:
    # A vocabulary has 100,000 texts and more: this loop is written for speed.
    unpack: Callable[[bytes, int], tuple[int]] = U64.unpack_from
    data, position, end = reader.data, reader.position, len(reader.data) - 8
    for _ in range(count):
        if position > end:
            reader.refuse(f"the array {key!r} is beyond the end of the header")
        position += 8 + unpack(data, position)[0]
    if position > len(data):
        reader.refuse(f"the array {key!r} is beyond the end of the header")
    reader.position = position


def _check_vocabulary(reader: _Reader, lengths: dict[str, int]) -> None:
    tokens = lengths.get("tokenizer.ggml.tokens")
    for key in VOCABULARY:
        if lengths.get(key, tokens) != tokens:
            reader.refuse(f"{key} has {lengths[key]} items for {tokens or 0} tokens")


def _alignment(reader: _Reader, metadata: dict[str, Scalar]) -> int:
    value = metadata.get("general.alignment", 32)
    if not isinstance(value, int) or not 0 < value <= MAX_ALIGNMENT or value & (value - 1):
        reader.refuse(f"the alignment {value!r} is not a power of two up to {MAX_ALIGNMENT}")
    return value


def _read_tensors(reader: _Reader, tensors: int, alignment: int) -> None:
    names: set[str] = set()
    extents: list[tuple[int, int, str]] = []
    for index in range(tensors):
        name = _name(reader, f"the name of tensor {index}")
        if name in names:
            reader.refuse(f"the tensor {name!r} is there twice")
        names.add(name)
        size = _tensor_bytes(reader, name)
        offset = reader.number(U64, f"the offset of {name!r}")
        if offset % alignment:
            reader.refuse(f"the offset {offset} of {name!r} is not a multiple of {alignment}")
        extents.append((offset, size, name))
    data_start = -(-reader.position // alignment) * alignment
    end = 0
    for offset, size, name in sorted(extents):
        if offset < end:
            reader.refuse(f"the tensor {name!r} overlaps the one before it")
        end = offset + size
    if tensors and data_start + end > reader.file_size:
        reader.refuse(f"its tensors end at byte {data_start + end}, but the file has {reader.file_size} bytes")


def _tensor_bytes(reader: _Reader, name: str) -> int:
    dims = reader.number(U32, f"the rank of {name!r}")
    if not 1 <= dims <= MAX_DIMS:
        reader.refuse(f"the tensor {name!r} has {dims} dimensions")
    shape = [reader.number(U64, f"the shape of {name!r}") for _ in range(dims)]
    kind = reader.number(U32, f"the type of {name!r}")
    if kind not in BLOCKS:
        reader.refuse(f"the tensor {name!r} has the unknown type {kind}")
    block, block_bytes = BLOCKS[kind]
    if 0 in shape or shape[0] % block:
        reader.refuse(f"the tensor {name!r} has the shape {shape}, which its type cannot have")
    elements = 1
    for extent in shape:
        elements *= extent
    return elements // block * block_bytes


def _header(reader: _Reader, tensors: int, metadata: dict[str, Scalar], lengths: dict[str, int]) -> GgufHeader:
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or not architecture:
        reader.refuse("it names no architecture")
    parts = metadata.get("split.count", 1)
    if isinstance(parts, int) and parts > 1:
        raise InvalidInput(f"{reader.path}: one of {parts} parts of a split GGUF", "Join them with: llama-gguf-split")
    kind = metadata.get("general.type", "model")
    if kind != "model" or tensors == 0:
        what = f"a GGUF of type {kind!r}" if kind != "model" else "a GGUF without weights"
        raise InvalidInput(f"{reader.path}: {what}, not a model", "Give the GGUF of a whole model.")
    file_type = metadata.get("general.file_type")
    return GgufHeader(
        architecture=architecture,
        name=plain_text(metadata.get("general.name")) or reader.path.stem,
        license=plain_text(metadata.get("general.license")),
        file_type=file_type if isinstance(file_type, int) else None,
        tensor_count=tensors,
        metadata=metadata,
        array_lengths=lengths,
    )
