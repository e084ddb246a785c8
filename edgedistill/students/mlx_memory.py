"""What a training step in MLX takes, told before the first one: memory, which decides how many texts fit, and time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import psutil

from ..hardware import peak_memory
from .lessons import Lesson, text_lesson
from .mlx_head import CHUNK_BYTES

__all__ = ["StepCost", "free_bytes", "peak_bytes", "step_cost", "used_bytes"]

LENGTHS = (32, 64, 128)  # tokens of the texts that are tried
PIECES = 12  # of logits: mlx makes room for so many before it has computed the first
NEW = 3  # weights and AdamW's two moments: the old ones go when all new ones are there


@dataclass(frozen=True, slots=True)
class StepCost:
    """What a step takes besides the weights that were loaded."""

    learned: int
    """Bytes of the weights that learn, and of their gradient."""
    per_token: float
    per_pair: float
    """Bytes kept for the backward pass by each token, and by each token for each it may see."""
    seconds_per_token: float
    """Forward and backward, of a short text alone: batches are faster."""

    def bytes(self, rows: int, length: int) -> int:
        """Bytes of a step on so many texts of so many tokens, at its peak: on the way back, or in the update."""
        kept = int(rows * (self.per_token * length + self.per_pair * length**2))
        return self.learned + max(kept + PIECES * CHUNK_BYTES, NEW * self.learned)


def step_cost(tried: Callable[[Lesson], None], weights: Mapping[str, mx.array], lesson: Lesson) -> StepCost:
    """The cost of a step, from the gradients of a lesson's first tokens, which `tried` computes.

    Memory is what MLX counted at its peak, at three lengths: it grows with the length, and, where attention holds its
    weights, with the length's square. One token is learned: what the head holds does not grow.
    """
    peaks = []
    for length in LENGTHS:
        text = text_lesson(lesson.id, np.resize(lesson.tokens, length).tolist(), length - 1)
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        tried(text)
        peaks.append(mx.get_peak_memory() - before)
    started = time.perf_counter()
    tried(text)  # again: it is compiled now
    seconds = time.perf_counter() - started
    per_pair, per_token, _ = np.polyfit(np.array(LENGTHS), np.array(peaks, np.float64), 2).tolist()
    learned = 4 * sum(weight.size for weight in weights.values())
    return StepCost(learned, max(0.0, per_token), max(0.0, per_pair), seconds / LENGTHS[-1])


def used_bytes() -> int:
    """Bytes that this process holds, or on Apple's GPUs what MLX holds of the memory that is shared with them."""
    return int(mx.get_active_memory()) if _has_gpu() else int(psutil.Process().memory_info().rss)


def free_bytes() -> int:
    """Bytes that are free there."""
    if _has_gpu():
        return int(mx.device_info()["max_recommended_working_set_size"]) - used_bytes()
    return int(psutil.virtual_memory().available)


def peak_bytes() -> int:
    """The most that was held there so far."""
    return int(mx.get_peak_memory()) if _has_gpu() else peak_memory()


def _has_gpu() -> bool:
    return bool(mx.default_device() != mx.Device(mx.cpu))
