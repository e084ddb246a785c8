"""Secrets and personal data in a conversation, each replaced by what kind it is: `[E_MAIL_1]`.

The same value has the same name throughout a row, so that a text still says who is who. What was replaced is counted
by kind, and nothing of it is kept.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from .records import Prompt
from .sensitive import find

__all__ = ["Names", "scrubbed", "texts_of"]


WRITTEN = ("messages", "expected", "goal", "persona")  # of a row, what people or models wrote
KEPT = ("role", "id", "tool_call_id", "name", "type")  # what a program reads, and nobody wrote


class Names:
    """What stands for the values of one row."""

    def __init__(self) -> None:
        self._names: dict[tuple[str, str], str] = {}
        self.counts: Counter[str] = Counter()
        """How many were replaced, by kind."""

    def replace(self, text: str) -> str:
        """The text with a name for each value.

        >>> Names().replace("Write to a@b.com or c@d.org, not to A@B.com.")
        'Write to [E_MAIL_1] or [E_MAIL_2], not to [E_MAIL_1].'
        """
        while found := find(text):  # of two that touch, the second shows once the first is gone
            pieces = []
            place = 0
            for one in found:
                pieces += [text[place : one.start], self._name(one.kind, text[one.start : one.end])]
                place = one.end
                self.counts[one.kind] += 1
            text = "".join([*pieces, text[place:]])
        return text

    def _name(self, kind: str, value: str) -> str:
        key = kind, re.sub(r"[\s().-]", "", value).casefold()
        if key not in self._names:
            number = 1 + sum(1 for other, _ in self._names if other == kind)
            self._names[key] = f"[{re.sub(r'[^A-Z0-9]', '_', kind.upper())}_{number}]"
        return self._names[key]


def scrubbed(row: Mapping[str, Any]) -> tuple[dict[str, Any], Counter[str]]:
    """A row with every text replaced that people or models wrote, and how much of each kind was.

    The texts are those of messages and tool calls, `expected`, `goal` and `persona`, and under `_ed` the system text
    and the answer.
    """
    names = Names()
    made = {key: _inside(value, names) if key in WRITTEN else value for key, value in row.items()}
    own = made.get("_ed")
    if isinstance(own, Mapping):
        made["_ed"] = {key: _inside(one, names) if key in ("system", "answer") else one for key, one in own.items()}
    return made, names.counts


def texts_of(prompt: Prompt) -> Iterator[str]:
    """All that a teacher would be shown of a prompt, as who answers or as who plays the user."""
    for message in prompt.messages:
        yield message.content
        yield from (call.arguments for call in message.tool_calls)
    yield from (text for text in (prompt.goal, prompt.persona) if text)


def _inside(value: Any, names: Names) -> Any:
    """A JSON value with every text in it replaced; keys stay."""
    if isinstance(value, str):
        return names.replace(value)
    if isinstance(value, Mapping):
        return {key: one if key in KEPT else _inside(one, names) for key, one in value.items()}
    return [_inside(one, names) for one in value] if isinstance(value, (list, tuple)) else value
