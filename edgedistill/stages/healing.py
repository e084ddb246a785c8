"""Healing: a quant is taught on the task's own texts what its 16-bit self says, and kept only if it measures better."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..llamacpp.comparison import ScoredText, divergence_between
from ..llamacpp.vectors import write_vectors
from ..recipe import Recipe, TrainSettings
from ..records import digest
from ..run import Progress, Run, cores, file_sha256
from ..students import Estimate, Report, TrainingData, TrainStep, load_healer, require_healer
from ..students.encode import EncodedExample, Encoder
from .export import F16_NAME
from .taught import TaughtRows

__all__ = ["heal_quants", "healed", "require_healing"]

SCRATCH = "heal"  # in the run's scratch folder: trainings that were stopped


def require_healing(recipe: Recipe, run: Run) -> str:
    """How the quants will be healed; raise MissingRequirement where what heals is not installed."""
    if not recipe.quantize.heal:
        return "off"
    require_healer()
    return f"{recipe.quantize.heal_steps} steps for each quant beyond a KL of {recipe.export.max_kl:g}"


def heal_quants(
    recipe: Recipe, run: Run, quants: Mapping[str, Path], texts: Sequence[ScoredText], progress: Progress
) -> dict[str, dict[str, Any]]:
    """Heal the quants that are further from the 16-bit student than an export may be; what was measured, by name."""
    source = run.folder("export") / F16_NAME
    lost = divergence_between(source, list(quants.values()), texts, cores(), progress)
    found = {
        name: healed(recipe, run, path, texts, progress)
        for (name, path), one in zip(quants.items(), lost, strict=True)
        if one.mean > recipe.export.max_kl
    }
    shutil.rmtree(run.scratch / SCRATCH, ignore_errors=True)
    return found


def healed(recipe: Recipe, run: Run, quant: Path, texts: Sequence[ScoredText], progress: Progress) -> dict[str, Any]:
    """Heal a quant of the run's student in its place; return what was measured on `texts` before and after.

    It learns on the rows of curate. The healed file is made in the run's scratch folder, where a stopped training goes
    on; as a whole it takes the quant's place, and only where its mean KL from the 16-bit student is lower.
    """
    started = time.monotonic()
    data, settings = _lessons(recipe, run)
    work = run.scratch / SCRATCH / digest(file_sha256(quant), _content(recipe, run), settings.model_dump())[:16]
    healer = load_healer(run.folder("export") / "student", quant)
    summary, changed = healer.heal(data, settings, work, _reporter(quant.name, progress))
    candidate = work / quant.name
    write_vectors(quant, candidate, changed)
    reference = run.folder("export") / F16_NAME
    before, after = divergence_between(reference, [quant, candidate], texts, cores(), progress)
    is_better = after.mean < before.mean
    if is_better:
        os.replace(candidate, quant)
    return {
        "kept": is_better,
        "before": before.summary(),
        "after": after.summary(),
        "steps": summary["steps"],
        "trained_parameters": summary["trained_parameters"],
        "seconds": round(time.monotonic() - started, 1),
    }


def _lessons(recipe: Recipe, run: Run) -> tuple[TrainingData, TrainSettings]:
    """What is learned from and how: as many of the curated rows as the steps take, as often as they need."""
    plain = recipe.model_copy(update={"train": recipe.train.model_copy(update={"loss": "hard"})})
    size, steps = recipe.train.batch_size, recipe.quantize.heal_steps
    with TaughtRows(plain, run, Encoder(run.folder("export") / "student")) as rows:
        train = _some(rows.examples("train"), steps * size)
    changes = {
        "method": "full",
        "epochs": max(1, round(steps / math.ceil(len(train) / size))),
        "patience": 0,  # what is held out measures, and chooses nothing
        "learning_rate": recipe.quantize.heal_learning_rate,
        "weight_decay": 0.0,
        "compile": False,
    }
    return TrainingData(train, (), recipe.seed), recipe.train.model_copy(update=changes)


def _some(rows: Sequence[EncodedExample], most: int) -> list[EncodedExample]:
    """At most so many rows, evenly from all over them."""
    step = max(1.0, len(rows) / most)
    return [rows[int(number * step)] for number in range(min(most, len(rows)))]


def _content(recipe: Recipe, run: Run) -> list[Any]:
    """What decides the lessons besides the settings."""
    rows = file_sha256(run.folder("curate") / "train.jsonl")
    return [rows, recipe.student.system, recipe.seed, recipe.quantize.heal_steps]


def _reporter(name: str, progress: Progress) -> Report:
    def report(moment: TrainStep | Estimate) -> None:
        if isinstance(moment, TrainStep):
            progress(f"healing {name} (KL {moment.loss:.4f})", moment.step, moment.steps)

    return report
