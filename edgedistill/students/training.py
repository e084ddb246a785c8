"""The training loop, one for all backends: order, learning rate, checkpoints, validation, what is recorded.

A backend brings a `Session` that computes one step. A killed training goes on from its newest whole checkpoint; all
that decides the next step (weights, moments, random state, position) is in it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..errors import EdgeDistillError, Stopped
from ..recipe import TrainSettings
from ..records import json_lines
from ..run import stop_if_asked, write_whole
from . import TrainingData, TrainStep, checkpoints
from .batching import epoch_batches, padded_share
from .lessons import Lesson

__all__ = ["Loss", "Session", "learning_rate", "run_training"]


@dataclass(frozen=True, slots=True)
class Loss:
    """A batch's loss: nats a token on average, and the weight of its rows, by which batches are averaged."""

    value: float
    weight: float


class Session(Protocol):
    """A training under way in one backend: model, optimizer, random state."""

    def step(self, batch: Sequence[Lesson], learning_rate: float) -> tuple[Loss, float]:
        """Take one optimizer step on the batch; return its loss before the step, and the gradient's norm."""

    def loss(self, batch: Sequence[Lesson]) -> Loss:
        """The loss of the batch, without learning from it."""

    def write(self, folder: Path) -> None:
        """Write all tensors that the next step depends on into the folder."""

    def read(self, folder: Path) -> None:
        """Go on from what `write` wrote."""

    def save_adapter(self, folder: Path) -> None:
        """Write what was learned."""


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

    def ends_epoch(self, step: int) -> bool:
        return step % self.per_epoch == 0

    @property
    def padded_share(self) -> float:
        # the batches of another epoch have other members of equal length: one epoch stands for all
        return padded_share(self.data.train, epoch_batches(self.data.train, self.settings.batch_size, self.data.seed))


def run_training(
    session: Session, data: TrainingData, settings: TrainSettings, out: Path, report: Callable[[TrainStep], None]
) -> dict[str, Any]:
    """Train to the end; leave `adapter/`, `checkpoints/` and `metrics.jsonl`; return steps, last losses and padding.

    Raises EdgeDistillError that names the rows where a loss is not finite.
    """
    plan = _Plan(data, settings)
    step, metrics = 0, list[dict[str, Any]]()
    found = checkpoints.newest(out / "checkpoints")
    if found is not None:
        session.read(found[0])
        step, metrics = found[1]["step"], found[1]["metrics"]

    def save() -> None:
        checkpoints.save(out / "checkpoints", step, {"metrics": metrics}, session.write)

    for batch in plan.batches(step):
        moment = _step(session, plan, step, batch)
        step = moment.step
        metrics.append(_recorded(moment))
        report(moment)
        due = step == plan.steps or step % settings.checkpoint_steps == 0
        if due:
            save()
        try:
            stop_if_asked()
        except Stopped:
            if not due:
                save()
            raise
    write_whole(out / "metrics.jsonl", json_lines(metrics))
    session.save_adapter(out / "adapter")
    last = metrics[-1]
    return {
        "steps": step,
        "loss": last["loss"],
        "valid_loss": last.get("valid_loss"),
        "padded_share": round(plan.padded_share, 4),
        "resumed_from": found[1]["step"] if found else 0,
    }


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
    valid = _valid_loss(session, plan) if plan.ends_epoch(step + 1) and plan.data.valid else None
    return TrainStep(step + 1, plan.steps, loss.value, rate, tokens / seconds, valid)


def _valid_loss(session: Session, plan: _Plan) -> float:
    rows = sorted(plan.data.valid, key=lambda example: len(example.tokens))
    size = plan.settings.batch_size
    starts = range(0, len(rows), size)
    losses = [session.loss([plan.data.lesson(row) for row in rows[start : start + size]]) for start in starts]
    return sum(loss.value * loss.weight for loss in losses) / sum(loss.weight for loss in losses)


def _recorded(moment: TrainStep) -> dict[str, Any]:
    row = {"step": moment.step, "loss": moment.loss, "learning_rate": moment.learning_rate}
    row["tokens_per_s"] = round(moment.tokens_per_s, 1)
    return row if moment.valid_loss is None else {**row, "valid_loss": moment.valid_loss}


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
