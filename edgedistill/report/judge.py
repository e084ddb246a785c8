"""The verdict: which candidate is good enough, by the bars of the recipe, and why.

A bar on a score is passed when the eval rows show, at `accept.confidence`, that the candidate is above it; it is missed
when they show the contrary. A candidate is good enough when it passes every bar, and that is shown at the same
confidence as each of them is (Berger 1982). The quants are tried from the largest to the smallest and no further than
the first whose scores do not pass, so that trying several costs no confidence either (fixed-sequence testing, Maurer
et al. 1995).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ..recipe import AcceptSettings, BenchSettings
from ..results import Row
from .rows import outcomes
from .statistics import Decision, decide
from .wording import chance, interval, megabytes, milliseconds, one_line, percent

__all__ = ["Bar", "Judgement", "judge"]

Candidate = dict[str, Any]
Verdict = Literal["accepted", "rejected", "inconclusive"]

ROUNDING = 1e-9


@dataclass(frozen=True)
class Bar:
    """One bar for one candidate. `passed` is None where it was not measured, or too little to tell."""

    name: str
    passed: bool | None
    sentence: str
    p: float | None = None
    """Of a bar on a score: the chance of rows as good as these from a candidate that is right at the bar."""
    more: int | None = None
    """Of one that is open: the further rows that would decide."""
    is_score: bool = False


@dataclass(frozen=True)
class Judgement:
    """What came of a run. `chosen` is the name of the smallest candidate that passes every bar."""

    verdict: Verdict
    chosen: str | None
    best: str | None
    """The chosen candidate, or the one that comes nearest."""
    reasons: tuple[str, ...]
    bars: dict[str, tuple[Bar, ...]] = field(default_factory=dict)


def judge(
    candidates: Sequence[Candidate],
    rows: Sequence[Row],
    accept: AcceptSettings,
    bench: BenchSettings,
    prompts: tuple[str, str] | None = None,
) -> Judgement:
    """The verdict over the candidates of a report and the rows behind them; its students are what may be packaged.

    `prompts` names one student twice: as it was asked with its own prompt, and with the teacher's whole one.
    accepted: one passes every bar, and so do the scores of all that are larger. rejected: every one misses a bar.
    inconclusive: neither; then more rows, or what was not measured, would decide.
    """
    teacher = next((one for one in candidates if one["kind"] == "teacher"), None)
    students = [one for one in candidates if one["kind"] == "student"]
    if not students:
        return Judgement("inconclusive", None, None, ("No quantized student has been measured.",))
    short = list(_of_whole_prompt(prompts, rows, accept)) if prompts else []
    bars = {one["name"]: (*_bars(one, teacher, rows, (accept, bench)), *short) for one in students}
    passing = [one for one in students if all(bar.passed for bar in bars[one["name"]])]
    tried = _tried(students, bars)
    chosen = min((one for one in passing if one["name"] in tried), key=_size, default=None)
    best = chosen or min(students, key=lambda one: _distance(one, bars[one["name"]]))
    missed = [any(bar.passed is False for bar in bars[one["name"]]) for one in students]
    verdict: Verdict = "accepted" if chosen else "rejected" if all(missed) else "inconclusive"
    if chosen:
        reasons = [
            f"{best['name']} is the smallest that passes every bar.",
            *(one.sentence for one in bars[best["name"]]),
        ]
    else:
        reasons = [f"No student passes every bar; {best['name']} comes nearest."]
        reasons += [bar.sentence for bar in bars[best["name"]] if not bar.passed]
        reasons[:1] = _by_luck(passing, tried) or reasons[:1]
    return Judgement(verdict, chosen["name"] if chosen else None, best["name"], tuple(reasons), bars)


def _tried(students: Sequence[Candidate], bars: dict[str, tuple[Bar, ...]]) -> set[str]:
    """The candidates before, and with, the first whose scores do not pass: from the largest to the smallest."""
    tried = set()
    for one in sorted(students, key=_size, reverse=True):
        tried.add(one["name"])
        if not all(bar.passed for bar in bars[one["name"]] if bar.is_score):
            break
    return tried


def _by_luck(passing: Sequence[Candidate], tried: set[str]) -> list[str]:
    """The reason where one passes that a larger one, whose scores do not, has ruled out."""
    if not passing:
        return []
    names = " and ".join(one["name"] for one in passing if one["name"] not in tried)
    return [f"{names} passes every bar, but the scores of a larger one do not: that may be chance."]


def _size(candidate: Candidate) -> tuple[int, str]:
    return candidate["size_bytes"], candidate["name"]


def _distance(candidate: Candidate, bars: Sequence[Bar]) -> tuple[int, int, float, int]:
    """How far it is from passing: bars that are missed, then those that are open, then by its score and size."""
    scores = candidate.get("eval") or {}
    right = scores.get("score") if scores.get("score") is not None else scores.get("agreement")
    missed, opened = sum(bar.passed is False for bar in bars), sum(bar.passed is None for bar in bars)
    return missed, opened, -(right or 0.0), candidate["size_bytes"]


def _bars(
    candidate: Candidate,
    teacher: Candidate | None,
    rows: Sequence[Row],
    settings: tuple[AcceptSettings, BenchSettings],
) -> Iterable[Bar]:
    """The bars that the recipe sets; one at 0 is no bar."""
    accept, bench = settings
    yield from _scores(candidate, teacher, rows, accept)
    if accept.must_pass:
        yield from _must_pass(candidate)
    yield _latency(candidate, bench)
    if accept.speedup:
        yield _speed(candidate, teacher, accept.speedup)
    if accept.max_bytes:
        yield _at_most("size", "on disk", candidate["size_bytes"], accept.max_bytes)
    if accept.max_memory_bytes:
        yield _at_most("memory", "of memory at the peak", candidate.get("peak_memory_bytes"), accept.max_memory_bytes)


def _scores(
    candidate: Candidate, teacher: Candidate | None, rows: Sequence[Row], accept: AcceptSettings
) -> Iterable[Bar]:
    if accept.valid:
        yield _share("valid", candidate, rows, (accept.valid, accept.confidence))
    if accept.agreement:
        yield _share("agreement", candidate, rows, (accept.agreement, accept.confidence))
    if accept.score:
        yield _share("score", candidate, rows, (accept.score, accept.confidence))
    if accept.exact_of_teacher and not _without_answers(candidate):
        yield _of_teacher(candidate, teacher, rows, accept)


# metric -> its key in a row, and how it is said
SAID = {
    "valid": ("valid", "Valid answers on"),
    "agreement": ("same", "The same answer as the teacher on"),
    "score": ("score", "A score of"),
}


def _share(name: str, candidate: Candidate, rows: Sequence[Row], bar: tuple[float, float]) -> Bar:
    key, what = SAID[name]
    found = outcomes(rows, candidate["name"], key)
    if not found:
        return Bar(name, None, f"{what} the eval set: not measured.", is_score=True)
    limit, confidence = bar
    decision = decide([value - limit for value in found], (1 - limit, -limit), confidence)
    return _scored(name, f"{what} {_value(candidate, name)}; the bar is {percent(limit)}", decision)


def _of_teacher(candidate: Candidate, teacher: Candidate | None, rows: Sequence[Row], accept: AcceptSettings) -> Bar:
    """The bar on the score relative to the teacher's, over pairs of the same row's two scores."""
    name, ratio = "exact", accept.exact_of_teacher
    mine = outcomes(rows, candidate["name"], "score")
    theirs = outcomes(rows, teacher["name"], "score") if teacher else []
    if not mine or len(mine) != len(theirs):
        return Bar(name, None, "The score beside the teacher's: not measured.", is_score=True)
    decision = _relative(mine, theirs, ratio, accept.confidence)
    reference = sum(theirs) / len(theirs)
    text = f"{_what(mine, theirs)} {_value(candidate, 'score')}; the bar is {percent(ratio)} of the teacher's "
    return _scored(name, f"{text}{percent(reference)}, row by row", decision)


def _of_whole_prompt(prompts: tuple[str, str], rows: Sequence[Row], accept: AcceptSettings) -> Iterable[Bar]:
    """The bar on what the student's own prompt loses beside the teacher's whole one; nothing without right answers."""
    mine, whole = (outcomes(rows, name, "score") for name in prompts)
    ratio = accept.of_whole_prompt
    if not ratio or not mine or len(mine) != len(whole):
        return
    if not any(whole):
        text = f"With the teacher's whole prompt the student scores 0 on all of {len(whole)} rows: nothing to lose."
        yield Bar("own_prompt", True, text, is_score=True)
        return
    decision = _relative(mine, whole, ratio, accept.confidence)
    own, other = sum(mine) / len(mine), sum(whole) / len(whole)
    text = f"{_what(mine, whole)} {percent(own)} of {len(mine)} rows with the student's own prompt, before quantizing"
    text += f"; the bar is {percent(ratio)} of the {percent(other)} that it has with the teacher's whole prompt"
    yield _scored("own_prompt", text, decision)


def _relative(mine: Sequence[float], theirs: Sequence[float], ratio: float, confidence: float) -> Decision:
    """Whether scores are above this share of others of the same rows."""
    margins = [one - ratio * other for one, other in zip(mine, theirs, strict=True)]
    return decide(margins, (1.0, 1 - ratio, 0.0, -ratio), confidence)


def _what(mine: Sequence[float], theirs: Sequence[float]) -> str:
    """How a score is said: rows that are right or wrong are counted."""
    return "The right answer on" if {*mine, *theirs} <= {0.0, 1.0} else SAID["score"][1]


def _value(candidate: Candidate, name: str) -> str:
    """A measured score with its rows and its interval."""
    scores = candidate["eval"]
    bounds = interval(scores["ci95"].get(name))
    return f"{percent(scores[name])} of {scores['n']} rows" + (f" (95 % interval {bounds})" if bounds else "")


def _scored(name: str, text: str, decision: Decision) -> Bar:
    """A bar on a score, with what the rows show of it."""
    if decision.verdict == "shown":
        return Bar(name, True, f"{text}: shown ({chance(decision.p)}).", decision.p, is_score=True)
    if decision.verdict == "refuted":
        return Bar(
            name, False, f"{text}: shown to be missed ({chance(decision.p_against)}).", decision.p, is_score=True
        )
    text += f": not decided ({chance(decision.p)}); "
    if decision.more is None:
        text += "it lies so near that no number of rows in reach would decide."
    else:
        text += f"about {decision.more:,} more rows like these would decide."
    return Bar(name, None, text, decision.p, decision.more, is_score=True)


def _without_answers(candidate: Candidate) -> bool:
    """Whether the eval set has no right answers to compare with."""
    return bool(candidate.get("eval")) and candidate["eval"]["score"] is None


def _must_pass(candidate: Candidate) -> Iterable[Bar]:
    sets = [(candidate.get(kind) or {}).get("must_pass") for kind in ("edge", "eval")]
    must = [one for one in sets if one and one["n"]]
    if not must:
        return
    count, right = sum(one["n"] for one in must), sum(one["passed"] for one in must)
    failed = [prompt for one in must for prompt in one["failed"]]
    text = f"{right} of {count} must-pass cases are right"
    wrong = ", ".join(f"“{one_line(prompt, 60)}”" for prompt in failed[:3])
    more = len(failed) - 3
    text += f"; wrong: {wrong}{f' and {more} more' if more > 0 else ''}." if wrong else "."
    yield Bar("must_pass", right == count, text)


def _at_most(name: str, what: str, value: int | None, limit: int) -> Bar:
    if value is None:
        return Bar(name, None, f"The bytes {what}: not measured.")
    return Bar(name, value <= limit, f"{megabytes(value)} {what}; the bar is {megabytes(limit)}.")


def _latency(candidate: Candidate, bench: BenchSettings) -> Bar:
    verdict = candidate.get("verdict")
    if not candidate.get("latency_ms") or verdict is None:
        return Bar("latency", None, "Latency: not measured.")
    percentile, count = f"p{bench.percentile}", candidate["decided_at"] or candidate["n"]
    value, high = candidate["latency_ms"][bench.metric][percentile], candidate["bounds"][bench.metric][percentile][1]
    what = {"e2e": "end to end", "ttft": "to the first text"}[bench.metric]
    bound = "" if high is None else f" (99 % sure: at most {milliseconds(high)})"
    text = f"{percentile} {what} is {milliseconds(value)}{bound}; the bar is {milliseconds(bench.target_ms[1])}"
    text += f"; {candidate['over']} of {count} requests were over it"
    if verdict == "need more":
        return Bar("latency", None, f"{text}; to prove it takes {candidate['needed']} more, none of them over.")
    return Bar("latency", verdict == "pass", f"{text}.")


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
