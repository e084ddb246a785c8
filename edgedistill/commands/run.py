"""`edgedistill run`, and the command of one stage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ..errors import GateMissed
from ..pipeline import RunSettings, run_recipe
from ..recipe import load_recipe
from ..report.summary import document
from ..run import Run
from ..stages.package import Rejected
from .progress import Bars
from .report import print_report

__all__ = ["run_all", "run_stage"]

GATE = GateMissed.exit_code


def run_all(
    recipe: Path,
    redo_from: str | None,
    llama_cpp: Path | None,
    track: str | None,
    as_json: bool,
    quiet: bool,
    offline: bool,
    runs: Path,
) -> int:
    """Run the recipe, print what came of it; return 0 where it is accepted, else the code of a gate missed."""
    settings = RunSettings(runs=runs, offline=offline, redo_from=redo_from, llama_cpp=llama_cpp, track=track)
    with Bars(quiet) as bars:
        try:
            run, _ = run_recipe(recipe, settings, bars)
        except Rejected:  # the verdict; any other gate is an error of its own, whatever an earlier run came to
            run = Run(runs / load_recipe(recipe).name)
    found = document(load_recipe(recipe), run)
    click.echo(json.dumps(found, indent=1)) if as_json else print_report(found)
    return 0 if found["verdict"] == "accepted" else GATE


def run_stage(
    recipe: Path, stage: str, as_json: bool, quiet: bool, llama_cpp: Path | None = None, **where: Any
) -> None:
    """Run one stage of the recipe and print its summary."""
    settings = RunSettings(only=stage, llama_cpp=llama_cpp, **where)
    with Bars(quiet) as bars:
        run, ran = run_recipe(recipe, settings, bars)
    summary = run.summary(stage)
    if as_json:
        click.echo(json.dumps({"stage": stage, "ran": bool(ran), "folder": str(run.folder(stage)), "summary": summary}))
    else:
        click.echo(f"{stage}: {'done' if ran else 'was done already'}, {run.folder(stage)}")
        for key, value in summary.items():
            click.echo(f"  {key}: {value}")
