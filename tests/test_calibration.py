"""Closed answers without what the teacher prefers whatever it is asked: the arithmetic, and a whole run with it."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Finished
from hypothesis import given
from hypothesis import strategies as st
from pico_recipe import edit
from pico_runs import answered, run_again

from edgedistill.records import Completion, read_rows
from edgedistill.run import Run
from edgedistill.stages.calibration import calibrated, prior_of
from edgedistill.stages.stored_answers import STORE
from edgedistill.store import Store

ODDS = st.lists(st.floats(0.001, 1.0), min_size=4, max_size=4)


def completion(odds: list[float]) -> Completion:
    answers = {name: one / sum(odds) for name, one in zip("abcd", odds, strict=True)}
    return Completion("1", max(answers, key=answers.__getitem__), "stop", 1, 1, 0.0, answers=answers)


@given(st.lists(ODDS, min_size=1, max_size=6))
def test_calibrated_odds_sum_to_one_and_the_text_is_the_most_probable_answer(rows: list[list[float]]) -> None:
    completions = [completion(odds) for odds in rows]
    prior = prior_of(completions)
    for one in (calibrated(one, prior) for one in completions):
        assert one.answers is not None
        assert sum(one.answers.values()) == pytest.approx(1.0)
        assert one.answers[one.text] == max(one.answers.values())


@given(ODDS)
def test_a_teacher_that_says_the_same_of_everything_says_nothing(odds: list[float]) -> None:
    one = completion(odds)
    found = calibrated(one, prior_of([one, one, one]))
    assert found.answers == pytest.approx(dict.fromkeys("abcd", 0.25))


def test_an_answer_without_odds_stays_as_it_is() -> None:
    plain = Completion("1", "a", "stop", 1, 1, 0.0)
    assert calibrated(plain, {"a": 0.9}) == plain
    assert prior_of([plain]) == {}
    assert calibrated(completion([3, 1, 1, 1]), None) == completion([3, 1, 1, 1])


def test_a_run_learns_and_is_compared_with_calibrated_answers_and_asks_nothing_again(
    finished: Finished, tmp_path: Path
) -> None:
    copy = finished.copied(tmp_path / "copy")
    before = answered(copy.run)
    edit(copy.recipe / "recipe.toml", "[teach]\n", '[teach]\ncalibrate = "batch"\n')
    run_again(copy, redo_from="teach")
    run = Run(copy.run)
    assert run.summary("teach")["asked"] == 0
    assert answered(copy.run) == before  # the store keeps what the teacher said
    prior = run.summary("teach")["teachers"][0]["prior"]
    with Store(copy.run / "teach" / STORE, read_only=True) as store:
        assert prior == pytest.approx(prior_of(one for _, one in store.rows()))
    rows = [row for _, row in read_rows(copy.run / "curate" / "train.jsonl")]
    texts = [row["messages"][-1]["content"] for row in rows]
    assert texts == [max(row["_ed"]["answers"], key=row["_ed"]["answers"].__getitem__) for row in rows]
    assert len(set(texts)) > len(set(before.values()))  # this teacher says the same of nearly everything
