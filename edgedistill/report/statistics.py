"""What rows show: whether a bar holds, how two candidates differ on the same rows, and how many rows would tell.

Everything is paired by row and resampled by row; the same rows give the same figures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Decision", "Difference", "decide", "differ", "fewest_rows", "mcnemar"]

Floats = NDArray[np.float64]

RESAMPLES = 10_000
POWER = 0.8  # the chance that the rows which are asked for do decide
FARTHEST = 1_000_000  # rows; asking for more is asking for none
DISTINCT = 64  # values that are resampled; more are joined with their neighbours
UNSEEN = 0.01  # rows of each extreme that are thought of, so that no outcome is impossible because none was seen
SMOOTHING = 0.5
ROUNDING = 1e-9


@dataclass(frozen=True)
class Decision:
    """Whether rows lie above a bar on average: "shown", "refuted", or "open".

    `p` is the chance of rows at least as good from a candidate that is exactly at the bar, `p_against` of rows at
    least as bad. `more` is about how many further rows like these would decide (aimed at 4 of 5 cases; `make bench
    ID=A1` tells how often they do); None where it is decided, and where no number of rows in reach would.
    """

    verdict: Literal["shown", "refuted", "open"]
    p: float
    p_against: float
    more: int | None


@dataclass(frozen=True)
class Difference:
    """How one candidate's scores differ from another's on the same rows."""

    n: int
    mean: float
    """Its mean score less the other's."""
    interval: tuple[float, float]
    """Of 95 %, by the paired bootstrap."""
    better: int
    """Rows that are right here and wrong there."""
    worse: int
    p: float
    """Of as one-sided a split of these rows, were there no difference (exact McNemar test, two-sided)."""


def decide(margins: ArrayLike, extremes: Sequence[float], confidence: float) -> Decision:
    """Whether the mean of `margins`, float64 (rows,), is above 0, at a confidence such as 0.95; one-sided.

    A margin is how far a row's outcome lies above the bar, and `extremes` are those of all outcomes that there can be.
    The rows are resampled with the weights nearest to their own at which the mean is 0 (Owen, Empirical likelihood,
    1988). For shares this is the exact binomial test, for pairs of right and wrong answers the restricted maximum
    likelihood test (Lloyd, 2008); a graded score needs no other. Raises ValueError where there are no rows.
    """
    values = np.asarray(margins, dtype=np.float64)
    if not len(values):
        raise ValueError("no rows")
    points, counts = _points(values)
    observed = float(values.mean())
    support = np.concatenate([points, np.asarray(extremes, dtype=np.float64)])
    if support.min() >= 0 or support.max() <= 0:  # the bar is where all outcomes are, or where none can be
        shown = bool(support.min() >= 0)
        return Decision("shown" if shown else "refuted", float(not shown), float(shown), None)
    nearest = _tilted(support, np.concatenate([counts, np.full(len(extremes), UNSEEN)]))
    p, p_against = _tails(support, nearest, len(values), observed)
    if min(p, p_against) <= 1 - confidence:
        return Decision("shown" if p < p_against else "refuted", p, p_against, None)
    spread = math.sqrt(float(nearest @ support**2)), float(values.std())
    total = _rows_needed((support, nearest), observed, spread, confidence)
    return Decision("open", p, p_against, None if total is None else max(1, total - len(values)))


def differ(ours: ArrayLike, theirs: ArrayLike, right_from: float = 1.0) -> Difference:
    """How the scores `ours` differ from `theirs`, float64 (rows,) in [0, 1]; from `right_from` on a row is right.

    Half a row of each of the four extreme pairs is added before resampling (Agresti and Min, 2005), so that two
    candidates that agree on few rows are not thought the same for sure. Raises ValueError where there are no rows.
    """
    mine, other = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    if not len(mine):
        raise ValueError("no rows")
    points, counts = _points(mine - other)
    support = np.concatenate([points, [-1.0, 0.0, 1.0]])
    weights = np.concatenate([counts, [SMOOTHING, 2 * SMOOTHING, SMOOTHING]])
    means = _means(support, weights / weights.sum(), len(mine))
    low, high = np.quantile(means, [0.025, 0.975])
    is_right, was_right = mine + ROUNDING >= right_from, other + ROUNDING >= right_from
    better, worse = int((is_right & ~was_right).sum()), int((was_right & ~is_right).sum())
    interval = round(float(low), 4), round(float(high), 4)
    return Difference(len(mine), float((mine - other).mean()), interval, better, worse, mcnemar(better, worse))


