"""Teachers: models that are asked. One module a backend, one literal table, one protocol."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from ..chat import with_system
from ..errors import InvalidInput, MissingRequirement
from ..recipe import Recipe, TeacherSettings, TeachSettings
from ..records import Completion, Message, Prompt, messages_of, read_rows

__all__ = ["BACKENDS", "Teacher", "TeacherTask", "load_teacher", "preamble", "require_teacher"]

# backend -> (the library it needs, what to install)
BACKENDS = {"llamacpp": ("llama_cpp", "llama-cpp-python")}


@dataclass(frozen=True)
class TeacherTask:
    """What a teacher is loaded for: its weights, what every prompt begins with, and the schema of its answers.

    `scratch` is a folder in which a backend may keep what makes its next start faster.
    """

    model: Path
    sha256: str
    preamble: tuple[Message, ...]
    schema: dict[str, Any] | None
    scratch: Path


class Teacher(Protocol):
    """A model that answers prompts."""

    def complete(self, prompts: Iterable[Prompt], settings: TeachSettings, seed: int) -> Iterator[Completion]:
        """Yield one completion per prompt, in the order they finish. Batching is the backend's own affair."""

    def close(self) -> None:
        """Give back the memory of the weights."""


def require_teacher(settings: TeacherSettings) -> None:
    """Raise MissingRequirement where the backend's library is not installed."""
    library, install = BACKENDS[settings.backend]
    if find_spec(library) is None:
        raise MissingRequirement(f"the '{settings.backend}' teacher needs {library}", f"pip install {install}")


def load_teacher(settings: TeacherSettings, task: TeacherTask) -> Teacher:
    """The teacher that the recipe names, loaded."""
    require_teacher(settings)
    module = import_module(f"{__name__}.{settings.backend}")
    teacher: Teacher = module.load(task)
    return teacher


def preamble(recipe: Recipe) -> tuple[Message, ...]:
    """What the teacher is shown before every prompt: system text, guide, solved examples as earlier turns."""
    teacher = recipe.teacher
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
