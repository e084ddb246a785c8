"""Asking the first teacher again about rows whose label is suspicious; its new answers are kept."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from ..errors import EdgeDistillError, InvalidInput, Stopped
from ..recipe import Recipe
from ..records import Completion, Prompt, digest
from ..run import Progress, Run, stop_if_asked
from ..store import Store
from ..teachers import TeacherTask, ending, preamble
from ..teachers.identity import fetch_teacher
from .calibration import asks_calibration
from .candidates import opened
from .keys import row_key, teacher_identity
from .on_offer import teacher_rule

__all__ = ["ASKED_AGAIN", "asked_again", "noise_plan"]

ASKED_AGAIN = "again.sqlite"


def asked_again(
    recipe: Recipe, run: Run, out: Path, prompts: Sequence[Prompt], progress: Progress
) -> dict[str, list[Completion]]:
    """New answers of the first teacher, by prompt id; those that the store in `out` holds are not asked for again.

    A prompt of which a server refused any is not among them.
    """
    noise, teacher = recipe.curate.noise, recipe.teacher
    assert noise is not None
    weights = fetch_teacher(recipe, teacher, run.offline, progress)
    assert weights.sha256 is not None
    changes = {"samples": noise.samples, "temperature": noise.temperature, "targets": "none", "answers": None}
    how = recipe.teach.model_copy(update=changes)
    told = [how.samples, how.temperature, how.top_p, how.top_k, how.min_p, recipe.seed]
    identity = digest("again", teacher_identity(recipe, teacher, weights.sha256), told)
    keys = {prompt.id: [row_key(prompt, identity, sample) for sample in range(noise.samples)] for prompt in prompts}
    schema = teacher_rule(recipe, teacher)
    tools = next((prompt.tools for prompt in prompts), ())
    task = TeacherTask(weights.path, weights.sha256, preamble(recipe, teacher), schema, run.scratch, teacher, tools)
    with ExitStack() as stack:
        store = stack.enter_context(Store(out / ASKED_AGAIN))
        held = store.held([key for many in keys.values() for key in many])
        missing = {name: [one for one, key in enumerate(many) if key not in held] for name, many in keys.items()}
        todo = [prompt for prompt in prompts if missing[prompt.id]]
        if todo:  # from another seed than the first answers, which would come once more
            asked = stack.enter_context(opened(task))
            completions = asked.complete(todo, how, recipe.seed + 1, lambda prompt: missing[prompt.id])
            total = sum(map(len, missing.values()))
            try:
                with ending(completions) as answers:
                    for number, one in enumerate(answers, start=1):
                        store.add(keys[one.prompt_id][one.sample], replace(one, targets=None))
                        progress("asking again", number, total)
                        stop_if_asked()
            except EdgeDistillError as error:  # a server that refused some has answered the others
                if isinstance(error, Stopped) or not getattr(asked, "failures", None):
                    raise
        found = store.find([key for many in keys.values() for key in many])
    return {name: [found[key] for key in many] for name, many in keys.items() if all(key in found for key in many)}


def noise_plan(recipe: Recipe, run: Run) -> str:
    """What becomes of labels that look wrong, in one line.

    Raises InvalidInput where new answers would not be calibrated as the others are.
    """
    noise = recipe.curate.noise
    if noise is None:
        return "not looked for"
    if noise.action == "ask again" and asks_calibration(recipe):
        raise InvalidInput(
            f"{recipe.path}: curate.noise asks again for single answers, which teach.calibrate cannot calibrate",
            'Write action = "drop" or "keep".',
        )
    again = f"the first teacher is asked again, {noise.samples} answers vote with the one that is there"
    return f"of {noise.label}: {({'drop': 'thrown out', 'ask again': again, 'keep': 'listed'})[noise.action]}"
