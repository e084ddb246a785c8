"""Batches of examples of like length, in an order that only the seed and the epoch decide."""

from __future__ import annotations

import random
from collections.abc import Sequence

from .encode import EncodedExample

__all__ = ["epoch_batches", "padded_share"]


def epoch_batches(examples: Sequence[EncodedExample], size: int, seed: int) -> list[list[int]]:
    """Indices of the examples of each batch: sorted by length, ties and batches shuffled.

    >>> rows = [EncodedExample(str(n), (0,) * n, 0) for n in (5, 1, 4, 2)]
    >>> sorted(sorted(batch) for batch in epoch_batches(rows, 2, seed=0))
    [[0, 2], [1, 3]]
    """
    source = random.Random(seed)
    order = list(range(len(examples)))
    source.shuffle(order)
    order.sort(key=lambda index: len(examples[index].tokens))
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    source.shuffle(batches)
    return batches


def padded_share(examples: Sequence[EncodedExample], batches: Sequence[Sequence[int]]) -> float:
    """Share of the batch's cells that hold no token."""
    used = sum(len(examples[index].tokens) for batch in batches for index in batch)
    cells = sum(len(batch) * max(len(examples[index].tokens) for index in batch) for batch in batches)
    return 1 - used / cells if cells else 0.0
