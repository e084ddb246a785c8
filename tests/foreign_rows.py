"""Rows in other people's forms."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

Turn = dict[str, Any]
TOOL = {"type": "function", "function": {"name": "light", "parameters": {"type": "object"}}}


def asked(*texts_in_turn: str) -> list[Turn]:
    """Turns of user and assistant, the user's first."""
    return [{"role": ("user", "assistant")[number % 2], "content": one} for number, one in enumerate(texts_in_turn)]


def written(path: Path, data: bytes | str) -> Path:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def openai_row(turns: Sequence[Turn], system: str) -> dict[str, Any]:
    before = [{"role": "system", "content": system}] if system else []
    return {"messages": [*before, *turns], "tools": [TOOL]}
