"""A1: simulated verdicts on students whose true score is known, by the very function that judges a run.

Three quants of one student are judged on the same rows, as in a run: with several to choose from, one may pass by luck.
Their peer is the comparison of scores with bars, without a test.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from measure import finish, note
from numpy.typing import NDArray

from edgedistill.recipe import AcceptSettings, BenchSettings
from edgedistill.report.judge import judge

QUANTS = 3
TEACHERS = (0.80, 0.92, 0.99)
RATIOS = (0.90, 0.92, 0.95)
ONLY_STUDENT = (0.01, 0.05)  # share of rows that the student has right and the teacher wrong
REQUANTIZED = 0.02  # share of rows that turn over between two quants, in both directions
BENCH = BenchSettings()
Flags = NDArray[np.bool_]


def simulated(rng: np.random.Generator, size: int, teacher: float, student: float, gained: float) -> list[Flags]:
    """Rows that the teacher, then each quant, has right; all quants have the same true score."""
    gained = min(gained, 1 - teacher, student)
    is_right = rng.random(size) < teacher
    keep = (student - gained) / teacher
    means = np.where(is_right, keep, gained / (1 - teacher))
    one = rng.random(size) < means
    again = rng.random((QUANTS, size)) < REQUANTIZED
    drawn = rng.random((QUANTS, size)) < means
    return [is_right, *np.where(again, drawn, one)]


def verdict(rows: Sequence[Flags], accept: AcceptSettings) -> tuple[str, int | None]:
    """The verdict on a run of these rows, and how many more rows it asks for."""
    names = ["teacher", *(f"student {number}" for number in range(QUANTS))]
    lines = [
        {"set": "eval", "candidates": {name: {"score": float(flag)} for name, flag in zip(names, flags, strict=True)}}
        for flags in zip(*rows, strict=True)
    ]
    found = judge([candidate(name, flags) for name, flags in zip(names, rows, strict=True)], lines, accept, BENCH)
    more = [bar.more for bar in found.bars[found.best or ""] if bar.name == "exact"]
    return found.verdict, more[0]


def candidate(name: str, flags: Flags) -> dict[str, Any]:
    """A candidate that is fast enough; of its scores, only the one that the rows hold is asked for."""
    share = float(flags.mean())
    scores = {"score": share, "n": len(flags), "ci95": {}, "must_pass": None}
    kind = name.partition(" ")[0]
    proof = {"verdict": "pass", "decided_at": 90, "n": 90, "over": 0, "needed": 0}
    times = {"latency_ms": {"e2e": {"p50": 1.0, "p95": 1.0}}, "bounds": {"e2e": {"p95": [1.0, 1.0]}}}
    return {
        "name": name,
        "kind": kind,
        "size_bytes": hash(name) % 7 + 1,
        "eval": scores,
        "edge": None,
        **proof,
        **times,
    }


def counted(
    rng: np.random.Generator, options: argparse.Namespace, case: tuple[float, float, float], worse: float
) -> tuple[Counter[str], float]:
    """The verdicts on a student that is `worse` points than allowed, and how often the scores alone would accept."""
    teacher, ratio, gained = case
    accept = AcceptSettings(valid=0.0, must_pass=False, speedup=0.0, exact_of_teacher=ratio)
    verdicts: Counter[str] = Counter()
    naive = 0
    for _ in range(options.simulations):
        rows = simulated(rng, options.rows, teacher, ratio * teacher - worse, gained)
        verdicts[verdict(rows, accept)[0]] += 1
        naive += any(flags.mean() >= ratio * rows[0].mean() for flags in rows[1:])
    return verdicts, naive / options.simulations


def decided(rng: np.random.Generator, options: argparse.Namespace, case: tuple[float, float, float]) -> float:
    """Of the verdicts that ask for more rows, the share that so many more rows decide, from the same student."""
    teacher, ratio, gained = case
    accept = AcceptSettings(valid=0.0, must_pass=False, speedup=0.0, exact_of_teacher=ratio)
    asked = answered = 0
    for _ in range(options.simulations):
        truth = ratio * teacher + 0.03
        rows = simulated(rng, options.rows, teacher, truth, gained)
        found, more = verdict(rows, accept)
        if found == "inconclusive" and more is not None and more <= options.most:
            extra = simulated(rng, more, teacher, truth, gained)
            longer = [np.concatenate(pair) for pair in zip(rows, extra, strict=True)]
            asked, answered = asked + 1, answered + (verdict(longer, accept)[0] != "inconclusive")
    return answered / max(1, asked)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--simulations", type=int, default=400, help="of each case")
    parser.add_argument("--worse", type=float, default=0.03, help="than allowed, as a share of the rows")
    parser.add_argument("--most", type=int, default=2000, help="further rows that are simulated")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    false, naive, edge, power = [], [], [], []
    for case in product(TEACHERS, RATIOS, ONLY_STUDENT):
        teacher, ratio, _ = case
        found, point = counted(rng, options, case, options.worse)
        at_bar, _ = counted(rng, options, case, 0.0)
        as_good, _ = counted(rng, options, case, ratio * teacher - teacher)
        for values, one in ((false, found), (edge, at_bar), (power, as_good)):
            values.append(one["accepted"] / options.simulations)
        naive.append(point)
        note(f"teacher {teacher}, {ratio} of it, {case[2]} gained: {dict(found)}, at the bar {dict(at_bar)}")
    finish(
        "A1",
        max(false),
        0.05,
        max(false) <= 0.05,
        peer="scores compared with bars, without a test",
        unit="share of false accepts, worst of the cases",
        n=options.rows,
        simulations=options.simulations,
        cases=len(false),
        peer_value=max(naive),
        accepted_at_the_bar=max(edge),
        accepted_as_good_as_the_teacher={"least": min(power), "most": max(power)},
        decided_by_the_rows_asked_for=round(decided(rng, options, (0.92, 0.92, 0.05)), 3),
    )


if __name__ == "__main__":
    main()
