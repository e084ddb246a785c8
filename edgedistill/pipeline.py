"""The pipeline on one screen: the stages in order, what each depends on, and how a run goes through them."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from .errors import EdgeDistillError, InvalidInput
from .hardware import give_back_memory
from .models import Format, fetch, identify
from .preflight import check
from .recipe import TABLES, Recipe, load_recipe
from .records import digest
from .report.page import write_report
from .run import Progress, Run, file_sha256, no_room, open_run, orderly_stop, stop_if_asked, whole_file, write_whole
from .sources import content, text_files
from .stages import STAGES, Stage
from .stages.judging import judge_teacher
from .stages.package import Rejected
from .stages.prompt_source import scrubs
from .stages.rating import rating_teacher
from .stages.retries import checks
from .stages.simulated_user import user_teacher
from .stages.synthesis import overlap, written_by
from .teachers.identity import fetch_teacher, identify_teacher

__all__ = ["STAGES", "RunSettings", "load_run", "run_recipe", "run_stages", "stage_keys"]


NAMES = tuple(stage.name for stage in STAGES)

STUDENT: tuple[Format, ...] = ("hf", "gguf")

# settings that say how a server is reached and what it costs, not what it answers
REACHED_BY = {"api_key_env", "plain_http", "price_in", "price_out"}


@dataclass(frozen=True)
class RunSettings:
    """Where and how to run: what the flags of a command say, never what is made."""

    runs: Path = Path("runs")
    offline: bool = False
    only: str | None = None
    redo_from: str | None = None
    llama_cpp: Path | None = None
    """A llama.cpp checkout whose converter writes the GGUF of an architecture that is not in our table."""
    track: str | None = None
    """trackio, wandb or tensorboard: where the training's curves go beside `metrics.jsonl`."""


def stage_keys(recipe: Recipe, run: Run) -> dict[str, str]:
    """The key of every stage: the key before it, its tables, the content of their files and of the models named."""
    common = {"name": recipe.name, "seed": recipe.seed, "schema": contents(recipe, None)}
    keys: dict[str, str] = {}
    key = digest(common)
    for stage in STAGES:
        parts: list[Any] = [key]
        for table in stage.reads:
            if table in ("tools", "user") and not getattr(recipe, table).deciding():
                continue  # a table of a later version, which says nothing
            parts += [settings_of(recipe, table), contents(recipe, table), models_of(recipe, run, table)]
        parts += [contents(recipe, table) for table in stage.files_of]
        if stage.name == "prompts" and recipe.prompts.synthesize is not None:
            parts += [written_by(recipe, run), contents(recipe, "evaluate"), overlap(recipe)]
        if stage.name == "prompts" and recipe.user.turns:
            parts.append([recipe.user.goal, recipe.user.personas])
        if stage.name == "teach" and (recipe.teach.retries or recipe.curate.reasoning == "shorten"):
            parts.append(checks(recipe.curate))
        key = keys[stage.name] = digest(parts)
    return keys


def settings_of(recipe: Recipe, table: str) -> Any:
    """What a table says about what is made, as JSON."""
    if table == "teachers":
        return [teacher.model_dump(mode="json", exclude=REACHED_BY) for teacher in recipe.teachers]
    found: dict[str, Any] = getattr(recipe, table).deciding()
    if table == "curate" and recipe.curate.judge is not None:
        found = {**found, "judge": {key: value for key, value in found["judge"].items() if key not in REACHED_BY}}
    if table == "user":
        found = {key: value for key, value in found.items() if key not in REACHED_BY}
    if table == "prompts":  # what is done counts, not whether it was asked for
        found = {key: value for key, value in found.items() if key != "scrub"}
        return {**found, "scrub": True} if scrubs(recipe) else found
    return found


def models_of(recipe: Recipe, run: Run, table: str) -> list[str | None]:
    """The content of each model that a table names, as its sha256; None for one whose content is not known yet."""
    if table == "teachers":
        return [identify_teacher(recipe, teacher, run.offline).sha256 for teacher in recipe.teachers]
    if table == "student":
        return [identify(recipe.reference("student"), STUDENT, run.offline).sha256]
    if table == "curate" and recipe.curate.judge is not None:
        return [identify_teacher(recipe, rating_teacher(recipe), run.offline).sha256]
    if table == "user" and recipe.user.turns:
        return [identify_teacher(recipe, user_teacher(recipe), run.offline).sha256]
    if table == "evaluate" and recipe.evaluate.judge is not None:
        return [identify_teacher(recipe, judge_teacher(recipe), run.offline).sha256]
    return []


def contents(recipe: Recipe, table: str | None) -> dict[str, str]:
    """A digest of the content of each file, or folder of text files, that a table names."""
    return {name: content(path) for name, path in recipe.files(table).items() if path.exists()}


def run_stages(
    recipe: Recipe, run: Run, progress: Progress, only: str | None = None, redo_from: str | None = None
) -> list[str]:
    """Run every stage that is not done, or one alone; return the names of those that ran.

    Raises EdgeDistillError where a stage was made from another recipe: paid-for work is not redone unasked.
    """
    fetch_unknown(recipe, run, progress, only)
    keys = stage_keys(recipe, run)
    todo = planned(run, keys, only, redo_from)
    if todo:
        keep_recipe(recipe, run)
        forget_later(run, keys, todo[0][0])
    for stage, afresh in todo:
        run_stage(stage, keys[stage.name], (recipe, run, progress), afresh)
        give_back_memory()  # the next stage has other models, and needs it
    return [stage.name for stage, _ in todo]


