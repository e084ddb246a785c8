"""Scores: what counts as the same answer, and how sure a share is."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgedistill.records import Message, Prompt
from edgedistill.schema import schema_validator
from edgedistill.stages.on_offer import fine_by
from edgedistill.stages.scoring import equal, outcomes, summary, wilson

SCHEMA = {"type": "object", "properties": {"a": {"type": ["integer", "null"]}, "b": {"type": "string"}}}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner)
    ),
    max_leaves=6,
)


def prompt(number: int, expected: Any = None, tags: tuple[str, ...] = (), must_pass: bool = False) -> Prompt:
    return Prompt(f"id{number}", (Message("user", f"prompt {number}"),), expected, tags, must_pass)


def score(
    prompts: list[Prompt], answers: dict[str, str], teacher: dict[str, str], is_valid: Callable[[Any], bool] | None
) -> dict[str, Any]:
    exact = [None if one.expected is None else float(equal(answers[one.id], one.expected)) for one in prompts]
    return summary(prompts, outcomes(prompts, (answers, teacher), fine_by(is_valid, ()), (exact, 1.0), equal))


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), JSON))
def test_an_answer_equals_itself_in_any_order_and_spacing(value: dict[str, Any]) -> None:
    backwards = dict(reversed(value.items()))
    assert equal(json.dumps(backwards, indent=3), value)
    assert equal(json.dumps(backwards), json.dumps(value, ensure_ascii=False))


@pytest.mark.parametrize(
    ("answer", "other", "same"),
    [
        ('{"a": 1}', {"a": 1}, True),
        ('{"a": 1}', {"a": 2}, False),
        ('{"a": 1}', {"a": 1, "b": None}, False),
        ('{"a": 1, "b": null}', {"a": 1}, False),
        ('{"a": true}', {"a": 1}, False),
        ('{"a": [0]}', {"a": [False]}, False),
        ("true", True, True),
        ("1", True, False),
        ("true", "1", False),
        ("1.0", 1, False),
        ("positive", "positive", True),
        (" positive\n", "positive", True),
        ("Positive", "positive", False),
        ("", "positive", False),
        ("5", "5", True),
        ("5", 5, True),
        ("{", {"a": 1}, False),
        ("NaN", "NaN", True),
        ("[" * 100_000, {"a": 1}, False),
        (r'{"\ud800": 1}', {"a": 1}, False),
    ],
)
def test_what_counts_as_the_same_answer(answer: str, other: Any, same: bool) -> None:
    assert equal(answer, other) is same


def test_every_score_is_a_share_of_its_own_rows() -> None:
    prompts = [
        prompt(1, {"a": 1, "b": "x"}, ("curt",)),
        prompt(2, {"a": 2, "b": "y"}, ("curt", "polite"), must_pass=True),
        prompt(3),
        prompt(4, {"a": None, "b": "z"}, must_pass=True),
    ]
    answers = {
        "id1": '{"a": 1, "b": "x"}',
        "id2": '{"a": 2, "b": "n"}',
        "id3": "no json",
        "id4": '{"b": "z", "a": null}',
    }
    teacher = {"id1": '{"b": "x", "a": 1}', "id2": '{"a": 2, "b": "y"}', "id3": "no json", "id4": "{}"}
    found = score(prompts, answers, teacher, schema_validator(SCHEMA))
    assert (found["valid"], found["exact"], found["agreement"], found["n"]) == (0.75, 0.6667, 0.5, 4)
    assert found["fields"] == {"a": 1.0, "b": 0.6667}
    assert found["tags"] == {"curt": {"n": 2, "exact": 0.5}, "polite": {"n": 1, "exact": 0.0}}
    assert found["must_pass"] == {"n": 2, "passed": 1, "failed": ["prompt 2"]}
    shares = {"valid": wilson(3, 4), "exact": wilson(2, 3), "agreement": wilson(2, 4)}
    assert found["ci95"] == {**shares, "score": wilson(2, 3)}


def test_a_field_that_is_missing_is_wrong_even_where_nothing_is_right() -> None:
    found = score([prompt(1, {"a": None})], {"id1": "{}"}, {"id1": "{}"}, None)
    assert found["fields"] == {"a": 0.0}
    assert found["exact"] == 0.0


def test_a_field_is_judged_as_strictly_as_the_whole() -> None:
    found = score([prompt(1, {"a": 1})], {"id1": '{"a": true}'}, {"id1": "{}"}, None)
    assert found["fields"] == {"a": 0.0}


def test_the_fields_of_a_call_are_found_in_whatever_form_it_is_written() -> None:
    call = {"name": "light", "arguments": {"on": True}}
    for form in ("%s", "<tool_call>\n%s\n</tool_call>", "[TOOL_CALLS] [%s]"):
        answers = {"id1": form % json.dumps(call)}
        assert score([prompt(1, call)], answers, answers, None)["fields"] == {"name": 1.0, "arguments": 1.0}, form


def test_without_right_answers_exact_is_not_measured() -> None:
    found = score([prompt(1)], {"id1": "x"}, {"id1": "x"}, None)
    assert found["exact"] is None
    assert "exact" not in found["ci95"]
    assert (found["valid"], found["agreement"], found["fields"]) == (1.0, 1.0, {})


def test_without_a_schema_only_an_empty_answer_is_not_valid() -> None:
    answers = {"id1": " \n", "id2": "x"}
    assert score([prompt(1), prompt(2)], answers, answers, None)["valid"] == 0.5


def test_no_rows_are_no_error() -> None:
    assert score([], {}, {}, None)["n"] == 0


@pytest.mark.parametrize("answer", [r'{"\ud800": 1}', '{"a": NaN}', "[" * 100_000, "1" * 5000, '{"a": 1e999}', "\x00"])
def test_a_strange_answer_is_not_valid_and_no_error(answer: str) -> None:
    found = score([prompt(1, {"a": 1})], {"id1": answer}, {"id1": answer}, schema_validator(SCHEMA))
    assert (found["valid"], found["exact"], found["agreement"]) == (0.0, 0.0, 1.0)


@given(st.integers(1, 2000), st.data())
def test_an_interval_holds_its_share_and_stays_between_0_and_1(size: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, size))
    low, high = wilson(count, size)
    assert 0.0 <= low <= round(count / size, 4) <= high <= 1.0
    assert high - low <= 2 * 1.96 / math.sqrt(size)
