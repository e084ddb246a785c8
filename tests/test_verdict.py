"""The verdict: each bar of the recipe passed, missed or open, and the smallest student that passes them all."""

from __future__ import annotations

from typing import Any

import pytest
from fabricated_run import candidate, proven, result_rows, scores

from edgedistill.recipe import AcceptSettings, BenchSettings
from edgedistill.report.judge import Judgement, judge

ACCEPT = AcceptSettings(valid=0.95, agreement=0.8, exact_of_teacher=0.9, must_pass=False, speedup=5.0)
BENCH = BenchSettings(target_ms=(100.0, 500.0), percentile=95)


def student(quant: str, size: int, exact: float = 0.9, p50: float = 200.0, **changes: Any) -> dict[str, Any]:
    e2e = {"p50": p50, "p90": p50 * 1.1, "p95": p50 * 1.2, "p99": p50 * 1.3}
    one = candidate(f"student {quant}", "student", quant, size, exact)
    return {**one, **proven(e2e), "latency_ms": {"ttft": e2e, "e2e": e2e}, **changes}


def teacher(exact: float | None = 0.92, p50: float = 2000.0, n: int = 150) -> dict[str, Any]:
    e2e = {"p50": p50, "p90": p50, "p95": p50, "p99": p50}
    one = candidate("teacher", "teacher", "Q4_K_M", 1_000_000_000, 0.92, 1.0)
    return {**one, "eval": scores(exact, agreement=1.0, n=n), "latency_ms": {"ttft": e2e, "e2e": e2e}}


def judged(*candidates: dict[str, Any], accept: AcceptSettings = ACCEPT) -> Judgement:
    return judge(candidates, result_rows(list(candidates)), accept, BENCH)


def test_the_smallest_that_passes_is_chosen() -> None:
    found = judged(teacher(), student("Q8_0", 145), student("Q6_K", 120), student("Q4_K_M", 105))
    assert (found.verdict, found.chosen) == ("accepted", "student Q4_K_M")
    assert len(found.reasons) == 6
    assert "The right answer on 90 % of 150 rows" in found.reasons[3]
    assert "90 % of the teacher's 92 %, row by row: shown (p < 0.001)" in found.reasons[3]


def test_a_smaller_one_below_a_bar_is_passed_over() -> None:
    found = judged(teacher(), student("Q8_0", 145), student("Q4_K_M", 105, exact=0.7))
    assert (found.verdict, found.chosen) == ("accepted", "student Q8_0")


def test_one_that_passes_where_a_larger_one_does_not_may_be_luck() -> None:
    found = judged(teacher(), student("Q8_0", 145, exact=0.83), student("Q4_K_M", 105))
    assert (found.verdict, found.chosen) == ("inconclusive", None)
    assert found.reasons[0].startswith("student Q4_K_M passes every bar, but the scores of a larger one do not")
    slow = student("Q8_0", 145, p50=450.0)
    assert judged(teacher(), slow, student("Q4_K_M", 105)).chosen == "student Q4_K_M"  # its scores do pass


@pytest.mark.parametrize(
    ("changes", "accept", "bar", "words"),
    [
        ({"eval": scores(0.9, valid=0.89)}, {}, "valid", "Valid answers on 89 % of 150 rows"),
        ({"eval": scores(0.9, agreement=0.7)}, {}, "agreement", "70 % of 150 rows"),
        ({"eval": scores(0.72)}, {}, "exact", "row by row: shown to be missed (p < 0.001)"),
        ({"eval": scores(0.9)}, {"score": 0.96}, "score", "the bar is 96 %: shown to be missed (p = 0.0"),
        ({"p50": 450.0}, {"speedup": 0.0}, "latency", "p95 end to end is 540 ms"),
        ({"p50": 410.0}, {}, "speedup", "4.9 times as fast as the teacher at the median (410 ms against 2000 ms)"),
        ({}, {"must_pass": True}, "must_pass", "4 of 6 must-pass cases are right; wrong: “Unlock.”"),
        ({}, {"max_bytes": 140_000_000}, "size", "145 MB on disk; the bar is 140 MB."),
        ({"peak_memory_bytes": 3 * 10**8}, {"max_memory_bytes": 2 * 10**8}, "memory", "300 MB of memory at the peak"),
    ],
)
def test_each_missed_bar_rejects_and_is_quoted(
    changes: dict[str, Any], accept: dict[str, Any], bar: str, words: str
) -> None:
    found = judged(teacher(), student("Q8_0", 145_000_000, **changes), accept=ACCEPT.model_copy(update=accept))
    assert (found.verdict, found.chosen, found.best) == ("rejected", None, "student Q8_0")
    assert [missed.name for missed in found.bars["student Q8_0"] if not missed.passed] == [bar]
    assert len(found.reasons) == 2
    assert words in found.reasons[1]


