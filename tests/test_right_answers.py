"""Right answers: the last number, the last choice, code that passes; wrong ones are not learned."""

from __future__ import annotations

import json
import re
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pico_right import asked, curated

from edgedistill.contract import EvaluateSettings
from edgedistill.errors import InvalidInput
from edgedistill.recipe import CurateSettings, load_recipe
from edgedistill.records import json_lines, read_rows
from edgedistill.run import Run
from edgedistill.stages.explained import explained
from edgedistill.stages.final_answer import THOUGHTS, chosen, concluded, final_number, thought_and_said
from edgedistill.stages.passing import code_in, failure
from edgedistill.stages.prompt_source import prompt_row
from edgedistill.stages.rightness import require_rightness, wrong
from edgedistill.stages.scorers import SCORERS, fits_scorer, passing_scores

words = st.text(st.characters(codec="utf-8", exclude_characters="0123456789"), max_size=30)
numbers = st.fractions(max_denominator=1).map(int) | st.integers(-(10**9), 10**9)

# final numbers and choices


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("There are 3 boxes of 4, so 3 * 4 = 12 apples.", "12"),
        ("12 - 5 = 7\n#### 7", "7"),
        ("Answer: 7 of the 12 apples", "7"),
        ("**Answer:** 1,250", "1250"),
        ("**Final answer**: -3.50 EUR", "-7/2"),
        ("The answer is: $\\boxed{\\frac{3}{4}}$.", "3/4"),
        ("The final answer is 25%.", "25"),
        ("It takes 3-4 days", "4"),
        ("v2 is at 10.5.", "21/2"),
        ("Answer: 5\nWait, that is wrong.\nAnswer: 6", "6"),
        ("<think>5 or 6? 9</think>\n\nIt is 6.", "6"),
        ("£2,500.00", "2500"),
    ],
)
def test_the_number_that_an_answer_comes_to_is_found(text: str, number: str) -> None:
    assert final_number(text) == Fraction(number)


@pytest.mark.parametrize("text", ["", "none", "<think>5", "Answer: none", "x2", "1/0", "Answer:"])
def test_where_there_is_no_final_number_none_is_made_up(text: str) -> None:
    assert final_number(text) is None


@given(words, st.integers(-(10**12), 10**12), st.integers(0, 99))
def test_a_number_behind_the_mark_is_found_whatever_is_before(before: str, whole: int, cents: int) -> None:
    for text in (f"{whole}", f"{whole:,}", f"{whole}.{cents:02}"):
        said = f"{before}\nAnswer: {text}."
        assert final_number(said) == Fraction(text.replace(",", ""))
        assert SCORERS["number"](said, text) == 1.0


@given(st.text(max_size=200))
def test_any_text_has_a_number_or_none(text: str) -> None:
    assert final_number(text) is None or isinstance(final_number(text), Fraction)
    assert isinstance(chosen(text, "A"), bool)
    assert concluded(text) is None or isinstance(concluded(text), str)


@given(words, words, st.sampled_from(THOUGHTS))
def test_thoughts_and_answer_come_apart_again(thought: str, said: str, fences: tuple[str, str]) -> None:
    begin, end = fences
    found = thought_and_said(f"{begin}\n{thought}\n{end}\n\n{said}")
    assert found == (thought.strip(), said.strip())


@pytest.mark.parametrize(
    ("text", "choice", "is_chosen"),
    [
        ("(C)", "C", True),
        ("c", "C", True),
        ("Both A and B hold.\nAnswer: D", "D", True),
        ("The answer is B because it is blue.", "B", True),
        ("The answer is a bee.", "A", False),
        ("Answer: (A) Paris", "Paris", False),
        ("Answer: Paris.", "paris", True),
        ("Answer: not Paris", "Paris", False),
        ("A\nB", "A", False),
        ("I think so", "I", False),
    ],
)
def test_a_choice_is_what_stands_at_the_end(text: str, choice: str, is_chosen: bool) -> None:
    assert chosen(text, choice) is is_chosen


