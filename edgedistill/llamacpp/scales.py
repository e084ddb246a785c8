"""The scales of a quantized GGUF's blocks: what may be learned without touching a single code.

Every block of ggml's quantization types holds one or two float16 numbers that all its weights are multiplied with, or
that are subtracted after another multiplication (ggml-common.h). So a weight is linear in them: with the codes kept,
new scales make another model of the same types, and of the same size to the byte.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InvalidInput
from .child import whole_file
from .reader import GgufTensor, read_gguf

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["SCALES", "Blocks", "read_blocks", "write_scales"]

SCALES = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ2_XXS": (0,),
    "IQ2_XS": (0,),
    "IQ2_S": (0,),
    "IQ3_XXS": (0,),
    "IQ3_S": (0,),
    "IQ4_NL": (0,),
    "IQ4_XS": (0,),
    "IQ1_S": (0,),
}
"""Type -> where the float16 scales of a block begin, in bytes."""

ONE = np.float16(1.0)
REPORT = "This is a fault of edgedistill; please report it with the model's name."


@dataclass(frozen=True, slots=True, eq=False)
class Blocks:
    """A matrix of R rows and C columns, in B blocks a row, as the sum of what each of its S scales is a factor of."""

    scales: NDArray[np.float32]
    """(S, R, B) The scales as the file has them, in float16's values."""
    units: NDArray[np.float32]
    """(S, R, C) The weights where that scale is 1 and the others are 0."""


def read_blocks(path: Path, tensor: GgufTensor) -> Blocks:
    """A quantized matrix of a GGUF as scales and units.

    Raises InvalidInput for a type that is not in `SCALES`.
    """
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    if tensor.kind not in SCALES:
        raise InvalidInput(
            f"{path}: tensor '{tensor.name}' is {tensor.kind}, whose blocks have no scales", "Quantize it otherwise."
        )
    places, data = SCALES[tensor.kind], _read(path, tensor)
    blocks = data.shape[1]
    units = []
    for one in places:
        plain = data.copy()
        for place in places:
            _scale(plain, place)[...] = ONE if place == one else 0
        flat = plain.reshape(len(plain), -1)
        with np.errstate(all="ignore"):  # a type's own arithmetic on bytes wraps
            units.append(dequantize(flat, GGMLQuantizationType[tensor.kind]).reshape(tensor.shape))
    scales = [_scale(data, place).astype(np.float32).reshape(-1, blocks) for place in places]
    return Blocks(np.stack(scales), np.stack(units))


def write_scales(source: Path, out: Path, changed: Mapping[str, NDArray[np.float32]]) -> None:
    """Copy a GGUF with other numbers in some tensors, whole or not at all.

    `changed` has, by tensor, a quantized matrix's scales as `Blocks.scales`, rounded to float16, or a float32 vector.
    Raises InvalidInput where a shape does not fit the file, or a number is not finite; Stopped where the disk is full.
    """
    tensors = read_gguf(source).tensors
    with whole_file(out) as partial:
        shutil.copyfile(source, partial)
        with partial.open("r+b") as file:
            for name, values in changed.items():
                file.seek(tensors[name].offset)
                file.write(_bytes(source, tensors[name], values))


def _bytes(path: Path, tensor: GgufTensor, values: NDArray[np.float32]) -> bytes:
    """A tensor's data with other numbers in it."""
    is_vector = tensor.kind == "F32"
    data = np.zeros(0, np.uint8) if is_vector else _read(path, tensor)
    shape = tensor.shape if is_vector else (len(SCALES[tensor.kind]), *data.shape[:2])
    if values.shape != shape:
        raise InvalidInput(f"{path}: '{tensor.name}' has the shape {shape}, not {values.shape}", REPORT)
    with np.errstate(over="ignore"):
        found: NDArray[Any] = values.astype(np.float32 if is_vector else np.float16)
    if not np.isfinite(found).all():
        raise InvalidInput(f"{path}: new numbers of '{tensor.name}' are not finite", "Lower the learning rate.")
    if is_vector:
        return found.tobytes()
    for place, scales in zip(SCALES[tensor.kind], found, strict=True):
        _scale(data, place)[...] = scales
    return data.tobytes()


def _read(path: Path, tensor: GgufTensor) -> NDArray[np.uint8]:
    """The data of a quantized matrix: (rows, blocks, bytes of a block)."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    width = GGML_QUANT_SIZES[GGMLQuantizationType[tensor.kind]][1]
    data = np.fromfile(path, dtype=np.uint8, count=tensor.size, offset=tensor.offset)
    return data.reshape(tensor.shape[0], -1, width)


def _scale(data: NDArray[np.uint8], place: int) -> NDArray[np.float16]:
    """The scales at one place of all blocks: (rows, blocks), a view."""
    return data[:, :, place : place + 2].view(np.float16)[:, :, 0]
