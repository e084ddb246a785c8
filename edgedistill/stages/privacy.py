"""Whether personal data would leave the machine with the prompts."""

from __future__ import annotations

from ..errors import Unsafe
from ..recipe import Recipe
from ..run import Run
from ..scrub import texts_of
from ..sensitive import find
from ..teachers.address import endpoint_of
from .prompt_source import scrubs, source_prompts
from .rating import rating_teacher
from .simulated_user import user_teacher

__all__ = ["elsewhere", "require_private"]


def elsewhere(recipe: Recipe) -> str | None:
    """The address of the first teacher, or of who judges or plays the user, that is a server elsewhere; or None."""
    judges = [rating_teacher(recipe)] if recipe.curate.judge is not None else []
    players = [user_teacher(recipe)] if recipe.user.turns else []
    for teacher in (*recipe.teachers, *judges, *players):
        if teacher.url is not None and not endpoint_of(teacher).is_here:
            return teacher.url
    return None


def require_private(recipe: Recipe, run: Run) -> str:
    """What becomes of personal data, in one line.

    Raises Unsafe where a prompt holds some, a teacher is elsewhere, and the recipe does not say what shall be done.
    """
    url = elsewhere(recipe)
    if scrubs(recipe):
        return "replaced before a teacher sees it"
    if url is None:
        return "stays on this machine"
    if recipe.prompts.scrub is False:
        return f"sent to {url} as it is"
    for prompt in source_prompts(recipe):
        kinds = [one.kind for text in texts_of(prompt) for one in find(text)]
        if kinds:
            raise Unsafe(
                f"{recipe.path}: prompt {prompt.id} holds what looks like personal data ({kinds[0]}), which would "
                f"go to {url}",
                "Write scrub = true in [prompts] to have such things replaced, or scrub = false to send them.",
            )
    return f"none found in what goes to {url}"
