"""Tensors in safetensors files: found, read and written row by row, so that a big model never has to fit in memory.

The format is 8 bytes of length, a JSON header, then the data (https://huggingface.co/docs/safetensors). A file comes
from outside: every figure of its header is held against the file's size before it is used.
"""

from __future__ import annotations

import json
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ..errors import InvalidInput

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Rows = NDArray[np.float32]

__all__ = [
    "Tensor",
    "find_tensors",
    "is_finite",
    "read_rows",
    "read_stored",
    "row_steps",
    "write_safetensors",
    "written_behind",
]

SIZES = {"F32": 4, "F16": 2, "BF16": 2}
LARGEST_HEADER = 100 * 2**20
CHUNK_VALUES = 2**20
"""Values converted at a time: 4 MB as float32, which stay in a processor's cache from one operation to the next."""
AHEAD = 2
"""Arrays that may wait to be written."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """Where a tensor lies: `shape` is rows first, `offset` counts from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int


def find_tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of the folder's safetensors files, by name.

    Raises InvalidInput with the file's name where there is none, or where a header does not hold.
    """
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise InvalidInput(f"{folder}: no model*.safetensors file", "Use a Hugging Face folder with its weights.")
    found: dict[str, Tensor] = {}
    for file in files:
        for tensor in _header(file):
            if tensor.name in found:
                raise InvalidInput(
                    f"{file}: tensor '{tensor.name}' is in {found[tensor.name].file.name} too", "Remove one of them."
                )
            found[tensor.name] = tensor
    return found


def _header(file: Path) -> Iterator[Tensor]:
    hint = "The file is damaged: fetch it again."
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= min(LARGEST_HEADER, size - 8):
            raise InvalidInput(f"{file}: not a safetensors file (header of {length} bytes)", hint)
        try:
            header = json.loads(stream.read(length))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise InvalidInput(f"{file}: the safetensors header is no JSON ({error})", hint) from error
    if not isinstance(header, dict):
        raise InvalidInput(f"{file}: the safetensors header is no JSON object", hint)
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        tensor = _tensor(file, name, entry, 8 + length)
        if tensor is None or tensor.offset + _bytes(tensor) > size:
            raise InvalidInput(f"{file}: the header's entry '{name}' does not hold", hint)
        yield tensor


def _tensor(file: Path, name: str, entry: Any, start: int) -> Tensor | None:
    """The tensor of one header entry, or None where the entry makes no sense."""
    if not isinstance(entry, dict):
        return None
    dtype, shape, offsets = entry.get("dtype"), _counts(entry.get("shape")), _counts(entry.get("data_offsets"))
    if not isinstance(dtype, str) or shape is None or offsets is None or len(offsets) != 2:
        return None
    tensor = Tensor(name, dtype, shape, file, start + offsets[0])
    if dtype in SIZES and offsets[1] - offsets[0] != _bytes(tensor):
        return None
    return tensor


def _counts(value: Any) -> tuple[int, ...] | None:
    """The value as counts, or None where it is anything but a list of plausible ones."""
    if not isinstance(value, list) or not all(type(item) is int and 0 <= item < 2**48 for item in value):
        return None
    return tuple(value)


def _bytes(tensor: Tensor) -> int:
    return math.prod(tensor.shape) * SIZES.get(tensor.dtype, 0)


def row_steps(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """First and last-plus-one row of each piece that is converted at a time; a vector is one piece."""
    rows = shape[0] if shape else 1
    if len(shape) < 2:
        yield 0, rows
        return
    step = max(1, CHUNK_VALUES // max(1, math.prod(shape[1:])))
    for first in range(0, rows, step):
        yield first, min(first + step, rows)


def read_rows(tensor: Tensor, first: int, last: int) -> Rows:
    """Rows `first` to `last` (exclusive) as float32, of any of F32, F16 and BF16. Raises what `read_stored` raises."""
    import numpy as np

    data = read_stored(tensor, first, last)
    if tensor.dtype == "BF16":
        return (data.astype(np.uint32) << 16).view(np.float32)
    return data.astype(np.float32, copy=False)


def read_stored(tensor: Tensor, first: int, last: int) -> NDArray[Any]:
    """The same as they are stored: float32, float16, or uint16 that hold the bits of a BF16.

    Raises InvalidInput for another type of numbers.
    """
    import numpy as np

    if tensor.dtype not in SIZES:
        raise InvalidInput(
            f"{tensor.file}: tensor '{tensor.name}' is {tensor.dtype}; known are {', '.join(SIZES)}",
            "Use a folder with unquantised weights.",
        )
    width = math.prod(tensor.shape[1:])
    stored = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}[tensor.dtype]
    offset = tensor.offset + first * width * SIZES[tensor.dtype]
    data = np.fromfile(tensor.file, dtype=stored, count=(last - first) * width, offset=offset)
    if data.size != (last - first) * width:
        raise InvalidInput(f"{tensor.file}: ends inside tensor '{tensor.name}'", "Fetch the file again.")
    return data.reshape(last - first, *tensor.shape[1:])


def is_finite(values: NDArray[np.float16] | Rows) -> bool:
    """Whether no value is infinite or NaN; of 16 bits told by their bits, which is six times as fast as by numpy."""
    import numpy as np

    if values.dtype != np.float16:
        return bool(np.isfinite(values).all())
    return not ((values.view(np.uint16) & 0x7C00) == 0x7C00).any()


@contextmanager
def written_behind(file: BinaryIO) -> Iterator[Callable[[NDArray[Any]], None]]:
    """What writes an array to the end of a file by a thread of its own, while the next array is computed.

    An array must stay as it is when it has been handed over. Raises the OSError of a write with one of the next arrays,
    or at the end.
    """
    import numpy as np

    waiting: deque[Future[int]] = deque()
    with ThreadPoolExecutor(1) as thread:

        def write(data: NDArray[Any]) -> None:
            if len(waiting) == AHEAD:
                waiting.popleft().result()
            waiting.append(thread.submit(file.write, np.ascontiguousarray(data)))  # type: ignore[arg-type]

        yield write
        for one in waiting:
            one.result()


def write_safetensors(
    path: Path,
    shapes: dict[str, tuple[int, ...]],
    dtype: str,
    pieces: Callable[[str], Iterable[Rows | NDArray[np.float16]]],
) -> None:
    """Write tensors of one type, F32 or F16, one after the other; `pieces` gives each tensor's rows in order.

    Raises OverflowError with the tensor's name where a value does not fit the type.
    """
    import numpy as np

    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        size = math.prod(shape) * SIZES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        with written_behind(file) as write:
            for name in shapes:
                for piece in pieces(name):
                    with np.errstate(over="ignore"):
                        data = piece.astype({"F32": "<f4", "F16": "<f2"}[dtype], copy=False)
                    if not is_finite(data):
                        raise OverflowError(name)
                    write(data)
        file.flush()
        os.fsync(file.fileno())
