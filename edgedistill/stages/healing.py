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

__all__ = ["heal_quants", "require_healing"]

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
    """Heal the quants that are further from the 16-bit student than an export may be; what was measured, by name.

    They learn on the rows of curate. Each healed file is made in the run's scratch folder, where a stopped training
    goes on; as a whole it takes the quant's place, and only where its mean KL from the 16-bit student on `texts` is
    lower.
    """
    source, scratch = run.folder("export") / F16_NAME, run.scratch / SCRATCH
    lost = divergence_between(source, list(quants.values()), texts, cores(), progress)
    far = {name: one for name, one in zip(quants, lost, strict=True) if one.mean > recipe.export.max_kl}
    if not far:
        return {}
    data, settings = _lessons(recipe, run)
    content = [*_content(recipe, run), settings.model_dump()]
    made: dict[str, tuple[Path, dict[str, Any]]] = {}
    for name in far:
        started, quant = time.monotonic(), quants[name]
        work = scratch / digest(file_sha256(quant), content)[:16]
        healer = load_healer(run.folder("export") / "student", quant)
        summary, changed = healer.heal(data, settings, work, _reporter(quant.name, progress))
        write_vectors(quant, work / quant.name, changed)
        told = {key: summary[key] for key in ("steps", "trained_parameters")}
        made[name] = work / quant.name, {**told, "seconds": round(time.monotonic() - started, 1)}
    after = divergence_between(source, [candidate for candidate, _ in made.values()], texts, cores(), progress)
    found = {}
    for (name, (candidate, told)), now in zip(made.items(), after, strict=True):
        is_better = now.mean < far[name].mean
        if is_better:
            os.replace(candidate, quants[name])
        found[name] = {"kept": is_better, "before": far[name].summary(), "after": now.summary(), **told}
    shutil.rmtree(scratch, ignore_errors=True)
    return found


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
