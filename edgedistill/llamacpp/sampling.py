"""How the next token is chosen from a row of logits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..targets import CaptureSettings

__all__ = ["Sampling", "choose"]

UNLIKELY = 1e-6  # of the most probable token's weight: below it, tokens are looked at only where others do not suffice


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; temperature 0 is greedy. The temperature comes first, then top-k, top-p and min-p."""

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    top_k: int = 0
    min_p: float = 0.0
    samples: int = 1
    capture: CaptureSettings | None = None
    """What is kept of the distribution at each token, if anything."""


def choose(logits: NDArray[np.float32], sampling: Sampling, random: np.random.Generator | None) -> int:
    """The index of the next token in a row of logits: the largest, or one drawn.

    >>> choose(np.array([0.0, 2.0, 1.0], np.float32), Sampling(1), None)
    1
    """
    if random is None:
        return int(np.argmax(logits))
    weights = np.exp((logits - logits.max()) / np.float32(sampling.temperature))
    if sampling.top_p >= 1 and not sampling.top_k and not sampling.min_p:
        kept = np.arange(len(weights))
    else:
        kept = _kept(weights, sampling)
    cumulated = np.cumsum(weights[kept], dtype=np.float64)
    return int(kept[min(int(np.searchsorted(cumulated, random.random() * cumulated[-1], "right")), len(kept) - 1)])


def _kept(weights: NDArray[np.float32], sampling: Sampling) -> NDArray[np.intp]:
    """Indices that may be drawn, rising: two weights that change places by a rounding then change no draw."""
    likely = np.flatnonzero(weights >= UNLIKELY)
    total = float(weights.sum(dtype=np.float64))
    if len(likely) < sampling.top_k or weights[likely].sum(dtype=np.float64) < sampling.top_p * total:
        likely = np.arange(len(weights))
    order = likely[np.argsort(-weights[likely], kind="stable")]
    if sampling.top_k:
        order = order[: sampling.top_k]
        total = float(weights[order].sum(dtype=np.float64))
    if sampling.top_p < 1:
        cumulated = np.cumsum(weights[order], dtype=np.float64)
        order = order[: int(np.searchsorted(cumulated, sampling.top_p * total)) + 1]
    if sampling.min_p:
        order = order[weights[order] >= sampling.min_p]  # the largest weight is 1
    return np.sort(order)
