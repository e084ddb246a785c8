"""What N2, N7 and N8 share: a recipe cut to fewer rows, its stages one by one, and students trained on what it curated.

All of it is kept in a folder as it comes, so that a stopped measurement goes on.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from measure import note

from edgedistill.chat import with_system
from edgedistill.llamacpp.answer import Answerer, AnswererSettings
from edgedistill.llamacpp.sampling import Sampling
from edgedistill.llamacpp.writer import GgufMetadata, write_gguf
from edgedistill.pipeline import RunSettings, run_recipe
from edgedistill.recipe import Recipe, load_recipe
from edgedistill.records import Message, Prompt, read_prompts
from edgedistill.run import Run, cores, write_whole
from edgedistill.stages.imported import base_folder
from edgedistill.stages.on_offer import device_rule
from edgedistill.stages.scorers import SCORERS
from edgedistill.stages.taught import TaughtRows
from edgedistill.students import TrainingData, TrainStep, load_student
from edgedistill.students.encode import Encoder
from edgedistill.students.merge import merge_adapter

__all__ = ["RECIPES", "answered", "cut_recipe", "kept_in", "mean_score", "run_until", "silent", "trained"]

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


def silent(what: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


def kept_in(work: Path, form: tuple[int, int], whole: tuple[int, int]) -> Path:
    """Where a measurement of so many prompts and eval rows is kept: a smaller one is never taken for the whole."""
    return work if form == whole else work / "-".join(map(str, form))


def cut_recipe(name: str, folder: Path, rows: tuple[int, int], changes: dict[str, str]) -> Path:
    """A copy of a recipe with so many prompts and eval rows; `changes` replaces texts of its recipe.toml."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in (RECIPES / name).iterdir():
        if path.suffix in (".jsonl", ".md", ".json"):
            shutil.copyfile(path, folder / path.name)
    for file, count in (("prompts.jsonl", rows[0]), ("eval.jsonl", rows[1])):
        lines = (RECIPES / name / file).read_text(encoding="utf-8").splitlines(keepends=True)
        (folder / file).write_text("".join(lines[:count]), encoding="utf-8")
    text = (RECIPES / name / "recipe.toml").read_text(encoding="utf-8")
    text = text.replace("percentile = 95", "percentile = 50\nwarmup = 2")  # nothing is timed, and few rows would not do
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, new)
    (folder / "recipe.toml").write_text(text, encoding="utf-8")
    return folder


def run_until(folder: Path, runs: Path, stages: Sequence[str]) -> tuple[Recipe, Run]:
    """The recipe of a folder and its run, with these stages done."""
    run = None
    for stage in stages:
        started = time.perf_counter()
        run, ran = run_recipe(folder, RunSettings(runs=runs, offline=True, only=stage), silent)
        if ran:
            note(f"{folder.name}: {stage} took {time.perf_counter() - started:.0f} s")
    assert run is not None
    return load_recipe(folder), run


def trained(recipe: Recipe, run: Run, seed: int, work: Path) -> dict[str, Any]:
    """Steps, seconds and the answers of a student that learned the curated rows with a seed, kept under its name."""
    kept = work / f"{seed}.json"
    if not kept.is_file():
        started = time.perf_counter()
        base = base_folder(recipe, run, silent)[1]
        out = work / str(seed)
        with TaughtRows(recipe, run, Encoder(base)) as rows:
            data = TrainingData(rows.examples("train"), rows.examples("valid"), seed, rows.lesson)
            summary = load_student(recipe.student, base).train(
                data, recipe.train, out, _reporter(f"{work.name}-{seed}")
            )
        shutil.rmtree(out / "student", ignore_errors=True)  # of a measurement that was stopped here
        merge_adapter(base, out / "adapter", out / "student")
        write_gguf(out / "student", out / "student.gguf", GgufMetadata(name=work.name), silent)
        answers = answered(out / "student.gguf", recipe, with_system(recipe.student.system, ()))
        found = {"steps": summary["steps"], "seconds": round(time.perf_counter() - started, 1), "answers": answers}
        write_whole(kept, json.dumps(found).encode())
        shutil.rmtree(out)
    row: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
    return row


def answered(gguf: Path, recipe: Recipe, shown: Sequence[Message]) -> dict[str, str]:
    """A model's greedy answers to the eval rows, by prompt id, held to what the recipe holds a device to."""
    prompts = read_prompts(recipe.file(recipe.evaluate.file))
    with (
        Answerer(gguf, tuple(shown), device_rule(recipe), AnswererSettings(cores())) as answerer,
        closing(answerer.complete(prompts, Sampling(recipe.evaluate.max_tokens), recipe.teach.slots)) as completions,
    ):
        return {one.prompt_id: one.text for one in completions}


def mean_score(answers: dict[str, str], prompts: Sequence[Prompt], scorer: str) -> float:
    """The share of rows that are right, in percent."""
    return 100 * sum(SCORERS[scorer](answers[one.id], one.expected) for one in prompts) / len(prompts)


def _reporter(name: str) -> Callable[[Any], None]:
    def report(step: Any) -> None:
        if isinstance(step, TrainStep) and step.valid_loss is not None:
            note(f"{name}: step {step.step} of {step.steps}, loss {step.loss:.4f}, held out {step.valid_loss:.4f}")

    return report
