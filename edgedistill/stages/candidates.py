"""Who is compared: the teachers, the untrained student, the student and each quant; all but some teachers are GGUFs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ..chat import with_system
from ..llamacpp.answer import fits_context
from ..llamacpp.writer import GgufMetadata
from ..models.content import size_of
from ..recipe import Recipe, TeacherSettings, TeachSettings
from ..records import Completion, Message, Prompt, Tool, Wanted
from ..run import Progress, Run, file_sha256
from ..teachers import Teacher, TeacherTask, ending, load_teacher, preamble
from ..teachers.identity import fetch_teacher
from .export import F16_NAME, to_gguf
from .imported import base_folder
from .on_offer import learned_tools, recipe_tools

__all__ = [
    "Candidate",
    "answering",
    "base_candidates",
    "greedy",
    "opened",
    "quant_candidates",
    "student_candidate",
    "teacher_candidates",
    "teacher_names",
    "whole_prompt_candidate",
]


@dataclass(frozen=True)
class Candidate:
    """One file, folder or server, and what it is shown before every prompt."""

    name: str
    kind: Literal["teacher", "base", "student"]
    quant: str | None
    path: Path | None
    """None where a server has the weights."""
    sha256: str
    preamble: tuple[Message, ...]
    prompt: Literal["teacher", "student"]
    asked: TeacherSettings | None = None
    """How it is asked where it is no GGUF, or its answers are calibrated: through the teacher's own backend."""
    prior: Mapping[str, float] | None = None
    """By which its closed answers are calibrated."""

    def record(self) -> dict[str, object]:
        """The candidate as it stands in a report."""
        return {
            "name": self.name,
            "kind": self.kind,
            "quant": self.quant,
            "prompt": self.prompt,
            "size_bytes": None if self.path is None else size_of(self.path),
            "sha256": self.sha256,
        }

    @property
    def gguf(self) -> Path:
        """The file of a candidate that is a GGUF."""
        assert self.path is not None
        return self.path

    def task(
        self, schema: dict[str, Any] | None, scratch: Path, tools: tuple[Tool, ...] = (), has_turns: bool = False
    ) -> TeacherTask:
        """What the backend is loaded for, where the candidate is no GGUF."""
        assert self.asked is not None
        return TeacherTask(self.path, self.sha256, self.preamble, schema, scratch, self.asked, tools, has_turns)


def teacher_candidates(recipe: Recipe, run: Run, progress: Progress) -> list[Candidate]:
    """Every teacher; the first is the one that the others and the students are compared with."""
    found = []
    taught = run.summary("teach")["teachers"]
    for teacher, name, record in zip(recipe.teachers, teacher_names(recipe), taught, strict=True):
        weights = fetch_teacher(recipe, teacher, run.offline, progress)
        assert weights.sha256 is not None
        shown = preamble(recipe, teacher)
        prior = record.get("prior")
        asked = None if teacher.backend == "llamacpp" and prior is None else teacher
        file = (weights.quant, weights.path, weights.sha256)
        found.append(Candidate(name, "teacher", *file, shown, "teacher", asked, prior))
    return found


def greedy(recipe: Recipe) -> TeachSettings:
    """How a teacher's own backend answers the eval set: as it teaches, but one most probable answer, no targets."""
    changes = {"max_tokens": recipe.evaluate.max_tokens, "temperature": 0.0, "samples": 1, "targets": "none"}
    return recipe.teach.model_copy(update={**changes, "answers": None})


@contextmanager
def answering(
    task: TeacherTask, prompts: Sequence[Prompt], settings: TeachSettings, seed: int, wanted: Wanted | None = None
) -> Iterator[Iterator[Completion]]:
    """The completions of a teacher that is loaded for the block, as they finish."""
    with opened(task) as teacher, ending(teacher.complete(prompts, settings, seed, wanted)) as answers:
        yield answers


@contextmanager
def opened(task: TeacherTask) -> Iterator[Teacher]:
    """A teacher that is loaded for the block."""
    teacher = load_teacher(task)
    try:
        yield teacher
    finally:
        teacher.close()


def teacher_names(recipe: Recipe) -> list[str]:
    """The name of each teacher in reports: "teacher", "teacher 2", "teacher 3"."""
    return ["teacher", *(f"teacher {number}" for number in range(2, len(recipe.teachers) + 1))]


def base_candidates(recipe: Recipe, run: Run, out: Path, progress: Progress) -> list[Candidate]:
    """The untrained student, with its own prompt and, where it fits its context, with the teacher's.

    Its 16-bit GGUF is written to `out`.
    """
    weights, base = base_folder(recipe, run, progress)
    path = out / "base-f16.gguf"
    to_gguf(base, path, GgufMetadata(name=weights.name), run, progress)
    sha = file_sha256(path)
    plain = Candidate("untrained student", "base", "F16", path, sha, with_system(recipe.student.system, ()), "student")
    prompted = replace(plain, name="untrained student, teacher's prompt", preamble=preamble(recipe), prompt="teacher")
    return (
        [prompted, plain]
        if fits_context(path, prompted.preamble, recipe.evaluate.max_tokens, recipe_tools(recipe))
        else [plain]
    )


def student_candidate(recipe: Recipe, run: Run) -> Candidate:
    return _student(recipe, "F16", run.folder("export") / F16_NAME)


def whole_prompt_candidate(recipe: Recipe, run: Run) -> list[Candidate]:
    """The student with the teacher's whole prompt; nothing where that is its own, or does not fit its context."""
    plain, shown = student_candidate(recipe, run), preamble(recipe)
    if not recipe.evaluate.whole_prompt or (shown == plain.preamble and not learned_tools(recipe)):
        return []
    if not fits_context(plain.gguf, shown, recipe.evaluate.max_tokens, recipe_tools(recipe)):
        return []
    return [replace(plain, name=f"{plain.name}, teacher's prompt", preamble=shown, prompt="teacher")]


def quant_candidates(recipe: Recipe, run: Run) -> list[Candidate]:
    files: dict[str, str] = run.summary("quantize")["files"]
    return [_student(recipe, quant, run.folder("quantize") / name) for quant, name in files.items()]


def _student(recipe: Recipe, quant: str, path: Path) -> Candidate:
    shown = with_system(recipe.student.system, ())
    return Candidate(f"student {quant}", "student", quant, path, file_sha256(path), shown, "student")