@pytest.mark.parametrize(
    ("scorer", "expected"), [("number", "many"), ("number", []), ("choice", ""), ("tests", "assert f("), ("tests", 3)]
)
def test_a_right_answer_has_the_form_that_its_scorer_takes(scorer: str, expected: Any) -> None:
    assert fits_scorer(scorer, expected) is not None


# code


def test_code_is_run_out_of_its_fence_and_the_complaint_says_what_came_instead() -> None:
    right = "Here it is:\n```python\ndef f(x):\n    print('x')\n    return x + 1\n```\nIt adds one."
    tests = ["assert f(1) == 2", "assert f(-1) == 0"]
    assert failure(right, tests, 10.0, 512) is None
    assert failure(code_in(right).replace("+", "-"), tests, 10.0, 512) == "assert f(1) == 2\nAssertionError: f(1) is 0"
    assert failure("f = lambda x: x / 0", tests, 10.0, 512) == "assert f(1) == 2\nZeroDivisionError: division by zero"


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("def f(x) return x", "SyntaxError"),
        ("import sys; sys.exit(0)", "SystemExit"),
        ("import os; os._exit(0)", "ends the program"),
        ("f = lambda x: [0] * 10**10", "MemoryError"),
        ("f = lambda x: f(x)", "RecursionError"),
        ("while True: pass", "longer than 1 s|ended with"),
        ("I cannot do that.", "SyntaxError"),
        ("```bash\nls\n```", "NameError"),
        ("", "NameError"),
    ],
)
def test_code_that_does_not_pass_is_told_why(code: str, says: str) -> None:
    assert re.search(says, failure(code, "assert f(1) == 2", 1.0, 512) or "passed")


def test_pass_at_1_is_the_mean_of_rows_that_pass_all_their_tests() -> None:
    rows = [asked("double", "assert f(2) == 4\nassert f(3) == 6"), asked("square", ["assert f(3) == 9"]), asked("talk")]
    answers = {
        "teacher": {rows[0].id: "f = lambda x: 2 * x", rows[1].id: "f = lambda x: x * x", rows[2].id: ""},
        "student": {rows[0].id: "f = lambda x: 4", rows[1].id: "f = lambda x: x * x", rows[2].id: ""},
    }
    found = passing_scores(EvaluateSettings(scorer="tests"), rows, answers)
    assert found == {"teacher": [1.0, 1.0, None], "student": [0.0, 1.0, None]}


# curate


def learned(run: Run) -> list[str]:
    return [row["messages"][-1]["content"] for _, row in read_rows(run.folder("curate") / "train.jsonl")]


def rejected(run: Run) -> dict[str, tuple[str, str]]:
    rows = [row for _, row in read_rows(run.folder("curate") / "rejected.jsonl")]
    return {row["messages"][0]["content"]: (row["_ed"]["reason"], row["_ed"].get("what", "")) for row in rows}


SUMS = {
    asked("How much are two and two?", 4): ["2 + 2 = 5", "First 2, then 2 more: 2 + 2 = 4", "2 + 2 = 4"],
    asked("What is the double of twenty one?", 42): ["It is 41", "It is 43", "It is 40"],
    asked("How many legs have nine spiders?", 72): ["9 * 8 = 7...", "Each has 8, so 9 * 8 = 72", "72..."],
    asked("Name any number that you like."): ["It is 7", "I do like the number 7", "I like 8"],
}


def test_of_several_traces_the_shortest_that_is_right_is_learned(tmp_path: Path) -> None:
    recipe, run, stats = curated(tmp_path, 'combine = "shortest"\nright_by = "number"', SUMS)
    assert learned(run) == ["2 + 2 = 4", "Each has 8, so 9 * 8 = 72", "It is 7"]
    assert rejected(run) == {"What is the double of twenty one?": ("wrong answer", "expected is 42")}
    assert stats["rejected"] == {"wrong answer": 1}
    found = explained(recipe, run, "How much are two and two?")
    assert [one.get("wrong") for one in found["answers"]] == [("wrong answer", "expected is 4"), None, None]
    assert found["combined"] == ["2 + 2 = 4"]


