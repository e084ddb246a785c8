"""Answers that call tools: the calls are run, the results shown, and the model asked again, to a final answer.

Every answer on the way and every result is committed under a key of all that came before it, so that an interrupted run
goes on in the middle. A final answer carries what came before it as `Completion.steps`; these are committed before it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from ..chat import json_instance
from ..messages import messages_of, with_calls
from ..records import Completion, Message, Prompt, Tool, ToolCall, Wanted, digest
from ..store import Store
from ..teachers import ending
from .dialogue import TOGETHER, Ask
from .final_answer import thought_and_said
from .tool_calls import fault, message_of, said

__all__ = [
    "Call",
    "Loop",
    "all_calls",
    "has_failed",
    "ignored",
    "keep",
    "kept",
    "running",
    "scored_text",
    "steps_key",
    "with_steps",
]

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


@dataclass(eq=False)
class _Path:
    """One sample of the way to a prompt's final answer."""

    prompt: Prompt
    sample: int
    identity: str
    said: list[Message] = field(default_factory=list)

    @property
    def calls_made(self) -> int:
        return sum(message.role == "assistant" for message in self.said)

    def asked(self) -> Prompt:
        """What is asked next, under a name of its own: the prompt and all that came of it."""
        name = digest(self.prompt.id, self.sample, len(self.said), "step")[:16]
        return Prompt(name, (*self.prompt.messages, *self.said), tools=self.prompt.tools)

    def key(self, *more: int) -> str:
        """The key of the answer to that, or of a result that follows it."""
        asked = self.asked()
        turns = [message.as_dict() for message in asked.messages]
        return digest(self.identity, asked.id, turns, list(asked.tools), "step", *more)


def running(asks: tuple[Ask, Ask], wanted: Wanted, loop: Loop, names: dict[str, str] | None = None) -> tuple[Ask, Ask]:
    """The two ways to ask, as `dialogue.conversed` takes them, each with the calls run to a final answer.

    `wanted` are the samples that the first of them yields; the second yields one answer to each prompt. `names` gets,
    for each name that something is asked under, the name that it was asked for.
    """
    known = {} if names is None else names

    def run_each(ask: Ask, numbers: Wanted) -> Ask:
        def complete(prompts: Iterator[Prompt]) -> Iterator[Completion]:
            while block := list(islice(prompts, TOGETHER)):
                paths = [_Path(prompt, sample, loop.identity) for prompt in block for sample in numbers(prompt)]
                yield from _block(paths, (ask, asks[1]), loop, known)

        return complete

    return run_each(asks[0], wanted), run_each(asks[1], lambda prompt: (0,))


def _block(
    block: Sequence[_Path], asks: tuple[Ask, Ask], loop: Loop, names: dict[str, str]
) -> Generator[Completion, None, None]:
    """Some paths side by side: all first answers, then all second ones."""
    paths = {(path.prompt.id, path.sample): path for path in block}
    going = [(path, found) for path in block if (found := _held(loop, path))]
    begun = {path for path, _ in going}
    new = list({path.prompt.id: path.prompt for path in block if path not in begun}.values())
    with ending(asks[0](iter(new))) as answers:
        for completion in answers if new else ():
            path = paths[completion.prompt_id, completion.sample]
            if path in begun:
                continue  # it is on its way since an earlier run
            going, over = _sorted(loop, going, (path, completion))
            if over is not None:
                yield over
    while going:
        _run_calls(loop, going)
        asked = {path.asked().id: path for path, _ in going}
        names |= {name: names.get(path.prompt.id, path.prompt.id) for name, path in asked.items()}
        going = [(path, found) for path in asked.values() if (found := _held(loop, path))]
        held = {path.asked().id for path, _ in going}
        todo = [path.asked() for name, path in asked.items() if name not in held]
        with ending(asks[1](iter(todo))) as answers:
            for completion in answers if todo else ():
                going, over = _sorted(loop, going, (asked[completion.prompt_id], completion))
                if over is not None:
                    yield over


def _held(loop: Loop, path: _Path) -> Completion | None:
    return loop.store.get(path.key())


def _sorted(
    loop: Loop, going: list[tuple[_Path, Completion]], answer: tuple[_Path, Completion]
) -> tuple[list[tuple[_Path, Completion]], Completion | None]:
    """An answer among those whose calls are run next, or as a final one."""
    path, completion = answer
    is_over = completion.finish_reason != "stop" or path.calls_made >= loop.steps
    text = thought_and_said(completion.text)[1]
    if is_over or not said(text).calls or fault(text, path.prompt.tools) is not None:
        return going, replace(completion, prompt_id=path.prompt.id, sample=path.sample, steps=tuple(path.said))
    loop.store.add(path.key(), completion)  # committed before it counts: a run that is killed goes on behind it
    return [*going, (path, loop.store.get(path.key()) or completion)], None


def _run_calls(loop: Loop, going: Sequence[tuple[_Path, Completion]]) -> None:
    """Run the calls of some answers, those whose results are not kept, and put both behind what was said."""
    wanted: dict[str, Call] = {}
    turns: list[tuple[_Path, Message, list[str]]] = []
    for path, completion in going:
        tools = {tool["function"]["name"]: tool for tool in path.prompt.tools}
        thought, text = thought_and_said(completion.text)
        message = replace(message_of(text, path.prompt.tools), reasoning=thought)
        keys = [path.key(number) for number in range(len(message.tool_calls))]
        named = zip(message.tool_calls, keys, strict=True)
        calls = tuple(ToolCall(call.name, call.arguments, key[:ID]) for call, key in named)
        turns.append((path, replace(message, tool_calls=calls), keys))
        wanted |= {
            key: Call(tools[call.name], call.name, call.arguments) for key, call in zip(keys, calls, strict=True)
        }
    held = loop.store.held(list(wanted))
    todo = {key: call for key, call in wanted.items() if key not in held}
    for key, result in zip(todo, loop.run(list(todo.values())) if todo else (), strict=True):
        loop.store.add(key, Completion(key[:16], result, "stop", 0, 0, 0.0))
    results = loop.store.find(list(wanted))
    for path, message, keys in turns:
        path.said.append(message)
        for call, key in zip(message.tool_calls, keys, strict=True):
            path.said.append(Message("tool", results[key].text, tool_call_id=call.id, name=call.name))


# final answers with what came before them, in a store


def steps_key(key: str) -> str:
    """Where the steps to an answer are kept, by the answer's own key."""
    return digest(key, "steps")


def keep(store: Store, key: str, completion: Completion, teacher: int = 0) -> bool:
    """Store an answer behind its steps; return whether it is new."""
    if completion.steps:
        turns = [message.as_dict() for message in completion.steps]
        text = json.dumps({"messages": turns}, ensure_ascii=False)
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
    return replace(answer, steps=messages_of("steps", json.loads(steps.text)))


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
    failed: dict[str, bool] = {}
    for message in completion.steps:
        if message.role == "tool":
            failed[message.name] = has_failed(message.content)
    answer = completion.text.lower().replace("’", "'")
    name = next((name for name, is_failed in failed.items() if is_failed), None)
    return None if any(word in answer for word in admissions) else name
