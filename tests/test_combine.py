"""Several answers become one, or none with a reason: whatever they are, and in the same way every time."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgedistill.chat import json_instance
from edgedistill.errors import InvalidInput
from edgedistill.recipe import CurateSettings
from edgedistill.records import Completion, Message, Prompt
from edgedistill.stages.combine import Answered, answer_key, combined, verifier_command
from edgedistill.stages.sandbox import confinement
from edgedistill.stages.scoring import equal

PROMPT = Prompt("0" * 16, (Message("user", "light on"),))
MODES = get_args(CurateSettings.model_fields["combine"].annotation)

values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(-3, 3) | st.sampled_from(["", "on", "1", "true", "é"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=4,
)
texts = st.sampled_from(["", "on", " on ", '{"a":1}', '{ "a": 1.0 }', '{"a":true}', "{", "[1]", "off"])
objects = st.dictionaries(st.sampled_from("abc"), st.sampled_from([None, 0, 1, True, "x"]), min_size=1)


def answered(*texts: str, reason: str = "stop", targets: bytes | None = b"t") -> list[Answered]:
    """As many teachers as texts, one sample each."""
    return [
        Answered(number, Completion(PROMPT.id, text, reason, 9, 3, 0.1, targets=targets))
        for number, text in enumerate(texts)
    ]


def closed(*distributions: dict[str, float]) -> list[Answered]:
    return [
        Answered(number, Completion(PROMPT.id, max(one, key=lambda text: one[text]), "stop", 9, 3, 0.1, answers=one))
        for number, one in enumerate(distributions)
    ]


def settings(**changes: Any) -> CurateSettings:
    more = {"right_by": "exact"} if changes.get("combine") == "shortest" else {}
    return CurateSettings(**more, **changes)


def kept(answers: list[Answered], is_valid: Callable[[Any], bool] | None = None, **changes: Any) -> list[str] | str:
    """The texts that are left, or the reason."""
    found = combined(PROMPT, answers, settings(**changes), is_valid)
    return found if isinstance(found, str) else [one.completion.text for one in found]


def only(found: list[Answered] | str) -> Answered:
    assert isinstance(found, list)
    assert len(found) == 1
    return found[0]


def short(value: Any) -> bool:
    return value in (1, 2)


# Votes


def test_the_most_frequent_answer_wins_whatever_its_spelling() -> None:
    answers = answered('{"a":2}', '{"a":1,"b":2}', '{ "b": 2, "a": 1 }')
    found = combined(PROMPT, answers, settings(), None)
    assert found == [answers[1]]


def test_a_tie_goes_to_the_first() -> None:
    assert kept(answered("b", "a", "a", "b")) == ["b"]


def test_a_vote_below_the_bar_is_no_answer() -> None:
    assert kept(answered("a", "a", "b"), agreement=0.66) == ["a"]
    assert kept(answered("a", "a", "b"), agreement=0.67) == "teachers disagree"


def test_an_answer_that_is_not_valid_counts_against_the_others() -> None:
    assert kept(answered("1", "1", "nonsense", "nonsense"), short, agreement=0.5) == ["1"]
    assert kept(answered("1", "1", "nonsense", "nonsense"), short, agreement=0.51) == "teachers disagree"


def test_each_field_is_voted_on_and_the_object_keeps_the_first_order() -> None:
    answers = answered('{"b":1,"a":1}', '{"a":1,"b":2}', '{"a":3,"b":2}')
    found = combined(PROMPT, answers, settings(vote_by="field"), None)
    assert found == [answers[1]]
    answers = answered('{"b":1,"a":1,"c":0}', '{"a":1,"b":2,"c":5}', '{"a":3,"b":2,"c":0}')
    one = only(combined(PROMPT, answers, settings(vote_by="field"), None))
    assert one.completion.text == '{"b":2,"a":1,"c":0}'
    assert one.completion.targets is None
    assert one == replace(answers[0], completion=replace(answers[0].completion, text=one.completion.text, targets=None))


def test_a_field_needs_its_share_of_the_votes() -> None:
    answers = answered('{"a":1,"b":1}', '{"a":1,"b":2}', '{"a":1,"b":3}')
    assert kept(answers, vote_by="field", agreement=0.5) == "teachers disagree"
    assert kept(answers, vote_by="field", agreement=0.3) == ['{"a":1,"b":1}']


def test_a_field_that_most_leave_out_is_left_out_and_null_is_a_value() -> None:
    assert kept(answered('{"a":1}', '{"a":1}', '{"a":1,"b":null}'), vote_by="field") == ['{"a":1}']
    assert kept(answered('{"a":1,"b":null}', '{"a":1,"b":null}', '{"a":1}'), vote_by="field") == ['{"a":1,"b":null}']


def test_fields_that_do_not_go_together_are_no_answer() -> None:
    def same(value: Any) -> bool:
        return len(set(value.values())) == 1 or value == {"a": 1, "b": 2, "c": 3}

    answers = answered('{"a":1,"b":1,"c":1}', '{"a":2,"b":2,"c":2}', '{"a":1,"b":2,"c":3}')
    assert kept(answers, same, vote_by="field") == "no valid answer"


def test_what_is_no_object_is_voted_on_as_a_whole() -> None:
    assert kept(answered("a", "b", "b"), vote_by="field") == ["b"]
    assert kept(answered("b", '{"a":1}', "b"), vote_by="field") == ["b"]


# Closed answers


def test_closed_answers_are_voted_on_by_their_probability() -> None:
    answers = closed({"a": 0.5, "b": 0.4, "c": 0.1}, {"a": 0.45, "b": 0.55, "c": 0.0})
    one = only(combined(PROMPT, answers, settings(), None))
    assert one.completion.text == "a"
    assert one.completion.answers == pytest.approx({"a": 0.475, "b": 0.475, "c": 0.05})
    one = only(combined(PROMPT, [*answers, *closed({"b": 0.6, "a": 0.4, "c": 0.0})], settings(), None))
    assert (one.teacher, one.completion.text) == (1, "b")
    assert one.completion.answers == pytest.approx({"a": 1.35 / 3, "b": 1.55 / 3, "c": 0.1 / 3})
    assert kept(answers, agreement=0.5) == "teachers disagree"


def test_an_answer_that_nobody_put_first_can_win() -> None:
    answers = closed({"a": 0.51, "b": 0.49, "c": 0.0}, {"a": 0.0, "b": 0.49, "c": 0.51})
    one = only(combined(PROMPT, answers, settings(), None))
    assert one.completion.text == "b"
    assert one.completion.answers is not None
    assert one.completion.answers["b"] == pytest.approx(0.49)


def test_a_teacher_without_probabilities_is_sure_of_its_answer() -> None:
    answers = [*closed({'{"a":1}': 0.7, '{"a":2}': 0.3}), *answered('{"a": 2}')]
    one = only(combined(PROMPT, answers, settings(), None))
    assert one.completion.text == '{"a": 2}'
    assert one.completion.answers == pytest.approx({'{"a": 2}': 0.65, '{"a":1}': 0.35})


@given(
    st.lists(
        st.dictionaries(st.sampled_from("abcd"), st.floats(0.01, 1), min_size=2, max_size=4), min_size=2, max_size=4
    )
)
def test_the_mean_sums_to_one_and_its_text_is_the_most_probable(weights: list[dict[str, float]]) -> None:
    distributions = [{text: one / sum(given.values()) for text, one in given.items()} for given in weights]
    one = only(combined(PROMPT, closed(*distributions), settings(), None))
    mean = one.completion.answers
    assert mean is not None
    assert sum(mean.values()) == pytest.approx(1)
    assert mean[one.completion.text] == pytest.approx(max(mean.values()))
    for text, share in mean.items():
        assert share == pytest.approx(sum(given.get(text, 0) for given in distributions) / len(distributions))


# The other ways


def test_where_all_must_agree_one_is_kept() -> None:
    answers = answered('{"a":1}', '{"a": 1.0}', "{")
    assert combined(PROMPT, answers, settings(combine="agree"), lambda value: value is not None) == [answers[0]]
    assert kept(answered("a", "b", "a"), combine="agree") == "teachers disagree"


def test_every_different_answer_is_kept_once() -> None:
    answers = answered("b", "a", " b", "c", "a", "")
    assert combined(PROMPT, answers, settings(combine="union"), None) == [answers[0], answers[1], answers[3]]


def test_without_a_verifier_the_first_valid_answer_is_the_best() -> None:
    assert kept(answered("no", "2", "1"), short, combine="best") == ["2"]


@pytest.mark.parametrize("mode", MODES)
def test_nothing_valid_and_nothing_whole_have_their_reasons(mode: str) -> None:
    assert kept(answered("no", "7"), short, combine=mode) == "schema"
    assert kept(answered(" ", ""), short, combine=mode) == "empty"
    assert kept(answered("1", "1", reason="length"), short, combine=mode) == "cut off"


@pytest.mark.parametrize("mode", MODES)
def test_an_answer_that_was_cut_off_takes_no_part(mode: str) -> None:
    answers = [*answered("cut", "cut", "cut", reason="length"), *answered("whole")]
    assert kept(answers, combine=mode, agreement=1.0) == ["whole"]


# What holds for all


@pytest.mark.parametrize("mode", MODES)
@given(
    text=texts,
    reason=st.sampled_from(["stop", "length"]),
    share=st.floats(0, 1),
    by=st.sampled_from(["field", "answer"]),
)
def test_a_single_answer_passes_as_it_is(mode: str, text: str, reason: str, share: float, by: str) -> None:
    answers = answered(text, reason=reason)
    assert combined(PROMPT, answers, settings(combine=mode, agreement=share, vote_by=by), short) == answers


@given(values, values)
def test_a_key_is_shared_exactly_by_equal_answers(one: Any, other: Any) -> None:
    first, second = json.dumps(one), json.dumps(other, indent=1)
    assert (answer_key(first) == answer_key(second)) == equal(first, second)


@given(texts, texts)
def test_a_key_of_any_text_is_shared_by_its_equals(one: str, other: str) -> None:
    assert (answer_key(one) == answer_key(other)) == equal(one, other)


@pytest.mark.parametrize("mode", MODES)
@given(given=st.lists(texts | objects.map(json.dumps), min_size=2, max_size=6), by=st.sampled_from(["field", "answer"]))
def test_what_is_kept_is_valid_and_comes_of_the_answers(mode: str, given: list[str], by: str) -> None:
    answers = answered(*given)
    found = combined(PROMPT, answers, settings(combine=mode, vote_by=by), lambda value: isinstance(value, dict))
    usable = [text for text in given if isinstance(json_instance(text), dict)]
    if isinstance(found, str):
        nothing = "schema" if any(text.strip() for text in given) else "empty"
        assert found == ("teachers disagree" if usable else nothing)
        assert not usable or mode == "agree"
        return
    assert len(found) == 1 or mode == "union"
    for one in found:
        value = json_instance(one.completion.text)
        assert isinstance(value, dict)
        assert (one in answers) or by == "field"
        assert (one in answers) == (one.completion.targets is not None)
        assert value.items() <= {(key, inner) for text in usable for key, inner in json_instance(text).items()}


@given(st.lists(objects.map(json.dumps), min_size=2, max_size=6), st.floats(0, 1))
def test_whoever_has_more_than_half_wins_in_any_order(given: list[str], share: float) -> None:
    most = given[0]
    crowd = [*given, *[most] * len(given)]
    for order in (crowd, crowd[::-1], sorted(crowd)):
        for by in ("field", "answer"):
            voted = only(combined(PROMPT, answered(*order), settings(vote_by=by), None))
            assert equal(voted.completion.text, most)


@given(st.lists(texts, min_size=1, max_size=8))
def test_a_union_has_every_answer_once(given: list[str]) -> None:
    found = kept(answered(*given, "last"), combine="union")
    for text in given:
        assert sum(equal(text, one) for one in found) == bool(text.strip())


# The verifier

VERIFIER = """
import json, os, sys
import words
asked = json.load(sys.stdin)
assert asked["messages"] == [{"role": "user", "content": "light on"}]
assert "API_TOKEN" not in os.environ
print(words.SCORES.get(asked["answer"], "none"))
"""


@pytest.fixture
def verifier(tmp_path: Path) -> Path:
    """A folder with a verifier that finds what lies beside it."""
    (tmp_path / "verify.py").write_text(VERIFIER, encoding="utf-8")
    (tmp_path / "words.py").write_text("SCORES = {'a': 0.5, 'b': 2, 'c': 'true', 'd': 'false', 'e': 'nan'}\n")
    program = tmp_path / "verify"
    program.write_text(f"#!/bin/sh\nexec {sys.executable} {tmp_path / 'verify.py'}\n")
    program.chmod(0o755)
    return tmp_path


def judged(
    folder: Path, *texts: str, command: tuple[str, ...] = (sys.executable, "verify.py"), seconds: float = 10.0
) -> list[str] | str:
    how = settings(combine="best", verifier=command, verifier_seconds=seconds)
    found = combined(PROMPT, answered(*texts), how, None, folder)
    return found if isinstance(found, str) else [one.completion.text for one in found]


def test_the_highest_score_wins_and_no_secret_is_shown(verifier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_TOKEN", "secret")
    assert judged(verifier, "a", "b", "c", "d", "e") == ["b"]
    assert judged(verifier, "a", "c", "?") == ["c"]


def test_a_program_beside_the_recipe_is_found_there(verifier: Path) -> None:
    assert judged(verifier, "a", "b", command=("verify",)) == ["b"]
    assert judged(verifier, "a", "b", command=("./verify",)) == ["b"]


def test_what_the_verifier_does_not_pass_is_no_answer(verifier: Path) -> None:
    assert judged(verifier, "d", "e", "?") == "verifier"
    assert judged(verifier, "d") == "verifier"
    assert judged(verifier, "a") == ["a"]


def test_a_verifier_that_fails_or_does_not_end_passes_nothing(tmp_path: Path) -> None:
    mark = f"60.{os.getpid()}"
    assert judged(tmp_path, "a", command=("sh", "-c", "echo 1; exit 3")) == "verifier"
    assert judged(tmp_path, "a", command=("sh", "-c", f"sleep {mark} & sleep {mark}"), seconds=1.0) == "verifier"
    deadline = time.monotonic() + 20
    while any(mark in " ".join(one.info["cmdline"] or ()) for one in psutil.process_iter(["cmdline"])):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_verifier_reads_what_lies_beside_the_recipe_and_writes_nothing_there(tmp_path: Path) -> None:
    (tmp_path / "known.txt").write_text("0.5", encoding="utf-8")
    assert judged(tmp_path, "a", command=("cat", "known.txt")) == ["a"]
    judged(tmp_path, "a", command=("sh", "-c", "echo 1 > made"))
    if "warning" not in confinement():
        assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("command", [("no-such-program",), ("./verify",), (), ("a b; rm -rf /",)])
def test_a_verifier_that_is_not_there_is_refused(tmp_path: Path, command: tuple[str, ...]) -> None:
    with pytest.raises(InvalidInput, match=r"curate\.verifier"):
        judged(tmp_path, "a", command=command)
    with pytest.raises(InvalidInput):
        verifier_command(settings(verifier=command), tmp_path)
