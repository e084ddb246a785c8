"""A GGUF's metadata and the places of its tensors, read with bounds.

The reader of the `gguf` library trusts every length: a file of 49 bytes can keep it busy for ever. Here each count and
length is held against what is left of the file first. The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ..errors import InvalidInput

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["GgufFile", "GgufTensor", "dequantized_rows", "read_gguf"]

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
TEXT, ARRAY = 8, 9
MOST_DIMENSIONS = 4


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """Where a tensor lies: `shape` is rows first (numpy's order), `kind` its quantization type's name."""

    name: str
    kind: str
    shape: tuple[int, ...]
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class GgufFile:
    """What a GGUF says about itself."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]


class _Damaged(Exception):
    """The header does not hold; the text says where."""


def read_gguf(path: Path) -> GgufFile:
    """The metadata and tensor places of a GGUF file of version 2 or 3, little-endian.

    Raises InvalidInput with the file's name where it is not there, or where its header does not hold.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            return _file(path, _Cursor(file, size))
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror}", "Check the path.") from error
    except (_Damaged, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path}: not a GGUF file that holds ({error})", "Fetch the file again.") from error


class _Cursor:
    """A place in the file that never passes its end."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file = file
        self.left = size

    def take(self, size: int, what: str) -> bytes:
        if size > self.left:
            raise _Damaged(f"{what} of {size} bytes, {self.left} are left")
        self.left -= size
        return self.file.read(size)

    def number(self, code: str) -> Any:
        code = "<" + code
        return struct.unpack(code, self.take(struct.calcsize(code), "a number"))[0]

    def text(self) -> str:
        return self.take(self.number("Q"), "a text").decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind == TEXT:
            return self.text()
        if kind != ARRAY:
            raise _Damaged(f"unknown value type {kind}")
        inner, length = self.number("I"), self.number("Q")
        if inner in SCALARS:
            width = struct.calcsize("<" + SCALARS[inner])
            return list(struct.unpack(f"<{length}{SCALARS[inner]}", self.take(length * width, "an array")))
        if inner != TEXT or length * 8 > self.left:
            raise _Damaged(f"an array of {length} values of type {inner}")
        return [self.text() for _ in range(length)]


def _file(path: Path, cursor: _Cursor) -> GgufFile:
    if cursor.take(4, "the magic") != b"GGUF":
        raise _Damaged("it does not begin with GGUF")
    size = cursor.left + 4
    version, tensor_count, value_count = cursor.number("I"), cursor.number("Q"), cursor.number("Q")
    if version not in (2, 3):
        raise _Damaged(f"version {version}")
    metadata: dict[str, Any] = {}
    for _ in range(value_count):
        key = cursor.text()
        if key in metadata:
            raise _Damaged(f"the key '{key}' is there twice")
        metadata[key] = cursor.value(cursor.number("I"))
    entries = [_entry(cursor) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 1 <= alignment <= 2**20 or alignment & (alignment - 1):
        raise _Damaged(f"alignment {alignment}")
    start = -(-(size - cursor.left) // alignment) * alignment
    tensors: dict[str, GgufTensor] = {}
    for name, shape, kind, offset in entries:
        tensor = _tensor(name, shape, kind, start + offset)
        if name in tensors or tensor.offset % alignment or tensor.offset + tensor.size > size:
            raise _Damaged(f"tensor '{name}' is there twice, or not inside the file")
        tensors[name] = tensor
    return GgufFile(path, metadata, tensors)


def _entry(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name, dimensions = cursor.text(), cursor.number("I")
    if not 1 <= dimensions <= MOST_DIMENSIONS:
        raise _Damaged(f"tensor '{name}' of {dimensions} dimensions")
    shape = tuple(cursor.number("Q") for _ in range(dimensions))
    return name, shape[::-1], cursor.number("I"), cursor.number("Q")


def _tensor(name: str, shape: tuple[int, ...], kind: int, offset: int) -> GgufTensor:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    known = {item.value: item for item in GGMLQuantizationType}
    if kind not in known:
        raise _Damaged(f"tensor '{name}' of unknown type {kind}")
    block, width = GGML_QUANT_SIZES[known[kind]]
    values = math.prod(shape)
    if not values or shape[-1] % block:
        raise _Damaged(f"tensor '{name}' of shape {shape}, blocks of {block}")
    return GgufTensor(name, known[kind].name, shape, offset, values // block * width)


def dequantized_rows(path: Path, tensor: GgufTensor, first: int, last: int) -> NDArray[np.float32]:
    """Rows `first` to `last` (exclusive) of a tensor as float32.

    Raises InvalidInput for a quantization type that cannot be undone here.
    """
    import numpy as np
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    if len(tensor.shape) == 1:
        first, last = 0, 1
    width = tensor.size // (tensor.shape[0] if len(tensor.shape) > 1 else 1)
    kind = GGMLQuantizationType[tensor.kind]
    data = np.fromfile(path, dtype=np.uint8, count=(last - first) * width, offset=tensor.offset + first * width)
    try:
        with np.errstate(all="ignore"):  # values that are not finite are the caller's to refuse
            values: NDArray[np.float32] = dequantize(data.reshape(last - first, width), kind)
    except NotImplementedError as error:
        raise InvalidInput(
            f"{path}: tensor '{tensor.name}' is {tensor.kind}, which cannot be undone here",
            "Use a GGUF of type F16, Q8_0, Q6_K, Q5_K_M or Q4_K_M.",
        ) from error
    return values.reshape(-1, *tensor.shape[1:])
