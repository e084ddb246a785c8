"""How a record is read as a conversation: one literal table of formats, and which of them a record looks like."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import InvalidInput
from .containers import container_of, records
from .conversation import ROLES, Conversation, conversation, json_of, tools_of, turn

__all__ = ["FORMATS", "Columns", "Source", "recognised"]

LOOKED_AT = 20  # records by which a format is recognised
DEEPEST = 3  # objects inside each other in which a log keeps a request
PROMPT_COLUMNS = ("prompt", "question", "query", "instruction", "input", "request", "text", "message", "content")
ANSWER_COLUMNS = ("answer", "response", "output", "completion", "label")
REQUEST_KEYS = ("body", "request", "request_body", "proxy_server_request", "reqPayload", "payload", "kwargs", "data")
RESPONSE_KEYS = ("response", "respPayload", "response_body", "output")
SERVER_LINE = re.compile(r"\brequest:\s*(\{.*)", re.DOTALL)  # llama-server's, with --verbose
OWN_KEYS = {"expected", "tags", "must_pass", "_ed"}


@dataclass(frozen=True)
class Columns:
    """Which column is what; without a prompt's, the usual names are looked for."""

    prompt: str | None = None
    answer: str | None = None
    system: str | None = None
    tags: tuple[str, ...] = ()


USUAL = Columns()


@dataclass(frozen=True)
class Source:
    """A file or a folder, how it is kept and what its records are; `recognised` finds both out."""

    path: Path
    container: str
    format: str
    columns: Columns = USUAL


def openai(row: Mapping[str, Any], columns: Columns) -> Conversation:
    """A row for OpenAI's fine-tuning, or any other with its messages."""
    messages = json_of(row.get("messages"), "messages")
    if not isinstance(messages, list) or not messages:
        raise InvalidInput("no messages")
    turns = [turn(one) for one in messages]
    return conversation(turns, tools_of(row.get("tools") or row.get("functions")), tags=_tags(row, columns))


def sharegpt(row: Mapping[str, Any], columns: Columns) -> Conversation:
    """ShareGPT's turns, with LLaMA-Factory's calls, observations, tools and system text."""
    turns = json_of(row.get("conversations", row.get("conversation")), "conversations")
    if not isinstance(turns, list) or not turns:
        raise InvalidInput("no conversations")
    system = _text(row, "system")
    return conversation([turn(one) for one in turns], tools_of(row.get("tools")), system, _tags(row, columns))


def alpaca(row: Mapping[str, Any], columns: Columns) -> Conversation:
    """An instruction with its input and output, and LLaMA-Factory's system text and history."""
    history = json_of(row.get("history") or [], "history")
    turns = []
    for pair in history if isinstance(history, list) else [None]:
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise InvalidInput("history must be pairs of texts")
        turns += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    asked = "\n\n".join(text for text in (_text(row, "instruction"), _text(row, "input")) if text)
    if not asked:
        raise InvalidInput("neither instruction nor input")
    turns.append(turn({"role": "user", "content": asked}))
    return conversation(_answered(turns, row, "output"), (), _text(row, "system"), _tags(row, columns))


def plain_columns(row: Mapping[str, Any], columns: Columns) -> Conversation:
    """A column that holds the prompt, and others beside it."""
    name = columns.prompt or _usual(row, PROMPT_COLUMNS)
    if name is None or row.get(name) is None:
        wanted = f"column '{name}'" if name else "column with a prompt"
        raise InvalidInput(f"no {wanted}; there are {', '.join(map(str, row))}")
    asked = _text(row, name)
    if not asked.strip():
        raise InvalidInput(f"nothing in column '{name}'")
    answer = columns.answer or _usual(row, ANSWER_COLUMNS)
    turns = _answered([turn({"role": "user", "content": asked})], row, answer)
    return conversation(turns, (), _text(row, columns.system or "system"), _tags(row, columns))


def log(row: Mapping[str, Any] | str, columns: Columns) -> Conversation | None:
    """A request of a server's log: an OpenAI request's body, wherever in the record it is; None where there is none."""
    value: Any = row
    if isinstance(row, str):
        found = SERVER_LINE.search(row)
        text = found[1] if found else row
        if not text.startswith("{"):
            return None
        value = json_of(text, "a request")
    body = _body(value, 0)
    if body is None:
        return None
    given = body.get("messages", body.get("input", body.get("prompt")))
    if isinstance(given, list) and len(given) == 1 and isinstance(given[0], str):  # of completions, a list of one
        given = given[0]
    messages = [{"role": "user", "content": given}] if isinstance(given, str) else given
    turns = [turn(one) for one in messages]
    system = _text(body, "instructions")
    return conversation([*turns, *_response(value)], tools_of(body.get("tools") or body.get("functions")), system)


