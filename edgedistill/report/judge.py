"""The verdict: which candidate is good enough, by the bars of the recipe, and why."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ..recipe import AcceptSettings, BenchSettings
from .wording import interval, milliseconds, one_line, percent

__all__ = ["FEWEST_ROWS", "Bar", "Judgement", "judge"]

Candidate = dict[str, Any]
Verdict = Literal["accepted", "rejected", "inconclusive"]

FEWEST_ROWS = 30  # with fewer, the 95 % interval of a share near 0.9 is more than 20 points wide
ROUNDING = 1e-9


@dataclass(frozen=True)
class Bar:
    """One bar for one candidate. `passed` is None where it was not measured."""

    name: str
    passed: bool | None
    sentence: str


@dataclass(frozen=True)
class Judgement:
    """What came of a run. `chosen` is the name of the smallest candidate that passes every bar."""

    verdict: Verdict
    chosen: str | None
    best: str | None
    """The chosen candidate, or the one that comes nearest."""
    reasons: tuple[str, ...]
    bars: dict[str, tuple[Bar, ...]] = field(default_factory=dict)


def judge(candidates: Sequence[Candidate], accept: AcceptSettings, bench: BenchSettings) -> Judgement:
    """The verdict over the candidates of a report: the students among them are those that may be packaged.

    A candidate passes when it clears every bar; the smallest that passes is chosen. Fewer than 30 eval rows, or a bar
    that nobody measured, prove nothing either way: inconclusive.
    """
    teacher = next((one for one in candidates if one["kind"] == "teacher"), None)
    students = [one for one in candidates if one["kind"] == "student"]
    if not students:
        return Judgement("inconclusive", None, None, ("No quantized student has been measured.",))
    bars = {one["name"]: tuple(_bars(one, teacher, accept, bench)) for one in students}
    passing = [one for one in students if all(bar.passed for bar in bars[one["name"]])]
    chosen = min(passing, key=lambda one: (one["size_bytes"], one["name"]), default=None)
    best = chosen or max(students, key=lambda one: _nearness(one, bars[one["name"]]))
    verdict, reasons = _verdict(best, bars[best["name"]], chosen is not None)
    return Judgement(verdict, chosen["name"] if chosen else None, best["name"], tuple(reasons), bars)


def _verdict(best: Candidate, bars: Sequence[Bar], passes: bool) -> tuple[Verdict, list[str]]:
    missed = [bar for bar in bars if not bar.passed]
    if passes:
        reasons = [f"{best['name']} is the smallest that passes every bar.", *(bar.sentence for bar in bars)]
    else:
        reasons = [f"No student passes every bar; {best['name']} comes nearest.", *(bar.sentence for bar in missed)]
    rows = best["eval"]["n"] if best.get("eval") else 0
    if rows < FEWEST_ROWS:
        few = f"{rows} eval rows are too few to judge by: at least {FEWEST_ROWS} are needed."
        return "inconclusive", [few, *reasons]
    if passes:
        return "accepted", reasons
    return ("rejected" if any(bar.passed is False for bar in missed) else "inconclusive"), reasons


def _nearness(candidate: Candidate, bars: Iterable[Bar]) -> tuple[int, float, int]:
    scores = candidate.get("eval") or {}
    right = scores.get("exact") if scores.get("exact") is not None else scores.get("agreement")
    return sum(bar.passed is True for bar in bars), right or 0.0, -candidate["size_bytes"]


def _bars(
    candidate: Candidate, teacher: Candidate | None, accept: AcceptSettings, bench: BenchSettings
) -> Iterable[Bar]:
    """The bars that the recipe sets; one at 0 is no bar."""
    if accept.valid:
        yield _share("valid", "Valid answers", candidate, accept.valid, "")
    if accept.agreement:
        yield _share("agreement", "The same answer as the teacher", candidate, accept.agreement, "")
    if accept.exact_of_teacher and not _without_answers(candidate):
        yield _exact(candidate, teacher, accept.exact_of_teacher)
    if accept.must_pass:
        yield from _must_pass(candidate)
    yield _latency(candidate, bench)
    if accept.speedup:
        yield _speed(candidate, teacher, accept.speedup)


def _share(name: str, what: str, candidate: Candidate, limit: float, of: str) -> Bar:
    scores = candidate.get("eval")
    if not scores or scores[name] is None:
        return Bar(name, None, f"{what} on the eval set: not measured.")
    bounds = interval(scores["ci95"].get(name))
    text = f"{what} on {percent(scores[name])} of {scores['n']} rows"
    text += f" (95 % interval {bounds})" if bounds else ""
    return Bar(name, scores[name] + ROUNDING >= limit, f"{text}; the bar is {percent(limit)}{of}.")


def _without_answers(candidate: Candidate) -> bool:
    """Whether the eval set has no right answers to compare with."""
    return bool(candidate.get("eval")) and candidate["eval"]["exact"] is None


def _exact(candidate: Candidate, teacher: Candidate | None, ratio: float) -> Bar:
    reference = (teacher or {}).get("eval")
    if not reference or reference["exact"] is None:
        return Bar("exact", None, "Right answers beside the teacher's: not measured.")
    limit = ratio * reference["exact"]
    of = f", which is {percent(ratio)} of the teacher's {percent(reference['exact'])}"
    return _share("exact", "The right answer", candidate, limit, of)


def _must_pass(candidate: Candidate) -> Iterable[Bar]:
    must = (candidate.get("edge") or {}).get("must_pass")
    if not must or not must["n"]:
        return
    text = f"{must['passed']} of {must['n']} must-pass edge cases are right"
    wrong = ", ".join(f"“{one_line(prompt, 60)}”" for prompt in must["failed"][:3])
    more = len(must["failed"]) - 3
    text += f"; wrong: {wrong}{f' and {more} more' if more > 0 else ''}." if wrong else "."
    yield Bar("must_pass", must["passed"] == must["n"], text)


def _latency(candidate: Candidate, bench: BenchSettings) -> Bar:
    value = _end_to_end(candidate, bench.percentile)
    if value is None:
        return Bar("latency", None, "Latency: not measured.")
    text = f"p{bench.percentile} end to end is {milliseconds(value)}"
    return Bar("latency", value <= bench.target_ms[1], f"{text}; the bar is {milliseconds(bench.target_ms[1])}.")


def _speed(candidate: Candidate, teacher: Candidate | None, limit: float) -> Bar:
    mine, theirs = _end_to_end(candidate, 50), _end_to_end(teacher or {}, 50)
    if mine is None or theirs is None:
        return Bar("speedup", None, "Speed beside the teacher: not measured.")
    text = f"{theirs / mine:.1f} times as fast as the teacher at the median"
    text += f" ({milliseconds(mine)} against {milliseconds(theirs)})"
    return Bar("speedup", theirs / mine + ROUNDING >= limit, f"{text}; the bar is a factor of {limit:g}.")


def _end_to_end(candidate: Candidate, percentile: int) -> float | None:
    latency = candidate.get("latency_ms")
    return float(latency["e2e"][f"p{percentile}"]) if latency else None
