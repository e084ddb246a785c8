"""Who is compared: teacher, untrained student, student and each quant, all as GGUF files."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ..chat import with_system
from ..llamacpp.answer import fits_context
from ..llamacpp.writer import GgufMetadata
from ..models import fetch
from ..recipe import Recipe
from ..records import Message
from ..run import Progress, Run, file_sha256
from ..teachers import preamble
from .export import F16_NAME, to_gguf
from .imported import base_folder

__all__ = ["Candidate", "base_candidates", "quant_candidates", "student_candidate", "teacher_candidate"]


@dataclass(frozen=True)
class Candidate:
    """One file, and what it is shown before every prompt."""

    name: str
    kind: Literal["teacher", "base", "student"]
    quant: str
    path: Path
    sha256: str
    preamble: tuple[Message, ...]
    prompt: Literal["teacher", "student"]

    def record(self) -> dict[str, object]:
        """The candidate as it stands in a report."""
        return {
            "name": self.name,
            "kind": self.kind,
            "quant": self.quant,
            "prompt": self.prompt,
            "size_bytes": self.path.stat().st_size,
            "sha256": self.sha256,
        }


def teacher_candidate(recipe: Recipe, run: Run, progress: Progress) -> Candidate:
    weights = fetch(recipe.reference("teacher"), ("gguf",), run.offline, progress)
    shown = preamble(recipe)
    return Candidate("teacher", "teacher", weights.quant or "?", weights.path, weights.sha256, shown, "teacher")


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
    return [prompted, plain] if fits_context(path, prompted.preamble, recipe.evaluate.max_tokens) else [plain]


def student_candidate(recipe: Recipe, run: Run) -> Candidate:
    return _student(recipe, "F16", run.folder("export") / F16_NAME)


def quant_candidates(recipe: Recipe, run: Run) -> list[Candidate]:
    files: dict[str, str] = run.summary("quantize")["files"]
    return [_student(recipe, quant, run.folder("quantize") / name) for quant, name in files.items()]


def _student(recipe: Recipe, quant: str, path: Path) -> Candidate:
    shown = with_system(recipe.student.system, ())
    return Candidate(f"student {quant}", "student", quant, path, file_sha256(path), shown, "student")
