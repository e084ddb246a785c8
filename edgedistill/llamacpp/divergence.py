"""How far next-token distributions lie apart, exactly, token by token, from logits that are read where they lie.

For every token that is compared, KL(p || q) in nats over the whole vocabulary, and the most probable token of each
model. A row of logits is read once; what is kept of it are two numbers a model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import EdgeDistillError
from ..targets import Targets

__all__ = ["Divergence", "KeptRow", "Reduction", "Rows", "kept_rows"]

Logits = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Divergence:
    """KL(reference || other) at each compared token, in the order of the texts, and what each would have said."""

    kl: NDArray[np.float64]
    """(N,) Nats; NaN where the reference has no distribution."""
    reference_top: NDArray[np.int32]
    """(N,) The most probable token of the reference."""
    other_top: NDArray[np.int32]
    """(N,) ... and of the other."""

    @property
    def compared(self) -> NDArray[np.bool_]:
        """(N,) Where there is something to compare."""
        return ~np.isnan(self.kl)

    @property
    def mean(self) -> float:
        return float(np.nanmean(self.kl))

    def summary(self) -> dict[str, float | int]:
        """`mean`, `p99`, `p999` and `max` of the divergence in nats, `top1` agreement, and the tokens they are of."""
        here = self.compared
        kl = self.kl[here]
        if not kl.size:
            return {"tokens": 0}
        p99, p999 = np.quantile(kl, [0.99, 0.999])
        same = (self.reference_top == self.other_top)[here]
        return {
            "mean": float(kl.mean()),
            "p99": float(p99),
            "p999": float(p999),
            "max": float(kl.max()),
            "top1": float(same.mean()),
            "tokens": int(kl.size),
        }

    def worst(self, count: int) -> list[int]:
        """The places of the largest divergences, largest first."""
        order = np.argsort(-np.nan_to_num(self.kl, nan=-math.inf), kind="stable")[:count]
        return [int(place) for place in order if self.kl[place] > 0]


@dataclass(frozen=True, slots=True, eq=False)
class KeptRow:
    """A distribution of which the most probable tokens were kept, and the mass of all others."""

    ids: NDArray[np.int32]
    """Most probable first."""
    logprobs: NDArray[np.float32]
    tail: float

    def divergence(self, logits: Logits, log_z: float) -> float:
        """KL from this row over its buckets: each kept token, and one for all others.

        It is at most the divergence over the whole vocabulary (log sum inequality).
        """
        log_q = logits[self.ids].astype(np.float64) - log_z
        p = np.exp(self.logprobs, dtype=np.float64)
        kl = float((p * (self.logprobs - log_q)).sum())
        if self.tail > 0:
            rest = max(1.0 - float(np.exp(log_q).sum()), 1e-12)
            kl += self.tail * math.log(self.tail / rest)
        return max(0.0, kl)


def kept_rows(targets: Targets) -> list[KeptRow]:
    """One row for each position of a completion's targets.

    Raises ValueError for drawn tokens, whose distribution is not known.
    """
    if targets.profile != "top_k":
        raise ValueError("drawn tokens are no distribution")
    bounds = targets.offsets.tolist()
    return [
        KeptRow(targets.ids[start:end], targets.logprobs[start:end], float(tail))
        for start, end, tail in zip(bounds, bounds[1:], targets.tail, strict=False)
    ]


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of one step: the logits of each model, by number, and what was kept of the teacher, if anything."""

    logits: Sequence[Sequence[Logits]]
    """By model, then by row: float32 of shape (V,), in place."""
    kept: Sequence[KeptRow | None]
    """By row; empty where nothing was kept."""


