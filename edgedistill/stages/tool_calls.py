"""Calls of tools in an answer's text: read in the form of each family of models, checked, and scored."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ..chat import json_instance
from ..errors import InvalidInput
from ..records import Message, Tool, ToolCall
from ..schema import schema_validator

__all__ = ["FORMS", "Said", "checks_of", "fault", "message_of", "paired", "said"]

Call = tuple[str, Any]

# family -> the parts of a text that hold calls in JSON: one object, a list, or several objects behind each other
FORMS = {
    "hermes": re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL),  # Qwen, Hermes
    "mistral": re.compile(r"\[TOOL_CALLS\](.*)", re.DOTALL),
    "llama3": re.compile(r"<\|python_tag\|>(.*?)(?:<\|eom_id\|>|<\|eot_id\|>|\Z)", re.DOTALL),
}
FENCE = re.compile(r"```(?:json)?\s*(.*?)```[ \t]*(?:\n|\Z)", re.DOTALL)  # as Qwen2.5-Coder writes them
MOST_PAIRED = 10  # calls of one answer, of which every pairing is tried


@dataclass(frozen=True)
class Said:
    """An answer taken apart."""

    text: str
    """What stands beside the calls."""
    calls: tuple[Call, ...] = ()
    """Name and arguments of each."""
    is_broken: bool = False
    """Whether something that begins like a call is none."""


def said(answer: str) -> Said:
    """The calls in an answer, in any of the forms; JSON that is plain or fenced, where it has a name and arguments.

    >>> said('On it. <tool_call>{"name": "light", "arguments": {"on": true}}</tool_call>').calls
    (('light', {'on': True}),)
    >>> said('[TOOL_CALLS] [{"name": "a", "arguments": {}}, {"name": "b", "arguments": {}}]').calls
    (('a', {}), ('b', {}))
    >>> said('{"name": "now", "parameters": {}}').calls, said("It is ten.").calls
    ((('now', {}),), ())
    >>> said("<tool_call>light on</tool_call>").is_broken
    True
    """
    for form in FORMS.values():
        found = form.findall(answer)
        if found:
            read = [calls_in(part, is_marked=True) for part in found]
            calls = tuple(call for calls in read for call in calls or ())
            return Said(form.sub("", answer).strip(), calls, any(not calls for calls in read))
    fenced = [calls_in(part) for part in FENCE.findall(answer)]
    if fenced and all(fenced):
        return Said(FENCE.sub("", answer).strip(), tuple(call for calls in fenced for call in calls or ()))
    calls = tuple(calls_in(answer) or ())
    return Said("", calls) if calls else Said(answer)


def calls_in(text: str, is_marked: bool = False) -> list[Call] | None:
    """The calls that a JSON text holds, and nothing else; None where it holds anything else.

    Where a mark says that it is a call, one without arguments is one too.
    """
    values = list(_values(text))
    flat = [inner for value in values for inner in (value if isinstance(value, list) else [value])]
    found = [_call(value, is_marked) for value in flat]
    return None if not found or None in found else [call for call in found if call is not None]


def _values(text: str) -> Iterator[Any]:
    """JSON values behind each other, with white space, commas or semicolons between them; None for what is none."""
    decoder, place = json.JSONDecoder(), 0
    while place < len(text):
        if text[place] in " \t\r\n;,":
            place += 1
            continue
        try:
            _, end = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            yield None
            return
        yield json_instance(text[place:end])
        place = end


def _call(value: Any, is_marked: bool) -> Call | None:
    inner = value.get("function", value) if isinstance(value, dict) else None
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
        return None
    arguments = inner.get("arguments", inner.get("parameters", {} if is_marked else None))
    arguments = json_instance(arguments) if isinstance(arguments, str) else arguments
    return (inner["name"], arguments) if isinstance(arguments, dict) else None


def message_of(answer: str, tools: Sequence[Tool]) -> Message:
    """An answer as a message; where tools are on offer, its calls are taken out of the text.

    >>> message_of('{"name": "now", "arguments": {}}', [{"function": {"name": "now"}}]).tool_calls[0].name
    'now'
    """
    found = said(answer) if tools else Said(answer)
    calls = tuple(ToolCall(name, json.dumps(arguments, ensure_ascii=False)) for name, arguments in found.calls)
    return Message("assistant", found.text if calls else answer, calls)


def fault(answer: str, tools: Sequence[Tool]) -> tuple[str, str] | None:
    """The reason for which the calls of an answer are rejected, and what is wrong in a few words; or None.

    >>> schema = {"type": "object", "required": ["on"]}
    >>> light = {"type": "function", "function": {"name": "light", "parameters": schema}}
    >>> fault('{"name": "light", "arguments": {"on": true}}', [light]), fault("No tool does that.", [light])
    (None, None)
    >>> fault('{"name": "door", "arguments": {}}', [light])
    ('unknown tool', 'door is not on offer')
    >>> fault('{"name": "light", "arguments": {}}', [light])
    ('invalid call', 'the parameters of light do not allow it')
    """
    found = said(answer)
    if found.is_broken:
        return "invalid call", "it begins like a call and is none"
    checks = checks_of(json.dumps(list(tools), sort_keys=True))
    for name, arguments in found.calls:
        if name not in checks:
            return "unknown tool", f"{name[:60]} is not on offer"
        if not checks[name](arguments):
            return "invalid call", f"the parameters of {name} do not allow it"
    return None


@lru_cache(maxsize=64)
def checks_of(tools: str) -> dict[str, Callable[[Any], bool]]:
    """By the name of each tool, whether arguments are of its schema; `tools` is a list of them in JSON.

    Raises InvalidInput where a schema is none.
    """
    found = {}
    for tool in json.loads(tools):
        inner = tool["function"]
        try:
            found[inner["name"]] = schema_validator(inner.get("parameters") or {}) or bool
        except InvalidInput as error:
            raise InvalidInput(f"tool '{inner['name']}': {error.message}", "Mend its parameters.") from error
    return found


def paired(scores: Sequence[Sequence[float]]) -> float:
    """The largest sum of entries of which no two share a row or a column: calls in whatever order they come.

    Of more than ten calls the best pair is taken first, then the next.

    >>> paired([[0.5, 1.0], [1.0, 1.0]])
    2.0
    """
    rows = [list(row) for row in scores]
    if not rows or not rows[0]:
        return 0.0
    if len(rows[0]) > len(rows):
        rows = [list(column) for column in zip(*rows, strict=True)]
    if len(rows[0]) > MOST_PAIRED:
        return _greedily(rows)
    best = {0: 0.0}  # columns taken, as bits -> the largest sum of the rows so far
    for row in rows:
        after = dict(best)
        for taken, total in best.items():
            for column, value in enumerate(row):
                if not taken >> column & 1:
                    now = taken | 1 << column
                    after[now] = max(after.get(now, 0.0), total + value)
        best = after
    return max(best.values())


def _greedily(rows: Sequence[Sequence[float]]) -> float:
    pairs = sorted(((value, r, c) for r, row in enumerate(rows) for c, value in enumerate(row)), reverse=True)
    total, used_rows, used_columns = 0.0, set[int](), set[int]()
    for value, r, c in pairs:
        if r not in used_rows and c not in used_columns:
            total += value
            used_rows.add(r)
            used_columns.add(c)
    return total
