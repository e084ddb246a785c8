"""`edgedistill evaluate` and `edgedistill bench`: as stages of a recipe, or on any file without touching a run."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ..errors import InvalidInput
from ..models import check_gguf
from ..pipeline import load_run
from ..recipe import load_recipe
from ..run import is_run, orderly_stop
from ..stages.bench import bench_files
from ..stages.evaluate import evaluate_on
from .progress import Bars
from .run import run_stage

__all__ = ["bench_targets", "evaluate_target"]


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
        result = evaluate_on(recipe, run, eval_file, Path(scratch) / "results.sqlite", bars)
    if as_json:
        click.echo(json.dumps(result, ensure_ascii=False))
        return
    for person in result["candidates"]:
        click.echo(f"{person['name']}: {_scores(person['eval'])}")


def bench_targets(targets: Sequence[Path], recipe: Path | None, as_json: bool, quiet: bool, **where: Any) -> None:
    """The stage of a recipe; or the latency of a run's quants, or of any GGUF files."""
    files = [path for path in targets if path.suffix == ".gguf"]
    others = [path for path in targets if path.suffix != ".gguf"]
    if len(others) + (recipe is not None) > 1:
        raise InvalidInput(f"{others[-1]}: one recipe or run at a time", "Name it alone, or with GGUF files.")
    if others and not files and not is_run(others[0]):
        run_stage(others[0], "bench", as_json, quiet, **where)
        return
    if others and is_run(others[0]):
        loaded, run = load_run(others[0], where["offline"])
        files = [run.folder("quantize") / name for name in run.summary("quantize")["files"].values()] + files
    elif recipe or others:
        loaded = load_recipe(recipe or others[0])
    else:
        raise InvalidInput(f"{files[0]}: whose prompts shall time it?", "Add --recipe RECIPE, or name a run first.")
    for path in files:
        check_gguf(path)
    with Bars(quiet) as bars, orderly_stop():
        result = bench_files(loaded, files, bars)
    click.echo(json.dumps(result)) if as_json else _print_latency(result)


def _scores(scores: dict[str, Any]) -> str:
    shown = (f"{name} {scores[name]:.1%}" for name in ("valid", "exact", "agreement") if scores[name] is not None)
    return ", ".join(shown) + f" of {scores['n']}"


def _print_latency(result: dict[str, Any]) -> None:
    for person in result["candidates"]:
        e2e = person["latency_ms"]["e2e"]
        click.echo(
            f"{person['name']}: end to end p50 {e2e['p50']:.0f} ms, p95 {e2e['p95']:.0f} ms; "
            f"first text p50 {person['latency_ms']['ttft']['p50']:.0f} ms; {person['tokens_per_s']} tokens/s"
        )
