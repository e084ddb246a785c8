"""Answers held to the tools on offer: calls in the form of a model's family, each allowed by its tool, or plain words.

A rule travels where a schema does, as a JSON Schema of one keyword of ours, `x-tool-calls`: the tools. Which form a
model writes is seen in its chat template, so the same rule does for teacher and student.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..chat import PROBE, ChatTemplate
from ..errors import InvalidInput
from ..records import Message, Tool

__all__ = ["CALLS", "FORMS", "Form", "call_grammar", "calls_rule", "form_of"]

CALLS = "x-tool-calls"
SPACED = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}
# words: not what begins like a call in any form, and no beginning of a call later on
WORDS = r"/[^<{\[`\s](`{0,2}(<+[^t<`]|[^<`]))*`{0,2}/"


@dataclass(frozen=True, slots=True)
class Form:
    """How a family writes its calls."""

    before: str
    """In front of each call ..."""
    after: str
    """... and behind it."""
    arguments: str = "arguments"
    """The key of a call's arguments."""
    between: str | None = "\n"
    """What separates calls; None where a family makes one call at a time."""
    opening: str = ""
    """In front of all calls ..."""
    closing: str = ""
    """... and behind them."""


# family -> its form; `stages.tool_calls.FORMS` reads them
FORMS = {
    "hermes": Form("<tool_call>\n", "\n</tool_call>"),  # Qwen, Hermes; and models whose template knows no calls
    "mistral": Form("", "", between=", ", opening="[TOOL_CALLS] [", closing="]"),
    "llama3": Form("", "", arguments="parameters", between=None),
    "json": Form("", "", between="\n"),
}
SEEN_BY = {"<tool_call>": "hermes", "[TOOL_CALLS]": "mistral", '"parameters"': "llama3"}


def calls_rule(tools: Sequence[Tool]) -> dict[str, Any]:
    """The rule that holds answers to these tools, in place of a schema."""
    return {CALLS: list(tools)}


def form_of(template: ChatTemplate) -> Form:
    """The form in which a model's template writes calls; Hermes' where it writes none, as `ChatTemplate.render` does.

    >>> form_of(ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}")).before
    '<tool_call>\\n'
    """
    written = template.render((Message("user", "Hi"), Message("assistant", "", (PROBE,))), answer_next=False)
    return FORMS[next((name for mark, name in SEEN_BY.items() if mark in written), "json")]


def call_grammar(tools: Sequence[Tool], form: Form, token_of: Callable[[str], int | None]) -> str:
    """A grammar in llguidance's Lark for calls of these tools, in a form or as plain JSON without its marks, or words.

    `token_of` says which single token of the vocabulary a mark is, if it is one. Raises InvalidInput without any tool.
    """
    if not tools:
        raise InvalidInput("no tools to call", "Name at least one in the file of tools.")
    written = [_call(number, tool["function"], form) for number, tool in enumerate(tools)]
    names = " | ".join(f"call_{number}" for number in range(len(tools)))
    one = " ".join([*_text(form.before, token_of), "bare", *_text(form.after, token_of)])
    more = "" if form.between is None else f" ({json.dumps(form.between)} call)*"
    every = " ".join([*_text(form.opening, token_of), f"call{more}", *_text(form.closing, token_of)])
    # some models of a family write the calls without its marks: Qwen2.5-Coder hardly knows the token of its own
    start = 'start: calls | bare ("\\n" bare)* | words' if form.before or form.opening else "start: calls | words"
    rules = [start, f"calls: {every}", f"call: {one}", f"bare: {names}", *written, f"words: {WORDS}"]
    return "\n".join([*rules, ""])


def _call(number: int, function: Mapping[str, Any], form: Form) -> str:
    """The rules of one tool's calls: its name is text, its arguments are of its schema, in the schema's order."""
    name = json.dumps(function["name"], ensure_ascii=False)
    head = json.dumps(f'{{"name": {name}, "{form.arguments}": ')
    schema = {"type": "object", **(function.get("parameters") or {}), "x-guidance": SPACED}
    return f'call_{number}: {head} arguments_{number} "}}"\narguments_{number}: %json {json.dumps(schema)}'


def _text(text: str, token_of: Callable[[str], int | None]) -> list[str]:
    """A text in Lark; a mark that is one token stands as that token, which no text of the grammar matches."""
    mark = text.strip().removesuffix(" [")
    token = token_of(mark) if mark else None
    if token is None:
        return [json.dumps(text)] if text else []
    before, _, after = text.partition(mark)
    return [*([json.dumps(before)] if before else []), f"<[{token}]>", *([json.dumps(after)] if after else [])]
