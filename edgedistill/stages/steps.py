"""Answers that are reached in steps: calls of tools that are run, or a user who goes on with the conversation.

Every answer on the way is committed under a key of all that came before it, so that an interrupted run goes on in the
middle. A final answer carries what came before it as `Completion.steps`; these are committed before it.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Protocol

from ..messages import messages_of
from ..records import Completion, Message, Prompt, Wanted, digest
from ..store import Store
from ..teachers import ending
from .dialogue import TOGETHER, Ask

__all__ = ["Going", "Onward", "Way", "in_steps", "keep", "kept", "steps_key", "with_steps"]


class Onward(Protocol):
    """What leads on from an answer that is not the last one."""

    @property
    def word(self) -> str:
        """What a step of this kind is called, in keys and names."""

    @property
    def identity(self) -> str:
        """A digest of whose answers these are, and of all that decides what comes between them."""

    @property
    def store(self) -> Store:
        """Where the answers on the way are kept."""

    def goes_on(self, way: Way, completion: Completion) -> bool:
        """Whether anything may follow an answer."""

    def go_on(self, going: Sequence[Going]) -> list[Completion | None]:
        """Put what follows each answer behind what was said, the answer too; or the final answer that it is after all.

        What is there from an earlier run is not made again.
        """


@dataclass(eq=False)
class Way:
    """One sample of the way to a prompt's final answer."""

    prompt: Prompt
    sample: int
    onward: Onward
    said: list[Message] = field(default_factory=list)

    def count(self, role: str) -> int:
        """How many of the messages on the way are of somebody."""
        return sum(message.role == role for message in self.said)

    def asked(self) -> Prompt:
        """What is asked next, under a name of its own: the prompt and all that came of it."""
        name = digest(self.prompt.id, self.sample, len(self.said), self.onward.word)[:16]
        return Prompt(name, (*self.prompt.messages, *self.said), tools=self.prompt.tools)

    def key(self, *more: int) -> str:
        """The key of the answer to that, or of what follows it."""
        asked = self.asked()
        turns = [message.as_dict() for message in asked.messages]
        wanted = (self.prompt.goal, self.prompt.persona) if self.prompt.goal else ()
        return digest(self.onward.identity, asked.id, turns, list(asked.tools), self.onward.word, *more, *wanted)

    def final(self, completion: Completion, ended: str = "") -> Completion:
        """An answer as the last one, with all that came before it."""
        steps = (*self.said, *completion.steps)
        return replace(completion, prompt_id=self.prompt.id, sample=self.sample, steps=steps, ended=ended)


Going = tuple[Way, Completion]
"""A way, and the answer that it has come to."""


def in_steps(
    asks: tuple[Ask, Ask], wanted: Wanted, onward: Onward, names: dict[str, str] | None = None
) -> tuple[Ask, Ask]:
    """The two ways to ask, as `dialogue.conversed` takes them, each going on to a final answer.

    `wanted` are the samples that the first of them yields; the second yields one answer to each prompt. `names` gets,
    for each name that something is asked under, the name that it was asked for.
    """
    known = {} if names is None else names

    def go_each(ask: Ask, numbers: Wanted) -> Ask:
        def complete(prompts: Iterator[Prompt]) -> Iterator[Completion]:
            while block := list(islice(prompts, TOGETHER)):
                ways = [Way(prompt, sample, onward) for prompt in block for sample in numbers(prompt)]
                yield from _block(ways, (ask, asks[1]), onward, known)

        return complete

    return go_each(asks[0], wanted), go_each(asks[1], lambda prompt: (0,))


def _block(
    block: Sequence[Way], asks: tuple[Ask, Ask], onward: Onward, names: dict[str, str]
) -> Generator[Completion, None, None]:
    """Some ways side by side: all first answers, then all second ones."""
    ways = {(way.prompt.id, way.sample): way for way in block}
    going = [(way, found) for way in block if (found := _held(way))]
    begun = {way for way, _ in going}
    new = list({way.prompt.id: way.prompt for way in block if way not in begun}.values())
    with ending(asks[0](iter(new))) as answers:
        for completion in answers if new else ():
            way = ways[completion.prompt_id, completion.sample]
            if way in begun:
                continue  # it is on its way since an earlier run
            going, over = _sorted(onward, going, (way, completion))
            if over is not None:
                yield over
    while going:
        finals = onward.go_on(going)
        yield from (final for final in finals if final is not None)
        asked = {way.asked().id: way for (way, _), final in zip(going, finals, strict=True) if final is None}
        names |= {name: names.get(way.prompt.id, way.prompt.id) for name, way in asked.items()}
        going = [(way, found) for way in asked.values() if (found := _held(way))]
        held = {way.asked().id for way, _ in going}
        todo = [way.asked() for name, way in asked.items() if name not in held]
        with ending(asks[1](iter(todo))) as answers:
            for completion in answers if todo else ():
                going, over = _sorted(onward, going, (asked[completion.prompt_id], completion))
                if over is not None:
                    yield over


def _held(way: Way) -> Completion | None:
    return kept(way.onward.store, way.key())


def _sorted(onward: Onward, going: list[Going], answer: Going) -> tuple[list[Going], Completion | None]:
    """An answer among those that something follows, or as a final one."""
    way, completion = answer
    if not onward.goes_on(way, completion):
        return going, way.final(completion)
    keep(onward.store, way.key(), completion)  # committed before it counts: a run that is killed goes on behind it
    return [*going, (way, _held(way) or completion)], None


# final answers with what came before them, in a store


def steps_key(key: str) -> str:
    """Where the steps to an answer are kept, by the answer's own key."""
    return digest(key, "steps")


def keep(store: Store, key: str, completion: Completion, teacher: int = 0) -> bool:
    """Store an answer behind its steps; return whether it is new."""
    if completion.steps or completion.ended:
        way = {"messages": [message.as_dict() for message in completion.steps]}
        text = json.dumps({**way, **({"ended": completion.ended} if completion.ended else {})}, ensure_ascii=False)
        store.add(steps_key(key), Completion(completion.prompt_id, text, "stop", 0, 0, 0.0), teacher)
    return store.add(key, completion, teacher)


def kept(store: Store, key: str) -> Completion | None:
    """A stored answer with its steps."""
    return with_steps(store.find([key, steps_key(key)], targets=True), key)


def with_steps(found: Mapping[str, Completion], key: str) -> Completion | None:
    """An answer of those found, with its steps."""
    answer, steps = found.get(key), found.get(steps_key(key))
    if answer is None or steps is None:
        return answer
    way = json.loads(steps.text)
    messages = messages_of("steps", way) if way["messages"] else ()
    return replace(answer, steps=messages, ended=way.get("ended", ""))
