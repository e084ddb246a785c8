"""The table of a recipe that says what is asked."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import StrictBool

from .tables import LATER, Count, RecipeFile, Share, Table

__all__ = ["ColumnSettings", "PromptsSettings"]

Format = Literal["rows", "openai", "sharegpt", "alpaca", "columns", "log", "text"]


class ColumnSettings(Table):
    """Which column of a table is what."""

    prompt: str | None = None
    """What the user says; left out, one of the usual names."""
    answer: str | None = None
    """What the source itself has as an answer."""
    system: str | None = None
    """A system text of the row's own."""
    tags: tuple[str, ...] = ()
    """Columns whose texts become tags."""


class PromptsSettings(Table):
    """What is asked."""

    file: RecipeFile = "prompts.jsonl"
    """A file or a folder: our own rows, or what `format` names."""
    format: Annotated[Format | None, LATER] = None
    """How the file is read; left out, its first records show it."""
    columns: Annotated[ColumnSettings | None, LATER] = None
    """For tables: which column is what."""
    scrub: Annotated[StrictBool | None, LATER] = None
    """Replace personal data and secrets before a teacher sees them; left out, in logs alone."""
    limit: Count | None = None
    """Read so many of the file's prompts, evenly from all over it."""
    near_duplicate: Share = 0.9
    """Prompts at least this similar to an earlier one (Jaccard of character 4-grams) are dropped."""
