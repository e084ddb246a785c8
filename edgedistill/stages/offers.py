"""The tools that rows offer, looked at before anything is asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from ..errors import InvalidInput
from ..recipe import Recipe
from ..records import Prompt, iter_prompts
from ..run import Run
from .prompt_source import prompt_source, source_prompts
from .tool_calls import checks_of

__all__ = ["require_tools"]

ONE_BEGINNING = ("transformers", "mlx")  # backends whose prompts share one text in front


def require_tools(recipe: Recipe, run: Run) -> str:
    """What the rows offer. A file whose first row has no tools is not read on: where others have, asking will tell.

    Raises InvalidInput where a tool's parameters are no schema, or a backend cannot take rows with different tools.
    """
    found = {path: _sets(path, iter_prompts(path)) for path in recipe.files("evaluate").values()}
    source = prompt_source(recipe)
    if source is not None:
        found[source.path] = _sets(source.path, source_prompts(recipe))
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


def _sets(path: Path, rows: Iterator[Prompt]) -> set[str]:
    """Every set of tools that the rows of a file offer, as JSON."""
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
