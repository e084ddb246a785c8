"""How different texts are from each other.

distinct-n is Li et al.'s (arXiv 1510.03055): different n-grams of words over all. The compression ratio is bytes over
those that zlib makes of them (Shaib et al., arXiv 2403.00553): higher is more of the same.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from ..similarity import normalised

__all__ = ["clusters", "distinct", "diversity"]

SAMPLED = 1000  # texts that are put into clusters
DIMENSIONS = 1024
NEAR = 0.5  # cosine between texts of one cluster


def diversity(texts: Sequence[str]) -> dict[str, Any]:
    """distinct-1 to -3, compression ratio and clusters of texts; None where there is nothing to count.

    >>> found = diversity(["a b c d", "a b c e", "x y z"])
    >>> found["distinct_3"], found["clusters"]
    (0.8, 2)
    """
    data = "\n".join(texts).encode()
    return {
        **{f"distinct_{n}": distinct(texts, n) for n in (1, 2, 3)},
        "compression_ratio": round(len(data) / len(zlib.compress(data, 9)), 3) if data else None,
        "clusters": clusters(texts),
        "clustered": min(len(texts), SAMPLED),
    }


def distinct(texts: Sequence[str], n: int) -> float | None:
    """The share of different n-grams of words, rounded to 4 places.

    >>> distinct(["one two one two"], 2)
    0.6667
    """
    counted = Counter(gram for text in texts for gram in _grams(normalised(text).split(), n))
    total = counted.total()
    return round(len(counted) / total, 4) if total else None


def _grams(words: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    return zip(*(words[start:] for start in range(n)), strict=False)


def clusters(texts: Sequence[str]) -> int:
    """How many groups the texts fall into, each around the first of its kind; of many texts, of 1,000 evenly chosen.

    A text belongs to a group whose first text shares half of its words with it (a cosine of 0.5).
    """
    every = max(1, -(-len(texts) // SAMPLED))
    vectors = _vectors(texts[::every])
    leaders = np.empty_like(vectors)
    count = 0
    for vector in vectors:
        if not count or float((leaders[:count] @ vector).max()) < NEAR:
            leaders[count] = vector
            count += 1
    return count


def _vectors(texts: Sequence[str]) -> NDArray[np.float32]:
    """A row a text: its different words, hashed, of length 1."""
    found = np.zeros((len(texts), DIMENSIONS), dtype=np.float32)
    for row, text in zip(found, texts, strict=True):
        row[[crc32(word.encode()) % DIMENSIONS for word in set(normalised(text).split())]] = 1
    unit: NDArray[np.float32] = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-9)
    return unit
