"""`edgedistill teach --export` and `--import`: answers as files, for other tools and from other machines."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from ..errors import InvalidInput
from ..pipeline import must_be_done, stage_keys
from ..recipe import Recipe, load_recipe
from ..run import Run, orderly_stop
from ..stages import STAGES
from ..stages.rows import Imported, export_rows, export_todo, import_rows
from ..stages.stored_answers import STORE
from ..store import Store
from .progress import Bars

__all__ = ["export_answers", "import_answers"]


def export_answers(recipe: Path, file: Path, todo: bool, as_json: bool, quiet: bool, **where: Any) -> None:
    """Write the answers of the recipe, or requests for those that it lacks, to a file.

    Raises InvalidInput where the prompts are not collected yet.
    """
    loaded, run = _opened(recipe, **where)
    with Bars(quiet) as bars, run.lock(), orderly_stop():
        _prompts_are_there(loaded, run)
        count = (export_todo if todo else export_rows)(loaded, run, file, bars)
    if as_json:
        click.echo(json.dumps({"recipe": loaded.name, "rows": count, "file": str(file), "todo": todo}))
    else:
        click.echo(f"{count} {'requests' if todo else 'answers'} in {file}")


def import_answers(recipe: Path, file: Path, as_json: bool, quiet: bool, **where: Any) -> None:
    """Take the answers of a file into the run and print how many are new.

    Raises InvalidInput where lines are bad, after all good ones are stored.
    """
    loaded, run = _opened(recipe, **where)
    with Bars(quiet) as bars, run.lock(), orderly_stop():
        key = _prompts_are_there(loaded, run)["teach"]
        state = run.state("teach", key)
        if state == "done" and not run.summary("teach")["failed"]:
            found = import_rows(loaded, run, file, None, bars)
        else:
            # rows made from another recipe stay refused as before: their stage's record is left as it is
            folder = run.folder("teach") if state == "stale" else run.begin("teach", key, afresh=False)
            with Store(folder / STORE) as store:
                found = import_rows(loaded, run, file, store, bars)
    if as_json:
        click.echo(json.dumps({"recipe": loaded.name, **asdict(found), "folder": str(run.folder("teach"))}))
    else:
        _print(found, file)
    if found.bad:
        raise InvalidInput(
            f"{file}: {found.bad} lines were not taken",
            f"They are in {run.folder('teach') / 'quarantine.jsonl'}, each with its reason; all others are stored.",
        )


def _opened(recipe: Path, offline: bool, runs: Path, llama_cpp: Path | None = None) -> tuple[Recipe, Run]:
    loaded = load_recipe(recipe)
    return loaded, Run(runs / loaded.name, offline, llama_cpp)


def _prompts_are_there(recipe: Recipe, run: Run) -> dict[str, str]:
    """The keys of all stages, or InvalidInput where the prompts are not collected yet."""
    keys = stage_keys(recipe, run)
    must_be_done(run, STAGES[0], keys, until="teach")
    return keys


def _print(found: Imported, file: Path) -> None:
    click.echo(f"{found.new} new answers from {file}, {found.known} were there already")
    for line in found.named:
        click.echo(f"  {line}", err=True)
    if found.bad > len(found.named):
        click.echo(f"  and {found.bad - len(found.named)} more", err=True)
    if found.torn:
        click.echo("  the last line ends in its middle, and was left out", err=True)
