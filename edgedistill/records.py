"""What passes between the stages: plain frozen values, and JSON lines in and out.

A row on disk is the field's chat row: `{"messages": [{"role", "content"}], "tools": [...]}`. Our own fields are either
the documented `expected`, `tags`, `must_pass`, `goal` and `persona`, or stand under the one key `_ed`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import InvalidInput
from .messages import Message, Tool, ToolCall, messages_of, tools_of

__all__ = [
    "DONE",
    "FILE_TYPES",
    "TURN_LIMIT",
    "Completion",
    "Example",
    "Message",
    "Place",
    "Prompt",
    "Tool",
    "ToolCall",
    "Wanted",
    "chat_row",
    "common_length",
    "digest",
    "iter_prompts",
    "json_lines",
    "longest_prompt",
    "messages_of",
    "placed_lines",
    "placed_prompts",
    "prompt_id",
    "prompt_of",
    "prompt_seed",
    "read_json",
    "read_prompts",
    "read_rows",
    "sample_of",
    "tools_of",
    "user_prompt",
]

# name -> llama.h's LLAMA_FTYPE number, which a GGUF keeps as general.file_type
FILE_TYPES = {
    "F32": 0,
    "F16": 1,
    "Q4_0": 2,
    "Q4_1": 3,
    "Q8_0": 7,
    "Q5_0": 8,
    "Q5_1": 9,
    "Q2_K": 10,
    "Q3_K_S": 11,
    "Q3_K_M": 12,
    "Q3_K_L": 13,
    "Q4_K_S": 14,
    "Q4_K_M": 15,
    "Q5_K_S": 16,
    "Q5_K_M": 17,
    "Q6_K": 18,
    "IQ2_XXS": 19,
    "IQ2_XS": 20,
    "Q2_K_S": 21,
    "IQ3_XS": 22,
    "IQ3_XXS": 23,
    "IQ1_S": 24,
    "IQ4_NL": 25,
    "IQ3_S": 26,
    "IQ3_M": 27,
    "IQ2_S": 28,
    "IQ2_M": 29,
    "IQ4_XS": 30,
    "IQ1_M": 31,
    "BF16": 32,
    "TQ1_0": 36,
    "TQ2_0": 37,
    "MXFP4_MOE": 38,
    "Q1_0": 40,
    "Q2_0": 41,
}
ROW_KEYS = {"messages", "expected", "tags", "must_pass", "tools", "goal", "persona", "_ed"}
DONE, TURN_LIMIT = "done", "turn limit"  # how a simulated user leaves that has what it wants; or may ask no more
FRAME = len('{"messages":[{"role":"user","content":""}]}')  # a row has at least these bytes besides its text
CANONICAL = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is asked: the user's turns, without any teacher's or student's system text."""

    id: str
    messages: tuple[Message, ...]
    expected: Any = None
    tags: tuple[str, ...] = ()
    must_pass: bool = False
    lineage: Any = field(default=None, compare=False)
    """Where it is from: what its row has under `_ed`."""
    tools: tuple[Tool, ...] = ()
    """On offer in this conversation."""
    goal: str = ""
    """What the user wants of it, where a simulated user goes on with it; "" where it ends with the answer."""
    persona: str = ""
    """Who that user is."""

    @property
    def text(self) -> str:
        """The words of all turns, for comparing prompts with each other."""
        return "\n".join(message.content for message in self.messages)


Wanted = Callable[[Prompt], Sequence[int]]
"""The numbers of those samples of the answers to a prompt that are wanted, rising."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer of a model to one prompt.

    `finish_reason` is "stop" (the model ended its answer), "length" (cut off at the limit); `seconds` is the time from
    the request's admission to its last token, while other requests ran beside it. `sample` counts the answers to one
    prompt. `targets` is the distribution at each token, as `targets.encode` writes it. `answers` is, where the schema
    allows a finite set, the probability of each answer, which sum to 1; `text` is then the most probable one.
    """

    prompt_id: str
    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    sample: int = 0
    targets: bytes | None = None
    answers: dict[str, float] | None = None
    steps: tuple[Message, ...] = ()
    """What was said between the prompt and this answer: calls of tools and their results, and where a simulated user
    goes on with the conversation, its turns and the answers to them; a store keeps them by themselves."""
    ended: str = ""
    """How such a user left: `DONE`, `TURN_LIMIT`, or what it did instead; "" without one."""


