"""Every backend on one and the same pico model, and what its tests ask of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from pico_recipe import SCHEMA, PicoModels
from required import required_or_skipped

from edgedistill.recipe import TeacherSettings, TeachSettings
from edgedistill.records import Completion, Example, Message, Prompt
from edgedistill.targets import Targets, decode
from edgedistill.teachers import BACKENDS, Teacher, TeacherTask, load_teacher

ROUNDING = 0.15  # nats: what the blob rounds away, and what a batch of another shape does to 16-bit arithmetic
Open = Callable[..., Teacher]
"""Opens a backend on the pico teacher; its argument is the schema of the answers."""


@pytest.fixture(params=BACKENDS)
def opened(request: pytest.FixtureRequest, models: PicoModels) -> Open:
    """Each backend, `openai` on a real server that is started for the tests."""
    return opener(request, models)


@pytest.fixture(params=[name for name, backend in BACKENDS.items() if backend.scores])
def telling(request: pytest.FixtureRequest, models: PicoModels) -> Open:
    """Each backend that has the weights itself, and so tells how probable each token and each closed answer is."""
    return opener(request, models)


@pytest.fixture(params=[name for name, backend in BACKENDS.items() if not backend.scores])
def mute(request: pytest.FixtureRequest, models: PicoModels) -> Open:
    """Each backend that has nothing but a server's answers."""
    return opener(request, models)


def opener(request: pytest.FixtureRequest, models: PicoModels) -> Open:
    backend: str = request.param
    required_or_skipped(backend, (BACKENDS[backend].library,))
    server = None if BACKENDS[backend].formats else request.getfixturevalue("llama_server")
    return partial(teacher_of, backend, models, server=server)


def teacher_of(
    backend: str,
    models: PicoModels,
    schema: dict[str, Any] | None = SCHEMA,
    server: tuple[str, str] | None = None,
    has_turns: bool = False,
) -> Teacher:
    """The backend on one and the same model, in the format that it takes; or at a server's URL, by its id there."""
    model, where = models.teacher, {}
    if server is not None:
        where = {"url": server[0], "model": server[1]}
    elif BACKENDS[backend].formats[0] != "gguf":
        model = models.teacher.with_name(f"{models.teacher.stem}-hf")
    return load_teacher(
        TeacherTask(
            model=None if server else model,
            sha256="0" * 64,
            preamble=(Message("system", "You turn a command into JSON."),),
            schema=schema,
            scratch=models.teacher.parent / "scratch",
            settings=TeacherSettings(**{"backend": backend, "model": str(model), **where}),  # type: ignore[arg-type]
            has_turns=has_turns,
        )
    )


def prompt(number: int) -> Prompt:
    texts = ("light on", "", "\nhall off, please", "🚀", "hello " * 30)
    return Prompt(f"{number:08x}", (Message("user", f"{texts[number % 5]}{number}"),))


def prompts(number: int) -> list[Prompt]:
    return list(map(prompt, range(number)))


def asked(teacher: Teacher, number: int, settings: TeachSettings, seed: int = 0) -> dict[str, Completion]:
    found = list(teacher.complete(prompts(number), settings, seed))
    assert sorted(one.prompt_id for one in found) == [prompt.id for prompt in prompts(number)]
    assert {one.sample for one in found} <= {0}
    return {one.prompt_id: one for one in found}


def kept(targets: Targets, position: int) -> dict[int, float]:
    """The ids that are kept at a position, in order, and their log-probabilities."""
    here = slice(targets.offsets[position], targets.offsets[position + 1])
    return dict(zip(targets.ids[here].tolist(), targets.logprobs[here].tolist(), strict=True))


def targets_of(completion: Completion) -> Targets:
    assert completion.targets is not None
    return decode(completion.targets)


def answered_example(of: Completion | str, number: int) -> Example:
    text = of if isinstance(of, str) else of.text
    return Example(prompt(number).id, (*prompt(number).messages, Message("assistant", text)))
