"""`edgedistill check`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ..preflight import check
from ..recipe import load_recipe
from ..run import Run

__all__ = ["show_check"]


def show_check(
    recipe: Path, as_json: bool, quiet: bool, offline: bool, runs: Path, llama_cpp: Path | None = None
) -> None:
    """Print every requirement of the recipe that holds; the first that does not is the error."""
    loaded = load_recipe(recipe)
    findings = check(loaded, Run(runs / loaded.name, offline, llama_cpp))
    if as_json:
        click.echo(json.dumps({"recipe": loaded.name, "ok": True, "found": {f.what: f.found for f in findings}}))
    elif not quiet:
        for finding in findings:
            click.echo(f"{finding.what}: {finding.found}")
        click.echo(f"{recipe} can run")
