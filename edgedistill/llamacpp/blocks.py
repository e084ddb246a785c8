"""Rows of numbers in llama.cpp's types, by ggml's own code, and what of them is lost."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .reader import GgufTensor, dequantized_rows

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["block_of", "quantized_rows", "rounding_error", "tensor_bytes"]

SLICES, SLICE = 4, 8  # of a tensor's rows, that tell what rounding does to it


def block_of(kind: str) -> tuple[int, int]:
    """Numbers of a block of the type, and its bytes."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    numbers, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    return int(numbers), int(size)


def tensor_bytes(tensor: GgufTensor, kind: str) -> int:
    """Bytes of a tensor in another type."""
    ours, theirs = block_of(tensor.kind), block_of(kind)
    return tensor.size // ours[1] * ours[0] // theirs[0] * theirs[1]


def quantized_rows(
    rows: NDArray[np.float32], kind: str, importance: NDArray[np.float32] | None = None
) -> NDArray[np.uint8]:
    """Rows, float32 of shape (R, C), in a type of llama.cpp: uint8 of shape (R, bytes).

    `importance` (C,) weighs the columns, which the smallest types need.
    """
    import numpy as np
    from gguf.constants import GGMLQuantizationType
    from llama_cpp import _ggml

    rows = np.ascontiguousarray(rows, np.float32)
    numbers, size = block_of(kind)
    out = np.zeros((len(rows), rows.shape[1] // numbers * size), np.uint8)
    weights = None if importance is None else np.ascontiguousarray(importance, np.float32)
    quantize = _ggml.libggml.ggml_quantize_chunk
    quantize.restype = ctypes.c_size_t
    quantize.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *([ctypes.c_int64] * 3), ctypes.c_void_p]
    address: Any = None if weights is None else weights.ctypes.data
    kind_number = GGMLQuantizationType[kind].value
    quantize(kind_number, rows.ctypes.data, out.ctypes.data, 0, len(rows), rows.shape[1], address)
    return out


def rounding_error(path: Path, tensor: GgufTensor, kind: str, importance: NDArray[np.float32] | None) -> float:
    """The mean squared error of a tensor's numbers in a type, weighed by the columns' importance, from some rows."""
    import numpy as np
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    count = tensor.shape[0]
    starts = np.linspace(0, max(0, count - SLICE), SLICES).astype(int) if count > SLICES * SLICE else [0]
    size = SLICE if count > SLICES * SLICE else count
    rows = np.concatenate([dequantized_rows(path, tensor, int(start), int(start) + size) for start in starts])
    back = dequantize(quantized_rows(rows, kind, importance), GGMLQuantizationType[kind])
    weights = np.ones(rows.shape[1], np.float32) if importance is None else importance
    return float((np.square(rows - back, dtype=np.float64) * weights).mean())
