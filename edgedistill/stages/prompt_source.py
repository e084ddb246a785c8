"""The prompts that a recipe's file holds, in whatever form: one door for all who read them."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from ..errors import InvalidInput
from ..recipe import Recipe
from ..records import Message, Prompt, chat_row, longest_prompt, placed_lines, prompt_of, row_of
from ..run import no_room
from ..scrub import scrubbed
from ..sources import Columns, Source, conversations, is_own, named, recognised
from ..sources import row as row_of_conversation
from .on_offer import offered

__all__ = [
    "Reading",
    "file_prompts",
    "longest_source_prompt",
    "own_rows",
    "placed_rows",
    "prompt_row",
    "prompt_source",
    "scrubs",
    "seeds_of",
    "source_prompts",
]

LIKE_TEXT = "Where is it? "  # has about as many tokens as a text of that length
NAMED = 20  # bad lines that are named one by one


def prompt_source(recipe: Recipe) -> Source | None:
    """The recipe's file with its format; its seeds where it has no file; None where it has neither.

    Raises what `recognised` raises.
    """
    settings = recipe.prompts
    if settings.file is not None:
        columns = settings.columns.model_dump() if settings.columns is not None else {}
        return recognised(recipe.file(settings.file), settings.format, Columns(**columns))
    assert settings.synthesize is not None, "only synthesized prompts need no file"
    seeds = settings.synthesize.seeds
    return None if seeds is None else recognised(recipe.file(seeds))


def scrubs(recipe: Recipe) -> bool:
    """Whether secrets and personal data are replaced: as the recipe says, else in logs, which strangers wrote."""
    settings = recipe.prompts
    if settings.scrub is not None or settings.file is None or not recipe.file(settings.file).exists():
        return bool(settings.scrub)
    source = prompt_source(recipe)
    return source is not None and source.format == "log"


@dataclass
class Reading:
    """One way through a source: its prompts one by one, and what was no prompt."""

    source: Source
    scrubs: bool = False
    """Whether secrets and personal data are replaced."""
    replaced: Counter[str] = field(default_factory=Counter)
    """How many were, by kind."""
    touched: int = 0
    """Prompts in which something was."""
    skipped: int = 0
    """Lines of a log that are no requests."""
    bad: int = 0
    problems: list[str] = field(default_factory=list)
    """Of the bad ones the first, each with file and line."""
    _hint: str = ""

    def prompts(self) -> Iterator[Prompt]:
        """Every prompt; a bad line is noted, and does not stop those after it."""
        return (prompt for _, prompt in self.placed())

    def placed(self) -> Iterator[tuple[str, Prompt]]:
        """The same, each with file and line."""
        for where, problem, prompt in self._own() if is_own(self.source) else self._others():
            if prompt is not None:
                yield where, prompt
            elif problem:
                self.bad += 1
                if len(self.problems) < NAMED:
                    self.problems.append(f"{where}: {problem}")
            else:
                self.skipped += 1

    def require_good(self) -> None:
        """Raise InvalidInput where a line was bad, with all of them as far as they are named."""
        if self.bad:
            write = f"edgedistill prompts --import {self.source.path} --out FILE"
            others = f"Mend or remove these lines; or write the others to a file of their own: {write}"
            raise InvalidInput(named(self.problems, self.bad), self._hint or others)

    def _own(self) -> Iterator[tuple[str, str, Prompt | None]]:
        for place, line in placed_lines(self.source.path):
            if not line.strip():
                continue
            where = f"{self.source.path}:{place.line}"
            try:
                yield where, "", self._prompt(where, row_of(where, line))
            except InvalidInput as error:
                self._hint = self._hint or error.hint
                yield where, error.message.removeprefix(f"{where}: "), None

    def _others(self) -> Iterator[tuple[str, str, Prompt | None]]:
        for found in conversations(self.source):
            row = found.conversation and row_of_conversation(found.conversation, found.where, self.source.format)
            yield found.where, found.problem, self._prompt(found.where, row) if row else None

    def _prompt(self, where: str, row: dict[str, Any]) -> Prompt:
        if self.scrubs:
            row, counts = scrubbed(row)
            self.replaced += counts
            self.touched += bool(counts)
        return prompt_of(where, row)


def source_prompts(recipe: Recipe) -> Iterator[Prompt]:
    """The prompts that are there before any are written, read as they are needed: those of the file, then the seeds.

    Raises InvalidInput at the end of a file whose lines were bad, with file and line of each.
    """
    yield from file_prompts(recipe)
    yield from seeds_of(recipe)


def placed_rows(recipe: Recipe) -> Iterator[tuple[str, Prompt]]:
    """Every row of the file, then every seed, with file and line: as it is, without what the recipe gives to all."""
    settings = recipe.prompts
    found = [] if settings.file is None else [prompt_source(recipe)]
    if settings.synthesize is not None and settings.synthesize.seeds is not None:
        found.append(recognised(recipe.file(settings.synthesize.seeds)))
    for source in found:
        if source is not None:
            yield from Reading(source).placed()


def file_prompts(recipe: Recipe) -> Iterator[Prompt]:
    """The prompts of the recipe's file; none where it names none. Raises what `source_prompts` raises."""
    if recipe.prompts.file is None:
        return
    source = prompt_source(recipe)
    assert source is not None
    reading = Reading(source, scrubs(recipe))
    yield from offered(recipe, reading.prompts())
    reading.require_good()