def test_wrong_answers_have_no_vote(tmp_path: Path) -> None:
    rows = {asked("How much are two and two?", "4"): ["5", "5", "4"]}
    _, run, _ = curated(tmp_path, 'right_by = "exact"', rows)
    assert learned(run) == ["4"]


def test_only_code_that_passes_is_learned(tmp_path: Path) -> None:
    rows = {
        asked("Write f that doubles a number.", "assert f(2) == 4 and f(3) == 6"): [
            "f = 4",
            "f = lambda x: x * 2",
            "f =",
        ],
        asked("Write g that squares its argument.", "assert g(3) == 9"): ["g = lambda x: 3", "I'm sorry, no.", "h = 1"],
    }
    _, run, _ = curated(tmp_path, 'right_by = "tests"\nverifier_memory_mb = 512', rows)
    assert learned(run) == ["f = lambda x: x * 2"]
    assert rejected(run) == {
        "Write g that squares its argument.": ("tests failed", "assert g(3) == 9\nAssertionError: g(3) is 3")
    }


def test_a_rule_that_objects_to_a_wrong_answer_names_the_reason(tmp_path: Path) -> None:
    rows = {**SUMS, asked("Add seven to the number thirty.", 37): ["I'm sorry, no.", "I'm sorry, no.", "36"]}
    _, run, _ = curated(tmp_path, 'combine = "shortest"\nright_by = "number"', rows)
    assert rejected(run)["Add seven to the number thirty."] == ("refusal", "it begins with i'm sorry")


def test_a_verifier_sifts_what_the_shortest_is_chosen_from(tmp_path: Path) -> None:
    (tmp_path / "verify.py").write_text(
        "import json, sys; print('false' if 'like' in json.load(sys.stdin)['answer'] else 1)", encoding="utf-8"
    )
    verifier = f'combine = "shortest"\nverifier = [{json.dumps(sys.executable)}, "-I", "verify.py"]'
    rows = {asked("Name any number that you like."): ["I like 8", "It surely is the 7", "It is the 7"]}
    _, run, _ = curated(tmp_path, verifier, rows)
    assert learned(run) == ["It is the 7"]


def test_rows_that_lost_what_they_expect_are_not_taken_for_right(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no row has `expected`"):
        curated(tmp_path, 'right_by = "number"', {asked("Name any number."): ["7", "7", "7"]})


def test_what_is_right_is_looked_at_before_anything_runs(tmp_path: Path) -> None:
    curated(tmp_path, 'right_by = "number"', SUMS)
    recipe, run = load_recipe(tmp_path), Run(tmp_path / "run")
    assert require_rightness(recipe, run) == "by 'number', which 3 of 4 prompts allow"
    (tmp_path / "prompts.jsonl").write_bytes(json_lines([prompt_row(asked("Any?", "some"))]))
    with pytest.raises(InvalidInput, match="is not a number"):
        require_rightness(recipe, run)
    (tmp_path / "prompts.jsonl").write_bytes(json_lines([prompt_row(asked("Any?"))]))
    with pytest.raises(InvalidInput, match="no prompt has an expected answer"):
        require_rightness(recipe, run)


def test_the_shortest_answer_may_be_wrong_so_something_must_tell() -> None:
    with pytest.raises(ValueError, match="needs right_by or verifier"):
        CurateSettings(combine="shortest")


def test_thoughts_are_no_part_of_what_is_right() -> None:
    settings = CurateSettings(right_by="exact")
    assert wrong(asked("2 + 2?", 4), "<think>2 and 2 more</think>\n\n4", settings) is None
    assert wrong(asked("2 + 2?", 4), "<think>4</think>\n\n5", settings) is not None