def _body(value: Any, depth: int) -> Mapping[str, Any] | None:
    """The first object in a record that asks for an answer, as an object or as JSON in a text."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    if not isinstance(value, Mapping):
        return None
    if isinstance(value.get("messages"), list) and value["messages"]:
        return value
    if isinstance(value.get("prompt"), (str, list)) or isinstance(value.get("input"), (str, list)):
        return value
    inner = (_body(value[key], depth + 1) for key in REQUEST_KEYS if key in value and depth < DEEPEST)
    return next((found for found in inner if found is not None), None)


def _response(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The answer that a log keeps beside the request, where it is a chat completion's."""
    for key in RESPONSE_KEYS:
        try:
            value = json_of(row.get(key), key)
        except InvalidInput:
            continue
        value = value.get("body", value) if isinstance(value, Mapping) else None
        choices = value.get("choices") if isinstance(value, Mapping) else None
        if isinstance(choices, list) and choices and isinstance(choices[0], Mapping):
            message = choices[0].get("message")
            return [turn(message)] if isinstance(message, Mapping) else []
    return []


def text(row: Any, columns: Columns) -> Conversation:
    """A text as a whole."""
    if not isinstance(row, str):
        raise InvalidInput("a record that is no text")
    return conversation([turn({"role": "user", "content": row})])


Reads = Callable[[Any, Columns], Conversation | None]
FORMATS: dict[str, Reads] = {
    "openai": openai,
    "sharegpt": sharegpt,
    "alpaca": alpaca,
    "columns": plain_columns,
    "log": log,
    "text": text,
}
"""By name; `rows`, our own, is read by `records`."""


def recognised(path: Path, name: str | None = None, columns: Columns = USUAL) -> Source:
    """The source with its container and format, as its first records show them; `name` decides the format instead.

    Raises InvalidInput where no format fits.
    """
    container = container_of(path)
    if name == "log" and container in ("lines", "csv", "tsv", "csv;"):
        container = "lines"  # a server's own lines stand among the requests
    if name == "text" and container not in ("folder", "lines"):
        container = "lines"
    if name is not None:
        return Source(path, container, name, columns)
    if columns.prompt is not None:
        return Source(path, container, "columns", columns)
    first = [one.value for one in islice(records(path, container), LOOKED_AT) if not one.problem]
    found = next((kind for kind in map(_kind, first) if kind is not None), None)
    if found is None and (container == "jsonl" or not first):
        found = "rows"  # which is refused with what is wrong with it
    if found is None:
        head = ", ".join(map(str, first[0]))
        raise InvalidInput(
            f"{path}: not known which column is the prompt; there are {head}",
            'Name it: columns = {prompt = "..."} in [prompts], or --prompt-column.',
        )
    return Source(path, container if found != "rows" else "jsonl", found, columns)


def _kind(row: Any) -> str | None:
    if isinstance(row, str):
        return "log" if SERVER_LINE.search(row) else "text"
    if isinstance(row.get("messages"), list) and "model" not in row:
        return "openai" if _is_answered(row["messages"]) and not set(row) & OWN_KEYS else "rows"
    if isinstance(row.get("messages"), str) and row["messages"].lstrip().startswith("["):
        return "openai"
    if "conversations" in row or isinstance(row.get("conversation"), list):
        return "sharegpt"
    if "instruction" in row and ("output" in row or "input" in row):
        return "alpaca"
    if isinstance(row.get("messages"), list) or any(_body(row[key], 1) for key in REQUEST_KEYS if key in row):
        return "log"
    return "columns" if _usual(row, PROMPT_COLUMNS) else None


def _is_answered(messages: list[Any]) -> bool:
    """Whether the last message is an answer, or a content has parts: no row of our own is like that."""
    roles = [one.get("role") for one in messages if isinstance(one, dict)]
    has_parts = any(isinstance(one, dict) and isinstance(one.get("content"), list) for one in messages)
    return has_parts or ROLES.get(str(roles[-1]) if roles else "", "user") != "user"


def _usual(row: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    """The column of a usual name, whatever its case."""
    known = {str(key).strip().lower(): key for key in row}
    return next((known[name] for name in names if name in known), None)


def _text(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if value is None:
        return ""
    if isinstance(value, (dict, list)):
        raise InvalidInput(f"'{key}' is no text")
    return str(turn({"role": "user", "content": str(value)})["content"])


def _answered(turns: list[dict[str, Any]], row: Mapping[str, Any], key: str | None) -> list[dict[str, Any]]:
    """The turns with the record's own answer behind them, where it has one."""
    if key is None or row.get(key) in (None, ""):
        return turns
    value = row[key]
    said = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return [*turns, turn({"role": "assistant", "content": said})]


def _tags(row: Mapping[str, Any], columns: Columns) -> list[str]:
    """Tags that the row has of itself, and texts of the columns that are tags."""
    own = row.get("tags")
    tags = [tag for tag in own if isinstance(tag, str)] if isinstance(own, list) else []
    return tags + [str(row[key]) for key in columns.tags if row.get(key) not in (None, "")]
