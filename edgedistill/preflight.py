"""preflight: refuse in the first second what would fail in the third hour.

Each requirement of a stage has a line here. `check` prints them; `run` begins with them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .chat import with_system
from .errors import InvalidInput, MissingRequirement, Stopped
from .llamacpp.grammar import require_decodable
from .llamacpp.importer import require_importable
from .llamacpp.writer import require_writable
from .models import check_gguf, identify, vet_licence
from .recipe import Recipe, load_schema
from .records import Example, Message, Prompt, read_prompts
from .run import Run, free_space
from .stages.bench import timed_prompts
from .stages.curate import schema_validator
from .students import require_student
from .students.encode import Encoder
from .teachers import preamble, require_teacher

__all__ = ["Finding", "check"]

GIGABYTE = 2**30


@dataclass(frozen=True)
class Finding:
    """One requirement that holds, and what was found."""

    what: str
    found: str


def check(recipe: Recipe, run: Run) -> list[Finding]:
    """Everything that a run of the recipe needs, as found.

    Raises the EdgeDistillError of the first requirement that does not hold.
    """
    findings = []
    for what, requirement in REQUIREMENTS.items():
        found = requirement(recipe, run)
        findings.append(Finding(what, found))
    return findings


def _files(recipe: Recipe, run: Run) -> str:
    tables = (None, "teacher", "prompts", "evaluate")
    files = {key: path for table in tables for key, path in recipe.files(table).items()}
    for key, path in files.items():
        if not path.is_file():
            raise InvalidInput(f"{recipe.path}: {key}: no file {path}", "Write the file, or correct the recipe.")
    return f"{len(files)} files"


def _prompts(recipe: Recipe, run: Run) -> str:
    prompts = read_prompts(recipe.file(recipe.prompts.file))
    if not prompts:
        raise InvalidInput(f"{recipe.file(recipe.prompts.file)}: no prompts", "Write at least one row.")
    shown = preamble(recipe)
    return f"{len(prompts)} prompts; the teacher is shown {len(shown) // 2} examples"


def _schema(recipe: Recipe, run: Run) -> str:
    schema = load_schema(recipe)
    schema_validator(schema)
    if schema is not None:
        require_decodable(schema)
    return recipe.schema_file or "none: answers are free text"


def _eval(recipe: Recipe, run: Run) -> str:
    counts = []
    is_valid = schema_validator(load_schema(recipe))
    for path in recipe.files("evaluate").values():
        rows = read_prompts(path)
        if not rows:
            raise InvalidInput(f"{path}: no rows", "Write rows with the right answers.")
        for prompt in rows:
            _expected(recipe, prompt, is_valid, str(path))
        counts.append(f"{len(rows)} in {path.name}")
    timed_prompts(recipe)
    return ", ".join(counts)


def _expected(recipe: Recipe, prompt: Prompt, is_valid: Callable[[object], bool] | None, where: str) -> None:
    if prompt.expected is not None and is_valid is not None and not is_valid(prompt.expected):
        raise InvalidInput(
            f"{where}: the expected answer of {prompt.text[:60]!r} does not match the schema",
            "Correct the answer, or the schema.",
        )


def _backends(recipe: Recipe, run: Run) -> str:
    require_teacher(recipe.teacher)
    require_student(recipe.student)
    return f"teacher {recipe.teacher.backend}, student {recipe.student.backend}"


def _licences(recipe: Recipe, run: Run) -> str:
    teacher = identify(recipe.reference("teacher"), ("gguf",), run.offline)
    student = identify(recipe.reference("student"), ("hf", "gguf"), run.offline)
    vetted = [
        vet_licence(teacher.licence, "teacher", recipe.accept_license),
        vet_licence(student.licence, "student", recipe.accept_license),
    ]
    return f"teacher {vetted[0].id}, student {vetted[1].id}"


def _models(recipe: Recipe, run: Run) -> str:
    found = []
    for ref, want in ((recipe.reference("teacher"), ("gguf",)), (recipe.reference("student"), ("hf", "gguf"))):
        identity = identify(ref, want, run.offline)  # type: ignore[arg-type]
        if run.offline and not identity.cached:
            raise MissingRequirement(
                f"{ref}: not on this machine, and offline", f"Fetch it first: edgedistill fetch {ref}"
            )
        if identity.format == "gguf" and identity.source == "local" and identity.path is not None:
            _template(identity.path)
        found.append(f"{identity.name} ({identity.source}{'' if identity.cached else ', to be fetched'})")
    return ", ".join(found)


def _template(path: Path) -> None:
    if not check_gguf(path).metadata.get("tokenizer.chat_template"):
        raise InvalidInput(f"{path}: no chat template", "Use an instruct model.")


def _student(recipe: Recipe, run: Run) -> str:
    """Whether the student can be trained on the prompts and written as a GGUF, as far as it is on this machine."""
    identity = identify(recipe.reference("student"), ("hf", "gguf"), run.offline)
    if identity.path is None:
        return "to be looked at when it is here"
    if identity.format == "gguf":
        return f"{require_importable(identity.path)}, to be imported from a GGUF"
    longest = max(read_prompts(recipe.file(recipe.prompts.file)), key=lambda prompt: len(prompt.text))
    turns = (*longest.messages, Message("assistant", "yes"))
    row = Encoder(identity.path).example(Example(longest.id, with_system(recipe.student.system, turns)))
    if row.start + recipe.teach.max_tokens > recipe.train.max_length:
        raise InvalidInput(
            f"{recipe.path}: the longest prompt ({row.start} tokens) and teach.max_tokens "
            f"({recipe.teach.max_tokens}) exceed train.max_length ({recipe.train.max_length}): {longest.text[:60]!r}",
            "Raise train.max_length, or shorten the prompt.",
        )
    writer = "by a llama.cpp checkout" if run.llama_cpp else require_writable(identity.path)
    return f"{writer}; the longest prompt is {row.start} tokens"


def _memory(recipe: Recipe, run: Run) -> str:
    import psutil

    needed = estimated_memory(recipe, run)
    total = psutil.virtual_memory().total
    if needed > total:
        raise MissingRequirement(
            f"about {needed / GIGABYTE:.1f} GB of memory are needed, this machine has {total / GIGABYTE:.1f}",
            "Choose a smaller teacher or student.",
        )
    return f"about {needed / GIGABYTE:.1f} of {total / GIGABYTE:.1f} GB"


def estimated_memory(recipe: Recipe, run: Run) -> int:
    """Bytes at the peak: teacher and student are never in memory together, so the larger of the two."""
    teacher, student = _sizes(recipe, run)
    # float32 weights, and for full fine-tuning gradients and two moments besides
    copies = 4 if recipe.train.method == "full" else 1
    return max(int(teacher * 1.3), 2 * student * copies) + GIGABYTE


def estimated_disk(recipe: Recipe, run: Run) -> int:
    """Bytes that the run folder and the caches will still grow by, at most."""
    teacher, student = _sizes(recipe, run)
    cached = [
        identify(recipe.reference("teacher"), ("gguf",), run.offline).cached,
        identify(recipe.reference("student"), ("hf", "gguf"), run.offline).cached,
    ]
    fetched = sum(2 * size for size, is_there in zip((teacher, student), cached, strict=True) if not is_there)
    full = 12 * student if recipe.train.method == "full" else 0
    there = sum(path.stat().st_size for path in run.path.rglob("*") if path.is_file())
    return max(0, fetched + student * (4 + len(recipe.quantize.types)) + full - there)


def _sizes(recipe: Recipe, run: Run) -> tuple[int, int]:
    """Bytes of the teacher's file and of the student's weights at 16 bits."""
    teacher = identify(recipe.reference("teacher"), ("gguf",), run.offline).size_bytes or GIGABYTE
    student = identify(recipe.reference("student"), ("hf", "gguf"), run.offline)
    size = student.size_bytes or GIGABYTE
    return teacher, 3 * size if student.format == "gguf" else size


def _disk(recipe: Recipe, run: Run) -> str:
    needed, free = estimated_disk(recipe, run), free_space(run.path)
    if needed > free:
        raise Stopped(
            f"{run.path}: about {needed / GIGABYTE:.1f} GB are needed, {free / GIGABYTE:.1f} GB are free", "Make room."
        )
    return f"about {needed / GIGABYTE:.1f} GB, {free / GIGABYTE:.0f} GB free"


Requirement = Callable[[Recipe, Run], str]
REQUIREMENTS: dict[str, Requirement] = {
    "files": _files,
    "prompts": _prompts,
    "schema": _schema,
    "eval set": _eval,
    "backends": _backends,
    "models": _models,
    "student": _student,
    "licences": _licences,
    "memory": _memory,
    "disk": _disk,
}
