"""What a training step takes, told before the first one: memory, from which follows how many examples fit, and time."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import numpy as np
import psutil
import torch

from ..hardware import device, peak_memory
from .lessons import Lesson, text_lesson
from .torch_head import CHUNK_BYTES

__all__ = ["StepCost", "free_bytes", "peak_bytes", "step_cost", "used_bytes"]

LENGTHS = (8, 32, 64)  # tokens of the texts that are tried
MOMENTS = 2  # of AdamW, in float32 as the gradient
HEAP = 1.65 if sys.platform == "linux" else 1.0
"""Bytes that a CPU's heap takes for each byte kept there: what is freed between two kept tensors leaves a hole.

Measured with glibc; with each tensor in a mapping of its own (MALLOC_MMAP_THRESHOLD_) there is none."""
Summed = Callable[[Sequence[Lesson]], torch.Tensor]


@dataclass(frozen=True, slots=True)
class StepCost:
    """What a step takes besides the weights that were loaded."""

    resting: int
    """Bytes of the optimizer's moments, which stay from step to step."""
    gradient: int
    """Bytes of the gradient of all weights that learn."""
    beside: int
    """Bytes that any text needs on the way: logits, and what the largest weight that learns takes in passing."""
    per_token: float
    per_pair: float
    """Bytes kept for the backward pass by each token, and by each token for each it may see."""
    seconds_per_token: float
    """Forward and backward, of a short text alone: batches are faster."""

    def bytes(self, rows: int, length: int, adds_up: bool = False) -> int:
        """Bytes of a step on so many texts of so many tokens, at its peak: before the way back, or in the update.

        On the way back what was kept makes room for the gradient. Where a batch is computed in parts, whose gradients
        are added up, that of those before is there too.
        """
        kept = int(rows * (self.per_token * length + self.per_pair * length**2))
        before = kept + (self.gradient if adds_up else 0)
        return self.resting + self.beside + max(before, self.gradient)


class _Kept:
    """A tensor that autograd keeps; this goes when its part of the graph goes."""

    __slots__ = ("__weakref__", "tensor")

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor.detach()  # the tensor itself would keep the graph that keeps it


def _keeping(held: WeakSet[_Kept]) -> Callable[[torch.Tensor], _Kept]:
    """What autograd calls with a tensor to keep; all that are still kept are in `held`."""

    def keep(tensor: torch.Tensor) -> _Kept:
        kept = _Kept(tensor)
        held.add(kept)
        return kept

    return keep


def step_cost(model: Any, summed: Summed, lesson: Lesson) -> StepCost:
    """The cost of a step, from forward passes over the first tokens of a lesson; weights and gradients are unchanged.

    What autograd keeps for the way back is counted, each storage once and the model's own weights not, at three
    lengths: it grows by a constant, with the length, and, where attention holds its weights, with the length's square.
    What it has kept and let go by then, such as what DoRA computes of its own weights alone, does not count.
    """
    own = {weight.untyped_storage().data_ptr() for weight in (*model.parameters(), *model.buffers())}
    kept, seconds = [], 0.0
    for length in LENGTHS:
        held = WeakSet[_Kept]()
        started = time.perf_counter()
        # random numbers that are used up here would be missed by a resumed training
        with torch.random.fork_rng(), torch.autograd.graph.saved_tensors_hooks(_keeping(held), lambda one: one.tensor):
            loss = summed([text_lesson(lesson.id, np.resize(lesson.tokens, length + 1).tolist(), 1)])
        storages = {storage.data_ptr(): storage for storage in (one.tensor.untyped_storage() for one in held)}
        kept.append(sum(storage.nbytes() for address, storage in storages.items() if address not in own))
        torch.autograd.grad(loss, [weight for weight in model.parameters() if weight.requires_grad])
        seconds = time.perf_counter() - started
    per_pair, per_token, constant = np.polyfit(np.array(LENGTHS), np.array(kept, np.float64), 2).tolist()
    sizes_learned = [4 * weight.numel() for weight in model.parameters() if weight.requires_grad]
    learned, heap = sum(sizes_learned), HEAP if device(torch) == "cpu" else 1.0
    return StepCost(
        resting=MOMENTS * learned,
        gradient=learned,
        beside=int(max(0.0, constant)) + max(sizes_learned) + 2 * CHUNK_BYTES,
        per_token=heap * max(0.0, per_token),
        per_pair=heap * max(0.0, per_pair),
        seconds_per_token=seconds / LENGTHS[-1],
    )


def used_bytes() -> int:
    """Bytes that this process holds on the device that trains."""
    if device(torch) == "cuda":
        return int(torch.cuda.memory_allocated())
    return int(psutil.Process().memory_info().rss)


def free_bytes() -> int:
    """Bytes that are free there."""
    if device(torch) == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    return int(psutil.virtual_memory().available)


def peak_bytes() -> int:
    """The most that it has held there so far."""
    if device(torch) == "cuda":
        return int(torch.cuda.max_memory_allocated())
    return peak_memory()
