"""What a teacher prefers whatever it is asked, taken out of its closed answers.

Batch calibration (Zhou et al., arXiv 2309.17249): the probability of each answer is divided by its mean over many
prompts, and the odds are made to sum to 1 again. No right answer is needed for it. It takes for granted that over the
prompts no answer is much more frequent than another.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from ..errors import InvalidInput
from ..recipe import Recipe
from ..records import Completion
from ..schema import kept_answers
from ..teachers import BACKENDS

__all__ = ["asks_calibration", "calibrated", "prior_of", "require_odds"]

LEAST = 1e-6  # of a mean, where no prompt gave an answer more

Prior = Mapping[str, float]
"""The mean probability of each answer over the prompts."""


def asks_calibration(recipe: Recipe) -> bool:
    """Whether the recipe has a teacher's closed answers calibrated."""
    return recipe.teach.calibrate == "batch"


def require_odds(recipe: Recipe, schema: dict[str, Any] | None) -> None:
    """Raise InvalidInput where the recipe asks for calibration of answers that have no probabilities."""
    if not asks_calibration(recipe):
        return
    if kept_answers(schema, recipe.teach) is None:
        raise InvalidInput(
            f"{recipe.path}: teach.calibrate needs closed answers with their probabilities",
            'They need a schema_file of enums, closed = true, samples = 1 and targets = "none".',
        )
    mute = [teacher.backend for teacher in recipe.teachers if not BACKENDS[teacher.backend].scores]
    if mute:
        raise InvalidInput(
            f"{recipe.path}: teach.calibrate: the backend {mute[0]!r} tells no probabilities", "Use another, or none."
        )


def prior_of(completions: Iterable[Completion]) -> dict[str, float]:
    """The mean probability of each answer; those without probabilities do not count. Empty where none has any.

    >>> made = [Completion("1", "a", "stop", 1, 1, 0.0, answers={"a": share, "b": 1 - share}) for share in (0.75, 0.25)]
    >>> prior_of(made)
    {'a': 0.5, 'b': 0.5}
    """
    sums: dict[str, float] = defaultdict(float)
    count = 0
    for completion in completions:
        if completion.answers is not None:
            count += 1
            for answer, share in completion.answers.items():
                sums[answer] += share
    return {answer: total / count for answer, total in sums.items()}


def calibrated(completion: Completion, prior: Prior | None) -> Completion:
    """The completion with calibrated odds, and with the most probable answer by these as its text.

    Where there is no prior, or the teacher told no probabilities, it stays what it is; its own text wins a tie.

    >>> one = Completion("1", "a", "stop", 1, 1, 0.0, answers={"a": 0.6, "b": 0.4})
    >>> calibrated(one, {"a": 0.8, "b": 0.2}).text
    'b'
    """
    if prior is None or completion.answers is None:
        return completion
    odds = {answer: share / max(prior.get(answer, 0.0), LEAST) for answer, share in completion.answers.items()}
    total = sum(odds.values())
    answers = {answer: one / total for answer, one in odds.items()}
    best = max(answers, key=lambda answer: (answers[answer], answer == completion.text))
    return replace(completion, text=best, answers=answers)
