"""Runs of tokens whose probability the teacher tells as a whole, because it splits that text in another way.

The student's probability of a run is the product of its tokens'; both are compared as the odds of this text against any
other: the binarised divergence of Approximate Likelihood Matching (ALM, arXiv 2503.20083, section 3.2), on the smallest
runs that begin and end at a boundary of both. Of that method's refinements, longer runs where a boundary says much
about what follows ("outcome chunk debiasing") are left out: they need all of the teacher's distribution. Its
temperature of 100 is too: answers here are short, and one is comparable with the other losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .divergence import Divergence, divergence

__all__ = ["Chunks", "chunk_divergence", "joined_chunks"]

LEAST = 1e-6
"""The least probability of another text, as of a tail in `divergence`."""


@dataclass(frozen=True, slots=True, eq=False)
class Chunks:
    """C runs of loss rows, each row in one at most."""

    bounds: NDArray[np.int32]
    """(C, 2) The first row of each, and the one behind its last."""
    logprob: NDArray[np.float32]
    """(C,) The teacher's log-probability of each one's text, given what comes before."""
    weight: NDArray[np.float32]
    """(C,) Weight of the divergence from the teacher."""

    def __len__(self) -> int:
        return len(self.bounds)

    @property
    def sizes(self) -> NDArray[np.int32]:
        """(C,) Rows of each."""
        sizes: NDArray[np.int32] = self.bounds[:, 1] - self.bounds[:, 0]
        return sizes

    @property
    def rows(self) -> NDArray[np.int64]:
        """(N,) All rows that are in one, in order."""
        return np.concatenate([np.arange(0), *(np.arange(first, last) for first, last in self.bounds.tolist())])

    @property
    def numbers(self) -> NDArray[np.int64]:
        """(N,) Which one each of `rows` is in."""
        return np.repeat(np.arange(len(self)), self.sizes)

    @property
    def rows_weight(self) -> float:
        """What the rows weigh together, as if each token had a loss of its own: losses are divided by it."""
        return float((self.weight * self.sizes).sum(dtype=np.float64))


def joined_chunks(parts: Sequence[Chunks | None], starts: Sequence[int]) -> Chunks | None:
    """The chunks of lessons side by side, whose rows begin at `starts`; None where there are none."""
    found = [(part, start) for part, start in zip(parts, starts, strict=True) if part is not None and len(part)]
    if not found:
        return None
    return Chunks(
        bounds=np.concatenate([part.bounds + np.int32(start) for part, start in found]),
        logprob=np.concatenate([part.logprob for part, _ in found]),
        weight=np.concatenate([part.weight for part, _ in found]),
    )


def chunk_divergence(xp: Any, log_p: Any, log_q: Any, how: Divergence) -> tuple[Any, Any]:
    """The divergence of each run in nats, and its derivative by the student's log-probability of the run: both (C,).

    `log_p` and `log_q`, float32 of shape (C,), are the teacher's and the student's log-probabilities; `xp` as in
    `divergence`. Buckets are the run's text and any other, so that forward KL is
    p log(p / q) + (1 - p) log((1 - p) / (1 - q)).
    """
    rest_p, rest_q = (xp.clip(-xp.expm1(log), LEAST, 1.0) for log in (log_p, log_q))
    both_p, both_q = (xp.stack([log, xp.log(rest)], 1) for log, rest in ((log_p, rest_p), (log_q, rest_q)))
    value, slope = divergence(xp, both_p, both_q, both_p <= 0.0, how)
    # log(1 - q) falls as log q rises, by q / (1 - q)
    return value, slope[:, 0] - slope[:, 1] * (1.0 - rest_q) / rest_q
