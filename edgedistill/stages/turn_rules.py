"""An answer turn by turn, as the rules look at it: what was said before is what was asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from ..curation import Given
from ..messages import with_calls
from ..recipe import ToolsSettings
from ..records import Completion, Message, Prompt
from .combine import Answered
from .dialogue import parts, woven
from .tool_calls import fault, message_of
from .trajectories import ignored

__all__ = ["turns_of"]


def turns_of(
    prompt: Prompt, one: Answered, is_valid: Callable[[Any], bool] | None, tools: ToolsSettings
) -> Iterator[tuple[Given, tuple[str, str] | None]]:
    """Each turn of an answer, and what is wrong with its calls of tools: the reason, and a few words; or None.

    Where calls are run, a turn is what is said in the end; the calls before it were looked at when they were run.
    """
    said: list[tuple[Message, ...]] = []
    for part, turn in zip(parts(prompt), (*one.earlier, one.completion), strict=True):
        message = message_of(turn.text, prompt.tools)
        found = fault(turn.text, prompt.tools) if prompt.tools else None
        if found is None and prompt.tools and tools.are_run:
            found = _unfinished(turn, message, tools)
        elif found is None and message.tool_calls and part is not prompt:
            found = "call without a result", f"{message.tool_calls[0].name} is called, and the user goes on"
        messages = (*(woven(part.messages, said) if said else part.messages), *turn.steps)
        yield Given(replace(part, messages=messages), replace(turn, text=with_calls(message)), is_valid), found
        said.append((*turn.steps, message))


def _unfinished(turn: Completion, message: Message, tools: ToolsSettings) -> tuple[str, str] | None:
    """Why an answer is none although its calls were run."""
    if message.tool_calls and turn.finish_reason == "stop":
        return "step limit", f"{message.tool_calls[0].name} is called after {tools.steps} answers with calls"
    if turn.steps and turn.steps[-1].role == "tool" and not turn.text.strip():
        return "no final answer", "nothing is said behind the last result"
    name = ignored(turn, tools.admissions)
    return None if name is None else ("failure ignored", f"{name} has failed, and the answer does not say so")
