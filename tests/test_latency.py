"""What latencies prove, and who is asked when."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import count as count_from
from itertools import takewhile
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgedistill.contract import BenchSettings
from edgedistill.errors import EdgeDistillError
from edgedistill.records import Message, Prompt
from edgedistill.stages import turns
from edgedistill.stages.latency import (
    FEWEST,
    bounds,
    drift,
    early_stopping,
    needed,
    percentiles,
    plan_for,
    ratio_of_medians,
)
from edgedistill.stages.lengths import timed_prompts
from edgedistill.stages.turns import Contender, Rules, fit_together, take_turns


def test_the_table_is_mlperfs() -> None:
    found = {q: [early_stopping(q, over) for over in range(4)] for q in (90, 95, 99)}
    assert found == {90: [44, 64, 81, 97], 95: [90, 130, 165, 198], 99: [459, 662, 838, 1001]}
    assert [early_stopping(q, 0, 0.95) for q in (90, 95, 99)] == [29, 59, 299]
    for q, over, count in ((95, 2, 165), (90, 3, 97)):  # the binomial itself, by another way
        rate = 1 - q / 100
        tail = [
            sum(math.comb(n, k) * rate**k * (1 - rate) ** (n - k) for k in range(over + 1)) for n in (count - 1, count)
        ]
        assert tail[1] <= 0.01 < tail[0]


def test_a_plan_with_one_look_is_the_table_and_one_with_many_is_stricter() -> None:
    assert [plan_for(95, 100).pass_at(over) for over in (0, 1)] == [90, None]
    assert [plan_for(95, 288).pass_at(over) for over in range(4)] == [111, 153, 191, 225]
    assert plan_for(95, 288).level < 0.01


@pytest.mark.parametrize(("percentile", "most"), [(50, 40), (90, 142), (95, 288)])
def test_verdicts_after_every_request_are_wrong_once_in_a_hundred_times(percentile: int, most: int) -> None:
    plan, rate = plan_for(percentile, most), 1 - percentile / 100
    random, count = np.random.default_rng(percentile), 10_000
    over = np.cumsum(random.random((count, most)) < rate, axis=1)  # the worst case of either error
    looks = np.arange(1, most + 1) >= FEWEST
    passes = ((over <= np.array(plan.passes)[1:]) & looks).any(axis=1).mean()
    fails = ((over >= np.array(plan.fails)[1:]) & looks).any(axis=1).mean()
    noise = 3 * (0.01 * 0.99 / count) ** 0.5
    assert passes <= 0.01 + noise
    assert fails <= 0.01 + noise
    table = list(takewhile(lambda n: n <= most, (early_stopping(percentile, h) for h in count_from(0))))
    single = np.array([sum(proof <= n for proof in table) - 1 for n in range(1, most + 1)])
    assert ((over <= single) & looks).any(axis=1).mean() > 0.012  # the table alone does not hold it


@given(st.lists(st.floats(0, 1000), min_size=FEWEST, max_size=120), st.sampled_from([50, 90, 95]), st.floats(0, 1000))
@settings(deadline=None, max_examples=60)
def test_the_bounds_say_what_the_verdict_says(values: list[float], percentile: int, target: float) -> None:
    plan = plan_for(percentile, 120)
    low, high = bounds(values, plan)
    verdict = plan.verdict(len(values), sum(value > target for value in values))
    assert (verdict == "pass") == (high is not None and high <= target)
    assert (verdict == "fail") == (low is not None and low > target)
    assert all(bound is None or bound in values for bound in (low, high))
    found = percentiles(values)
    assert set(found.values()) <= {round(value, 2) for value in values}
    assert found["p50"] <= found["p90"] <= found["p95"] <= found["p99"]
    assert low is None or round(low, 2) <= found[f"p{percentile}"]
    assert high is None or found[f"p{percentile}"] <= round(high, 2)


def test_what_is_needed_is_a_pass_if_none_of_it_is_over() -> None:
    plan = plan_for(95, 288)
    assert needed(plan, 50, 0) == 61
    for count, over in ((100, 1), (288, 9)):  # beyond what the plan has room for
        more = needed(plan_for(95, count), count, over)
        assert plan_for(95, count + more).verdict(count + more, over) == "pass"


def test_a_machine_that_grows_hot_is_told_and_a_steady_one_is_not() -> None:
    random = np.random.default_rng(0)
    steady = list(random.lognormal(5, 0.1, 120))
    hot = [value * (1 + number / 200) for number, value in enumerate(steady)]
    assert (drift(steady)["drifting"], drift(steady)["dependent"]) == (False, False)
    assert drift(hot)["drifting"]
    assert 1.2 < drift(hot)["ratio"] < 1.6
    assert drift([*np.repeat(random.lognormal(5, 0.2, 30), 4)])["dependent"]
    assert drift([1.0] * 5)["ratio"] is None


def test_the_ratio_of_two_medians_has_an_interval_from_the_pairs() -> None:
    random = np.random.default_rng(1)
    prompts = random.lognormal(5, 0.8, 60)  # long and short ones
    ratio, (low, high) = ratio_of_medians(list(1.2 * prompts), list(prompts * random.lognormal(0, 0.01, 60)))
    assert low <= ratio <= high
    assert 1.1 < low < 1.2 < high < 1.3


class Clock:
    """A model that takes the times it is told."""

    def __init__(self, name: str, times: list[float], log: list[str]) -> None:
        self.load = {"load_ms": 1.0}
        self.name, self.times, self.log = name, times, log
        log.append(f"{name} opens")

    def ask(self, number: int) -> dict[str, Any]:
        self.log.append(f"{self.name} {number}")
        return {"e2e_ms": self.times[number], "ttft_ms": self.times[number] / 2}

    def close(self) -> dict[str, Any]:
        self.log.append(f"{self.name} closes")
        return {"peak_memory_bytes": 7}

    def __exit__(self, *_: object) -> None:
        self.log.append(f"{self.name} is ended")


def contest(log: list[str], times: dict[str, list[float]], together: bool = False, size: int = 1000) -> list[Any]:
    bench = BenchSettings(target_ms=(0.0, 100.0), percentile=50, warmup=2)
    rules = Rules(bench, plan_for(50, 60), 0, together, not fit_together([size] * len(times)))

    def opener(name: str) -> Callable[[], Clock]:
        return lambda: Clock(name, times[name], log)

    contenders = [Contender(name, size, opener(name)) for name in times]
    return take_turns(contenders, rules, lambda what, done, total: None)


def test_candidates_take_turns_until_each_has_its_verdict() -> None:
    log: list[str] = []
    times = {"fast": [10.0] * 62, "slow": [200.0] * 62, "middling": [90.0, 110.0] * 31}
    fast, slow, middling = contest(log, times)
    assert [one.verdict for one in (fast, slow, middling)] == ["pass", "fail", "need more"]
    assert [len(one.requests) for one in (fast, slow, middling)] == [FEWEST, FEWEST, 60]
    first_round = [line.split()[0] for line in log if line.endswith(" 2")]
    assert sorted(first_round) == ["fast", "middling", "slow"]
    assert log.index("fast 3") > max(log.index(f"{name} 2") for name in times)  # nobody is ahead of the others
    assert log.index("fast closes") < log.index("middling 30")
    orders = [tuple(line.split()[0] for line in log if line.endswith(f" {n}")) for n in range(2, 20)]
    assert len(set(orders)) > 3
    assert fast.peak_memory_bytes == 7
    assert "fast is ended" not in log


def test_two_that_are_compared_answer_the_same_prompts() -> None:
    fast, middling = contest([], {"fast": [10.0] * 62, "middling": [90.0, 110.0] * 31}, together=True)
    assert len(fast.requests) == len(middling.requests) == 60
    assert (fast.verdict, fast.decided_at) == ("pass", FEWEST)


def test_models_that_do_not_fit_together_are_loaded_one_at_a_time() -> None:
    log: list[str] = []
    contest(log, {"one": [90.0, 110.0] * 31, "other": [90.0, 110.0] * 31}, size=1 << 50)
    held = 0
    for line in log:
        held += line.endswith("opens") - line.endswith("closes")
        assert held <= 1
    assert sum(line.endswith("opens") for line in log) == 2 * math.ceil(60 / turns.BLOCK)


def test_a_first_verdict_is_not_taken_back() -> None:
    (one,) = contest([], {"one": [10.0] * 22 + [500.0] * 40}, together=True)
    assert (one.verdict, one.over, one.decided_at) == ("pass", 0, FEWEST)


def some(count: int) -> list[Prompt]:
    return [Prompt(f"{number:08x}", (Message("user", f"prompt {number}"),)) for number in range(count)]


def test_too_few_prompts_for_a_verdict_are_refused_before_anything_runs() -> None:
    found = timed_prompts(some(500), BenchSettings(), 3, "here")
    assert len(found) == 5 + 288
    assert len({prompt.id for prompt in found}) == 293
    assert len(timed_prompts(some(120), BenchSettings(), 3, "here")) == 120
    with pytest.raises(EdgeDistillError, match=r"here: bench\.requests is at least 90 for p95"):
        timed_prompts(some(94), BenchSettings(), 3, "here")
    with pytest.raises(EdgeDistillError, match=r"bench\.requests is 50, but to prove p95 takes 90"):
        timed_prompts(some(500), BenchSettings(requests=50), 3, "here")
    with pytest.raises(EdgeDistillError, match="there are only 120 distinct prompts"):
        timed_prompts(some(120), BenchSettings(requests=200), 3, "here")
