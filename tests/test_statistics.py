"""What rows show: exact where it is known, right at the bar as seldom wrong as promised, never sure of the unseen."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgedistill.report.statistics import decide, differ, fewest_rows, mcnemar

MONTE_CARLO = 0.01  # the resampled p is within this of the exact one


def share(good: int, size: int, bar: float, confidence: float = 0.95) -> tuple[str, float, float, int | None]:
    rows = np.repeat([1 - bar, -bar], [good, size - good])
    found = decide(rows, (1 - bar, -bar), confidence)
    return found.verdict, found.p, found.p_against, found.more


@pytest.mark.parametrize(("good", "size", "bar"), [(200, 200, 0.98), (180, 200, 0.88), (52, 60, 0.8), (1, 9, 0.5)])
def test_a_share_is_tested_as_by_the_exact_binomial_test(good: int, size: int, bar: float) -> None:
    ways = [math.comb(size, k) * bar**k * (1 - bar) ** (size - k) for k in range(size + 1)]
    _, p, p_against, _ = share(good, size, bar)
    assert p == pytest.approx(sum(ways[good:]), abs=MONTE_CARLO)
    assert p_against == pytest.approx(sum(ways[: good + 1]), abs=MONTE_CARLO)


def test_a_bar_is_shown_refuted_or_open_with_the_rows_that_would_decide() -> None:
    assert share(200, 200, 0.98)[0] == "shown"
    assert share(150, 200, 0.88)[0] == "refuted"
    verdict, _, _, more = share(200, 200, 0.99)
    assert verdict == "open"
    assert more is not None
    assert 98 <= more <= 110  # 299 rows in all, if all are good
    assert share(200 + more, 200 + more, 0.99)[0] == "shown"
    assert share(176, 200, 0.88)[::3] == ("open", None)  # right at the bar, no number of rows tells
    assert share(180, 200, 0.85, confidence=0.99)[0] == "open"


def test_pairs_that_all_agree_do_not_make_two_candidates_the_same() -> None:
    rows = np.ones(30)
    margins = rows - 0.95 * rows
    assert decide(margins, (1.0, 0.05, 0.0, -0.95), 0.95).verdict == "open"  # 0.95 ** 30 is 0.21
    low, high = differ(rows, rows).interval
    assert low < 0 < high


def test_rows_right_at_the_bar_are_seldom_called_above_or_below() -> None:
    rng = np.random.default_rng(5)
    teacher, ratio, gained = 0.92, 0.92, 0.04
    student = ratio * teacher
    kinds = [student - gained, teacher - student + gained, gained, 1 - teacher - gained]
    margins = np.array([1 - ratio, -ratio, 1.0, 0.0])
    verdicts = [decide(margins[rng.choice(4, 120, p=kinds)], tuple(margins), 0.95).verdict for _ in range(100)]
    # 5 % of 100 are 5; 12 or more come once in 200 times
    assert verdicts.count("shown") < 12
    assert verdicts.count("refuted") < 12


def test_graded_scores_are_judged_as_they_are() -> None:
    rng = np.random.default_rng(0)
    teacher = rng.random(300)
    student = np.clip(teacher + rng.normal(0, 0.1, 300), 0, 1)
    extremes = (1.0, 0.1, 0.0, -0.9)
    assert decide(student - 0.9 * teacher, extremes, 0.95).verdict == "shown"
    assert decide(student - 1.2 * teacher, (1.0, -0.2, 0.0, -1.2), 0.95).verdict == "refuted"
    found = differ(student, teacher)
    assert found.interval[0] < 0 < found.interval[1]


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_same_both_ways_and_a_probability(better: int, worse: int) -> None:
    assert 0 < mcnemar(better, worse) <= 1
    assert mcnemar(better, worse) == mcnemar(worse, better)


def test_a_difference_counts_the_rows_that_turned_over() -> None:
    found = differ([1, 1, 1, 0, 0], [1, 0, 0, 1, 0])
    assert (found.n, found.better, found.worse, found.p) == (5, 2, 1, 1.0)
    assert found.mean == pytest.approx(0.2)
    assert differ([0.8, 0.4], [0.4, 0.4], right_from=0.7).better == 1


def test_no_rows_are_an_error_and_the_fewest_are_known() -> None:
    with pytest.raises(ValueError, match="no rows"):
        decide([], (1.0, -1.0), 0.95)
    for bar in (0.5, 0.9, 0.97):
        rows = fewest_rows(bar, 0.95)
        assert bar**rows <= 0.05 < bar ** (rows - 1)