def test_a_score_near_its_bar_is_open_and_says_how_many_rows_would_decide() -> None:
    found = judged(teacher(), student("Q8_0", 145, exact=0.85))
    assert (found.verdict, found.chosen) == ("inconclusive", None)
    (bar,) = (one for one in found.bars["student Q8_0"] if one.passed is None)
    assert bar.name == "exact"
    assert bar.p is not None
    assert 0.05 < bar.p < 0.5
    assert bar.more is not None
    assert f"about {bar.more:,} more rows like these would decide." in found.reasons[1]


def test_a_few_eval_rows_prove_nothing_even_if_all_are_right() -> None:
    found = judged(teacher(1.0, n=20), student("Q8_0", 145, eval=scores(1.0, agreement=1.0, n=20)))
    assert (found.verdict, found.chosen) == ("inconclusive", None)
    assert [bar.name for bar in found.bars["student Q8_0"] if bar.passed is None] == ["valid", "exact"]


def test_what_was_not_measured_is_inconclusive() -> None:
    found = judged(teacher(), student("Q8_0", 145, latency_ms=None))
    assert (found.verdict, found.chosen) == ("inconclusive", None)
    assert "Latency: not measured." in found.reasons
    assert judge([], [], ACCEPT, BENCH).verdict == "inconclusive"
    without_rows = judge([teacher(), student("Q8_0", 145)], [], ACCEPT, BENCH)
    assert without_rows.verdict == "inconclusive"


def test_without_right_answers_the_teacher_is_the_measure() -> None:
    found = judged(teacher(None), student("Q8_0", 145, eval=scores(None)))
    assert found.verdict == "accepted"
    assert "exact" not in {bar.name for bar in found.bars["student Q8_0"]}


@pytest.mark.parametrize(
    ("whole", "ratio", "verdict", "passed"),
    [
        (0.0, 0.9, "accepted", True),
        (0.3, 0.9, "accepted", True),
        (1.0, 0.9, "inconclusive", None),
        (1.0, 0.99, "rejected", False),
    ],
)
def test_a_short_prompt_must_be_shown_to_lose_nothing(
    whole: float, ratio: float, verdict: str, passed: bool | None
) -> None:
    own = student("F16", 270, exact=0.9)
    prompted = {**own, "name": "student F16, teacher's prompt", "eval": scores(whole)}
    people = [teacher(), student("Q8_0", 145)]
    accept = ACCEPT.model_copy(update={"of_whole_prompt": ratio})
    names = (own["name"], prompted["name"])
    found = judge(people, result_rows([*people, own, prompted]), accept, BENCH, names)
    (bar,) = [one for one in found.bars["student Q8_0"] if one.name == "own_prompt"]
    assert (found.verdict, bar.passed) == (verdict, passed)
    assert ("with the student's own prompt" if whole else "nothing to lose") in bar.sentence
    assert f"of the {100 * whole:.0f} %" in bar.sentence or not whole
    unasked = judge(
        people, result_rows([*people, own, prompted]), ACCEPT.model_copy(update={"of_whole_prompt": 0.0}), BENCH, names
    )
    assert unasked.verdict == "accepted"
