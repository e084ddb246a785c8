"""Teachers: models that are asked. One module a backend, one literal table, one protocol."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from ..chat import with_system
from ..errors import InvalidInput, MissingRequirement
from ..models import Format
from ..recipe import Recipe, TeacherSettings, TeachSettings
from ..records import Completion, Example, Message, Prompt, Tool, Wanted, messages_of, read_rows

__all__ = ["BACKENDS", "Backend", "Teacher", "TeacherTask", "ending", "load_teacher", "preamble", "require_teacher"]


@contextmanager
def ending(answers: Iterable[Completion]) -> Iterator[Iterator[Completion]]:
    """Completions that end with the block, before their teacher is closed: an engine reads its weights to its end."""
    try:
        yield iter(answers)
    finally:
        if isinstance(answers, Generator):
            answers.close()


@dataclass(frozen=True)
class Backend:
    """What a backend needs, and in which formats it takes its weights."""

    library: str
    install: str
    formats: tuple[Format, ...] = ()
    """Best first; none where a server has the weights."""
    scores: bool = True
    """Whether it tells the distribution at each token."""


BACKENDS = {
    "llamacpp": Backend("llama_cpp", "llama-cpp-python", ("gguf",)),
    "transformers": Backend("transformers", "'edgedistill[torch]'", ("hf",)),
    "mlx": Backend("mlx_lm", "'edgedistill[mlx]'", ("hf",)),
    "openai": Backend("httpx2", "httpx2", scores=False),
}


@dataclass(frozen=True)
class TeacherTask:
    """What a teacher is loaded for: its weights, what every prompt begins with, and the schema of its answers.

    `scratch` is a folder in which a backend may keep what makes its next start faster.
    """

    model: Path | None
    """A GGUF file or a Hugging Face folder; None where a server has the weights."""
    sha256: str
    """Of the weights; for a server, of its address and the model's id."""
    preamble: tuple[Message, ...]
    schema: dict[str, Any] | None
    scratch: Path
    settings: TeacherSettings
    tools: tuple[Tool, ...] = ()
    """What most prompts offer, so that they share a beginning."""
    has_turns: bool = False
    """Whether prompts come back longer, as conversations and tool loops do: a backend may keep what it has read."""


class Teacher(Protocol):
    """A model that answers prompts."""

    def complete(
        self, prompts: Iterable[Prompt], settings: TeachSettings, seed: int, wanted: Wanted | None = None
    ) -> Iterator[Completion]:
        """Yield `settings.samples` completions per prompt, or those that are wanted, in the order they finish.

        Prompts are taken as there is room for them, so that they may be many. Batching is the backend's own affair.
        A prompt that gets no answer raises; an empty completion never stands for a failure.
        """

    def score(self, examples: Iterable[Example], settings: TeachSettings, seed: int) -> Iterator[Completion]:
        """Yield each example's answer as a completion with `targets`: the distribution at every token of given text.

        Raises MissingRequirement where the backend cannot.
        """

    def close(self) -> None:
        """Give back the memory of the weights."""


def require_teacher(settings: TeacherSettings) -> None:
    """Raise MissingRequirement where the backend's library is not installed."""
    backend = BACKENDS[settings.backend]
    if find_spec(backend.library) is None:
        raise MissingRequirement(
            f"the '{settings.backend}' teacher needs {backend.library}", f"pip install {backend.install}"
        )


def load_teacher(task: TeacherTask) -> Teacher:
    """The teacher of a task, loaded."""
    require_teacher(task.settings)
    module = import_module(f"{__name__}.{task.settings.backend}")
    teacher: Teacher = module.load(task)
    return teacher


def preamble(recipe: Recipe, teacher: TeacherSettings | None = None) -> tuple[Message, ...]:
    """What a teacher (the first, by default) is shown before every prompt: system, guide, solved examples as turns."""
    teacher = teacher or recipe.teacher
    parts = [teacher.system]
    if teacher.guide:
        parts.append(_guide(recipe.file(teacher.guide)))
    examples = _examples(recipe.file(teacher.examples)) if teacher.examples else ()
    return with_system("\n\n".join(part.strip() for part in parts if part.strip()), examples)


def _guide(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path}: {error}", "Give a text file in UTF-8, or correct teacher.guide.") from error


def _examples(path: Path) -> tuple[Message, ...]:
    turns: list[Message] = []
    for number, row in read_rows(path):
        messages = messages_of(f"{path}:{number}", row)
        if messages[-1].role != "assistant":
            raise InvalidInput(f"{path}:{number}: an example must end with the assistant's answer", "Add the answer.")
        turns += messages
    return tuple(turns)
