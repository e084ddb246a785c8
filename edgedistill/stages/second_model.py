"""A model beside those that answer: a judge of what they said, or one that plays the user or the tools.

What others wrote is data for it: it stands in JSON, in which no text can end its own place.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from ..chat import with_system
from ..recipe import Recipe, TeacherSettings
from ..records import Completion, Message, Prompt, digest
from ..run import stop_if_asked
from ..teachers import Teacher, TeacherTask, ending
from ..teachers.identity import fetch_teacher
from .candidates import opened
from .scorer_desk import Desk

__all__ = ["JUDGING", "Manner", "SecondModel", "case_of", "fenced", "identity_of"]

# a chat template's special tokens: <|im_end|>, </s>, [INST]; escaped, they are text in JSON and nothing to a tokenizer
SPECIAL = re.compile(r"[<>]|\[(?=[A-Z/_])")


@dataclass(frozen=True)
class Manner:
    """How it speaks, and what progress says meanwhile."""

    doing: str = "judging"
    max_tokens: int = 16
    temperature: float = 0.0
    top_p: float = 1.0
    has_turns: bool = False
    """Whether it is asked about a conversation again, as that goes on."""


JUDGING = Manner()


class SecondModel:
    """A model that answers under a schema. It is loaded when it is first asked, until the block ends.

    `desk` keeps its answers by all that decides them. Each is about one JSON object, which is fenced as data;
    `examples` are such objects and their answers, by turns.
    """

    def __init__(
        self,
        recipe: Recipe,
        settings: TeacherSettings,
        schema: dict[str, Any],
        desk: Desk,
        manner: Manner = JUDGING,
        examples: Sequence[Message] = (),
    ) -> None:
        weights = fetch_teacher(recipe, settings, desk.offline, desk.progress)
        assert weights.sha256 is not None
        shown = with_system(settings.system, examples)
        self._task = TeacherTask(
            weights.path, weights.sha256, shown, schema, desk.scratch, settings, has_turns=manner.has_turns
        )
        speaks = {"max_tokens": manner.max_tokens, "temperature": manner.temperature, "top_p": manner.top_p}
        changes = {**speaks, "top_k": 0, "min_p": 0.0, "samples": 1, "targets": "none", "closed": True, "answers": None}
        self._how = recipe.teach.model_copy(update=changes)
        self.identity = identity_of(settings, schema, weights.sha256, manner, recipe.seed, examples)
        """A digest of all that decides an answer, but for what it is about."""
        self._seed, self._desk, self._manner = recipe.seed, desk, manner
        self._teacher: Teacher | None = None
        self._loaded = ExitStack()

    def __enter__(self) -> SecondModel:
        return self

    def __exit__(self, *_: object) -> None:
        self._loaded.close()

    def told(self, material: Sequence[dict[str, Any]], samples: Sequence[int] = ()) -> list[Completion]:
        """What it says of each object; what the store holds is not asked again.

        `samples` has a number for each object: with another one, the same object may be answered otherwise.
        """
        numbers = samples or [0] * len(material)
        cases = [case_of(one, self.identity, sample) for one, sample in zip(material, numbers, strict=True)]
        asked = {prompt.id: (key, prompt) for key, prompt in cases}
        keys = [key for key, _ in asked.values()]
        held = self._desk.store.held(keys)
        todo = [prompt for key, prompt in asked.values() if key not in held]
        if todo:
            self._ask(todo, {name: key for name, (key, _) in asked.items()})
        found = self._desk.store.find(keys)
        return [found[key] for key, _ in cases]

    def _ask(self, todo: Sequence[Prompt], keys: Mapping[str, str]) -> None:
        if self._teacher is None:
            self._teacher = self._loaded.enter_context(opened(self._task))
        with ending(self._teacher.complete(todo, self._how, self._seed)) as answers:
            for number, completion in enumerate(answers, start=1):
                self._desk.store.add(keys[completion.prompt_id], replace(completion, targets=None))
                self._desk.progress(self._manner.doing, number, len(todo))
                stop_if_asked()


def identity_of(
    settings: TeacherSettings,
    schema: dict[str, Any],
    sha256: str | None,
    manner: Manner = JUDGING,
    seed: int = 0,
    examples: Sequence[Message] = (),
) -> str:
    """A digest of all that decides an answer, but for what it is about; `sha256` is that of the weights."""
    drawn = (seed,) if manner.temperature > 0 else ()
    speaks = () if manner == JUDGING else (manner.max_tokens, manner.temperature, manner.top_p, *drawn)
    shown = tuple(message.content for message in examples)
    return digest("judge", sha256, settings.backend, settings.system, schema, *speaks, *shown)


def case_of(material: dict[str, Any], identity: str, sample: int = 0) -> tuple[str, Prompt]:
    """What it is shown of an object, and the key of its answer, which names the question too."""
    text = fenced(material)
    key = digest(identity, text, *((sample,) if sample else ()))
    return key, Prompt(key[:16], (Message("user", text),))


def fenced(material: dict[str, Any]) -> str:
    """An object as JSON in which no text looks like a template's special token."""
    return SPECIAL.sub(lambda found: f"\\u{ord(found.group()):04x}", json.dumps(material, ensure_ascii=False))
