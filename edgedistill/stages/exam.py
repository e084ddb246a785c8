"""The exam: eval prompts that the student answers after each epoch, and who marks its answers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from ..chat import with_system
from ..recipe import Recipe
from ..records import Prompt, iter_prompts
from ..students import Exam
from ..students.encode import Encoder
from .dialogue import places
from .final_answer import thought_and_said
from .on_offer import shown_to
from .scorers import SCORERS, passing_scores

__all__ = ["exam_of", "unmarked"]


def exam_of(recipe: Recipe, encoder: Encoder) -> Exam | None:
    """The first eval prompts with one question and a right answer, as many as `train.score_prompts` says.

    Marked by the recipe's own scorer; None where none are wanted, or where they cannot be marked: see `unmarked`.
    """
    if not recipe.train.score_prompts or unmarked(recipe):
        return None
    asked = _asked(recipe)
    shown = map(shown_to(recipe, "student"), asked)
    prompts = [encoder.prompt(with_system(recipe.student.system, row.messages), row.tools) for row in shown]

    def score(answers: Sequence[Sequence[int]]) -> float:
        return sum(_marks(recipe, asked, [encoder.text(answer) for answer in answers])) / len(asked)

    return Exam(prompts, encoder.completion("")[-1], recipe.evaluate.max_tokens, score)


def unmarked(recipe: Recipe) -> str:
    """Why the student's answers are not marked after each epoch although the recipe wants it; "" where they are."""
    if not recipe.train.score_prompts:
        return ""
    why = ""
    if recipe.evaluate.scorer not in (*SCORERS, "tests"):
        why = f"the scorer '{recipe.evaluate.scorer}' is only asked in evaluate"
    elif recipe.tools.are_run:
        why = "tools are only run in evaluate"
    elif not _asked(recipe):
        why = "no eval row has one question and a right answer"
    return why and f"train.score_prompts = {recipe.train.score_prompts} does nothing: {why}"


def _asked(recipe: Recipe) -> list[Prompt]:
    rows = (row for row in iter_prompts(recipe.file(recipe.evaluate.file)) if len(places(row.messages)) == 1)
    return list(islice((row for row in rows if row.expected is not None), recipe.train.score_prompts))


def _marks(recipe: Recipe, asked: Sequence[Prompt], answers: Sequence[str]) -> list[float]:
    """The score of each answer, by the recipe's scorer."""
    if recipe.evaluate.scorer == "tests":
        given = {row.id: answer for row, answer in zip(asked, answers, strict=True)}
        (scores,) = passing_scores(recipe.evaluate, asked, {"student": given}).values()
        return [score or 0.0 for score in scores]
    mark = SCORERS[recipe.evaluate.scorer]
    return [mark(thought_and_said(text)[1], row.expected) for text, row in zip(answers, asked, strict=True)]
