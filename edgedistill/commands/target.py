"""A latency target as the command line names it."""

from __future__ import annotations

import re

from ..errors import InvalidInput

__all__ = ["target_ms"]


def target_ms(text: str) -> tuple[float, float]:
    """The two bounds, in milliseconds, of "100-500"; "500" is "0-500".

    Raises InvalidInput where it is none.

    >>> target_ms("100-500"), target_ms("250")
    ((100.0, 500.0), (0.0, 250.0))
    """
    match = re.fullmatch(r"(?:(\d+(?:\.\d+)?)-)?(\d+(?:\.\d+)?)", text.strip())
    low, high = (float(match[1] or 0), float(match[2])) if match else (0.0, 0.0)
    if not low < high:
        raise InvalidInput(f"--target {text}: not a target in milliseconds", "Write it as 100-500.")
    return low, high
