"""Whether a run has room: bytes of memory at its peak, and of disk, as far as they can be told before it begins."""

from __future__ import annotations

import psutil

from ..errors import MissingRequirement, Stopped
from ..models import identify
from ..recipe import Recipe
from ..run import Run, free_space
from ..teachers.identity import TeacherIdentity, identify_teacher, identify_teachers
from .prompt_source import source_prompts
from .rating import rating_teacher
from .simulated_user import user_teacher

__all__ = ["GIGABYTE", "estimated_disk", "estimated_memory", "require_disk", "require_memory", "target_bytes"]

GIGABYTE = 2**30
TARGET_BYTES = 96  # of one token's kept distribution in free text; in a narrow task a fifth of it


def require_memory(recipe: Recipe, run: Run) -> str:
    """What is needed at the peak; raise MissingRequirement where this machine has less."""
    needed = estimated_memory(recipe, run)
    total = psutil.virtual_memory().total
    if needed > total:
        raise MissingRequirement(
            f"about {needed / GIGABYTE:.1f} GB of memory are needed, this machine has {total / GIGABYTE:.1f}",
            "Choose a smaller teacher or student.",
        )
    return f"about {needed / GIGABYTE:.1f} of {total / GIGABYTE:.1f} GB"


def estimated_memory(recipe: Recipe, run: Run) -> int:
    """Bytes at the peak: of the teacher, of training, or of quantize, where all are over the same tokens at once."""
    student = _student_size(recipe, run)
    asked = [_size(teacher) for teacher in _asked(recipe, run)]
    teachers = asked[: len(recipe.teachers)]
    # float32 weights, and for full fine-tuning gradients and two moments besides; healing holds two models, and as much
    # again is left for what its passes keep
    copies = 4 if recipe.train.method == "full" or recipe.quantize.heal else 1
    quants = teachers[0] + student + len(recipe.quantize.made) * student // 2
    # whoever plays the user is loaded beside the teacher that answers
    beside = _size(identify_teacher(recipe, user_teacher(recipe), run.offline)) if recipe.user.turns else 0
    if recipe.tools.results == "teacher":  # each teacher's weights once more, for its tools
        asked = [2 * size for size in teachers] + asked[len(teachers) :]
    return max(*(int((size + beside) * 1.3) for size in asked), 2 * student * copies, quants) + GIGABYTE


def estimated_disk(recipe: Recipe, run: Run) -> int:
    """Bytes that the run folder and the caches will still grow by, at most."""
    student, teachers = _student_size(recipe, run), _asked(recipe, run)
    is_there = identify(recipe.reference("student"), ("hf", "gguf"), run.offline).cached
    fetched = sum(2 * _size(teacher) for teacher in teachers if not teacher.cached) + (0 if is_there else 2 * student)
    full = 12 * student if recipe.train.method == "full" else 0
    there = sum(path.stat().st_size for path in run.path.rglob("*") if path.is_file())
    moved = 2 * student if recipe.quantize.growth > 1 else 0  # mixtures that are tried
    healed = len(recipe.quantize.made) * student // 2 if recipe.quantize.heal else 0
    made = student * (4 + len(recipe.quantize.made)) + moved + healed + full + target_bytes(recipe)
    return max(0, fetched + made - there)


def _asked(recipe: Recipe, run: Run) -> list[TeacherIdentity]:
    """Everybody who is loaded to be asked: the teachers, who plays the user, and the judge of curate."""
    judge, user = recipe.curate.judge, recipe.user
    more = [user_teacher(recipe)] if user.turns and user.model is not None else []
    more += [rating_teacher(recipe)] if judge is not None and judge.model is not None else []
    found = identify_teachers(recipe, run.offline)
    return [*found, *(identify_teacher(recipe, one, run.offline) for one in more)]


def _size(teacher: TeacherIdentity) -> int:
    """Bytes of a teacher's weights on this machine."""
    if teacher.source.startswith("server:"):
        return 0
    return teacher.size_bytes or GIGABYTE


def _student_size(recipe: Recipe, run: Run) -> int:
    """Bytes of the student's weights at 16 bits."""
    student = identify(recipe.reference("student"), ("hf", "gguf"), run.offline)
    size = student.size_bytes or GIGABYTE
    return 3 * size if student.format == "gguf" else size


def require_disk(recipe: Recipe, run: Run) -> str:
    """What will be written; raise Stopped where less is free."""
    needed, free = estimated_disk(recipe, run), free_space(run.path)
    if needed > free:
        raise Stopped(
            f"{run.path}: about {needed / GIGABYTE:.1f} GB are needed, {free / GIGABYTE:.1f} GB are free", "Make room."
        )
    return f"about {needed / GIGABYTE:.1f} GB, {free / GIGABYTE:.0f} GB free"


def target_bytes(recipe: Recipe) -> int:
    """Bytes of all distributions, if answers are half as long as they may be; none where none are kept."""
    if recipe.teach.targets == "none":
        return 0
    written = recipe.prompts.synthesize
    prompts = sum(1 for _ in source_prompts(recipe)) + (written.count if written else 0)
    answers = prompts * recipe.teach.samples * len(recipe.teachers)
    return answers * TARGET_BYTES * recipe.teach.max_tokens // 2
