"""report: a run's verdict as a table in the terminal, as one HTML page, or as one JSON document."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ..recipe import load_recipe
from ..report.page import write_report
from ..report.summary import document
from ..report.wording import interval, megabytes, milliseconds, one_line, percent
from ..run import open_run

__all__ = ["print_report", "show_report"]


def show_report(run_folder: Path, as_json: bool) -> None:
    """Print a run's document as JSON; or print the verdict and a table, and write `report.html`.

    Raises EdgeDistillError where the folder is no run.
    """
    run = open_run(run_folder)
    recipe = load_recipe(run.path / "recipe.toml")
    found = document(recipe, run)
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    print_report(found)
    click.echo(f"report: {write_report(recipe, run)}", err=True)


def print_report(found: dict[str, Any]) -> None:
    """Print the candidates and the verdict of a run's document on stdout."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    percentile = f"p{found['target']['percentile']}"
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("candidate", overflow="fold")
    graded = ("score",) if found["scorer"] not in (None, "exact") else ()
    for heading in ("size", "valid", *graded, "right", "95 %", "same", "edge", "p50", percentile):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in found["candidates"]:
        times = (one["latency_ms"] or {}).get("e2e", {})
        scores, edge = one["eval"] or {}, one["edge"] or {}
        cells = [
            one_line(one["name"]),
            megabytes(one["size_bytes"]),
            percent(scores.get("valid")),
            *(percent(scores.get(name)) for name in graded),
            percent(scores.get("exact")),
            interval(scores.get("ci95", {}).get("exact")),
            percent(scores.get("agreement")),
            percent(edge.get("exact")),
            milliseconds(times.get("p50")),
            milliseconds(times.get(percentile)),
        ]
        style = "bold green" if one["name"] == found["chosen"] else ""
        table.add_row(*(Text(cell, style=style) for cell in cells))
    console = Console(soft_wrap=False)
    if found["candidates"]:
        console.print(table)
        console.print(Text("right: right answers, with their 95 % interval; same: as the teacher; edge: right there\n"))
    colour = {"accepted": "bold green", "rejected": "bold red", "inconclusive": "bold yellow"}[found["verdict"]]
    console.print(Text(found["verdict"] + (f": {found['chosen']}" if found["chosen"] else ""), style=colour))
    for reason in found["reasons"]:
        console.print(Text(f"- {one_line(reason, 1000)}"))
