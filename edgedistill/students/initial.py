"""The first weights of an adapter, the same for every backend: a seed and a name decide them, not a library."""

from __future__ import annotations

import hashlib
import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["lora_a"]


def lora_a(seed: int, name: str, rank: int, width: int) -> NDArray[np.float32]:
    """The first matrix A of the layer `name`, as it is called in the model: float32 of shape (rank, width).

    Uniform between -1 / sqrt(width) and 1 / sqrt(width): PEFT's draw, Kaiming's with a = sqrt(5). B begins at 0, so
    that an untrained adapter changes nothing (arXiv 2106.09685, section 4.1).
    """
    drawn = np.random.Generator(
        np.random.PCG64(int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest(), "big"))
    )
    bound = 1 / math.sqrt(width)
    return drawn.uniform(-bound, bound, (rank, width)).astype(np.float32)
