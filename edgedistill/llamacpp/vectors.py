"""A GGUF with other numbers in its vectors: what no quantizer rounds, so that all else stays to the byte."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import InvalidInput
from .child import whole_file
from .reader import GgufTensor, read_gguf

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["write_vectors"]

REPORT = "This is a fault of edgedistill; please report it with the model's name."


def write_vectors(source: Path, out: Path, changed: Mapping[str, NDArray[np.float32]]) -> None:
    """Copy a GGUF with other numbers in some of its float32 vectors (norms, biases), whole or not at all.

    Raises InvalidInput where a tensor is no such vector or of another length, or a number is not finite; Stopped where
    the disk is full.
    """
    tensors = read_gguf(source).tensors
    with whole_file(out) as partial:
        shutil.copyfile(source, partial)
        with partial.open("r+b") as file:
            for name, values in changed.items():
                file.seek(tensors[name].offset)
                file.write(_bytes(source, tensors[name], values))


def _bytes(path: Path, tensor: GgufTensor, values: NDArray[np.float32]) -> bytes:
    if (tensor.kind, tensor.shape) != ("F32", (len(values),)):
        found = f"{tensor.kind} of shape {tensor.shape}"
        raise InvalidInput(f"{path}: '{tensor.name}' is {found}, not a vector of {len(values)}", REPORT)
    if not np.isfinite(values).all():
        raise InvalidInput(f"{path}: new numbers of '{tensor.name}' are not finite", "Lower the learning rate.")
    return values.astype("<f4").tobytes()
