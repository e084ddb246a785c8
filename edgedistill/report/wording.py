"""Figures and strangers' texts as people read them. Nothing measured is shown as a dash, never as 0."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

__all__ = [
    "chance",
    "difference",
    "duration",
    "interval",
    "megabytes",
    "milliseconds",
    "nats",
    "one_line",
    "percent",
    "plain",
    "score",
    "visible",
]

NOTHING = "–"
HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\U000e0000-\U000e007f]"
)
"""What a terminal or a page obeys instead of showing: controls, overrides of direction, tags, half surrogates."""


def visible(text: str) -> str:
    """The text with everything that acts instead of showing replaced by a sign; tabs and line ends stay.

    >>> visible("\\x1b[31mred")
    '␛[31mred'
    """
    return HIDDEN.sub(_sign, text)


def _sign(found: re.Match[str]) -> str:
    code = ord(found.group())
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else "\N{REPLACEMENT CHARACTER}"


def percent(share: float | None) -> str:
    """A share as per cent.

    >>> percent(0.925), percent(1.0), percent(None)
    ('92.5 %', '100 %', '–')
    """
    if share is None:
        return NOTHING
    return f"{100 * share:.1f}".removesuffix(".0") + " %"


def chance(p: float) -> str:
    """A p-value.

    >>> chance(0.0173), chance(0.4), chance(0.00009)
    ('p = 0.017', 'p = 0.40', 'p < 0.001')
    """
    if p < 0.001:
        return "p < 0.001"
    return f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def difference(share: float) -> str:
    """A difference of two shares in percentage points, with its sign.

    >>> difference(0.015), difference(-0.0666), difference(0.0)
    ('+1.5', '−6.7', '0.0')
    """
    text = f"{100 * share:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def interval(bounds: Sequence[float] | None) -> str:
    """A 95 % interval in per cent.

    >>> interval([0.8712, 0.9581]), interval(None)
    ('87.1–95.8', '')
    """
    return f"{100 * bounds[0]:.1f}–{100 * bounds[1]:.1f}" if bounds else ""


def score(measured: dict[str, object] | None, name: str) -> str:
    """A score of a set with its interval.

    >>> score({"exact": 0.9, "ci95": {"exact": [0.8, 0.95]}}, "exact")
    '90 % (80.0–95.0)'
    """
    if measured is None:
        return NOTHING
    bounds = (measured.get("ci95") or {}).get(name)  # type: ignore[attr-defined]
    text = percent(measured.get(name))  # type: ignore[arg-type]
    return f"{text} ({interval(bounds)})" if bounds else text


def nats(value: float | None) -> str:
    """A divergence.

    >>> nats(0.0000191), nats(0.1234), nats(None)
    ('1.9e-05', '0.12', '–')
    """
    return NOTHING if value is None else f"{value:.2g}"


def milliseconds(value: float | None) -> str:
    """A time in milliseconds, in seconds from 10 s on.

    >>> milliseconds(226.4), milliseconds(3.14), milliseconds(12345.0), milliseconds(None)
    ('226 ms', '3.1 ms', '12.3 s', '–')
    """
    if value is None:
        return NOTHING
    if value >= 10_000:
        return f"{value / 1000:.1f} s"
    return f"{value:.0f} ms" if value >= 10 else f"{value:.1f} ms"


def megabytes(size: int | None) -> str:
    """A size in megabytes of 10^6 bytes.

    >>> megabytes(1117320768), megabytes(484_000), megabytes(None)
    ('1,117 MB', '0.5 MB', '–')
    """
    if size is None:
        return NOTHING
    return f"{size / 1e6:,.0f} MB" if size >= 10e6 else f"{size / 1e6:.1f} MB"


def plain(value: Any) -> str:
    """A setting's value; a list is a range.

    >>> plain([100.0, 500.0]), plain(5), plain(None)
    ('100–500', '5', '–')
    """
    if isinstance(value, list):
        return "–".join(map(plain, value))
    return NOTHING if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def duration(seconds: float | None) -> str:
    """A duration in the two largest units.

    >>> duration(3725), duration(62.4), duration(0.31), duration(None)
    ('1 h 2 min', '1 min 2 s', '0.3 s', '–')
    """
    if seconds is None:
        return NOTHING
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def one_line(text: str, longest: int = 300) -> str:
    """The text on one line, cut where it is very long.

    >>> one_line("a\\n b", 10), one_line("abcdefghijkl", 10)
    ('a b', 'abcdefghi…')
    """
    text = " ".join(visible(text).split())
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
