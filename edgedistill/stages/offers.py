"""The tools that rows offer, looked at before anything is asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from ..chat import folder_template
from ..errors import InvalidInput
from ..llamacpp.call_grammar import calls_rule
from ..llamacpp.grammar import require_decodable
from ..models import identify
from ..recipe import Recipe
from ..records import Prompt, Tool, iter_prompts, placed_prompts
from ..run import Run
from .on_offer import are_held, offered, recipe_tools, require_held
from .prompt_source import placed_rows, prompt_source, source_prompts
from .scorers import right_text
from .tool_calls import checks_of, fault
from .tool_results import require_results

__all__ = ["require_tools"]

ONE_BEGINNING = ("transformers", "mlx")  # backends whose prompts share one text in front


def require_tools(recipe: Recipe, run: Run) -> str:
    """What the rows offer. A file whose first row has no tools is not read on: where others have, asking will tell.

    Raises InvalidInput where a tool's parameters are no schema, or a backend cannot take rows with different tools.
    """
    own = recipe_tools(recipe)
    if own:
        _require_own(recipe, run, own)
    found = {recipe.path: {json.dumps(list(own))}} if are_held(recipe) else _found(recipe)
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
    learned = "" if not own or recipe.tools.student else "; the student is not shown them, it learns them"
    sets = "in different sets" if several is not None else "the same in all rows"
    return f"{len(names)} tools, {sets}{learned}; {require_results(recipe)}"


def _found(recipe: Recipe) -> dict[Path, set[str]]:
    """By file, every set of tools that its rows offer, as JSON."""
    found = {path: _sets(path, offered(recipe, iter_prompts(path))) for path in recipe.files("evaluate").values()}
    source = prompt_source(recipe)
    if source is not None:
        found[source.path] = _sets(source.path, source_prompts(recipe))
    return found


def _require_own(recipe: Recipe, run: Run, tools: tuple[Tool, ...]) -> None:
    """Whether calls of the recipe's own tools can be decoded, are what the eval rows expect, and the student sees them.

    Raises InvalidInput where not, with file and line where answers to a row would be held to tools that it has not.
    """
    checks_of(json.dumps(list(tools), sort_keys=True))
    require_decodable(calls_rule(tools))
    for where, row in _rows(recipe) if are_held(recipe) else ():
        require_held(row, tools, where)
    for path in recipe.files("evaluate").values() if recipe.evaluate.scorer == "tool" else ():
        for row in iter_prompts(path):
            wrong = None if row.expected is None else fault(right_text("tool", row.expected), row.tools or tools)
            if wrong is not None:
                raise InvalidInput(
                    f"{path}: the expected answer of {row.text[:60]!r}: {wrong[1]}", "Correct the answer, or the tools."
                )
    folder = identify(recipe.reference("student"), ("hf", "gguf"), run.offline).path
    if recipe.tools.student and folder is not None and folder.is_dir() and not folder_template(folder).shows_tools:
        raise InvalidInput(
            f"{recipe.path}: the student's chat template does not write tools",
            "Write student = false in [tools], so that it learns them, or take another student.",
        )


def _rows(recipe: Recipe) -> Iterator[tuple[str, Prompt]]:
    """Every row that is asked, with file and line."""
    for path in recipe.files("evaluate").values():
        yield from ((f"{path}:{place.line}", row) for place, row in placed_prompts(path))
    yield from placed_rows(recipe)


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
