"""Scores of answers: valid, exact, by field, agreement with the teacher, each with its interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..chat import json_instance
from ..records import Prompt

__all__ = ["equal", "score", "wilson"]


def score(
    prompts: Sequence[Prompt],
    answers: Mapping[str, str],
    teacher: Mapping[str, str],
    is_valid: Callable[[Any], bool] | None,
) -> dict[str, Any]:
    """What a candidate's answers are worth on a set: shares from 0 to 1, intervals of 95 %.

    `answers` and `teacher` hold texts by prompt id. `exact` and `fields` count the rows that have an expected answer,
    and are None or empty where no row has one.
    """
    judged = [prompt for prompt in prompts if prompt.expected is not None]
    counts = {
        "valid": sum(_valid(answers[prompt.id], is_valid) for prompt in prompts),
        "exact": sum(equal(answers[prompt.id], prompt.expected) for prompt in judged),
        "agreement": sum(equal(answers[prompt.id], teacher[prompt.id]) for prompt in prompts),
    }
    sizes = {"valid": len(prompts), "exact": len(judged), "agreement": len(prompts)}
    must = [prompt for prompt in judged if prompt.must_pass]
    failed = [prompt.text for prompt in must if not equal(answers[prompt.id], prompt.expected)]
    return {
        **{name: share(count, sizes[name]) for name, count in counts.items()},
        "fields": _fields(judged, answers),
        "n": len(prompts),
        "ci95": {name: wilson(count, sizes[name]) for name, count in counts.items() if sizes[name]},
        "tags": _tags(judged, answers),
        "must_pass": {"n": len(must), "passed": len(must) - len(failed), "failed": failed},
    }


def equal(answer: str, other: Any) -> bool:
    """Whether an answer says the same: as JSON values where both are JSON, as stripped text elsewhere.

    >>> equal('{"a": 1, "b": null}', {"b": None, "a": 1}), equal(" yes ", "yes"), equal("1", {"a": 1})
    (True, True, False)
    """
    value = json_instance(answer)
    if not isinstance(other, str):
        return type(value) is type(other) and _same(value, other)
    second = json_instance(other)
    if value is not None and second is not None:
        return _same(value, second)
    return answer.strip() == other.strip()


def _same(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal; unlike in Python, `true` is not 1."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


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


def _valid(answer: str, is_valid: Callable[[Any], bool] | None) -> bool:
    return bool(answer.strip()) if is_valid is None else bool(is_valid(json_instance(answer)))


def _fields(judged: Sequence[Prompt], answers: Mapping[str, str]) -> dict[str, float | None]:
    objects = [prompt for prompt in judged if isinstance(prompt.expected, dict)]
    names = list(dict.fromkeys(name for prompt in objects for name in prompt.expected))
    right = dict.fromkeys(names, 0)
    for prompt in objects:
        value = json_instance(answers[prompt.id])
        for name in names:
            right[name] += isinstance(value, dict) and name in value and _same(value[name], prompt.expected.get(name))
    return {name: share(count, len(objects)) for name, count in right.items()}


def _tags(judged: Sequence[Prompt], answers: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    tags = sorted({tag for prompt in judged for tag in prompt.tags})
    table = {}
    for tag in tags:
        mine = [prompt for prompt in judged if tag in prompt.tags]
        right = sum(equal(answers[prompt.id], prompt.expected) for prompt in mine)
        table[tag] = {"n": len(mine), "exact": share(right, len(mine))}
    return table
