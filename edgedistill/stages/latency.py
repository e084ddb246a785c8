"""What latencies prove: whether a percentile is within its target, and how surely, from as few requests as that takes.

Nothing is assumed about how latencies are distributed. A request is over the target or not; the percentile is within
the target where the share of requests over it is at most 1 - p. How many requests that takes, with so many of them
over, is MLPerf's early-stopping table: the smallest n with P(Bin(n, 1 - p) <= over) <= 1 - confidence
(MLPerf Inference rules, "early stopping"; Clopper and Pearson 1934). The table holds for one look. Whoever looks after
every request and stops at the first pass is wrong more often (at p95 and 300 requests 3 times in 100, not once), so a
plan keeps the table at a stricter level: the largest one at which all its looks together, computed exactly, hold the
confidence (the constant-level boundary of Pocock 1977). Where a plan has room for one look, the two are the same.

It does assume that requests are alike and do not depend on one another: hence the random order, and the drift.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "CONFIDENCE",
    "FEWEST",
    "PAIRS",
    "Plan",
    "Verdict",
    "bounds",
    "drift",
    "early_stopping",
    "nearest_rank",
    "needed",
    "percentiles",
    "plan_for",
    "ratio_of_medians",
    "usual_requests",
]

Verdict = Literal["pass", "fail", "need more"]
Array = NDArray[np.float64]
Number = TypeVar("Number", int, float)

CONFIDENCE = 0.99
FEWEST = 20  # requests before the first look: a median of fewer is no figure
PAIRS = 50  # requests of each, at least, where two are compared
OVER = 6  # requests over the target that a plan has room for where nobody says how many requests it may take
QUANTILES = (50, 90, 95, 99)
RESAMPLES = 2000
DRIFT = 0.1  # a change of the median, from the first third to the last, that is told
UNLIKELY = 2.58  # standard deviations that chance brings once in a hundred times


@dataclass(frozen=True)
class Plan:
    """When to stop: by number of requests, how few over the target are a pass and how many a fail."""

    percentile: int
    most: int
    level: float
    """The level of each look at which a pass is wrong, at most, with the probability 1 - confidence over all looks."""
    passes: tuple[int, ...]
    """By number of requests: the most over the target with a pass, or -1."""
    fails: tuple[int, ...]
    """By number of requests: the fewest over the target with a fail."""

    def verdict(self, requests: int, over: int) -> Verdict:
        """What `over` of so many requests prove. Only the first verdict other than "need more" holds its confidence."""
        if requests < FEWEST:
            return "need more"
        if over <= self.passes[requests]:
            return "pass"
        return "fail" if over >= self.fails[requests] else "need more"

    def pass_at(self, over: int) -> int | None:
        """The requests with which so many over the target are a pass; None where the plan has no room for them."""
        return next((n for n in range(FEWEST, self.most + 1) if self.passes[n] >= over), None)


def early_stopping(percentile: int, over: int, confidence: float = CONFIDENCE) -> int:
    """The fewest requests of which so many over the target prove that the percentile is within it, in one look.

    >>> [early_stopping(95, over) for over in range(4)], early_stopping(99, 0)
    ([90, 130, 165, 198], 459)
    """
    rate = 1 - percentile / 100
    chances = np.zeros(over + 1)
    chances[0] = 1.0
    count = 0
    while chances.sum() > 1 - confidence:
        chances = _next(chances, rate)
        count += 1
    return count


def usual_requests(percentile: int) -> int:
    """The most requests where nobody says how many: enough to pass with a few over the target.

    >>> usual_requests(95), usual_requests(99)
    (288, 1453)
    """
    return max(PAIRS, early_stopping(percentile, OVER))


@lru_cache(maxsize=64)
def plan_for(percentile: int, most: int, confidence: float = CONFIDENCE) -> Plan:
    """The plan for a percentile (of 100) that looks after each of at most `most` requests, from the 20th on.

    A pass is wrong with a probability of at most 1 - confidence where the share over the target is larger than
    1 - p, a fail where it is smaller; each holds whatever the other one does.
    """
    rate = 1 - percentile / 100
    width = int(most * rate + 10 * (most * rate) ** 0.5) + 12  # more over the target than that do not happen
    at_most = _at_most(rate, most, width)
    error = 1 - confidence
    level = _largest_level(error, lambda one: _stopping(_pass_limits(at_most, one), rate, passing=True))
    harsh = _largest_level(error, lambda one: _stopping(_fail_limits(at_most, one), rate, passing=False))
    passes, fails = _pass_limits(at_most, level), _fail_limits(at_most, harsh)
    return Plan(percentile, most, level, tuple(map(int, passes)), tuple(map(int, fails)))


def needed(plan: Plan, requests: int, over: int) -> int:
    """How many more requests would prove a pass if none of them were over; more than the plan has, if it takes that."""
    planned = plan.pass_at(over)
    if planned is not None and planned > requests:
        return planned - requests
    most = max(plan.most, requests) + 1
    while True:
        wider = plan_for(plan.percentile, most)
        planned = wider.pass_at(over)
        if planned is not None:
            return max(1, planned - requests)
        most = max(most + 1, early_stopping(plan.percentile, over, 1 - wider.level))


def bounds(values: Sequence[float], plan: Plan) -> tuple[float | None, float | None]:
    """Values that were measured between which the percentile is: order statistics, the verdict's own confidence each.

    They hold at every look (repeated confidence intervals, Jennison and Turnbull 1989): the upper one is at most the
    target just where the verdict is a pass. None where there are too few values for one.
    """
    ordered, count = sorted(values), min(len(values), plan.most)
    passes, fails = plan.passes[count], plan.fails[count]
    low = ordered[len(ordered) - fails] if fails <= count else None
    high = ordered[len(ordered) - 1 - passes] if passes >= 0 else None
    return low, high


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p90, p95 and p99 as order statistics (nearest rank): each is a value that was measured.

    >>> percentiles([3.0, 1.0, 2.0])
    {'p50': 2.0, 'p90': 3.0, 'p95': 3.0, 'p99': 3.0}
    """
    ordered = sorted(values)
    return {f"p{q}": round(nearest_rank(ordered, q), 2) for q in QUANTILES}


