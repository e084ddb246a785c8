"""Turns of a conversation and the tools on offer, as OpenAI writes them: read with care, written back the same.

A call's arguments stay the JSON text that they came as. The one thing that is made alike: a message with tool calls and
without text has the content "", whether the row says null, "" or nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import InvalidInput

__all__ = ["ROLES", "Message", "Tool", "ToolCall", "messages_of", "tools_of", "with_calls"]

ROLES = ("system", "user", "assistant", "tool")
MESSAGE_KEYS = ("role", "content", "reasoning_content", "tool_calls", "tool_call_id", "name", "weight")
EMPTY: tuple[Any, ...] = (None, "", [], {})
"""What an unknown key may hold: servers write `"refusal": null` and the like."""

Tool = dict[str, Any]
"""A function on offer: `{"type": "function", "function": {"name", "description", "parameters"}}`."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call that an assistant makes."""

    name: str
    arguments: str
    """A JSON object, as the text that it was written as."""
    id: str = ""

    def as_dict(self) -> dict[str, Any]:
        """As OpenAI writes it."""
        call = {"type": "function", "function": {"name": self.name, "arguments": self.arguments}}
        return {"id": self.id, **call} if self.id else call

    def as_turn(self) -> dict[str, Any]:
        """As a chat template takes it: the arguments are an object."""
        call = {"type": "function", "function": {"name": self.name, "arguments": json.loads(self.arguments)}}
        return {"id": self.id, **call} if self.id else call


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    """Of an assistant."""
    tool_call_id: str = ""
    """Of a tool's result: the call that it answers."""
    name: str = ""
    """Of a tool's result: the tool."""
    reasoning: str = ""
    """Of an assistant: what it thought before it answered, without the model's delimiters."""
    is_learned: bool = True
    """Of an assistant: whether a student learns this turn, or only sees it."""

    def as_dict(self) -> dict[str, Any]:
        """As a row holds it; a turn that is not learned has OpenAI's `weight` 0."""
        return self.as_asked() if self.is_learned else {**self.as_asked(), "weight": 0}

    def as_asked(self) -> dict[str, Any]:
        """As a server takes it."""
        return self._dict([call.as_dict() for call in self.tool_calls])

    def as_turn(self) -> dict[str, Any]:
        """As a chat template takes it."""
        return self._dict([call.as_turn() for call in self.tool_calls])

    def _dict(self, calls: list[dict[str, Any]]) -> dict[str, Any]:
        more = {
            "reasoning_content": self.reasoning,
            "tool_calls": calls,
            "tool_call_id": self.tool_call_id,
            "name": self.name,
        }
        return {"role": self.role, "content": self.content, **{key: value for key, value in more.items() if value}}


def with_calls(message: Message) -> str:
    """A message as one text, its calls as Hermes and Qwen write them: what a store of texts keeps of it.

    >>> with_calls(Message("assistant", "Wait.", (ToolCall("now", "{}"),)))
    'Wait.\\n<tool_call>\\n{"name": "now", "arguments": {}}\\n</tool_call>'
    """
    names = (json.dumps(call.name, ensure_ascii=False) for call in message.tool_calls)
    calls = [
        f'<tool_call>\n{{"name": {name}, "arguments": {call.arguments}}}\n</tool_call>'
        for name, call in zip(names, message.tool_calls, strict=True)
    ]
    return "\n".join([*([message.content] if message.content or not calls else []), *calls])


def messages_of(where: str, row: Mapping[str, Any]) -> tuple[Message, ...]:
    """The messages of a row, or InvalidInput that says where and what."""
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        raise InvalidInput(
            f"{where}: a row needs messages", 'Write {"messages": [{"role": "user", "content": "..."}]}.'
        )
    return tuple(_message(where, message) for message in messages)


