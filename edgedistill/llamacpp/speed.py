"""How long models take for a token, in turns, so that what else the machine does falls on all of them alike."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from ..run import stop_if_asked
from .context import Context, ContextSettings
from .model import LlamaModel

__all__ = ["token_ms"]

ROUNDS, STEPS = 7, 8
DEPTH = 64  # tokens in front
CELLS = 256


def token_ms(paths: Sequence[Path], threads: int) -> list[float]:
    """The median milliseconds of each model for writing one token behind a short prompt."""
    with ExitStack() as stack:
        contexts = []
        for path in paths:
            model = stack.enter_context(LlamaModel(path))
            contexts.append(Context(model, ContextSettings(CELLS, 1, threads)))
            stack.callback(contexts[-1].close)
            _decode(contexts[-1], 0, DEPTH)
        taken: list[list[float]] = [[] for _ in paths]
        for number in range(ROUNDS + 1):
            stop_if_asked()
            for place in range(len(paths)):
                context = contexts[place]
                context.cut(0, DEPTH)
                started = time.perf_counter()
                for step in range(STEPS):
                    _decode(context, DEPTH + step, 1)
                if number:  # the first round loads
                    taken[place].append((time.perf_counter() - started) * 1000 / STEPS)
        return [float(np.median(one)) for one in taken]


def _decode(context: Context, at: int, count: int) -> None:
    context.batch.clear()
    context.batch.add([1 + number % 200 for number in range(count)], at, 0, 1)
    context.decode()
    context.logits(count - 1)
