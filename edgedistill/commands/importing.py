"""`edgedistill prompts --import`: what a file from elsewhere holds, as rows of our own."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from ..errors import InvalidInput
from ..records import digest
from ..run import orderly_stop, stop_if_asked
from ..scrub import scrubbed
from ..sources import FORMATS, Columns, Found, conversations, is_own, named, recognised, row
from ..stages.streams import rows_file
from .progress import Bars
from .run import run_stage

__all__ = ["ImportOptions", "import_prompts", "prompts_command"]

NAMED = 20  # bad lines that are named one by one
TOLD_EVERY = 500  # records
SYSTEMS = 1000  # different system texts that are told apart
SHOWN = 200  # characters of the most frequent one


@dataclass(frozen=True)
class ImportOptions:
    """How a file is read, and where its rows go."""

    out: Path
    answers: Path | None = None
    format: str | None = None
    columns: Columns = field(default_factory=Columns)
    scrub: bool | None = None
    """Whether personal data is replaced; None in logs alone."""


@dataclass
class _Counts:
    rows: int = 0
    answers: int = 0
    skipped: int = 0
    bad: int = 0
    problems: list[str] = field(default_factory=list)
    replaced: Counter[str] = field(default_factory=Counter)
    systems: Counter[str] = field(default_factory=Counter)
    commonest: tuple[str, int] = ("", 0)

    def add(self, found: Found) -> None:
        """Count what one record was."""
        if found.problem:
            self.bad += 1
            if len(self.problems) < NAMED:
                self.problems.append(f"{found.where}: {found.problem}")
        elif found.conversation is None:
            self.skipped += 1
        else:
            self.rows += 1
            self._count_system(found.conversation.system)

    def _count_system(self, system: str) -> None:
        key = digest(system)[:16]
        if system and (key in self.systems or len(self.systems) < SYSTEMS):
            self.systems[key] += 1
            if self.systems[key] > self.commonest[1]:
                self.commonest = (system, self.systems[key])


def prompts_command(
    recipe: Path | None, taken: Path | None, out: Path | None, as_json: bool, quiet: bool, **flags: Any
) -> None:
    """Run the stage of a recipe, or turn a file into rows.

    Raises click's UsageError where the command line asks for both or for neither.
    """
    answers, kind, column, scrub = (flags.pop(key) for key in ("answers", "kind", "prompt_column", "scrub"))
    if (recipe is None) == (taken is None):
        raise click.UsageError("Name a RECIPE, or a file with --import.")
    if recipe is not None:
        if any(option is not None for option in (out, answers, kind, column, scrub)):
            raise click.UsageError("--out, --answers, --format, --prompt-column and --scrub belong to --import.")
        run_stage(recipe, "prompts", as_json, quiet, **flags)
        return
    if out is None:
        raise click.UsageError("--import needs --out FILE.")
    if kind is not None and kind not in FORMATS:
        raise click.UsageError(f"--format is one of {', '.join(FORMATS)}.")
    assert taken is not None
    import_prompts(taken, ImportOptions(out, answers, kind, Columns(column), scrub), as_json, quiet)


def import_prompts(file: Path, options: ImportOptions, as_json: bool, quiet: bool) -> None:
    """Write the prompts of a file to `out`, and to `answers` the rows that have an answer, with it.

    Raises InvalidInput where lines are bad, after all good ones are written.
    """
    source = recognised(file, options.format, options.columns)
    if is_own(source):
        raise InvalidInput(f"{file}: holds rows of our own already", 'Name it in the recipe: [prompts] file = "...".')
    counts = _Counts()
    scrubs = options.scrub if options.scrub is not None else source.format == "log"
    answers = nullcontext(None) if options.answers is None else rows_file(options.answers)
    with Bars(quiet) as bars, orderly_stop(), rows_file(options.out) as keep, answers as keep_answer:
        for number, found in enumerate(conversations(source), start=1):
            counts.add(found)
            if found.conversation is not None:
                made = row(found.conversation, found.where, source.format)
                if scrubs:
                    made, replaced = scrubbed(made)
                    counts.replaced += replaced
                keep(made)
                if keep_answer is not None and _is_one_answer(made):
                    keep_answer(_answered(made))
                    counts.answers += 1
            if number % TOLD_EVERY == 0:
                bars("importing", number, number)
                stop_if_asked()
    _tell(source.format, counts, options, scrubs, as_json)
    if counts.bad:
        raise InvalidInput(named(counts.problems, counts.bad), "All other rows are written.")


def _is_one_answer(made: dict[str, Any]) -> bool:
    return [turn["role"] for turn in made["_ed"].get("answer", ())] == ["assistant"]


def _answered(made: dict[str, Any]) -> dict[str, Any]:
    """A row for `teach.answers`: the prompt and its answer."""
    answered: dict[str, Any] = {"messages": [*made["messages"], *made["_ed"]["answer"]]}
    return {**answered, "tools": made["tools"]} if "tools" in made else answered


def _tell(kind: str, counts: _Counts, options: ImportOptions, scrubs: bool, as_json: bool) -> None:
    system, often = counts.commonest
    if as_json:
        found = {
            "format": kind,
            "file": str(options.out),
            "rows": counts.rows,
            "answers": counts.answers,
            "skipped": counts.skipped,
            "bad": counts.bad,
            "replaced": dict(counts.replaced) if scrubs else None,
            "system_texts": len(counts.systems),
            "commonest_system_text": system,
        }
        click.echo(json.dumps(found, ensure_ascii=False))
        return
    click.echo(f"{counts.rows} prompts in {options.out} (format {kind})")
    if options.answers is not None:
        click.echo(f"{counts.answers} of them with an answer in {options.answers}")
    if counts.skipped:
        click.echo(f"{counts.skipped} lines of the log are no requests")
    if scrubs:
        replaced = ", ".join(f"{count} {kind}" for kind, count in counts.replaced.most_common())
        click.echo(f"personal data replaced: {replaced or 'none found'}")
    if counts.systems:
        shown = system if len(system) <= SHOWN else f"{system[:SHOWN]}..."
        click.echo(f"{len(counts.systems)} system texts were taken out; teacher.system may hold one. {often} rows had:")
        click.echo(f"  {' '.join(shown.split())}")