def _message(where: str, message: Any) -> Message:
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        raise InvalidInput(f"{where}: a message needs a role", f"Roles are {', '.join(ROLES)}.")
    if len(message) == 2 and isinstance(message.get("content"), str):  # nearly all are
        return Message(message["role"], message["content"])
    for key in sorted(set(message) - set(MESSAGE_KEYS)):
        if message[key] not in EMPTY:
            raise InvalidInput(f"{where}: unknown key '{key}' in a message", f"It has {', '.join(MESSAGE_KEYS)}.")
    calls = _calls(where, message.get("tool_calls"))
    content = message.get("content")
    if calls and content is None:
        content = ""
    if not isinstance(content, str):
        raise InvalidInput(f"{where}: a message needs a content that is text", "Write its content as a string.")
    texts = {key: message.get(key) or "" for key in ("tool_call_id", "name", "reasoning_content")}
    for key, value in texts.items():
        if not isinstance(value, str):
            raise InvalidInput(f"{where}: {key} of a message must be text", "Write it as a string.")
    role = message["role"]
    if role != "assistant" and (calls or texts["reasoning_content"]):
        what = "tool_calls" if calls else "reasoning_content"
        raise InvalidInput(f"{where}: {what} in a message of the {role}", "Only an assistant's message has them.")
    weight = message.get("weight")
    if weight is not None and (role != "assistant" or isinstance(weight, bool) or weight not in (0, 1)):
        raise InvalidInput(f"{where}: the weight of an assistant's message is 0 or 1", "Only such a message has one.")
    names = texts["tool_call_id"], texts["name"], texts["reasoning_content"]
    return Message(role, content, calls, *names, is_learned=weight != 0)


def _calls(where: str, calls: Any) -> tuple[ToolCall, ...]:
    if calls in EMPTY:
        return ()
    if not isinstance(calls, list):
        raise InvalidInput(f"{where}: tool_calls must be a list", "Write them as OpenAI does.")
    return tuple(_call(where, call) for call in calls)


def _call(where: str, call: Any) -> ToolCall:
    form = 'Write {"id", "type": "function", "function": {"name", "arguments"}}.'
    inner = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str) or not inner["name"]:
        raise InvalidInput(f"{where}: a tool call needs a function with a name", form)
    identity = call.get("id") or ""
    if not isinstance(identity, str) or call.get("type", "function") != "function":
        raise InvalidInput(f"{where}: a tool call is of the type function, and its id is text", form)
    known = {"id", "type", *(("function",) if inner is not call else ("name", "arguments"))}
    unknown = sorted((set(call) - known) | (set(inner) - {"name", "arguments", *(known if inner is call else ())}))
    if unknown:
        raise InvalidInput(f"{where}: unknown key '{unknown[0]}' in a tool call", form)
    return ToolCall(inner["name"], _arguments(where, inner.get("arguments", {})), identity)


def _arguments(where: str, arguments: Any) -> str:
    """The arguments of a call as JSON text; an object, as Hugging Face's rows have it, is written as text."""
    if isinstance(arguments, dict):
        return json.dumps(arguments, ensure_ascii=False)
    try:
        value = json.loads(arguments, parse_constant=_no_json) if isinstance(arguments, str) else None
        json.dumps(value, ensure_ascii=False).encode()  # an escaped half of a surrogate pair is no text
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise InvalidInput(f"{where}: arguments of a tool call must be a JSON object", "Write it as text or object.")
    return str(arguments)


def _no_json(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def tools_of(where: str, tools: Any) -> tuple[Tool, ...]:
    """Tools in OpenAI's form, or InvalidInput that says where and what.

    >>> tools_of("row 1", [{"type": "function", "function": {"name": "light"}}])[0]["function"]["name"]
    'light'
    """
    form = 'Write [{"type": "function", "function": {"name", "description", "parameters"}}].'
    if tools is None:
        return ()
    if not isinstance(tools, list):
        raise InvalidInput(f"{where}: tools must be a list", form)
    for tool in tools:
        inner = tool.get("function") if isinstance(tool, dict) and tool.get("type") == "function" else None
        if not isinstance(inner, dict) or not isinstance(inner.get("name"), str) or not inner["name"]:
            raise InvalidInput(f"{where}: a tool needs a function with a name", form)
        if not isinstance(inner.get("parameters", {}), dict):
            raise InvalidInput(f"{where}: parameters of tool '{inner['name']}' must be a JSON Schema", form)
    return _distinct(where, tools)


def _distinct(where: str, tools: Sequence[Tool]) -> tuple[Tool, ...]:
    names = [tool["function"]["name"] for tool in tools]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InvalidInput(f"{where}: two tools are called '{twice}'", "Give each a name of its own.")
    return tuple(tools)
