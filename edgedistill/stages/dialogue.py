"""Prompts with several turns to answer: each is answered in order, behind the answers before it.

A user's message (or a tool's result) that another message of the user follows is waiting for an answer, as the last
one is. The answer to each is kept under the key of the conversation up to there, so that what is there is not asked
again, and rows that begin alike share their beginning.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from ..recipe import Recipe
from ..records import Completion, Message, Prompt, digest, prompt_id
from ..teachers import ending

__all__ = ["Ask", "Kept", "come_back", "conversed", "parts", "places", "woven"]

TOGETHER = 256  # conversations that are answered turn by turn side by side

Ask = Callable[[Iterator[Prompt]], Iterable[Completion]]
"""Whoever answers prompts: completions in the order they finish."""


class Kept(Protocol):
    """Where the answers to the parts of a prompt are kept."""

    def get(self, part: Prompt, sample: int) -> Completion | None:
        """The answer that is there."""

    def add(self, part: Prompt, completion: Completion) -> Completion:
        """Keep an answer; return the one that is there, which may have come before."""


def places(messages: Sequence[Message]) -> list[int]:
    """Which messages are waiting for an answer.

    >>> places([Message("user", "Hi"), Message("user", "How are you?"), Message("user", "Bye")])
    [0, 1, 2]
    >>> places([Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "Bye")])
    [2]
    """
    return [
        place
        for place, message in enumerate(messages)
        if message.role in ("user", "tool") and (place + 1 == len(messages) or messages[place + 1].role == "user")
    ]


def parts(prompt: Prompt) -> list[Prompt]:
    """The prompt up to each message that is waiting for an answer; the last one is the prompt itself."""
    found = []
    for place in places(prompt.messages)[:-1]:
        messages = prompt.messages[: place + 1]
        found.append(Prompt(prompt_id(messages, prompt.tools), messages, tools=prompt.tools))
    return [*found, prompt]


def come_back(recipe: Recipe, first: Prompt | None, has_user: bool) -> bool:
    """Whether what is asked comes back longer: behind results of tools, a user's words, or an answer to more turns.

    Of turns the first row is looked at, as most often all rows are alike.
    """
    return recipe.tools.are_run or has_user or (first is not None and len(places(first.messages)) > 1)


def woven(messages: Sequence[Message], answers: Sequence[Message | Sequence[Message]]) -> tuple[Message, ...]:
    """The conversation with answers put behind the messages that wait for one, as far as there are any.

    An answer may be several messages: calls of tools, their results, and what is said in the end.

    >>> [one.content for one in woven([Message("user", "1"), Message("user", "3")], [Message("assistant", "2")])]
    ['1', '2', '3']
    """
    behind = dict(zip(places(messages), answers, strict=False))
    found: list[Message] = []
    for place, message in enumerate(messages):
        found.append(message)
        answer = behind.get(place, ())
        found += [answer] if isinstance(answer, Message) else answer
    return tuple(found)


@dataclass(eq=False)
class _Talk:
    """A conversation under way: one sample of the answers to one prompt."""

    prompt: Prompt
    sample: int
    parts: list[Prompt]
    answers: list[tuple[Message, ...]] = field(default_factory=list)

    @property
    def is_over(self) -> bool:
        return len(self.answers) == len(self.parts)

    def asked(self) -> Prompt:
        """The next question behind all that was said, under a name of its own: as many seeds as there are samples."""
        part = self.parts[len(self.answers)]
        name = digest(self.prompt.id, self.sample, len(self.answers))[:16]
        return replace(part, id=name, messages=woven(part.messages, self.answers))

    def answered(self, completion: Completion) -> None:
        self.answers.append((*completion.steps, Message("assistant", completion.text)))


def conversed(
    prompts: Iterable[Prompt], samples: int, asks: tuple[Ask, Ask], kept: Kept, names: dict[str, str] | None = None
) -> Generator[Completion, None, None]:
    """Yield each prompt's last answers, in the order they come; those before them are kept on the way.

    Of `asks`, the first yields the samples of prompts with one question, the second one answer to each prompt. Prompts
    with one question are passed on as they are needed. `names` gets the prompt id for each name that a question of a
    longer conversation is asked under.
    """
    source = iter(prompts)
    while True:
        talks: list[_Talk] = []
        plain = _plain(source, samples, talks)
        first = next(plain, None)
        if first is None and not talks:
            return
        if first is not None:
            with ending(asks[0](_behind(first, plain))) as answers:
                yield from answers
        yield from _rounds(talks, asks[1], kept, {} if names is None else names)


def _plain(source: Iterator[Prompt], samples: int, talks: list[_Talk]) -> Iterator[Prompt]:
    """The prompts with one question, until there are enough others."""
    for prompt in source:
        found = parts(prompt)
        if len(found) == 1:
            yield prompt
            continue
        talks += [_Talk(prompt, sample, found) for sample in range(samples)]
        if len(talks) >= TOGETHER:
            return


def _behind(first: Prompt, rest: Iterator[Prompt]) -> Iterator[Prompt]:
    yield first
    yield from rest


def _rounds(talks: list[_Talk], ask: Ask, kept: Kept, names: dict[str, str]) -> Generator[Completion, None, None]:
    """All questions of some conversations, the first of each, then the second."""
    while talks:
        asked: dict[str, _Talk] = {}
        for talk in talks:
            known = kept.get(talk.parts[len(talk.answers)], talk.sample)
            if known is not None:
                talk.answered(known)
            else:
                question = talk.asked()
                asked[question.id] = talk
                names[question.id] = talk.prompt.id
        with ending(ask(talk.asked() for talk in list(asked.values()))) as answers:
            for completion in answers if asked else ():
                talk = asked.pop(completion.prompt_id)
                part = talk.parts[len(talk.answers)]
                own = replace(completion, prompt_id=part.id, sample=talk.sample)
                if part is talk.parts[-1]:
                    talk.answered(own)
                    yield own
                else:
                    talk.answered(kept.add(part, own))
        unanswered = set(asked.values())  # the teacher gave them up, or will say why
        talks = [talk for talk in talks if not talk.is_over and talk not in unanswered]