@dataclass(frozen=True, slots=True)
class Example:
    """One row of the training set: messages that end with the assistant's answer."""

    id: str
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()

    def as_row(self) -> dict[str, Any]:
        return {**chat_row(self.messages, self.tools), "_ed": {"id": self.id}}


@dataclass(frozen=True, slots=True)
class Place:
    """Where one is in a file of lines: bytes and lines that lie before."""

    offset: int = 0
    line: int = 0


def digest(*parts: Any) -> str:
    """A sha256, in hex, of JSON-able values.

    >>> digest("a", 1)[:8]
    '135f17a4'
    """
    return hashlib.sha256(CANONICAL.encode(parts).encode()).hexdigest()


def common_length(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many items two sequences begin with alike.

    >>> common_length("user a", "user b")
    5
    """
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (mine, theirs) in pairs if mine != theirs), min(len(one), len(other)))


def json_lines(rows: Iterable[dict[str, Any]]) -> bytes:
    """Rows as UTF-8 JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def placed_lines(path: Path, start: Place = Place()) -> Iterator[tuple[Place, bytes]]:
    """Each line of a file with the place behind it, from `start` on, read as it is needed.

    Raises InvalidInput where the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            file.seek(start.offset)
            offset = start.offset
            for number, line in enumerate(file, start=start.line + 1):
                offset += len(line)
                yield Place(offset, number), line
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror}", "Check the path in the recipe.") from error


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and object of each line of a JSONL file; blank lines are skipped.

    Raises InvalidInput with file and line for anything that is not a JSON object in strict UTF-8.
    """
    for place, line in placed_lines(path):
        if line.strip():
            yield place.line, row_of(f"{path}:{place.line}", line)


def row_of(where: str, line: bytes) -> dict[str, Any]:
    """The object of a line, or InvalidInput that says where and what."""
    try:
        row = json.loads(line.decode("utf-8"))
        if b"\\u" in line:
            json.dumps(row, ensure_ascii=False).encode()  # an escaped half of a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{where}: not a line of JSON ({error})", "Mend or remove that line.") from error
    if not isinstance(row, dict):
        raise InvalidInput(f"{where}: a row must be a JSON object", 'Write {"messages": [...]}.')
    return row


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a JSONL file of chat rows.

    Raises InvalidInput with file and line where a row is not of the form.
    """
    return list(iter_prompts(path))


def iter_prompts(path: Path) -> Iterator[Prompt]:
    """The prompts of a JSONL file of chat rows, read as they are needed: there may be very many.

    Raises InvalidInput with file and line where a row is not of the form.
    """
    for _, prompt in placed_prompts(path):
        yield prompt


def placed_prompts(path: Path, start: Place = Place()) -> Iterator[tuple[Place, Prompt]]:
    """As `iter_prompts`, from a place on, each with the place behind it."""
    for place, line in placed_lines(path, start):
        if line.strip():
            yield place, _prompt_of(path, place, line)


def longest_prompt(path: Path) -> Prompt:
    """The first prompt of the longest text; of the other lines, only those are parsed that may hold a longer one.

    Raises InvalidInput with file and line where one of them is not of the form, or where the file has no prompt.
    """
    longest: Prompt | None = None
    size = -1
    for place, line in placed_lines(path):
        if len(line) - FRAME > size and line.strip():
            prompt = _prompt_of(path, place, line)
            if len(prompt.text) > size:
                longest, size = prompt, len(prompt.text)
    if longest is None:
        raise InvalidInput(f"{path}: no prompts", "Write at least one row.")
    return longest


def sample_of(path: Path, count: int) -> list[str]:
    """Texts of some `count` prompts from all over a file; of the other lines nothing but their ends is read."""
    every = max(1, sum(1 for _ in placed_lines(path)) // count)
    lines = enumerate(placed_lines(path))
    return [_prompt_of(path, *one).text for number, one in lines if number % every == 0 and one[1].strip()]


def _prompt_of(path: Path, place: Place, line: bytes) -> Prompt:
    where = f"{path}:{place.line}"
    return prompt_of(where, row_of(where, line))


def prompt_of(where: str, row: dict[str, Any]) -> Prompt:
    """The prompt of a row, or InvalidInput that says where and what."""
    unknown = sorted(set(row) - ROW_KEYS)
    if unknown:
        raise InvalidInput(f"{where}: unknown key '{unknown[0]}'", f"A row has {', '.join(sorted(ROW_KEYS))}.")
    messages = messages_of(where, row)
    if messages[-1].role not in ("user", "tool"):
        raise InvalidInput(
            f"{where}: the last message of a prompt must be the user's or a tool's", "Remove the answer."
        )
    tools = tools_of(where, row.get("tools"))
    tags = row.get("tags", [])
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise InvalidInput(f"{where}: tags must be a list of texts", 'Write "tags": ["curt"].')
    if not isinstance(row.get("must_pass", False), bool):
        raise InvalidInput(f"{where}: must_pass must be true or false", 'Write "must_pass": true.')
    player = {key: row.get(key) or "" for key in ("goal", "persona")}
    for key, value in player.items():
        if not isinstance(value, str):
            raise InvalidInput(f"{where}: {key} must be a text", f'Write "{key}": "...".')
    if row.get("must_pass") and row.get("expected") is None and not player["goal"]:
        raise InvalidInput(f"{where}: must_pass without an expected answer", "Write the right answer as expected.")
    return Prompt(
        id=prompt_id(messages, tools),
        messages=messages,
        expected=row.get("expected"),
        tags=tuple(tags),
        must_pass=row.get("must_pass", False),
        lineage=row.get("_ed"),
        tools=tools,
        **player,
    )


def prompt_id(messages: Sequence[Message], tools: Sequence[Tool] = ()) -> str:
    """What a prompt is called: 16 hex digits that its messages decide, and its own tools where it has any."""
    return digest([message.as_dict() for message in messages], *((list(tools),) if tools else ()))[:16]


def user_prompt(text: str, tools: tuple[Tool, ...] = ()) -> Prompt:
    """A prompt of one message of the user.

    >>> user_prompt("Hello").text
    'Hello'
    """
    messages = (Message("user", text),)
    return Prompt(prompt_id(messages, tools), messages, tools=tools)


def chat_row(messages: Sequence[Message], tools: Sequence[Tool] = ()) -> dict[str, Any]:
    """A conversation as a row on disk."""
    row: dict[str, Any] = {"messages": [message.as_dict() for message in messages]}
    return {**row, "tools": list(tools)} if tools else row


def prompt_seed(seed: int, identity: str, sample: int = 0) -> int:
    """A seed of its own for every answer to every prompt, whatever else is asked; below 2**63.

    >>> prompt_seed(0, "0000000a", 1)
    11
    """
    return ((seed ^ int(identity[:8], 16)) + sample) % 2**63


def read_json(path: Path, required: bool = True) -> dict[str, Any]:
    """The JSON object in a file; an empty one where it is not there and not required.

    Raises InvalidInput with the file's name.
    """
    if not required and not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror}", "Use a complete Hugging Face folder.") from error
    except ValueError as error:
        raise InvalidInput(f"{path}: not JSON ({error})", "Fetch the file again.") from error
    if not isinstance(data, dict):
        raise InvalidInput(f"{path}: not a JSON object", "Fetch the file again.")
    return data
