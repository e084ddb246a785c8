"""compare: what changed from one run to another, or between two candidates of one, example by example."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ..chat import answer_text
from ..errors import InvalidInput
from ..recipe import load_recipe
from ..report.comparison import CHANGES, compare
from ..report.wording import chance, difference, one_line, percent
from ..run import open_run

__all__ = ["show_comparison"]

LONGEST = 200


def show_comparison(runs: tuple[Path, ...], candidates: tuple[str, str] | None, quoted: int, as_json: bool) -> None:
    """Print how the second run's student differs from the first one's, or one candidate of a run from another.

    Quotes `quoted` rows of each kind of change. Raises EdgeDistillError where a folder is no run, InvalidInput where
    the two cannot be compared.
    """
    if len(runs) > 2:
        raise InvalidInput(f"{len(runs)} runs", "Compare two at a time.")
    if len(runs) == 1 and candidates is None:
        raise InvalidInput(f"{runs[0]}: compared with what?", "Name a second run, or --candidates A B of this one.")
    opened = [open_run(folder) for folder in (runs[0], runs[-1])]
    names = candidates or (None, None)
    recipes = [load_recipe(run.path / "recipe.toml") for run in opened]
    found = compare(*zip(recipes, opened, names, strict=True))
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    click.echo("\n".join(_lines(found, quoted)))


def _lines(found: dict[str, Any], quoted: int) -> list[str]:
    first, second = found["first"], found["second"]
    lines = [f"first:  {first['candidate']} of {first['run']}", f"second: {second['candidate']} of {second['run']}"]
    for kind, one in found["sets"].items():
        lines += ["", *_set_lines(kind, one)]
    for change in CHANGES:
        rows = [row for row in found["rows"] if row["change"] == change]
        if rows and quoted:
            lines += ["", f"{change} ({min(quoted, len(rows))} of {len(rows)}):"]
            lines += [line for row in rows[:quoted] for line in _row_lines(row)]
    return lines


def _set_lines(kind: str, one: dict[str, Any]) -> list[str]:
    lines = [f"{kind}: {one['n']} rows in both"]
    if one["only_first"] or one["only_second"]:
        lines[0] += f" ({one['only_first']} only in the first, {one['only_second']} only in the second)"
    score = one["score"]
    if score is None:
        return [*lines, f"  no right answers; {one['other_answer']} answers differ"]
    low, high = map(difference, score["ci95"])
    lines.append(
        f"  score {percent(score['first'])} to {percent(score['second'])}: {difference(score['difference'])} points, "
        f"95 % interval {low} to {high}"
    )
    changed = f"{one['fixed']} fixed, {one['broken']} broken, {one['still_wrong']} still wrong"
    return [*lines, f"  {changed}; McNemar's test {chance(score['p'])}"]


def _row_lines(row: dict[str, Any]) -> list[str]:
    """A row as it is quoted; every text is one line that cannot steer a terminal."""
    shown = {"right": None if row["expected"] is None else answer_text(row["expected"])}
    shown |= {name: row[name]["answer"] for name in ("first", "second")}
    where = "edge: " if row["set"] == "edge" else ""
    return [
        f"- {where}{one_line(row['prompt'], LONGEST) or '(empty)'}",
        *(f"    {name:<7}{one_line(text, LONGEST) or '(empty)'}" for name, text in shown.items() if text is not None),
    ]
