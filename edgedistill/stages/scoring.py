"""Scores of answers: valid, score, right, by field, agreement with the teacher, each with its interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..chat import json_instance
from ..records import Prompt
from ..results import Row
from .final_answer import thought_and_said
from .tool_calls import said

__all__ = ["Outcome", "equal", "outcomes", "result_rows", "same", "summary", "wilson"]

ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one row with one candidate, as `results.sqlite` keeps it."""

    answer: str
    valid: bool
    score: float | None
    """From 0 to 1; None where the row has no right answer to score by."""
    right: bool | None
    same: bool
    """Whether it says what the teacher said."""


def outcomes(
    prompts: Sequence[Prompt],
    texts: tuple[Mapping[str, str], Mapping[str, str]],
    is_valid: Callable[[Prompt, str], bool],
    scores: tuple[Sequence[float | None], float],
    agrees: Callable[[str, str], bool],
) -> list[Outcome]:
    """The outcome of each prompt; `texts` are a candidate's answers and the teacher's, by prompt id.

    `scores` are a scorer's, one a prompt, and the score from which on a row is right; `agrees` tells whether two
    answers say the same. What was thought before an answer is no part of it, but for the record.
    """
    answers, teacher = texts
    found = []
    for prompt, value in zip(prompts, scores[0], strict=True):
        answer = answers[prompt.id]
        right = None if value is None else value + ROUNDING >= scores[1]
        is_same = agrees(answer, teacher[prompt.id])
        is_fine = is_valid(prompt, thought_and_said(answer)[1])
        found.append(Outcome(answer, is_fine, value, right, is_same))
    return found


def result_rows(kind: str, prompts: Sequence[Prompt], people: Mapping[str, Sequence[Outcome]]) -> list[Row]:
    """One row a prompt of a set: what was asked, what is right, and each candidate's outcome by its name."""
    return [
        {
            "set": kind,
            "id": prompt.id,
            "prompt": prompt.text,
            "expected": prompt.expected,
            "tags": list(prompt.tags),
            "must_pass": prompt.must_pass,
            "candidates": {name: asdict(found[number]) for name, found in people.items()},
        }
        for number, prompt in enumerate(prompts)
    ]


def summary(prompts: Sequence[Prompt], found: Sequence[Outcome]) -> dict[str, Any]:
    """What the outcomes of a set come to: shares and mean scores from 0 to 1, intervals of 95 %.

    `exact` is the share of right rows, `score` their mean score, both of the rows that have a score; they are None, and
    `fields` empty, where no row has one.
    """
    scored = [(prompt, one) for prompt, one in zip(prompts, found, strict=True) if one.score is not None]
    counts = {
        "valid": sum(one.valid for one in found),
        "exact": sum(one.right is True for _, one in scored),
        "agreement": sum(one.same for one in found),
    }
    sizes = {"valid": len(prompts), "exact": len(scored), "agreement": len(prompts)}
    values = [one.score for _, one in scored if one.score is not None]
    must = [(prompt, one) for prompt, one in scored if prompt.must_pass]
    failed = [prompt.text for prompt, one in must if not one.right]
    intervals = {name: wilson(count, sizes[name]) for name, count in counts.items() if sizes[name]}
    return {
        **{name: share(count, sizes[name]) for name, count in counts.items()},
        "score": round(math.fsum(values) / len(values), 4) if values else None,
        "fields": _fields(scored),
        "n": len(prompts),
        "ci95": {**intervals, **({"score": _mean_interval(values)} if values else {})},
        "tags": _tags(scored),
        "must_pass": {"n": len(must), "passed": len(must) - len(failed), "failed": failed},
    }


def equal(answer: str, other: Any) -> bool:
    """Whether an answer says the same: as JSON values where both are JSON, as stripped text elsewhere.

    >>> equal('{"a": 1, "b": null}', {"b": None, "a": 1}), equal(" yes ", "yes"), equal("1", {"a": 1})
    (True, True, False)
    """
    value = json_instance(answer)
    if not isinstance(other, str):
        return type(value) is type(other) and same(value, other)
    second = json_instance(other)
    if value is not None and second is not None:
        return same(value, second)
    return answer.strip() == other.strip()


def same(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal; unlike in Python, `true` is not 1."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def same_calls(one: str, other: str) -> bool:
    """Whether two answers make the same calls, in whatever order, and say the same beside them.

    >>> first, second = (f'<tool_call>{{"name": "{name}", "arguments": {{}}}}</tool_call>' for name in "ab")
    >>> same_calls(first + second, second + first), same_calls(first, second), same_calls("Hi.", "Hello.")
    (True, False, False)
    """
    mine, theirs = said(one), said(other)
    left = list(theirs.calls)
    for name, arguments in mine.calls:
        place = next((at for at, call in enumerate(left) if call[0] == name and same(call[1], arguments)), None)
        if place is None:
            return False
        del left[place]
    is_broken = mine.is_broken or theirs.is_broken
    return bool(mine.calls) and not left and not is_broken and mine.text == theirs.text


def wilson(count: int, size: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson, JASA 1927), rounded to 4 digits.

    >>> wilson(9, 10)
    (0.5958, 0.9821)
    """
    z = 1.959963984540054
    p = count / size
    middle = (p + z * z / (2 * size)) / (1 + z * z / size)
    half = z * math.sqrt(p * (1 - p) / size + z * z / (4 * size * size)) / (1 + z * z / size)
    return round(max(0.0, middle - half), 4), round(min(1.0, middle + half), 4)


def share(count: int, size: int) -> float | None:
    """A count as a share, or None of nothing."""
    return round(count / size, 4) if size else None


def _mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of a mean score: a share's where every row is right or wrong, else the normal one."""
    if set(values) <= {0.0, 1.0}:
        return wilson(round(sum(values)), len(values))
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / max(1, len(values) - 1)
    half = 1.959963984540054 * math.sqrt(variance / len(values))
    return round(max(0.0, mean - half), 4), round(min(1.0, mean + half), 4)


def _fields(scored: Sequence[tuple[Prompt, Outcome]]) -> dict[str, float | None]:
    objects = [(prompt, one) for prompt, one in scored if isinstance(prompt.expected, dict)]
    names = list(dict.fromkeys(name for prompt, _ in objects for name in prompt.expected))
    right = dict.fromkeys(names, 0)
    for prompt, one in objects:
        value = _object(thought_and_said(one.answer)[1])
        for name in names:
            right[name] += isinstance(value, dict) and name in value and same(value[name], prompt.expected.get(name))
    return {name: share(count, len(objects)) for name, count in right.items()}


def _object(answer: str) -> Any:
    """The JSON value of an answer, or its only call as one.

    >>> _object('{"a": 1}'), _object('<tool_call>{"name": "now", "arguments": {}}</tool_call>'), _object("no")
    ({'a': 1}, {'name': 'now', 'arguments': {}}, None)
    """
    calls = said(answer).calls
    value = json_instance(answer)
    return dict(zip(("name", "arguments"), calls[0], strict=True)) if value is None and len(calls) == 1 else value


def _tags(scored: Sequence[tuple[Prompt, Outcome]]) -> dict[str, dict[str, Any]]:
    tags = sorted({tag for prompt, _ in scored for tag in prompt.tags})
    table = {}
    for tag in tags:
        mine = [one for prompt, one in scored if tag in prompt.tags]
        table[tag] = {"n": len(mine), "exact": share(sum(one.right is True for one in mine), len(mine))}
    return table