def fewest_rows(bar: float, confidence: float) -> int:
    """How many rows can show that a share is above a bar, if all of them are good.

    >>> fewest_rows(0.95, 0.95), fewest_rows(0.99, 0.95)
    (59, 299)
    """
    return math.ceil(math.log(1 - confidence) / math.log(bar)) if 0 < bar < 1 else 1


def mcnemar(better: int, worse: int) -> float:
    """The exact two-sided p of a split of the rows on which two candidates differ (McNemar 1947, as a sign test).

    >>> mcnemar(5, 5), mcnemar(0, 6), mcnemar(0, 0)
    (1.0, 0.03125, 1.0)
    """
    total = better + worse
    if not total:
        return 1.0
    ways = sum(math.comb(total, count) for count in range(min(better, worse) + 1))
    return min(1.0, 2 * ways / (1 << total))


def _points(values: Floats) -> tuple[Floats, Floats]:
    """The distinct values with their counts; where there are very many, the means of neighbours."""
    points, counts = np.unique(np.round(values, 12), return_counts=True)
    if len(points) <= DISTINCT:
        return points, counts.astype(np.float64)
    parts = np.array_split(np.sort(values), DISTINCT)
    return np.array([part.mean() for part in parts]), np.array([len(part) for part in parts], dtype=np.float64)


def _tilted(support: Floats, counts: Floats) -> Floats:
    """The weights nearest to the counts, in likelihood, at which the mean is 0: w / (1 + t x), by bisection on t."""
    low, high = -1 / support.max() * (1 - 1e-10), -1 / support.min() * (1 - 1e-10)
    shares = counts / counts.sum()
    for _ in range(100):
        middle = (low + high) / 2
        if float((shares * support / (1 + middle * support)).sum()) > 0:
            low = middle
        else:
            high = middle
    weights = shares / (1 + (low + high) / 2 * support)
    tilted: Floats = weights / weights.sum()
    return tilted


def _means(support: Floats, weights: Floats, size: int) -> Floats:
    """Means of `size` rows drawn with these weights: (RESAMPLES,)."""
    points, where = np.unique(np.round(support, 12), return_inverse=True)
    joined = np.bincount(where, weights)
    drawn = np.random.default_rng(0).multinomial(size, joined / joined.sum(), RESAMPLES)
    means: Floats = drawn @ points / size
    return means


def _tails(support: Floats, weights: Floats, size: int, observed: float) -> tuple[float, float]:
    """The share of resampled means at or above the observed one, and at or below it, itself counted among them."""
    means = _means(support, weights, size)
    above, below = int((means >= observed - ROUNDING).sum()), int((means <= observed + ROUNDING).sum())
    return (above + 1) / (RESAMPLES + 1), (below + 1) / (RESAMPLES + 1)


def _rows_needed(
    null: tuple[Floats, Floats], observed: float, spread: tuple[float, float], confidence: float
) -> int | None:
    """How many rows in all would decide, with `POWER`, if all of them went as these did; None where too many.

    `spread` is a row's standard deviation at the bar and as observed. The normal formula is the start; then as many
    more as the test itself takes.
    """
    if abs(observed) < ROUNDING:
        return None
    normal = NormalDist()
    wanted = normal.inv_cdf(confidence) * spread[0] + normal.inv_cdf(POWER) * spread[1]
    if (wanted / observed) ** 2 > FARTHEST:
        return None
    rows = math.ceil((wanted / observed) ** 2)
    while rows <= FARTHEST and min(_tails(*null, rows, observed)) > 1 - confidence:
        rows = math.ceil(rows * 1.02) + 1
    return rows if rows <= FARTHEST else None
