"""An answer turn by turn, as the rules look at it: what was said before is what was asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from ..curation import Given
from ..messages import with_calls
from ..records import Message, Prompt
from .combine import Answered
from .dialogue import parts, woven
from .tool_calls import fault, message_of

__all__ = ["turns_of"]


def turns_of(
    prompt: Prompt, one: Answered, is_valid: Callable[[Any], bool] | None
) -> Iterator[tuple[Given, tuple[str, str] | None]]:
    """Each turn of an answer, and what is wrong with its calls of tools: the reason, and a few words; or None."""
    said: list[Message] = []
    for part, turn in zip(parts(prompt), (*one.earlier, one.completion), strict=True):
        message = message_of(turn.text, prompt.tools)
        found = fault(turn.text, prompt.tools) if prompt.tools else None
        if found is None and message.tool_calls and part is not prompt:
            found = "call without a result", f"{message.tool_calls[0].name} is called, and the user goes on"
        asked = replace(part, messages=woven(part.messages, said)) if said else part
        yield Given(asked, replace(turn, text=with_calls(message)), is_valid), found
        said.append(message)