def fetch_unknown(recipe: Recipe, run: Run, progress: Progress, only: str | None) -> None:
    """Fetch each model whose content is known only once it is here, so that no key changes under way."""
    tables = {table for stage in STAGES[: NAMES.index(only or NAMES[-1]) + 1] for table in stage.reads}
    tables |= {"teachers"} if recipe.prompts.synthesize is not None else set()
    judges = [rating_teacher(recipe)] if "curate" in tables and recipe.curate.judge is not None else []
    players = [user_teacher(recipe)] if "user" in tables and recipe.user.turns else []
    for teacher in (*(recipe.teachers if "teachers" in tables else ()), *players, *judges):
        if identify_teacher(recipe, teacher, run.offline).sha256 is None:
            fetch_teacher(recipe, teacher, run.offline, progress)
    if "student" in tables and identify(recipe.reference("student"), STUDENT, run.offline).sha256 is None:
        fetch(recipe.reference("student"), STUDENT, run.offline, progress)


def planned(run: Run, keys: dict[str, str], only: str | None, redo_from: str | None) -> list[tuple[Stage, bool]]:
    """The stages to run, each with whether it starts in an empty folder."""
    todo: list[tuple[Stage, bool]] = []
    for stage in STAGES:
        redo = redo_from is not None and NAMES.index(stage.name) >= NAMES.index(redo_from)
        if only is not None and stage.name != only:
            must_be_done(run, stage, keys, until=only)
            continue
        state = run.state(stage.name, keys[stage.name])
        if state == "done" and not redo and not todo:
            continue
        if state == "stale" and not redo:
            raise EdgeDistillError(
                f"'{stage.name}' in {run.path} was made from another recipe",
                f"Redo it with --from {stage.name}, or give the recipe a new name.",
            )
        goes_on = stage.keeps or (stage.resumes and state == "partial")
        todo.append((stage, not goes_on))
    return todo


def forget_later(run: Run, keys: dict[str, str], first: Stage) -> None:
    """Take the records of later stages away: what they made from output that is made again is no result any more.

    A stage of another key keeps its record: it is stale, and is not redone unasked.
    """
    for later in STAGES[NAMES.index(first.name) + 1 :]:
        if (run.record(later.name) or {}).get("key") == keys[later.name]:
            run.forget(later.name)


def run_stage(stage: Stage, key: str, work: tuple[Recipe, Run, Progress], afresh: bool) -> None:
    """Run one stage between its two records."""
    recipe, run, progress = work
    function: Callable[..., dict[str, Any]] = getattr(import_module(f"{__package__}.stages.{stage.name}"), stage.name)
    folder = run.begin(stage.name, key, afresh)
    started = time.monotonic()
    summary = function(recipe, run, folder, progress)
    run.finish(stage.name, key, summary, time.monotonic() - started)
    stop_if_asked()


def must_be_done(run: Run, stage: Stage, keys: dict[str, str], until: str) -> None:
    """Raise InvalidInput where a stage before `until` is not done."""
    if NAMES.index(stage.name) > NAMES.index(until):
        return
    state = run.state(stage.name, keys[stage.name])
    if state != "done":
        raise InvalidInput(
            f"'{until}' needs '{stage.name}', which is {state}", f"Run it first: edgedistill {stage.name} RECIPE"
        )


def keep_recipe(recipe: Recipe, run: Run) -> None:
    """Copy the recipe and the files that it names into the run, so that the run explains itself."""
    kept = run.path / "recipe" / "this"
    write_whole(kept / "recipe.toml", recipe.path.read_bytes())
    write_whole(run.path / "recipe" / "origin", os.fsencode(recipe.path.parent.resolve()))
    for table in (None, *TABLES, "teachers"):
        for path in recipe.files(table).values():
            relative = os.path.relpath(path, recipe.path.parent)
            copy = Path(os.path.normpath(kept / relative))
            if not Path(relative).is_absolute() and copy.is_relative_to(run.path / "recipe"):
                for file in text_files(path) if path.is_dir() else [path]:
                    keep_file(file, copy / file.relative_to(path))
    write_whole(run.path / "recipe.toml", recipe.path.read_bytes())


def keep_file(path: Path, copy: Path) -> None:
    """Copy a file, piece by piece, unless the copy has its content: a prompt file may be large."""
    if copy.is_file() and file_sha256(copy) == file_sha256(path):
        return
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise no_room(copy, error) from error
    with whole_file(copy) as out, path.open("rb") as source:
        shutil.copyfileobj(source, out, 1 << 20)


def load_run(folder: Path, offline: bool = False) -> tuple[Recipe, Run]:
    """A run and the recipe that it was made from, as it was then.

    Raises EdgeDistillError where the folder is no run.
    """
    run = open_run(folder)
    run.offline = offline
    origin = Path(os.fsdecode((run.path / "recipe" / "origin").read_bytes()))
    return load_recipe(run.path / "recipe" / "this" / "recipe.toml", origin), run


def run_recipe(path: Path, run_settings: RunSettings, progress: Progress) -> tuple[Run, list[str]]:
    """Run a recipe, or one stage of it, under the run's lock; return the run and the stages that ran.

    Raises what `check` raises, before anything is begun; Rejected where no candidate is good enough.
    """
    recipe = load_recipe(path)
    run = Run(run_settings.runs / recipe.name, run_settings.offline, run_settings.llama_cpp, run_settings.track)
    with run.lock(), orderly_stop():
        check(recipe, run)
        try:
            ran = run_stages(recipe, run, progress, run_settings.only, run_settings.redo_from)
        except Rejected:
            write_report(recipe, run)
            raise
        if run_settings.only is None:
            write_report(recipe, run)
        return run, ran