def seeds_of(recipe: Recipe) -> list[Prompt]:
    """The seeds; none where the recipe names none.

    Raises InvalidInput with file and line where one is bad, or has several turns.
    """
    settings = recipe.prompts.synthesize
    if settings is None or settings.seeds is None:
        return []
    path = recipe.file(settings.seeds)
    reading = Reading(recognised(path), scrubs(recipe))
    found = list(offered(recipe, reading.prompts()))
    reading.require_good()
    if not found:
        raise InvalidInput(f"{path}: no seeds", "Write at least one row, or leave synthesize.seeds out.")
    long = next((prompt for prompt in found if len(prompt.messages) > 1), None)
    if long is not None:
        raise InvalidInput(f"{path}: a seed has several turns: {long.text[:60]!r}", "Give the first turn alone.")
    return found


def longest_source_prompt(recipe: Recipe) -> Prompt:
    """The first prompt of the longest text; where some are to be written, one as long as these may be counts too.

    Raises what `source_prompts` raises, and where there is no prompt.
    """
    source = prompt_source(recipe)
    if recipe.prompts.synthesize is not None:
        text = (LIKE_TEXT * recipe.prompts.synthesize.longest)[: recipe.prompts.synthesize.longest]
        longest = Prompt("longest", (Message("user", text),))
        return max(chain([longest], source_prompts(recipe)), key=lambda prompt: len(prompt.text))
    assert source is not None
    if is_own(source) and not scrubs(recipe):
        return next(offered(recipe, [longest_prompt(source.path)]))
    found = max(source_prompts(recipe), key=lambda prompt: len(prompt.text), default=None)
    if found is None:
        raise InvalidInput(f"{source.path}: no prompts", "Write at least one row.")
    return found


@contextmanager
def own_rows(reading: Reading, out: Path) -> Iterator[Path]:
    """The source as a file of our own rows: itself where it is one, else a file in `out` that is gone afterwards.

    Raises InvalidInput where lines were bad, Stopped where the disk is full.
    """
    if is_own(reading.source) and not reading.scrubs:
        yield reading.source.path
        return
    path = out / f"source.partial-{os.getpid()}"
    try:
        _write(reading, path)
        reading.require_good()
        yield path
    finally:
        path.unlink(missing_ok=True)


def _write(reading: Reading, path: Path) -> None:
    try:
        with path.open("w", encoding="utf-8") as file:
            for prompt in reading.prompts():
                file.write(json.dumps(prompt_row(prompt), ensure_ascii=False) + "\n")
    except OSError as error:
        raise no_room(path, error) from error


def prompt_row(prompt: Prompt) -> dict[str, Any]:
    """A prompt as a row of a prompt file."""
    row = chat_row(prompt.messages, prompt.tools)
    if prompt.expected is not None:
        row["expected"] = prompt.expected
    if prompt.tags:
        row["tags"] = list(prompt.tags)
    row |= {key: text for key, text in (("goal", prompt.goal), ("persona", prompt.persona)) if text}
    if prompt.lineage:
        row["_ed"] = prompt.lineage
    return row
