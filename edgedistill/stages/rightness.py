"""Whether a teacher's answer is right: by what its row expects (`curate.right_by`), and by the recipe's verifier."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import InvalidInput
from ..recipe import CurateSettings, Recipe
from ..records import Prompt
from ..run import Run, on_each_core
from .combine import Answered, verified
from .final_answer import thought_and_said
from .passing import failure
from .prompt_source import source_prompts
from .scorers import SCORERS, require_expected
from .trajectories import scored_text

__all__ = ["REASONS", "Fault", "faults", "require_rightness", "wrong"]

Fault = tuple[str, str]
"""The reason under which an answer is rejected, and what is wrong with it in a few words."""
REASONS = {"tests": "tests failed"}
"""Scorer -> the reason of what it finds wrong, where that is not just "wrong answer"."""
SHOWN = 60  # characters of what is expected


def wrong(prompt: Prompt, answer: str, settings: CurateSettings) -> Fault | None:
    """Why an answer is not right by `right_by`, or None; one whose row expects nothing is not looked at."""
    how = settings.right_by
    if how is not None and prompt.expected is not None:
        if how == "tests":
            said = failure(answer, prompt.expected, settings.verifier_seconds, settings.verifier_memory_mb)
        else:
            is_right = SCORERS[how](thought_and_said(answer)[1], prompt.expected) >= 1.0
            said = None if is_right else f"expected is {str(prompt.expected)[:SHOWN]}"
        if said is not None:
            return REASONS.get(how, "wrong answer"), said
    return None


def faults(
    rows: Sequence[tuple[Prompt, Answered]], settings: CurateSettings, folder: Path | None, verifies: bool
) -> list[Fault | None]:
    """What is wrong with each answer that was not cut off: by `right_by`, then by the verifier if asked.

    As many are looked at at a time as there are cores. Raises InvalidInput where the verifier cannot be started.
    """
    verifies = verifies and settings.verifier is not None
    if settings.right_by is None and not verifies:
        return [None] * len(rows)

    def verdict(row: tuple[Prompt, Answered]) -> Fault | None:
        prompt, one = row
        if one.completion.finish_reason != "stop":
            return None
        asked = one.asked(prompt)
        fault = wrong(asked, scored_text(settings.right_by, one.completion), settings)
        if fault is not None or not verifies:
            return fault
        score, complaint = verified(asked, one.completion.text, settings, folder)
        return None if score is not None else ("verifier", complaint)

    return list(on_each_core(verdict, rows))


def require_rightness(recipe: Recipe, run: Run) -> str:
    """How many prompts say what is right, as found; "" where nobody looks.

    Raises InvalidInput where a row's `expected` is none for `curate.right_by`, or where no row has one.
    """
    how = recipe.curate.right_by
    if how is None:
        return "not looked at"
    told = total = 0
    for prompt in source_prompts(recipe):
        require_expected(how, prompt, str(recipe.prompts.file))
        told, total = told + (prompt.expected is not None), total + 1
    if not told:
        raise InvalidInput(
            f"{recipe.path}: curate.right_by is '{how}', but no prompt has an expected answer",
            "Write `expected` into the rows of the prompt file, or leave right_by out.",
        )
    tries = recipe.teach.retries
    again = f"; a wrong one is tried again, {tries} times at most" if tries else ""
    return f"by '{how}', which {told} of {total} prompts allow{again}"
