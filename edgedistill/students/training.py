"""The training loop, one for all backends: order, learning rate, checkpoints, validation, what is recorded.

A backend brings a `Session` that computes one step. A killed training goes on from its newest whole checkpoint; all
that decides the next step (weights, moments, random state, position) is in it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..errors import EdgeDistillError, Stopped
from ..hardware import give_back_memory
from ..recipe import TrainSettings
from ..records import json_lines
from ..run import stop_if_asked, write_whole
from . import Estimate, Exam, Report, TrainingData, TrainStep, checkpoints
from .batching import epoch_batches, lengths_of, padded_share
from .lessons import Lesson

__all__ = ["ROOM", "Loss", "Session", "fitting", "learning_rate", "run_training"]


ROOM = 0.8  # share of the free memory that a step may take


@dataclass(frozen=True, slots=True)
class Loss:
    """A batch's loss: nats a token on average, and the weight of its rows, by which batches are averaged."""

    value: float
    weight: float


class Session(Protocol):
    """A training under way in one backend: model, optimizer, random state."""

    def settle(self, largest: Sequence[Lesson], settled: dict[str, Any] | None) -> tuple[dict[str, Any], Estimate]:
        """Decide how a batch is computed so that it fits into memory, or take what was decided before.

        Returns the decision, which a resumed training needs to end in the same bits, and what a step on the largest
        batch will take: the peak of memory, and seconds.
        """

    def step(self, batch: Sequence[Lesson], learning_rate: float) -> tuple[Loss, float]:
        """Take one optimizer step on the batch; return its loss before the step, and the gradient's norm."""

    def loss(self, batch: Sequence[Lesson]) -> Loss:
        """The loss of the batch, without learning from it."""

    def complete(self, exam: Exam) -> list[list[int]]:
        """Greedy answers to the exam's prompts, as token ids without the end token."""

    def write(self, folder: Path) -> None:
        """Write all tensors that the next step depends on into the folder."""

    def read(self, folder: Path) -> None:
        """Go on from what `write` wrote."""

    def save_adapter(self, folder: Path) -> None:
        """Write what was learned."""


