"""A packaged model as a device reads it: its golden prompts with their answers, its schema, its limits, its state."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InvalidInput
from ..llamacpp.call_grammar import calls_rule
from ..llamacpp.prefix import PrefixCache
from ..llamacpp.runtime import Runtime, RuntimeSettings
from ..records import Message, Tool, messages_of, tools_of
from ..run import cores, file_sha256

__all__ = ["GOLDEN", "SCHEMA", "TOOLS", "Golden", "answers_of", "read_golden", "saved_states", "weights_of"]

GOLDEN, SCHEMA, TOOLS = "golden.json", "schema.json", "tools.json"
LONGEST_ANSWER = 1 << 16


@dataclass(frozen=True)
class Golden:
    """Conversations that all begin with the same system message, how they are answered, and the answers."""

    conversations: tuple[tuple[Message, ...], ...]
    schema: dict[str, Any] | None
    """Or the rule for calls."""
    max_tokens: int
    answers: tuple[str, ...] = ()
    tools: tuple[Tool, ...] = ()
    """What the model is shown to be on offer."""

    @property
    def preamble(self) -> tuple[Message, ...]:
        """The system message."""
        return self.conversations[0][:1]


def read_golden(folder: Path) -> Golden:
    """The golden prompts of a package.

    Raises InvalidInput where the file is not of the form.
    """
    path = folder / GOLDEN
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        schema = json.loads((folder / SCHEMA).read_text(encoding="utf-8")) if data["schema"] else None
        calls = data.get("tools") or {}
        text = (folder / TOOLS).read_text(encoding="utf-8") if calls else "null"
        tools = tools_of(str(folder / TOOLS), json.loads(text))
        rows, max_tokens = data["prompts"], data["max_tokens"]
        answers = tuple(str(row["answer"]) for row in rows)
        conversations = tuple(messages_of(str(path), row) for row in rows)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise InvalidInput(f"{path}: not golden prompts ({error!r})", "Fetch the package again.") from error
    if not rows or type(max_tokens) is not int or not 1 <= max_tokens <= LONGEST_ANSWER:
        raise InvalidInput(f"{path}: no prompts, or max_tokens is {max_tokens!r}", "Fetch the package again.")
    schema = calls_rule(tools) if calls.get("held") else schema
    return Golden(conversations, schema, max_tokens, answers, tools if calls.get("shown") else ())


def weights_of(folder: Path) -> Path:
    """The one GGUF file of a package.

    Raises InvalidInput for a folder that is no package.
    """
    weights = sorted(folder.glob("*.gguf"))
    if len(weights) != 1 or not (folder / GOLDEN).is_file():
        raise InvalidInput(f"{folder}: not one .gguf file and {GOLDEN}", "Name a folder that edgedistill has packaged.")
    return weights[0]


def saved_states(folder: Path, model: Path) -> Callable[[], Sequence[PrefixCache]] | None:
    """The state of the system text that a package brings, for `RuntimeSettings.prefixes`; None where it brings none."""
    if not any(folder.glob("prefix-*.kv")):
        return None
    return lambda: [PrefixCache(folder, file_sha256(model), writes=False)]


def answers_of(
    path: Path, golden: Golden, prefixes: Callable[[], Sequence[PrefixCache]] | None = None
) -> tuple[list[str], bool]:
    """The model's greedy answer to each conversation, token by token; and whether a saved state was read for them."""
    settings = RuntimeSettings(cores(), prefixes=prefixes)
    with Runtime(path, golden.preamble, golden.schema, settings, golden.tools) as runtime:
        texts = [runtime.answer(turns[1:], golden.max_tokens, jump=False).text for turns in golden.conversations]
        return texts, runtime.restored
