"""The tools that rows offer, looked at before anything is asked."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path

from ..errors import InvalidInput
from ..recipe import Recipe
from ..records import iter_prompts
from ..run import Run
from ..sources import is_own
from .prompt_source import prompt_source
from .tool_calls import checks_of

__all__ = ["require_tools"]

ONE_BEGINNING = ("transformers", "mlx")  # backends whose prompts share one text in front


def require_tools(recipe: Recipe, run: Run) -> str:
    """What the rows offer. A file whose first row has no tools is not read on: where others have, asking will tell.

    Raises InvalidInput where a tool's parameters are no schema, or a backend cannot take rows with different tools.
    """
    paths = list(recipe.files("evaluate").values())
    if is_own(prompt_source(recipe)):
        paths.append(recipe.file(recipe.prompts.file))
    found = {path: _sets(path) for path in paths}
    names = {tool["function"]["name"] for sets in found.values() for text in sets for tool in json.loads(text)}
    if not names:
        return "none"
    shared = next((teacher.backend for teacher in recipe.teachers if teacher.backend in ONE_BEGINNING), None)
    several = next((path for path, sets in found.items() if len(sets) > 1), None)
    if shared is not None and several is not None:
        raise InvalidInput(
            f"{several}: rows offer different tools, which the '{shared}' backend cannot share a beginning among",
            "Give all rows the same tools, or let the 'llamacpp' or the 'openai' backend teach.",
        )
    return f"{len(names)} tools, {'in different sets' if several is not None else 'the same in all rows'}"


def _sets(path: Path) -> set[str]:
    """Every set of tools that the rows of a file offer, as JSON."""
    rows = iter_prompts(path)
    first = next(rows, None)
    if first is None or not first.tools:
        return set()
    found: set[str] = set()
    for row in chain([first], rows):
        text = json.dumps(list(row.tools), sort_keys=True)
        if text not in found:
            try:
                checks_of(text)
            except InvalidInput as error:
                raise InvalidInput(f"{path}: {error.message}", error.hint) from error
            found.add(text)
    return found
