"""Paired measurements: ours and a peer's in the same run, in turns, and one line of JSON at the end."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edgedistill.run import machine

__all__ = ["finish", "median_interval", "note", "pairs", "teacher_gguf"]

RESAMPLES = 10_000


def note(text: str) -> None:
    """Say how far the measurement is, on standard error."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def pairs(ours: Callable[[], float], peers: Callable[[], float], count: int = 5) -> tuple[list[float], list[float]]:
    """Both figures `count` times, in turns that change their order, after one round that is not counted."""
    ours(), peers()
    mine, theirs = [], []
    for number in range(count):
        first, second = (ours, peers) if number % 2 == 0 else (peers, ours)
        one, other = first(), second()
        mine.append(one if number % 2 == 0 else other)
        theirs.append(other if number % 2 == 0 else one)
        note(f"pair {number + 1} of {count}: {mine[-1]:.4g} and {theirs[-1]:.4g}, {mine[-1] / theirs[-1]:.3f} x")
    return mine, theirs


def median_interval(mine: list[float], theirs: list[float]) -> tuple[float, float, float]:
    """The median ratio of the pairs, with its 95 % bootstrap interval."""
    ratios = np.array(mine) / np.array(theirs)
    drawn = np.random.default_rng(0).choice(ratios, (RESAMPLES, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return round(float(np.median(ratios)), 3), round(float(low), 3), round(float(high), 3)


def finish(name: str, value: Any, bar: Any, holds: bool, **more: Any) -> None:
    """Print the result as one line of JSON, the last of the output; `more` holds peer, unit, n and details."""
    row = {"id": name, "value": value, "bar": bar, "holds": bool(holds), **more, "machine": machine()}
    sys.stdout.write(json.dumps(row) + "\n")


def teacher_gguf(name: str = "qwen2.5-coder-1.5b-instruct") -> Path:
    """The demo's teacher as a GGUF file, fetched where it is not on this machine."""
    from edgedistill.models import fetch

    return fetch(name, ("gguf",), False, lambda what, done, total: None).path
