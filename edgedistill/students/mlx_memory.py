"""What a training step in MLX takes, told before the first one: memory, from which follows how many texts fit, and
time."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import psutil

from .lessons import Lesson, head_of
from .mlx_head import CHUNK_BYTES

__all__ = ["StepCost", "free_bytes", "peak_bytes", "step_cost", "used_bytes"]

LENGTHS = (8, 32, 64)  # tokens of the texts that are tried
MOMENTS = 2  # of AdamW, in float32 as the gradient


@dataclass(frozen=True, slots=True)
class StepCost:
    """What a step takes besides the weights that were loaded."""

    fixed: int
    """Bytes that any step takes: gradients, logits."""
    per_token: float
    per_pair: float
    """Bytes kept for the backward pass by each token, and by each token for each it may see."""
    seconds_per_token: float
    """Forward and backward, of a short text alone: batches are faster."""

    def bytes(self, rows: int, length: int) -> int:
        """Bytes of a step on so many texts of so many tokens."""
        return self.fixed + int(rows * (self.per_token * length + self.per_pair * length**2))


def step_cost(tried: Callable[[Lesson], None], weights: Mapping[str, mx.array], lesson: Lesson) -> StepCost:
    """The cost of a step, from the gradients of a lesson's first tokens, which `tried` computes.

    Memory is what MLX counted at its peak, at three lengths: it grows by a constant, with the length, and, where
    attention holds its weights, with the length's square.
    """
    peaks, seconds = [], 0.0
    for length in LENGTHS:
        text = head_of(lesson, length)
        tried(text)  # compiles
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        started = time.perf_counter()
        tried(text)
        seconds = time.perf_counter() - started
        peaks.append(mx.get_peak_memory() - before)
    per_pair, per_token, constant = np.polyfit(np.array(LENGTHS), np.array(peaks, np.float64), 2).tolist()
    learned = 4 * sum(weight.size for weight in weights.values())
    fixed = int(max(0.0, constant)) + learned * (1 + MOMENTS) + 2 * CHUNK_BYTES
    return StepCost(fixed, max(0.0, per_token), max(0.0, per_pair), seconds / LENGTHS[-1])


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
    if _has_gpu():
        return int(mx.get_peak_memory())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _has_gpu() -> bool:
    return bool(mx.default_device() != mx.Device(mx.cpu))
