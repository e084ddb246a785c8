"""`edgedistill evaluate`: as the stage of a recipe, or on any eval file without touching a run."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import click

from ..errors import InvalidInput
from ..pipeline import load_run
from ..recipe import load_recipe
from ..results import RESULTS
from ..run import is_run, orderly_stop
from ..stages.evaluate import evaluate_on
from .progress import Bars
from .run import run_stage

__all__ = ["evaluate_target"]


def evaluate_target(target: Path, eval_file: Path | None, as_json: bool, quiet: bool, **where: Any) -> None:
    """The stage of a recipe; or, with an eval file, the scores of a run on it."""
    if eval_file is None and is_run(target):
        raise InvalidInput(f"{target}: a run is evaluated on a file", "Add --eval FILE, or name the recipe instead.")
    if eval_file is None:
        run_stage(target, "evaluate", as_json, quiet, **where)
        return
    folder = target if is_run(target) else where["runs"] / load_recipe(target).name
    recipe, run = load_run(folder, where["offline"])
    with Bars(quiet) as bars, orderly_stop(), tempfile.TemporaryDirectory() as scratch:
        result = evaluate_on(recipe, run, eval_file, Path(scratch) / RESULTS, bars)
    if as_json:
        click.echo(json.dumps(result, ensure_ascii=False))
        return
    for person in result["candidates"]:
        click.echo(f"{person['name']}: {_scores(person['eval'])}")


def _scores(scores: dict[str, Any]) -> str:
    graded = scores.get("score") != scores["exact"]
    names = ("valid", "exact", *(("score",) if graded else ()), "agreement")
    shown = (f"{name} {scores[name]:.1%}" for name in names if scores.get(name) is not None)
    return ", ".join(shown) + f" of {scores['n']}"
