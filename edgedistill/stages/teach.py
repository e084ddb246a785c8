"""teach: the teacher answers every prompt once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import EdgeDistillError
from ..models import fetch
from ..recipe import Recipe, load_schema
from ..records import Prompt, digest, read_prompts
from ..run import Progress, Run, stop_if_asked
from ..store import Store
from ..teachers import TeacherTask, load_teacher, preamble

__all__ = ["answers", "row_key", "teach", "teacher_identity"]


def teach(recipe: Recipe, run: Run, out: Path, progress: Progress) -> dict[str, Any]:
    """Fill `teacher.sqlite`; rows that are there already are not asked again."""
    prompts = read_prompts(run.folder("prompts") / "prompts.jsonl")
    weights = fetch(recipe.reference("teacher"), ("gguf",), run.offline, progress)
    identity = teacher_identity(recipe, weights.sha256)
    task = TeacherTask(weights.path, weights.sha256, preamble(recipe), load_schema(recipe), run.scratch)
    with Store(out / "teacher.sqlite") as store:
        keys = {prompt.id: row_key(prompt, identity) for prompt in prompts}
        todo = [prompt for prompt in prompts if keys[prompt.id] not in store]
        progress("teaching", len(prompts) - len(todo), len(prompts))
        if todo:
            _ask(recipe, task, todo, (store, keys, progress))
        tokens = sum(completion.completion_tokens for key in keys.values() if (completion := store.get(key)))
    return {
        "rows": len(prompts),
        "asked": len(todo),
        "completion_tokens": tokens,
        "teacher": {
            "name": weights.name,
            "sha256": weights.sha256,
            "source": weights.source,
            "licence": weights.licence,
            "quant": weights.quant,
        },
        "identity": identity,
    }


def _ask(
    recipe: Recipe, task: TeacherTask, todo: Sequence[Prompt], sink: tuple[Store, dict[str, str], Progress]
) -> None:
    store, keys, progress = sink
    teacher = load_teacher(recipe.teacher, task)
    try:
        for number, completion in enumerate(teacher.complete(todo, recipe.teach, recipe.seed), start=1):
            store.add(keys[completion.prompt_id], completion)
            progress("teaching", len(keys) - len(todo) + number, len(keys))
            stop_if_asked()
    finally:
        teacher.close()
    missing = sum(key not in store for key in keys.values())
    if missing:
        raise EdgeDistillError(f"the teacher left {missing} prompts without an answer", "Run the same command again.")


def teacher_identity(recipe: Recipe, model_sha256: str) -> str:
    """A digest of all that decides an answer, the prompt apart."""
    settings = recipe.teach
    sampling: list[Any] = [settings.max_tokens, settings.temperature]
    if settings.temperature > 0:
        sampling += [settings.top_p, recipe.seed]
    shown = [message.as_dict() for message in preamble(recipe)]
    return digest(recipe.teacher.backend, model_sha256, shown, sampling, load_schema(recipe))


def row_key(prompt: Prompt, identity: str) -> str:
    """The key of a prompt's answer in the store."""
    return digest([message.as_dict() for message in prompt.messages], identity)


def answers(run: Run, prompts: Sequence[Prompt]) -> list[Any]:
    """The stored completion of each prompt, in order.

    Raises EdgeDistillError where one is missing.
    """
    identity = run.summary("teach")["identity"]
    with Store(run.folder("teach") / "teacher.sqlite", read_only=True) as store:
        found = [store.get(row_key(prompt, identity)) for prompt in prompts]
    if None in found:
        raise EdgeDistillError(f"{run.folder('teach')}: answers are missing", "Redo with --from teach.")
    return found
