"""train: the student learns the curated answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..recipe import Recipe
from ..run import Progress, Run
from ..students import Estimate, Report, TrainingData, TrainStep, load_student
from ..students.encode import Encoder
from .imported import base_folder
from .taught import TaughtRows

__all__ = ["train"]


def train(recipe: Recipe, run: Run, out: Path, progress: Progress) -> dict[str, Any]:
    """Leave `adapter/`, `checkpoints/` and `metrics.jsonl`."""
    weights, base = base_folder(recipe, run, progress)
    with TaughtRows(recipe, run, Encoder(base)) as rows:
        data = TrainingData(rows.examples("train"), rows.examples("valid"), recipe.seed, rows.lesson)
        student = load_student(recipe.student, base)
        summary = student.train(data, recipe.train, out, _reporter(progress))
    quant = weights.quant if weights.format == "gguf" else None
    source = {"name": weights.name, "sha256": weights.sha256, "source": weights.source, "licence": weights.licence}
    return {**summary, "base": {**source, "imported_from_quant": quant}}


def _reporter(progress: Progress) -> Report:
    def report(moment: TrainStep | Estimate) -> None:
        if isinstance(moment, Estimate):
            gigabytes, minutes = moment.memory_bytes / 2**30, moment.seconds / 60
            progress(f"training (about {gigabytes:.1f} GB, at most {minutes:.0f} min)", 0, 1)
        else:
            progress(f"training (loss {moment.loss:.3f})", moment.step, moment.steps)

    return report
