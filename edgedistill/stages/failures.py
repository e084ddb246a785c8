"""Prompts that a teacher gave no answer to: asked once more by the next command, then left out."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from ..errors import EdgeDistillError
from ..records import chat_row, json_lines, read_rows
from ..run import write_whole
from .asking import Asking

__all__ = ["Failures"]


class Failures:
    """The rows of `failed.jsonl`, by teacher and prompt."""

    def __init__(self, path: Path) -> None:
        self._path = path
        rows = (row for _, row in read_rows(path)) if path.is_file() else ()
        self._before = {(row["_ed"]["teacher"], row["_ed"]["id"]): row for row in rows}
        self._now: dict[tuple[int, str], dict[str, Any]] = {}

    def __len__(self) -> int:
        return len(self._now)

    def note(self, asking: Asking, reasons: dict[str, str]) -> None:
        """Keep what a teacher gives as its reasons for the prompts that it left open."""
        for identity, reason in reasons.items():
            if identity in asking.open:
                prompt = asking.open[identity].prompt
                row = chat_row(prompt.messages, prompt.tools)
                own = {"id": identity, "teacher": asking.number, "reason": reason}
                self._now[asking.number, identity] = {**row, "_ed": own}

    def may_be_left_out(self, asking: Asking) -> bool:
        """Whether all prompts were asked, and those that got no answer got none the time before either."""
        mine = {(asking.number, identity) for identity in asking.open}
        return asking.read_all and mine <= self._now.keys() and mine <= self._before.keys()

    def error(self, asking: Asking) -> EdgeDistillError:
        """What to say of prompts without an answer."""
        reasons = Counter(
            self._now[asking.number, identity]["_ed"]["reason"]
            if (asking.number, identity) in self._now
            else "no reason"
            for identity in asking.open
        )
        named = ", ".join(f"{reason} ({count})" for reason, count in reasons.most_common(3))
        return EdgeDistillError(
            f"the teacher left {len(asking.open)} prompts without an answer: {named}", "Run the same command again."
        )

    def write(self, is_over: bool) -> None:
        """Write `failed.jsonl`, or remove it where there are none; before the end, with those not asked again yet."""
        rows = self._now if is_over else {**self._before, **self._now}
        if rows:
            write_whole(self._path, json_lines(rows.values()))
        else:
            self._path.unlink(missing_ok=True)
