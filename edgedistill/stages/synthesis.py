"""Prompts that the first teacher writes: what the stage `prompts` adds to those of the file."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..chat import with_system
from ..llamacpp.grammar import require_decodable
from ..recipe import Recipe
from ..records import Prompt, iter_prompts
from ..run import Progress, Run, write_whole
from ..similarity import SimilarTexts, in_blocks
from ..store import Store
from ..synthesis import Growth, Screen, Writer, answer_schema, diversity, system_text, writing
from ..teachers import TeacherTask
from ..teachers.identity import fetch_teacher, identify_teacher
from .on_offer import recipe_tools, wanting
from .prompt_source import file_prompts, prompt_row, seeds_of
from .streams import Write

__all__ = ["DIVERSITY", "STORE", "add_synthesized", "overlap", "require_synthesis", "written_by"]

STORE = "synthesis.sqlite"
DIVERSITY = "diversity.json"
FEW = 3  # seeds; fewer hardly show what prompts are like


def written_by(recipe: Recipe, run: Run) -> list[Any]:
    """What decides the prompts that are written besides the table itself: who writes them."""
    teacher = recipe.teacher
    return [teacher.backend, identify_teacher(recipe, teacher, run.offline).sha256]


def overlap(recipe: Recipe) -> float:
    """How similar to an eval row no written prompt may be."""
    settings = recipe.prompts.synthesize
    assert settings is not None
    return min(settings.near_duplicate, recipe.curate.eval_overlap)


def require_synthesis(recipe: Recipe, run: Run) -> str:
    """What will be written, in one line. Raises InvalidInput where the seeds or the schema are no good."""
    settings = recipe.prompts.synthesize
    if settings is None:
        return "none"
    seeds = seeds_of(recipe)
    require_decodable(answer_schema(settings))
    combinations = settings.combinations()
    cells = (
        f"{len(combinations)} combinations of {' and '.join(settings.cell_axes)}" if settings.cell_axes else "no axes"
    )
    few = "; warning: few seeds, so prompts may sound like none of yours" if len(seeds) < FEW else ""
    return f"{settings.count} prompts by {recipe.teacher.model}, {cells}, {len(seeds)} seeds{few}"


def add_synthesized(
    recipe: Recipe, run: Run, out: Path, rows: tuple[Write, Write], progress: Progress
) -> dict[str, Any]:
    """Write the seeds and the teacher's prompts behind those of the file; return what came of it.

    `rows` takes what is kept and what is dropped. Raises Stopped where it was asked to stop: the same command goes on.
    """
    settings = recipe.prompts.synthesize
    assert settings is not None
    keep, drop = rows
    seeds = seeds_of(recipe)
    texts: list[str] = []
    with ExitStack() as stack:
        screen = _screen(recipe, out, stack)
        twins = screen.admit(_named(seeds))
        for seed, twin in zip(seeds, twins, strict=True):
            own = {**(seed.lineage or {}), "id": seed.id, "source": "seed"}
            if twin is None:
                keep({**prompt_row(seed), "_ed": own})
            else:
                drop({**prompt_row(seed), "_ed": {**own, "reason": twin.reason, "of": twin.id}})
        growth = Growth(settings, seeds, recipe.seed, screen, recipe_tools(recipe))
        writer, name = _writer(recipe, run, seeds, stack)

        def told(what: str, done: int, total: int) -> None:
            cells = sum(1 for count in growth.cells().values() if count)
            phase = f"writing prompts (request {done} of {total}; {cells} of {len(growth.cells())} cells)"
            progress(phase, growth.kept, settings.count)

        for written in growth.rounds(lambda requests: writer.ask(requests, told)):
            for one in written:
                own = {"id": one.prompt.id, **one.request.lineage(name)}
                row = {**prompt_row(wanting(recipe, one.prompt)), "tags": one.request.tags()}
                if one.reason:
                    drop({**row, "_ed": {**own, "reason": one.reason}})
                else:
                    keep({**row, "_ed": own})
                    texts.append(one.prompt.text)
            progress("writing prompts", growth.kept, settings.count)
    found = _summary(growth, Counter(twin.reason for twin in twins if twin is not None), twins.count(None), texts)
    write_whole(out / DIVERSITY, json.dumps(found, indent=1, ensure_ascii=False).encode())
    return found


def _named(prompts: Sequence[Prompt]) -> list[tuple[str, str]]:
    return [(prompt.id, prompt.text) for prompt in prompts]


def _screen(recipe: Recipe, out: Path, stack: ExitStack) -> Screen:
    """What drops texts that resemble a prompt of the file, or an eval row."""
    settings = recipe.prompts.synthesize
    assert settings is not None
    seen = stack.enter_context(SimilarTexts(settings.near_duplicate, out))
    held_out = stack.enter_context(SimilarTexts(overlap(recipe), out))
    for path in recipe.files("evaluate").values():
        for block in in_blocks(iter_prompts(path), lambda prompt: prompt.text):
            held_out.add(_named(block))
    screen = Screen(settings, seen, held_out)
    for block in in_blocks(file_prompts(recipe), lambda prompt: prompt.text):
        screen.add(_named(block))
    return screen


def _writer(recipe: Recipe, run: Run, seeds: Sequence[Prompt], stack: ExitStack) -> tuple[Writer, str]:
    settings = recipe.prompts.synthesize
    assert settings is not None
    weights = fetch_teacher(recipe, recipe.teacher, run.offline, lambda what, done, total: None)
    assert weights.sha256 is not None, "weights that were fetched have been hashed"
    shown = with_system(system_text(settings, [seed.text for seed in seeds]), ())
    task = TeacherTask(weights.path, weights.sha256, shown, answer_schema(settings), run.scratch, recipe.teacher)
    store = stack.enter_context(Store(run.folder("prompts") / STORE))
    writer = Writer(task, writing(settings, recipe.teach), recipe.seed, store)
    stack.callback(writer.close)
    return writer, weights.name


def _summary(growth: Growth, dropped: Counter[str], seeds: int, texts: list[str]) -> dict[str, Any]:
    """What came of it; `dropped` and `seeds` are the seeds that were dropped and kept."""
    return {
        "kept": growth.kept,
        "seeds": seeds,
        "written": growth.written,
        "requests": growth.requests,
        "dropped": dict(growth.dropped + dropped),
        "stopped": growth.stopped,
        "cells": growth.cells(),
        "unfilled": growth.unfilled(),
        **diversity(texts),
    }
