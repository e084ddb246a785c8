"""What is wrong with a recipe, said with the path of each key."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .errors import InvalidInput
from .sensitive import SECRETS, find

__all__ = ["did_you_mean", "explained", "refuse_secrets"]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A suggestion to end a message with, or nothing.

    >>> did_you_mean("teechers", ["teacher", "student"])
    ". Did you mean 'teacher'?"
    """
    close = difflib.get_close_matches(word, list(known), n=1)
    return f". Did you mean '{close[0]}'?" if close else ""


def explained(path: Path, items: Sequence[Any], recipe: Any) -> tuple[str, str]:
    """Message and hint for the errors that pydantic found in a recipe's tables, one line each."""
    said = [item["loc"][1:] for item in items if item["loc"][:1] == ("teacher",)]
    problems = [
        _problem(item, recipe)
        for item in items
        # the first of [[teachers]] stands for [teacher] too: its problems are said once
        if not (item["loc"][:2] == ("teachers", 0) and item["loc"][2:] in said)
    ]
    hint = f"{len(problems)} problems; every key is described in the README." if len(problems) > 1 else ""
    return "\n".join(f"{path}: {problem}" for problem in problems), hint or "Every key is described in the README."


def _problem(item: Any, recipe: Any) -> str:
    where = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        known = recipe.model_fields
        if len(item["loc"]) > 1:
            table = "teacher" if item["loc"][0] == "teachers" else item["loc"][0]
            known = known[table].annotation.model_fields
        return f"unknown key '{where}'{did_you_mean(str(item['loc'][-1]), known)}"
    if item["type"] == "missing":
        return f"missing key '{where}'"
    reason = item["msg"].removeprefix("Value error, ")
    if isinstance(item["input"], dict):  # said of a whole table
        return f"{where}: {reason}" if where else reason
    return f"{where}: {reason} (it is {item['input']!r})"


def refuse_secrets(path: Path, value: Any) -> None:
    """Raise InvalidInput where a value in a recipe looks like a key."""
    if isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            refuse_secrets(path, item)
    elif isinstance(value, str) and any(one.kind in SECRETS for one in find(value)):
        raise InvalidInput(f"{path}: a value looks like a secret key", "Keep keys in the environment, not in recipes.")
