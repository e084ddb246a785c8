"""Keys of answers: a digest of all that decides one, so that what is not changed is not asked again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InvalidInput
from ..llamacpp.call_grammar import CALLS
from ..recipe import Recipe, TeacherSettings, TeachSettings
from ..records import Place, Prompt, Tool, digest, messages_of, placed_lines, prompt_id, row_of, tools_of
from ..schema import kept_answers, load_schema
from ..targets import VERSION
from ..teachers import preamble
from .dialogue import places
from .on_offer import ran_by, recipe_tools

__all__ = [
    "AnswerKeys",
    "GivenAnswers",
    "drawn_tries",
    "given_answers",
    "parameters",
    "retry_temperature",
    "row_key",
    "teacher_identity",
]

NO_TOOLS = None  # what a row without tools of its own has in their place


def teacher_identity(recipe: Recipe, teacher: TeacherSettings, sha256: str, player: str | None = None) -> str:
    """A digest of all that decides a teacher's answers, the prompt and the number of the sample apart.

    `sha256` is of the weights, or of a server's address and model; `player` is the identity of who plays the user.
    """
    shown = [message.as_dict() for message in preamble(recipe, teacher)]
    held_to = load_schema(recipe) if recipe.tools.file is None else CALLS  # which tools is in the key of each row
    heard = () if player is None else (player,)
    return digest(teacher.backend, sha256, shown, parameters(recipe), held_to, *ran_by(recipe), *heard)


def parameters(recipe: Recipe) -> dict[str, Any]:
    """The settings that decide an answer: none of those that only say how fast it comes."""
    settings = recipe.teach
    found: dict[str, Any] = {"max_tokens": settings.max_tokens, "temperature": settings.temperature}
    if settings.temperature > 0:
        found |= {"top_p": settings.top_p, "top_k": settings.top_k, "min_p": settings.min_p, "seed": recipe.seed}
    if settings.targets == "top_k":
        found["targets"] = ["top_k", settings.target_mass, settings.target_tokens, VERSION]
    elif settings.targets == "sampled":
        found["targets"] = ["sampled", settings.target_draws, recipe.seed, VERSION]
    elif kept_answers(load_schema(recipe), settings) is not None:
        found["closed"] = settings.closed_floor
    return found


def drawn_tries(recipe: Recipe) -> tuple[float, ...]:
    """What decides a try behind a failed answer, beside its teacher and what it was told."""
    settings = recipe.teach
    return retry_temperature(settings), settings.top_p, settings.top_k, settings.min_p, recipe.seed


def retry_temperature(settings: TeachSettings) -> float:
    """0.8 at the least: greedily, a teacher writes down again what it sees above."""
    return max(settings.temperature, 0.8)


def row_key(prompt: Prompt, identity: str, sample: int = 0, given: str | None = None) -> str:
    """The key of a prompt's answer in the store; `given` is its text where it was not the teacher's choice."""
    asked = [message.as_dict() for message in prompt.messages]
    tools = list(prompt.tools) or NO_TOOLS
    wanted = (prompt.goal, prompt.persona) if prompt.goal else ()
    return digest(asked, tools, identity, sample, *(() if given is None else (given,)), *wanted)


class GivenAnswers:
    """The answers of a file of chat rows by prompt. Only where they stand is kept in memory: 16 bytes a row.

    `tools` are on offer in rows that bring none.
    """

    def __init__(self, path: Path, tools: tuple[Tool, ...] = ()) -> None:
        self._path = path
        found = np.fromiter(_answered(path, tools), dtype=[("id", "<u8"), ("offset", "<u8"), ("line", "<u8")])
        _, first = np.unique(found["id"], return_index=True)  # of two answers to one prompt, the first
        self._rows = found[first]
        self._file = path.open("rb")

    def get(self, identity: str) -> str | None:
        """The answer given to the prompt with this id, or None."""
        wanted = int(identity, 16)
        index = int(np.searchsorted(self._rows["id"], np.uint64(wanted)))
        if index == len(self._rows) or int(self._rows["id"][index]) != wanted:
            return None
        self._file.seek(int(self._rows["offset"][index]))
        text: str = json.loads(self._file.readline())["messages"][-1]["content"]
        return text

    def close(self) -> None:
        self._file.close()


def given_answers(recipe: Recipe) -> GivenAnswers | None:
    """The recipe's given answers, or None.

    Raises InvalidInput with file and line where a row does not end with an answer.
    """
    return (
        None if recipe.teach.answers is None else GivenAnswers(recipe.file(recipe.teach.answers), recipe_tools(recipe))
    )


def _answered(path: Path, offered: tuple[Tool, ...]) -> Iterator[tuple[int, int, int]]:
    """Prompt id, offset and number of each row."""
    before = Place()
    for place, line in placed_lines(path):
        if line.strip():
            where = f"{path}:{place.line}"
            row = row_of(where, line)
            messages, tools = messages_of(where, row), tools_of(where, row.get("tools")) or offered
            if len(messages) < 2 or messages[-1].role != "assistant":
                raise InvalidInput(f"{where}: a given answer is the assistant's, behind its prompt", "Add the answer.")
            if messages[-1].tool_calls or messages[-1].reasoning:
                raise InvalidInput(f"{where}: a given answer is text alone", "Let the teacher make this one.")
            if len(places(messages[:-1])) > 1:
                raise InvalidInput(f"{where}: a given answer stands behind one question", "Give the others theirs too.")
            yield int(prompt_id(messages[:-1], tools), 16), before.offset, place.line
        before = place


class AnswerKeys:
    """The keys of one teacher's answers: of each sample, or of the one answer that is given.

    `drawn` is what decides a try behind a failed answer, which is drawn even where answers are greedy.
    """

    def __init__(
        self, identity: str, samples: int, given: GivenAnswers | None = None, drawn: tuple[float, ...] = ()
    ) -> None:
        self.identity = identity
        self._drawn = drawn
        self._samples = samples
        self._given = given

    def given(self, prompt: Prompt) -> str | None:
        """The answer that the recipe gives, which no teacher is asked for."""
        return None if self._given is None else self._given.get(prompt.id)

    def of(self, prompt: Prompt) -> list[str]:
        """The keys of a prompt's answers, by sample."""
        given = self.given(prompt)
        if given is not None:
            return [row_key(prompt, self.identity, 0, given)]
        return [self.part(prompt, sample) for sample in range(self._samples)]

    def part(self, prompt: Prompt, sample: int) -> str:
        """The key of one of the teacher's own answers to a prompt, or to a part of a longer conversation."""
        return row_key(prompt, self.identity, sample)

    def again(self, prompt: Prompt, sample: int) -> str:
        """The key of a try behind one that failed."""
        return digest(self.part(prompt, sample), "drawn", *self._drawn)