def nearest_rank(ordered: Sequence[Number], percentile: int) -> Number:
    """Of sorted values, the one that so many in a hundred do not exceed.

    >>> nearest_rank([1, 2, 3, 4, 5], 50)
    3
    """
    return ordered[max(0, -(-len(ordered) * percentile // 100) - 1)]


def drift(values: Sequence[float]) -> dict[str, Any]:
    """How the latencies of the last third stand to those of the first, in the order in which they were measured.

    `ratio` is of the medians; `drifting` where it is more than 10 % off 1 and the ranks of the two (Mann and Whitney
    1947) differ more than chance explains once in a hundred times: the machine grew hot, or something else began.
    `autocorrelation` is of the ranks of each latency and the one before; `dependent` where it is larger than chance
    explains: then verdict and bounds are less sure than they say. All None with fewer than 9 values.
    """
    count, third = len(values), len(values) // 3
    if third < 3:
        return dict.fromkeys(("ratio", "z", "drifting", "autocorrelation", "dependent"))
    first, last = np.array(values[:third]), np.array(values[-third:])
    ratio = float(np.median(last) / max(np.median(first), 1e-9))
    larger = (last[:, None] > first).sum() + 0.5 * (last[:, None] == first).sum()
    z = float((larger - third * third / 2) / (third * third * (2 * third + 1) / 12) ** 0.5)
    ranks = np.argsort(np.argsort(values, kind="stable"), kind="stable") - (count - 1) / 2
    correlation = float((ranks[1:] * ranks[:-1]).sum() / (ranks * ranks).sum())
    return {
        "ratio": round(ratio, 3),
        "z": round(z, 2),
        "drifting": abs(ratio - 1) > DRIFT and abs(z) > UNLIKELY,
        "autocorrelation": round(correlation, 3),
        "dependent": correlation * count**0.5 > UNLIKELY,
    }


def ratio_of_medians(
    mine: Sequence[float], theirs: Sequence[float], seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """The ratio of two medians with its 95 % interval: a bootstrap that draws prompts, and for each both latencies."""
    one, other = np.array(mine), np.array(theirs)
    drawn = np.random.default_rng(seed).integers(0, len(one), (RESAMPLES, len(one)))
    ratios = np.median(one[drawn], axis=1) / np.median(other[drawn], axis=1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return round(float(np.median(one) / np.median(other)), 4), (round(float(low), 4), round(float(high), 4))


def _next(chances: Array, rate: float) -> Array:
    """The chances of 0, 1, ... over the target, one request later; what leaves the array is forgotten."""
    after = chances * (1 - rate)
    after[1:] += rate * chances[:-1]
    return after


def _at_most(rate: float, most: int, width: int) -> Array:
    """P(Bin(n, rate) <= h) as an array of shape (most + 1, width)."""
    found = np.empty((most + 1, width))
    chances = np.zeros(width)
    chances[0] = 1.0
    for count in range(most + 1):
        found[count] = np.cumsum(chances)
        chances = _next(chances, rate)
    return found


def _pass_limits(at_most: Array, level: float) -> NDArray[np.int64]:
    return np.asarray((at_most <= level).sum(axis=1) - 1)


def _fail_limits(at_most: Array, level: float) -> NDArray[np.int64]:
    """The least h with P(Bin(n, rate) >= h) <= level; P is 1 for h = 0."""
    return np.asarray(1 + (1 - at_most > level).sum(axis=1))


def _stopping(limits: NDArray[np.int64], rate: float, passing: bool) -> float:
    """The chance that some look stops, at most the limit being over the target, or at least, at exactly this rate."""
    chances = np.zeros(int(limits.max()) + FEWEST)  # none has more over it before it stops, or can stop any more
    chances[0] = 1.0
    stopped = 0.0
    for count, limit in enumerate(limits[1:], start=1):
        chances = _next(chances, rate)
        if count >= FEWEST:
            stops = slice(0, limit + 1) if passing else slice(limit, None)
            stopped += float(chances[stops].sum())
            chances[stops] = 0.0
    return stopped


def _largest_level(error: float, chance: Callable[[float], float]) -> float:
    """The largest level of one look, to a thousandth, at which the chance over all looks is at most the error."""
    if chance(error) <= error:
        return error
    low, high = error * 1e-4, error
    while high / low > 1.001:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if chance(middle) <= error else (low, middle)
    return low
