"""The header of a safetensors file, read without trust.

The format: eight bytes that state the header's length, a JSON object that names every tensor's dtype, shape and extent,
and the tensors' bytes, without holes or overlaps to the end of the file.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

from ..errors import InvalidInput, Unsafe

__all__ = ["read_safetensors_header"]

MAX_HEADER = 100_000_000
MAX_DIMS = 16
BITS: dict[str, int] = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "I64": 64,
    "U64": 64,
    "F64": 64,
    "C64": 64,
}


def read_safetensors_header(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Dtype and shape of every tensor of a file whose every length and extent holds.

    Raises Unsafe for anything else, InvalidInput for a file that cannot be read.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            head = file.read(8)
            length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
            if not 2 <= length <= min(MAX_HEADER, size - 8):
                raise _unsafe(path, f"its header states {length} bytes, the file has {size}")
            raw = file.read(length)
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror or error}", "Check the path in the recipe.") from error
    try:
        header = json.loads(raw, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise _unsafe(path, f"its header is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise _unsafe(path, "its header is not a JSON object")
    tensors = {name: _tensor(path, name, value) for name, value in header.items() if name != "__metadata__"}
    end = 0
    for start, stop, name in sorted((start, stop, name) for name, (_, _, start, stop) in tensors.items()):
        if start != end:
            raise _unsafe(path, f"the tensor {name!r} starts at {start}, the one before it ends at {end}")
        end = stop
    if end != size - 8 - length:
        raise _unsafe(path, f"its tensors have {end} bytes, the file has {size - 8 - length} for them")
    return {name: (dtype, shape) for name, (dtype, shape, _, _) in tensors.items()}


def _unsafe(path: Path, why: str) -> Unsafe:
    return Unsafe(f"{path}: a corrupt or hostile safetensors file: {why}", "Fetch it again from a source you trust.")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of JSON pairs; ValueError for a key that is there twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found


def _tensor(path: Path, name: str, value: Any) -> tuple[str, tuple[int, ...], int, int]:
    """Dtype, shape, start and end of one tensor."""
    dtype = value.get("dtype") if isinstance(value, dict) else None
    if not isinstance(dtype, str) or dtype not in BITS:
        raise _unsafe(path, f"the tensor {name!r} has the unknown dtype {dtype!r}")
    shape, extent = value.get("shape"), value.get("data_offsets")
    if not _numbers(shape, range(MAX_DIMS + 1)) or not _numbers(extent, range(2, 3)):
        raise _unsafe(path, f"the tensor {name!r} has no proper shape and extent")
    start, stop = extent
    if stop < start or (stop - start) * 8 != math.prod(shape) * BITS[dtype]:
        raise _unsafe(path, f"the tensor {name!r} of shape {shape} has {stop - start} bytes")
    return dtype, tuple(shape), start, stop


def _numbers(value: Any, counts: range) -> bool:
    """True for a list of whole numbers that an unsigned 64-bit field can hold, as many as `counts` allows."""
    return (
        isinstance(value, list)
        and len(value) in counts
        and all(type(item) is int and 0 <= item < 2**64 for item in value)
    )
