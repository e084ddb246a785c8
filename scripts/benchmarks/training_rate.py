"""Useful tokens per second of a training: ours, and whatever else counts by the same clock, each in its own process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from measure import note

from edgedistill.recipe import StudentSettings, TrainSettings
from edgedistill.students import TrainingData, TrainStep, load_student
from edgedistill.students.encode import EncodedExample
from edgedistill.students.lessons import Lesson, hard_lesson

__all__ = ["ALPHA", "BATCH", "LEARNING_RATE", "RANK", "Clock", "our_rate", "rate_of"]

BATCH, RANK, ALPHA, LEARNING_RATE = 16, 16, 32.0, 1e-3


class Clock:
    """Useful tokens and the time at the end of each step."""

    def __init__(self) -> None:
        self._tokens = 0
        self._ends: list[tuple[float, int]] = []

    def add(self, tokens: int) -> None:
        self._tokens += tokens

    def step_is_over(self) -> None:
        self._ends.append((time.perf_counter(), self._tokens))

    def rate(self, warm: int) -> float:
        """Tokens/s of the steps behind the first `warm` ones."""
        (started, before), (ended, after) = self._ends[warm - 1], self._ends[-1]
        return (after - before) / (ended - started)


def our_rate(
    student: StudentSettings, rows: Sequence[EncodedExample], warm: int, packing: bool = False
) -> tuple[float, str]:
    """Tokens/s of one epoch of LoRA on the rows, and the type that it was computed in; `student.model` is a folder."""
    settings = TrainSettings(
        epochs=1,
        learning_rate=LEARNING_RATE,
        batch_size=BATCH,
        micro_batch=BATCH,
        gradient_checkpointing="off",
        rank=RANK,
        alpha=ALPHA,
        packing=packing,
        checkpoint_steps=len(rows),
    )
    clock = Clock()

    def lesson(example: EncodedExample) -> Lesson:
        clock.add(len(example.tokens))
        return hard_lesson(example)

    def report(moment: Any) -> None:
        if isinstance(moment, TrainStep):
            clock.step_is_over()

    with tempfile.TemporaryDirectory() as out:
        loaded = load_student(student, Path(student.model))
        summary = loaded.train(TrainingData(rows, (), 0, lesson), settings, Path(out), report)
    return clock.rate(warm), summary["dtype"]


def rate_of(script: str, side: str, more: Mapping[str, str] | None = None) -> float:
    """Tokens/s of one side: the script again, with its own arguments, `--side`, and `more` in its environment."""
    command = [sys.executable, script, *sys.argv[1:], "--side", side]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(more or {})})
    if done.returncode:
        sys.exit(f"{side}: {done.stderr}")
    found: float = json.loads(done.stdout.splitlines()[-1])
    note(f"{side}: {found:.1f} tokens/s")
    return found
