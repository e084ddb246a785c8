"""The training's curves in the tool that a team already looks at: trackio, Weights & Biases or TensorBoard.

`metrics.jsonl` is written anyway. A tool is asked for by the flag `--track`, for it is where to run, not what is made.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Literal

from ..errors import InvalidInput, MissingRequirement
from ..run import Run
from ..students import TrainStep

__all__ = ["TRACKERS", "Tracker", "require_tracker", "tracked"]

Tracker = Literal["trackio", "wandb", "tensorboard"]
Log = Callable[[Mapping[str, float], int], None]
Opened = Callable[[Run], tuple[Log, Callable[[], None]]]

PROJECT = "edgedistill"
PLACES = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")
"""Environment variables by which trackio goes over the network."""


def _trackio(run: Run) -> tuple[Log, Callable[[], None]]:
    """Into trackio's database on this machine, unless its own environment variables name a Space or a server."""
    import trackio

    quiet = {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
    with redirect_stdout(sys.stderr):  # it greets on standard output, which is for our own
        trackio.init(project=PROJECT, name=_name(run), resume="allow", **quiet)

    def finish() -> None:
        with redirect_stdout(sys.stderr):
            trackio.finish()

    return lambda values, step: trackio.log(dict(values), step=step), finish


def _wandb(run: Run) -> tuple[Log, Callable[[], None]]:
    """To the server that WANDB_BASE_URL names, or, with `--offline`, into files that `wandb sync` sends later."""
    import wandb

    mode = "offline" if run.offline else None
    name = _name(run)
    found = wandb.init(project=PROJECT, name=name, id=name, resume="allow", mode=mode, dir=str(run.path))
    return lambda values, step: found.log(dict(values), step=step), found.finish


def _tensorboard(run: Run) -> tuple[Log, Callable[[], None]]:
    """Into event files in the run's folder `tensorboard`."""
    from tensorboardX import SummaryWriter

    writer = SummaryWriter(str(run.path / "tensorboard"))

    def log(values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    return log, writer.close


TRACKERS: dict[str, tuple[str, Opened]] = {
    "trackio": ("trackio", _trackio),
    "wandb": ("wandb", _wandb),
    "tensorboard": ("tensorboardX", _tensorboard),
}
"""By name: the library that it takes, and what opens it."""


def require_tracker(run: Run) -> None:
    """Raise MissingRequirement where the library of the run's tool is not installed, InvalidInput where it would send
    the curves over the network although the run is offline.
    """
    if run.track is None:
        return
    library = TRACKERS[run.track][0]
    if importlib.util.find_spec(library) is None:
        raise MissingRequirement(f"--track {run.track} needs {library}", f"pip install {library}")
    named = [name for name in PLACES if os.environ.get(name)]
    if run.track == "trackio" and run.offline and named:
        raise InvalidInput(f"--offline: {named[0]} names a place on the network", "Unset it, or leave out --offline.")


def _name(run: Run) -> str:
    """The run's name with the time at which this training began: one that is resumed goes on in its own curve."""
    started = (run.record("train") or {}).get("started_at") or ""
    return "-".join(filter(None, (run.path.name, re.sub(r"[^0-9T]", "", started))))


@contextmanager
def tracked(run: Run) -> Iterator[Callable[[TrainStep], None]]:
    """A function that passes on each step's loss, rate and score, to the tool that the run asks for or to none."""
    if run.track is None:
        yield lambda moment: None
        return
    require_tracker(run)
    log, finish = TRACKERS[run.track][1](run)

    def passed_on(moment: TrainStep) -> None:
        named = {
            "train/loss": moment.loss,
            "train/learning_rate": moment.learning_rate,
            "train/tokens_per_s": moment.tokens_per_s,
            "valid/loss": moment.valid_loss,
            "valid/score": moment.score,
        }
        log({name: value for name, value in named.items() if value is not None}, moment.step)

    try:
        yield passed_on
    finally:
        finish()
