"""train: the student learns the curated answers."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from ..recipe import Recipe
from ..run import Progress, Run
from ..students import Estimate, Report, TrainingData, TrainStep, load_student
from ..students.alignment import Aligner, require_aligned
from ..students.encode import Encoder
from ..students.packed import PackedExamples
from ..teachers.identity import fetch_teacher
from .exam import exam_of, unmarked
from .imported import base_folder, pruned
from .prompt_source import source_prompts
from .taught import TaughtRows
from .tokenizers import SHOWN, aligner_between
from .tracking import tracked

__all__ = ["train"]


def train(recipe: Recipe, run: Run, out: Path, progress: Progress) -> dict[str, Any]:
    """Leave `adapter/`, `checkpoints/` and `metrics.jsonl`."""
    weights, base = base_folder(recipe, run, progress)
    encoder = Encoder(base)
    with TaughtRows(recipe, run, encoder, _aligner(recipe, run, base, progress)) as rows:
        train, valid = rows.examples("train"), rows.examples("valid")
        data = TrainingData(train, valid, recipe.seed, rows.lesson, exam_of(recipe, encoder))
        share = rows.aligned_share(train)
        warnings = [*_by_text(recipe, train), *([] if share is None else [require_aligned(share)]), unmarked(recipe)]
        student = load_student(recipe.student, base)
        with tracked(run) as passed_on:
            summary = student.train(data, recipe.train, out, _reporter(progress, passed_on))
    quant = weights.quant if weights.format == "gguf" else None
    source = {"name": weights.name, "sha256": weights.sha256, "source": weights.source, "licence": weights.licence}
    if recipe.train.loss != "hard":
        summary = {**summary, "rows_by_text": train.by_text}
    if share is not None:
        summary = {**summary, "aligned_share": round(share, 4)}
    summary = {**summary, "warnings": [warning for warning in warnings if warning]}
    return {**summary, "base": {**source, "imported_from_quant": quant, **pruned(base)}}


def _aligner(recipe: Recipe, run: Run, base: Path, progress: Progress) -> Aligner | None:
    """What aligns a teacher's distributions with a student of another tokenizer, where the loss needs that."""
    if recipe.train.loss == "hard" or recipe.teach.targets == "none":
        return None
    teacher = fetch_teacher(recipe, recipe.teacher, run.offline, progress).path
    assert teacher is not None, "a server tells no distributions"
    shown = islice(source_prompts(recipe), SHOWN)
    return aligner_between(teacher, base, (prompt.text for prompt in shown))


def _by_text(recipe: Recipe, train: PackedExamples) -> list[str]:
    """A warning of rows from which a loss that wants more than text has nothing more."""
    if recipe.train.loss == "hard" or not train.by_text:
        return []
    return [
        f"{train.by_text:,} of {len(train):,} rows were learned by their text alone: no distribution of the teacher's "
        "is stored for them"
    ]


def _reporter(progress: Progress, passed_on: Callable[[TrainStep], None]) -> Report:
    def report(moment: TrainStep | Estimate) -> None:
        if isinstance(moment, Estimate):
            gigabytes, minutes = moment.memory_bytes / 2**30, moment.seconds / 60
            progress(f"training (about {gigabytes:.1f} GB, at most {minutes:.0f} min)", 0, 1)
        else:
            passed_on(moment)
            scored = "" if moment.score is None else f", right {moment.score:.0%}"
            progress(f"training (loss {moment.loss:.3f}{scored})", moment.step, moment.steps)

    return report