def fitting(settings: TrainSettings, rows: int, taken: Callable[[int], int], room: float) -> dict[str, Any]:
    """How a batch of so many texts is computed, for `Session.settle`: fewer at once, until they fit into `room` bytes;
    and, where not even one does, with activations computed twice. `taken` tells the bytes of some at once.

    >>> fitting(TrainSettings(), 16, lambda rows: 100 * rows, 900)
    {'micro_batch': 8, 'recomputed': False}
    >>> fitting(TrainSettings(), 16, lambda rows: 100 * rows, 90)
    {'micro_batch': 1, 'recomputed': True}
    """
    count = settings.micro_batch or rows
    while not settings.micro_batch and count > 1 and taken(count) > room:
        count = -(-count // 2)
    is_tight = settings.gradient_checkpointing == "auto" and taken(count) > room
    return {"micro_batch": count, "recomputed": settings.gradient_checkpointing == "on" or is_tight}


@dataclass(frozen=True)
class _Plan:
    """The batches of a training, in order, one epoch at a time: what to resume is a step number."""

    data: TrainingData
    settings: TrainSettings

    @property
    def per_epoch(self) -> int:
        return -(-len(self.data.train) // self.settings.batch_size)

    @property
    def steps(self) -> int:
        return self.per_epoch * self.settings.epochs

    def batches(self, after: int) -> Iterator[list[Lesson]]:
        """The batches that follow step `after`."""
        first, done = divmod(after, self.per_epoch)
        for epoch in range(first, self.settings.epochs):
            order = epoch_batches(self.data.train, self.settings.batch_size, self.data.seed + epoch)
            for indices in order[done:]:
                yield [self.data.lesson(self.data.train[index]) for index in indices]
            done = 0

    def largest(self) -> list[Lesson]:
        """The batch with the longest examples, as far as they say before they are lessons."""
        lengths = lengths_of(self.data.train)
        order = np.argsort(-lengths.astype(np.int64), kind="stable")[: self.settings.batch_size]
        return [self.data.lesson(self.data.train[index]) for index in order.tolist()]

    def tokens(self) -> int:
        """Tokens of all examples of all epochs."""
        return int(lengths_of(self.data.train).sum()) * self.settings.epochs

    def ends_epoch(self, step: int) -> bool:
        return step % self.per_epoch == 0

    @property
    def padded_share(self) -> float:
        # the batches of another epoch have other members of equal length: one epoch stands for all
        return padded_share(self.data.train, epoch_batches(self.data.train, self.settings.batch_size, self.data.seed))


def run_training(
    session: Session, data: TrainingData, settings: TrainSettings, out: Path, report: Report
) -> dict[str, Any]:
    """Train to the end, or until `patience` is over; leave `adapter/`, `checkpoints/` and `metrics.jsonl`.

    Returns steps, last losses and padding. Raises EdgeDistillError that names the rows where a loss is not finite.
    """
    course = _Course(session, _Plan(data, settings), out)
    resumed_from = course.step
    report(course.estimate)
    for batch in course.plan.batches(course.step):
        if _is_over(course.metrics, settings.patience):
            break
        course.take(batch, report)
    return {**course.end(), "resumed_from": resumed_from}


class _Course:
    """How far a training is, in memory and in its folder. It begins at the newest whole checkpoint."""

    def __init__(self, session: Session, plan: _Plan, out: Path) -> None:
        self.plan, self.step = plan, 0
        self.metrics: list[dict[str, Any]] = []
        self._session, self._out = session, out
        found = checkpoints.newest(out / "checkpoints")
        if found is not None:
            session.read(found[0])
            self.step, self.metrics = found[1]["step"], found[1]["metrics"]
        largest = plan.largest()
        self._settled, estimate = session.settle(largest, found[1].get("settled") if found is not None else None)
        left = plan.tokens() * (plan.steps - self.step) / plan.steps
        self.estimate = replace(estimate, seconds=estimate.seconds / sum(map(len, largest)) * left)

    def take(self, batch: Sequence[Lesson], report: Report) -> None:
        """One step, recorded and reported; raises Stopped behind it where that was asked for."""
        moment = _step(self._session, self.plan, self.step, batch)
        self.step = moment.step
        self.metrics.append(_recorded(moment))
        report(moment)
        is_best = moment.valid_loss is not None and moment.valid_loss == min(_valid_losses(self.metrics))
        if self.plan.settings.patience and is_best:
            self._save("best")  # before the checkpoint that says so: a kill in between repeats it
        due = self.step == self.plan.steps or self.step % self.plan.settings.checkpoint_steps == 0
        if due:
            self._save("checkpoints")
            give_back_memory()
        try:
            stop_if_asked()
        except Stopped:
            if not due:
                self._save("checkpoints")
            raise

    def _save(self, folder: str) -> None:
        state = {"metrics": self.metrics, "settled": self._settled}
        checkpoints.save(self._out / folder, self.step, state, self._session.write)

    def end(self) -> dict[str, Any]:
        """Leave what was learned, of the best epoch where there is a `patience`; return the summary."""
        kept = checkpoints.newest(self._out / "best") if self.plan.settings.patience else None
        if kept is not None:
            self._session.read(kept[0])
        write_whole(self._out / "metrics.jsonl", json_lines(self.metrics))
        self._session.save_adapter(self._out / "adapter")
        last = self.metrics[-1] if kept is None else self.metrics[kept[1]["step"] - 1]
        return {
            "steps": last["step"],
            "loss": last["loss"],
            "valid_loss": last.get("valid_loss"),
            "padded_share": round(self.plan.padded_share, 4),
            "estimated_memory_bytes": self.estimate.memory_bytes,
            **self._settled,
        }


def _valid_losses(metrics: Sequence[dict[str, Any]]) -> list[float]:
    return [row["valid_loss"] for row in metrics if "valid_loss" in row]


def _is_over(metrics: Sequence[dict[str, Any]], patience: int) -> bool:
    """Whether the loss on what was kept apart has not fallen for so many epochs; 0 never ends."""
    losses = _valid_losses(metrics)
    return bool(patience) and len(losses) - 1 - losses.index(min(losses)) >= patience if losses else False


def _step(session: Session, plan: _Plan, step: int, batch: Sequence[Lesson]) -> TrainStep:
    rate = learning_rate(step, plan.steps, plan.settings)
    started = time.perf_counter()
    loss, norm = session.step(batch, rate)
    for what, value in (("loss", loss.value), ("gradient's norm", norm)):
        if not math.isfinite(value):
            names = ", ".join(lesson.id for lesson in batch)
            hint = "Lower train.learning_rate, or drop the rows."
            raise EdgeDistillError(f"step {step + 1}: the {what} is {value}; rows {names}", hint)
    seconds = time.perf_counter() - started
    tokens = sum(map(len, batch))
    moment = TrainStep(step + 1, plan.steps, loss.value, rate, tokens / seconds)
    if not plan.ends_epoch(step + 1):
        return moment
    exam = plan.data.exam
    return replace(
        moment,
        valid_loss=_valid_loss(session, plan) if plan.data.valid else None,
        score=exam.score(session.complete(exam)) if exam is not None else None,
    )


def _valid_loss(session: Session, plan: _Plan) -> float:
    rows = sorted(plan.data.valid, key=lambda example: len(example.tokens))
    size = plan.settings.batch_size
    starts = range(0, len(rows), size)
    losses = [session.loss([plan.data.lesson(row) for row in rows[start : start + size]]) for start in starts]
    return sum(loss.value * loss.weight for loss in losses) / sum(loss.weight for loss in losses)


def _recorded(moment: TrainStep) -> dict[str, Any]:
    row = {key: value for key, value in asdict(moment).items() if value is not None and key != "steps"}
    return {**row, "tokens_per_s": round(moment.tokens_per_s, 1)}


def learning_rate(step: int, steps: int, settings: TrainSettings) -> float:
    """Linear warm-up, then a cosine to 0.

    >>> learning_rate(0, 100, TrainSettings(learning_rate=1.0, warmup_share=0.1))
    0.1
    >>> learning_rate(9, 100, TrainSettings(learning_rate=1.0, warmup_share=0.1))
    1.0
    """
    warmup = max(1, round(steps * settings.warmup_share))
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