class Reduction:
    """Reduces rows of logits to a divergence for each pair of models. Use it as a context manager.

    `pairs` are (reference, other) by the models' numbers; each of `kept_for` is compared with the kept distributions.
    Only the first `width` columns count, which all models have.
    """

    def __init__(
        self, width: int, models: int, pairs: Sequence[tuple[int, int]], kept_for: Sequence[int], threads: int
    ) -> None:
        self._width, self._models = width, models
        self._pairs = list(pairs)
        self._kept_for = list(kept_for)
        references = sorted({reference for reference, _ in pairs})
        others = sorted({*(other for _, other in pairs), *kept_for} - set(references))
        self._order = [*references, *others]
        self._tops: list[NDArray[np.int32]] = []
        self._kls: list[NDArray[np.float64]] = []
        self._pool = ThreadPoolExecutor(max(1, threads))
        self._workers = [_Worker(width, references, pairs, kept_for) for _ in range(max(1, threads))]

    def __enter__(self) -> Reduction:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def add(self, rows: Rows) -> None:
        """Reduce some rows; all threads have done with the logits when it returns.

        Raises EdgeDistillError where a model's logits are no distribution.
        """
        count = len(rows.logits[0])
        tops = np.full((self._models + 1, count), -1, np.int32)  # the last one of the kept distributions
        for row, kept in enumerate(rows.kept):
            if kept is not None:
                tops[-1, row] = kept.ids[0]
        kls = np.full((len(self._pairs) + len(self._kept_for), count), np.nan)
        parts = np.array_split(np.arange(count), len(self._workers))
        into = _Columns(tops, kls)
        work = [
            self._pool.submit(worker.reduce, rows, part.tolist(), self._order, into)
            for worker, part in zip(self._workers, parts, strict=True)
        ]
        for one in work:
            one.result()
        self._tops.append(tops)
        self._kls.append(kls)

    def found(self) -> tuple[list[Divergence], list[Divergence]]:
        """The divergence of each pair, and of each model from the kept distributions."""
        tops = np.concatenate([np.empty((self._models + 1, 0), np.int32), *self._tops], axis=1)
        kls = np.concatenate([np.empty((len(self._pairs) + len(self._kept_for), 0)), *self._kls], axis=1)
        pairs = [
            Divergence(kls[number], tops[reference], tops[other])
            for number, (reference, other) in enumerate(self._pairs)
        ]
        kept = [
            Divergence(kls[len(self._pairs) + number], tops[-1], tops[other])
            for number, other in enumerate(self._kept_for)
        ]
        return pairs, kept


@dataclass(frozen=True, slots=True, eq=False)
class _Columns:
    """What is found of some rows, a column each."""

    tops: NDArray[np.int32]
    """By model; last, of the kept distributions."""
    kls: NDArray[np.float64]
    """By pair, then by model that is held to the kept distributions."""


class _Worker:
    """One thread's buffers: of each reference its row and the weights of it, of the row at hand as much."""

    def __init__(
        self, width: int, references: Sequence[int], pairs: Sequence[tuple[int, int]], kept_for: Sequence[int]
    ) -> None:
        self._width = width
        self._shifted = {number: np.empty(width, np.float32) for number in references}
        self._weights = {number: np.empty(width, np.float32) for number in references}
        self._row, self._spare = np.empty(width, np.float32), np.empty(width, np.float32)
        self._of: dict[int, list[tuple[int, int]]] = {}
        for place, (reference, other) in enumerate(pairs):
            self._of.setdefault(other, []).append((place, reference))
        self._kept = {number: len(pairs) + place for place, number in enumerate(kept_for)}

    def reduce(self, rows: Rows, part: Sequence[int], order: Sequence[int], into: _Columns) -> None:
        """Fill the columns of some of the rows. References come first in the order of models."""
        tops, kls = into.tops, into.kls
        sums: dict[int, float] = {}
        for row in part:
            later = []
            for model in order:
                logits = rows.logits[model][row][: self._width]
                top = int(logits.argmax())
                tops[model, row] = top
                shifted, weights = self._shifted.get(model, self._row), self._weights.get(model, self._spare)
                np.subtract(logits, logits[top], out=shifted)
                np.exp(shifted, out=weights)
                sums[model] = float(weights.sum())
                if not math.isfinite(sums[model]):
                    raise EdgeDistillError("a model's logits are not finite", "The model or its file is damaged.")
                kept = rows.kept[row] if rows.kept and model in self._kept else None
                if kept is not None:
                    log_z = float(logits[top]) + math.log(sums[model])
                    kls[self._kept[model], row] = kept.divergence(logits, log_z)
                if model in self._shifted:
                    later.append(model)
                else:
                    self._compare(row, model, sums, kls)
            for model in later:  # the one reference against the other, once both are known
                self._compare(row, model, sums, kls)

    def _compare(self, row: int, model: int, sums: dict[int, float], kls: NDArray[np.float64]) -> None:
        """KL(p || q) = sum p (x - y) - log Z_p + log Z_q, where x, y are logits below their largest."""
        shifted = self._shifted.get(model, self._row)
        for place, reference in self._of.get(model, ()):
            np.subtract(self._shifted[reference], shifted, out=self._spare)
            np.multiply(self._spare, self._weights[reference], out=self._spare)
            mean = float(self._spare.sum()) / sums[reference]
            kls[place, row] = max(0.0, mean - math.log(sums[reference]) + math.log(sums[model]))
