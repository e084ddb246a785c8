"""Whether there is anything to ask."""

from __future__ import annotations

from ..errors import InvalidInput
from ..recipe import Recipe
from ..run import Run
from ..sources import is_own
from ..teachers import preamble
from .prompt_source import prompt_source, source_prompts
from .prompts import prompts_read

__all__ = ["require_prompts"]


def require_prompts(recipe: Recipe, run: Run) -> str:
    """How many prompts there are, and what is shown before them, in one line.

    Raises InvalidInput where there are none, or with file and line of each that is bad.
    """
    source = prompt_source(recipe)
    written = recipe.prompts.synthesize
    count = prompts_read(recipe, run)
    if count is None:  # to read a file of very many rows again, only to find them as they were, takes seconds
        count = sum(1 for _ in source_prompts(recipe))
    if not count and written is None:
        raise InvalidInput(f"{recipe.file(recipe.prompts.file or '')}: no prompts", "Write at least one row.")
    shown = [str(len(preamble(recipe, teacher)) // 2) for teacher in recipe.teachers]
    who = "the teacher is shown" if len(shown) == 1 else "the teachers are shown"
    limit = recipe.prompts.limit
    asked = f"{limit} of {count}" if limit is not None and limit < count else str(count)
    kind = "" if source is None or is_own(source) else f" in {source.path.name} (format {source.format})"
    more = f", {written.count} to be written" if written else ""
    return f"{asked} prompts{kind}{more}; {who} {' and '.join(shown)} examples"
