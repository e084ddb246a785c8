"""What a server takes, found out by asking: the servers that speak this API differ, and some ignore what they read."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from ..errors import InvalidInput
from ..recipe import TeachSettings
from ..records import Message, Tool
from ..run import write_whole
from .reply import Answer, Failure

__all__ = ["FORMATS", "GREETING_TOKENS", "Capabilities", "Question", "greeting", "learn", "recalled", "remember"]

Schema = dict[str, Any]
Ask = Callable[[dict[str, Any]], Awaitable[Answer | Failure]]

# how an answer is held to a schema, the best first; None leaves it to the words of the prompt
FORMATS: Mapping[str, Callable[[Schema], Schema] | None] = {
    "json_schema": lambda schema: {
        "type": "json_schema",
        "json_schema": {"name": "answer", "strict": True, "schema": schema},
    },
    "json_object with schema": lambda schema: {"type": "json_object", "schema": schema},
    "json_object": lambda schema: {"type": "json_object"},
    "prompt": None,
}
SHOWN = ("json_object", "prompt")  # those in which the prompt must say the schema
WORDS = "Answer with JSON only, without any other text. It must match this JSON Schema:\n"

# an answer that nobody gives who is not held to it
UNLIKELY: Schema = {
    "type": "object",
    "properties": {"color": {"type": "string", "enum": ["zq7-violet"]}},
    "required": ["color"],
    "additionalProperties": False,
}
GREETING = (Message("user", "Say hello."),)
GREETING_JSON = (Message("user", "Say hello in JSON."),)  # some want the word for json_object
GREETING_TOKENS = 16
FORMAT_TOKENS = 256


@dataclass(frozen=True)
class Question:
    """What is asked, in our words."""

    messages: tuple[Message, ...]
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0
    tools: tuple[Tool, ...] = ()

    @classmethod
    def of(cls, messages: tuple[Message, ...], settings: TeachSettings, seed: int) -> Question:
        """A question with the parameters of these settings."""
        return cls(
            messages,
            settings.max_tokens,
            settings.temperature,
            settings.top_p,
            settings.top_k,
            settings.min_p,
            seed,
        )


@dataclass(frozen=True)
class Capabilities:
    """What a server takes."""

    limit: str = "max_tokens"
    """By which name it knows max_tokens."""
    seed: bool = True
    top_k: bool = True
    min_p: bool = True
    format: str = "prompt"
    """One of FORMATS."""

    def body(self, model: str, question: Question, schema: Schema | None) -> dict[str, Any]:
        """A request in the server's words."""
        messages = question.messages
        if schema is not None and self.format in SHOWN:
            messages = _with_schema(messages, schema)
        body: dict[str, Any] = {
            "model": model,
            "messages": [message.as_asked() for message in messages],
            self.limit: question.max_tokens,
            "temperature": question.temperature,
        }
        if question.top_p < 1:
            body["top_p"] = question.top_p
        for name in ("seed", "top_k", "min_p"):
            if getattr(self, name) and (getattr(question, name) or name == "seed"):
                body[name] = getattr(question, name)
        if question.tools:
            body["tools"] = list(question.tools)
        form = FORMATS[self.format]
        if schema is not None and form is not None:
            body["response_format"] = form(schema)
        return body


async def learn(ask: Ask, model: str, settings: TeachSettings, schema: Schema | None) -> Capabilities:
    """What a server takes of these settings and this schema.

    Raises InvalidInput with the server's words where it refuses what cannot be left out.
    """
    found = await _parameters(ask, model, settings)
    if schema is None:
        return found
    for name in FORMATS:
        candidate = replace(found, format=name)
        if FORMATS[name] is None or await _holds(ask, model, candidate, (settings, schema)):
            return candidate
    return found


def greeting(settings: TeachSettings) -> Question:
    """A small question with the parameters of these settings."""
    return replace(Question.of(GREETING, settings, 1), max_tokens=GREETING_TOKENS)


async def _parameters(ask: Ask, model: str, settings: TeachSettings) -> Capabilities:
    whole = greeting(settings)
    if await _refusal(ask, Capabilities().body(model, whole, None)) is None:
        return Capabilities()
    sampled = Capabilities().body(model, whole, None)
    plain = {name: sampled[name] for name in ("model", "messages")}
    for limit in ("max_tokens", "max_completion_tokens"):
        body = {**plain, limit: GREETING_TOKENS}
        refusal = await _refusal(ask, body)
        if refusal is None:
            break
    else:
        raise InvalidInput(f"the server refuses a plain question: {refusal}", "Check teacher.url and teacher.model.")
    for name in ("temperature", "top_p"):
        refusal = await _refusal(ask, {**body, name: sampled[name]}) if name in sampled else None
        if refusal is not None:
            raise InvalidInput(
                f"the server refuses teach.{name} = {sampled[name]:g}: {refusal}", "Set one that this model takes."
            )
    taken = {}
    for name in ("seed", "top_k", "min_p"):
        taken[name] = name not in sampled or await _refusal(ask, {**body, name: sampled[name]}) is None
    return Capabilities(limit, taken["seed"], taken["top_k"], taken["min_p"])


async def _holds(ask: Ask, model: str, candidate: Capabilities, task: tuple[TeachSettings, Schema]) -> bool:
    """Whether a server holds its answers to a format, and takes this schema in it."""
    settings, schema = task
    question = replace(greeting(settings), messages=GREETING_JSON, max_tokens=FORMAT_TOKENS)
    if candidate.format == "json_object":
        answer = await ask(candidate.body(model, question, schema))
        return isinstance(answer, Answer) and isinstance(_value(answer.text), dict)
    answer = await ask(candidate.body(model, question, UNLIKELY))
    if not isinstance(answer, Answer) or _value(answer.text) != {"color": "zq7-violet"}:
        return False
    short = replace(question, max_tokens=GREETING_TOKENS)
    return isinstance(await ask(candidate.body(model, short, schema)), Answer)


async def _refusal(ask: Ask, body: dict[str, Any]) -> str | None:
    answer = await ask(body)
    return answer.reason if isinstance(answer, Failure) else None


def recalled(path: Path) -> Capabilities | None:
    """What was found out before, or None."""
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
        found = Capabilities(**row)
    except (OSError, ValueError, TypeError):
        return None
    kinds = all(type(getattr(found, field.name)) is type(field.default) for field in fields(Capabilities))
    known = kinds and found.format in FORMATS and found.limit in ("max_tokens", "max_completion_tokens")
    return found if known else None


def remember(path: Path, found: Capabilities) -> None:
    """Keep what was found out."""
    write_whole(path, json.dumps(asdict(found), indent=1).encode())


def _with_schema(messages: tuple[Message, ...], schema: Schema) -> tuple[Message, ...]:
    """Messages whose system text ends with the schema."""
    words = WORDS + json.dumps(schema, ensure_ascii=False, separators=(",", ":"))
    if messages and messages[0].role == "system":
        text = f"{messages[0].content}\n\n{words}" if messages[0].content else words
        return (Message("system", text), *messages[1:])
    return (Message("system", words), *messages)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
