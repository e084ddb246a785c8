"""Answers that call tools: the calls are run, the results shown, and the model asked again, to a final answer.

Every result is committed under a key of all that came before it, as `steps` does with the answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from ..chat import json_instance
from ..messages import with_calls
from ..records import Completion, Message, Tool, ToolCall
from ..store import Store
from .final_answer import thought_and_said
from .steps import Going, Way
from .tool_calls import fault, message_of, said

__all__ = ["Call", "Loop", "all_calls", "has_failed", "ignored", "scored_text"]

ID = 9  # signs of a call's id, as Mistral's templates want it


@dataclass(frozen=True, slots=True)
class Call:
    """A call that is to be run."""

    tool: Tool
    name: str
    arguments: str
    """A JSON object, as text."""


Run = Callable[[Sequence[Call]], list[str]]
"""What runs calls: the result of each, as JSON text; an object with `error` where the tool failed."""


@dataclass(frozen=True)
class Loop:
    """How calls are run, where results are kept, and how many answers with calls there may be."""

    run: Run
    identity: str
    """A digest of whose answers these are, and of all that decides a result."""
    steps: int
    store: Store

    @property
    def word(self) -> str:
        return "step"

    def goes_on(self, way: Way, completion: Completion) -> bool:
        """Whether an answer has calls, and they can be run."""
        is_over = completion.finish_reason != "stop" or way.count("assistant") >= self.steps
        text = thought_and_said(completion.text)[1]
        return not is_over and bool(said(text).calls) and fault(text, way.prompt.tools) is None

    def go_on(self, going: Sequence[Going]) -> list[Completion | None]:
        """Run the calls of some answers, those whose results are not kept, and put both behind what was said."""
        wanted: dict[str, Call] = {}
        turns: list[tuple[Way, Message, list[str]]] = []
        for way, completion in going:
            tools = {tool["function"]["name"]: tool for tool in way.prompt.tools}
            thought, text = thought_and_said(completion.text)
            message = replace(message_of(text, way.prompt.tools), reasoning=thought)
            keys = [way.key(number) for number in range(len(message.tool_calls))]
            named = zip(message.tool_calls, keys, strict=True)
            calls = tuple(ToolCall(call.name, call.arguments, key[:ID]) for call, key in named)
            turns.append((way, replace(message, tool_calls=calls), keys))
            wanted |= {
                key: Call(tools[call.name], call.name, call.arguments) for key, call in zip(keys, calls, strict=True)
            }
        held = self.store.held(list(wanted))
        todo = {key: call for key, call in wanted.items() if key not in held}
        for key, result in zip(todo, self.run(list(todo.values())) if todo else (), strict=True):
            self.store.add(key, Completion(key[:16], result, "stop", 0, 0, 0.0))
        results = self.store.find(list(wanted))
        for way, message, keys in turns:
            way.said.append(message)
            for call, key in zip(message.tool_calls, keys, strict=True):
                way.said.append(Message("tool", results[key].text, tool_call_id=call.id, name=call.name))
        return [None] * len(going)


# what is wrong with a trajectory


def scored_text(scorer: str | None, completion: Completion) -> str:
    """What a scorer looks at: of an answer that is scored by its calls, those on the way to it too."""
    return all_calls(completion) if scorer == "tool" else completion.text


def all_calls(completion: Completion) -> str:
    """Everything that an assistant said on the way to an answer, in one text, as `said` reads it; without thoughts.

    >>> step = Message("assistant", "", (ToolCall("now", "{}"),))
    >>> answer = Completion("1", "It is ten.", "stop", 1, 1, 0.1, steps=(step, Message("tool", '"10:00"')))
    >>> said(all_calls(answer))
    Said(text='It is ten.', calls=(('now', {}),), is_broken=False)
    """
    if not completion.steps:
        return completion.text
    steps = [with_calls(message) for message in completion.steps if message.role == "assistant"]
    return "\n".join([*steps, thought_and_said(completion.text)[1]])


def has_failed(result: str) -> bool:
    """Whether a result says that the tool failed.

    >>> has_failed('{"error": "no such room"}'), has_failed('{"on": true}'), has_failed("")
    (True, False, False)
    """
    value = json_instance(result)
    return isinstance(value, dict) and value.get("error") not in (None, "", False)


def ignored(completion: Completion, admissions: Sequence[str]) -> str | None:
    """The name of a tool that failed and was called no more with success, where the answer does not admit it.

    >>> steps = (Message("assistant", "", (ToolCall("now", "{}"),)), Message("tool", '{"error": "broken"}', name="now"))
    >>> ignored(Completion("1", "It is ten.", "stop", 1, 1, 0.1, steps=steps), ("could not",))
    'now'
    >>> ignored(Completion("1", "I could not find out.", "stop", 1, 1, 0.1, steps=steps), ("could not",)) is None
    True
    """
    for results, answer in _questions(completion):
        failed = {message.name: has_failed(message.content) for message in results}
        text = answer.lower().replace("’", "'")
        name = next((name for name, is_failed in failed.items() if is_failed), None)
        if name is not None and not any(word in text for word in admissions):
            return name
    return None


def _questions(completion: Completion) -> Iterator[tuple[list[Message], str]]:
    """The results of tools behind each question on the way, and what was answered in the end."""
    results: list[Message] = []
    answer = ""
    for message in completion.steps:
        if message.role == "user":
            yield results, answer
            results = []
        results += [message] if message.role == "tool" else []
        answer = message.content
    yield results, completion.text
