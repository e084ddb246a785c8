"""Batches of examples of like length, in an order that only the seed and the epoch decide."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .encode import EncodedExample
from .packed import PackedExamples

__all__ = ["epoch_batches", "lengths_of", "padded_share"]


def lengths_of(examples: Sequence[EncodedExample]) -> NDArray[np.uint32]:
    """Tokens of each example; packed ones know theirs without being read."""
    if isinstance(examples, PackedExamples):
        return examples.lengths
    return np.array([len(example.tokens) for example in examples], dtype=np.uint32)


def epoch_batches(examples: Sequence[EncodedExample], size: int, seed: int) -> list[list[int]]:
    """Indices of the examples of each batch: sorted by length, ties and batches shuffled.

    >>> rows = [EncodedExample(str(n), (0,) * n, 0) for n in (5, 1, 4, 2)]
    >>> sorted(sorted(batch) for batch in epoch_batches(rows, 2, seed=0))
    [[0, 2], [1, 3]]
    """
    source = random.Random(seed)
    lengths = lengths_of(examples).tolist()
    order = list(range(len(examples)))
    source.shuffle(order)
    order.sort(key=lengths.__getitem__)
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    source.shuffle(batches)
    return batches


def padded_share(examples: Sequence[EncodedExample], batches: Sequence[Sequence[int]]) -> float:
    """Share of the batch's cells that hold no token."""
    lengths = lengths_of(examples)
    used = sum(int(lengths[list(batch)].sum()) for batch in batches)
    cells = sum(len(batch) * int(lengths[list(batch)].max()) for batch in batches)
    return 1 - used / cells if cells else 0.0
