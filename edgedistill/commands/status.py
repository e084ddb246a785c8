"""`edgedistill status`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ..pipeline import STAGES, stage_keys
from ..recipe import load_recipe
from ..run import Run

__all__ = ["show_status"]


def show_status(recipe: Path, as_json: bool, quiet: bool, offline: bool, runs: Path) -> None:
    """Print the state of each stage: missing, partial, done or stale."""
    loaded = load_recipe(recipe)
    run = Run(runs / loaded.name, offline)
    keys = stage_keys(loaded, run)
    states = {stage.name: run.state(stage.name, keys[stage.name]) for stage in STAGES}
    if as_json:
        click.echo(json.dumps({"run": str(run.path), "stages": states}))
        return
    for name, state in states.items():
        record = run.record(name) or {}
        seconds = f" {record['seconds']:.0f} s" if state == "done" and not quiet else ""
        click.echo(f"{name:10} {state}{seconds}")
