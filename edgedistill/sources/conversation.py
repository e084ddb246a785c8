"""A conversation from elsewhere, made alike: OpenAI's roles, texts, tool calls and tools.

The forms are OpenAI's chat messages (with the older `functions` and `function_call`), the typed parts of its Responses
API, and ShareGPT's `from` and `value`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import InvalidInput

__all__ = ["ROLES", "Conversation", "conversation", "json_of", "parts_of", "tools_of", "turn"]

Turn = dict[str, Any]
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
}
CALLS = {"function_call", "tool_call"}  # ShareGPT's turns that are nothing but calls
TEXT_PARTS = ("text", "input_text", "output_text")


@dataclass(frozen=True)
class Conversation:
    """The user's request with the turns before it, and what stood around it."""

    messages: list[Turn]
    """They end with the user's last turn."""
    answer: list[Turn] = field(default_factory=list)
    """What the source has behind it: for the most part one turn of the assistant."""
    system: str = ""
    """Taken out of the front: system texts belong into the recipe."""
    tools: list[dict[str, Any]] = field(default_factory=list)
    tags: tuple[str, ...] = ()

    def texts(self) -> list[str]:
        """All that people or models wrote in it."""
        turns = [*self.messages, *self.answer]
        return [self.system, *(text for one in turns for text in (one["content"], *_arguments(one)))]


def conversation(
    turns: Sequence[Turn], tools: Sequence[dict[str, Any]] = (), system: str = "", tags: Sequence[str] = ()
) -> Conversation:
    """A conversation of turns, cut behind the user's last one.

    Raises InvalidInput where there is no turn of the user's.
    """
    first = next((number for number, one in enumerate(turns) if one["role"] != "system"), len(turns))
    last = max((number for number, one in enumerate(turns) if one["role"] == "user"), default=-1)
    if last < 0:
        raise InvalidInput("no turn of the user's")
    texts = [text for text in (system, *(one["content"] for one in turns[:first])) if text]
    return Conversation(
        messages=list(turns[first : last + 1]),
        answer=list(turns[last + 1 :]),
        system="\n\n".join(texts),
        tools=list(tools),
        tags=tuple(tags),
    )


def turn(message: Any) -> Turn:
    """One turn in OpenAI's form, from a message in any of the forms.

    >>> turn({"from": "human", "value": "Hi"})
    {'role': 'user', 'content': 'Hi'}

    Raises InvalidInput that says what is wrong with it.
    """
    if not isinstance(message, Mapping):
        raise InvalidInput("a message must be an object")
    said = message.get("role", message.get("from"))
    content = message["content"] if "content" in message else message.get("value")
    if said in CALLS:
        return {"role": "assistant", "content": "", "tool_calls": _calls(json_of(content, "a tool call"))}
    role = ROLES.get(said) if isinstance(said, str) else None
    if role is None:
        raise InvalidInput(f"a message of the unknown role {said!r}")
    made: Turn = {"role": role, "content": _text(content, may_be_none=role == "assistant")}
    calls = message.get("tool_calls") or ([message["function_call"]] if message.get("function_call") else [])
    if calls:
        made["tool_calls"] = _calls(calls)
    elif content is None:
        raise InvalidInput("a message without content")
    for key in ("tool_call_id", "name", "reasoning_content"):
        if role in ("tool", "assistant") and isinstance(message.get(key), str) and message[key]:
            made[key] = message[key]
    return made


def _text(content: Any, may_be_none: bool) -> str:
    """The text of a content: itself, or that of its parts."""
    if isinstance(content, str):
        return _whole(content)
    if content is None and may_be_none:
        return ""
    return parts_of(content)


def parts_of(content: Any) -> str:
    """The text of typed parts, one below the other; what is no text, such as an image, is refused."""
    if not isinstance(content, list):
        raise InvalidInput("a message needs a content that is text")
    texts = []
    for part in content:
        if isinstance(part, str):
            texts.append(_whole(part))
        elif isinstance(part, dict) and part.get("type") in TEXT_PARTS and isinstance(part.get("text"), str):
            texts.append(_whole(part["text"]))
        else:
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise InvalidInput(f"a message holds a part of the type {kind!r}, which is no text")
    return "\n".join(texts)


def _whole(text: str) -> str:
    """A text that can be written as UTF-8: half of a surrogate pair, as JSON may escape one, cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidInput("a text that is not Unicode") from None
    return text


def _calls(calls: Any) -> list[dict[str, Any]]:
    found = calls if isinstance(calls, list) else [calls]
    return [_call(one) for one in found]


def _call(call: Any) -> dict[str, Any]:
    inner = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
        raise InvalidInput("a tool call without a function's name")
    arguments = inner.get("arguments", inner.get("parameters", {}))
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    made = {"type": "function", "function": {"name": _whole(inner["name"]), "arguments": _whole(arguments)}}
    return {"id": call["id"], **made} if isinstance(call.get("id"), str) and call["id"] else made


def _arguments(one: Turn) -> list[str]:
    return [call["function"]["arguments"] for call in one.get("tool_calls", ())]


def tools_of(tools: Any) -> list[dict[str, Any]]:
    """Tools in OpenAI's form: from it, from bare functions, or from either as JSON text; none where there are none.

    >>> tools_of('[{"name": "light"}]')
    [{'type': 'function', 'function': {'name': 'light'}}]
    """
    found = json_of(tools, "tools") if isinstance(tools, str) and tools.strip() else tools or []
    if not isinstance(found, list) or not all(isinstance(tool, dict) for tool in found):
        raise InvalidInput("tools must be a list of objects")
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in found]


def json_of(text: Any, what: str) -> Any:
    """The value of JSON that stands in a text; what is no text is its own value."""
    if not isinstance(text, str):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidInput(f"{what} that is not JSON") from None
