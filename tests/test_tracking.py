"""The training's curves in another tool, beside metrics.jsonl."""

from __future__ import annotations

from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event

from edgedistill.cli import track_option
from edgedistill.errors import InvalidInput, MissingRequirement
from edgedistill.run import Run
from edgedistill.stages.tracking import TRACKERS, require_tracker, tracked
from edgedistill.students import TrainStep


def events(folder: Path) -> list[tuple[str, int, float]]:
    """Tag, step and value of each scalar: a record is its length in 8 bytes, a sum in 4, the event, a sum in 4."""
    found = []
    for path in sorted(folder.iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            size = int.from_bytes(data[at : at + 8], "little")
            event = Event.FromString(data[at + 12 : at + 12 + size])
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            at += 16 + size
    return found


def test_tensorboard_holds_every_step_and_the_scores_of_the_epochs(tmp_path: Path) -> None:
    run = Run(tmp_path / "mine", track="tensorboard")
    with tracked(run) as passed_on:
        passed_on(TrainStep(1, 2, 0.5, 0.25, 100.0))
        passed_on(TrainStep(2, 2, 0.25, 0.125, 100.0, valid_loss=0.75, score=0.5))
    steps = [("train/loss", 1, 0.5), ("train/learning_rate", 1, 0.25), ("train/tokens_per_s", 1, 100.0)]
    more = [("train/loss", 2, 0.25), ("train/learning_rate", 2, 0.125), ("train/tokens_per_s", 2, 100.0)]
    assert events(run.path / "tensorboard") == [*steps, *more, ("valid/loss", 2, 0.75), ("valid/score", 2, 0.5)]


def test_without_a_tool_nothing_is_written(tmp_path: Path) -> None:
    with tracked(Run(tmp_path / "mine")) as passed_on:
        passed_on(TrainStep(1, 2, 0.5, 0.25, 100.0))
    assert not list(tmp_path.iterdir())


def test_a_tool_that_is_not_installed_is_named_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TRACKERS, "wandb", ("no_such_library", TRACKERS["wandb"][1]))
    with pytest.raises(MissingRequirement, match="--track wandb needs no_such_library"):
        require_tracker(Run(tmp_path, track="wandb"))


def test_offline_sends_no_curves_to_a_place_that_the_environment_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TRACKERS, "trackio", ("pytest", TRACKERS["trackio"][1]))  # any library that is installed
    monkeypatch.setenv("TRACKIO_SPACE_ID", "somebody/curves")
    with pytest.raises(InvalidInput, match="TRACKIO_SPACE_ID names a place on the network"):
        require_tracker(Run(tmp_path, offline=True, track="trackio"))
    require_tracker(Run(tmp_path, track="trackio"))


def test_the_command_line_knows_the_same_tools() -> None:
    def command() -> None: ...

    track_option(command)
    (option,) = command.__click_params__  # type: ignore[attr-defined]
    assert list(option.type.choices) == list(TRACKERS)
