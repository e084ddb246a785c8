"""A whole run that is killed, told to stop, or out of room goes on with the same command, to the same bytes."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE

import pytest
from conftest import Finished, fill
from pico_recipe import PicoModels, write_pico_recipe
from pico_runs import NAMES, SAME_BYTES, answered, run_again, states

from edgedistill.errors import Stopped
from edgedistill.run import Run

MEMORY = ("estimated_memory_bytes", "peak_memory_bytes")  # of the process, not of what it made


# -- stopped, killed

# each line that it is sent begins the run in a process of its own, which has what takes seconds to load from the first
HOST = """
import os, sys
from pathlib import Path
import peft, torch, transformers
from edgedistill.pipeline import RunSettings, run_recipe

def say(line):
    sys.stdout.write(f"{line}\\n")
    sys.stdout.flush()

def progress(what, done, total):
    say(f"{what.partition(' (')[0]} {done}")

for _ in sys.stdin:
    if os.fork() == 0:
        say(os.getpid())
        run_recipe(Path(sys.argv[1]), RunSettings(runs=Path(sys.argv[2]), offline=True), progress)
        os._exit(0)
    say(f"ended {os.waitstatus_to_exitcode(os.wait()[1])}")
"""


@contextmanager
def host_of(finished: Finished) -> Iterator[subprocess.Popen[str]]:
    """Begins the run, or goes on with it, as often as it is asked."""
    command = [sys.executable, "-c", HOST, str(finished.recipe), str(finished.runs)]
    environment = {**os.environ, "OBJC_DISABLE_INITIALIZE_FORK_SAFETY": "YES"}  # macOS forbids a fork without it
    with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True, env=environment) as host:
        yield host
        _, said = host.communicate()
        assert host.returncode == 0, said


def killed_at(host: subprocess.Popen[str], line: str, seconds: float) -> None:
    """Let the run begin or go on; kill -9 it so long after it reports the line."""
    assert host.stdin is not None
    assert host.stdout is not None
    host.stdin.write("\n")
    host.stdin.flush()
    child = int(host.stdout.readline())
    for said in host.stdout:
        if said.strip() == line:
            time.sleep(seconds)
            os.kill(child, signal.SIGKILL)
        elif said.startswith("ended"):
            assert said.strip() == f"ended -{int(signal.SIGKILL)}", f"never said {line!r}"
            return


@pytest.mark.slow
def test_any_kill_and_the_same_command_end_as_if_nothing_had_happened(models: PicoModels, tmp_path: Path) -> None:
    # written out, answers come one by one: those of a closed set come many at a time
    recipe = write_pico_recipe(tmp_path / "recipe", models, {"slots = 4": "slots = 4\nclosed = false"})
    finished, copy = Finished(recipe, tmp_path / "whole", ()), Finished(recipe, tmp_path / "runs", ())
    run_again(finished)
    source = random.Random(4)
    with host_of(copy) as host:
        for line in (
            "teaching 7",
            "teaching 23",
            "training 3",
            "training 7",
            "merging 0",
            "evaluating student F16 190",
        ):
            killed_at(host, line, source.uniform(0.0, 0.02))
    ran = run_again(copy)
    assert ran[-1] == "package"
    assert "prompts" not in ran
    assert answered(copy.run) == answered(finished.run)
    for name in SAME_BYTES:
        assert (copy.run / name).read_bytes() == (finished.run / name).read_bytes(), name
    trained, whole = Run(copy.run).summary("train"), Run(finished.run).summary("train")
    assert trained == {**whole, "resumed_from": 6, **{key: trained[key] for key in MEMORY}}
    assert not [path for path in copy.run.rglob("*.partial-*") if ".cache" not in path.parts]
    assert run_again(copy) == []


def test_a_signal_to_stop_leaves_a_run_that_goes_on(finished: Finished, tmp_path: Path) -> None:
    copy = Finished(finished.recipe, tmp_path / "runs", ())

    def progress(what: str, done: int, total: int) -> None:
        if what.startswith("teaching") and done == 11:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped, match="stopped as asked"):
        run_again(copy, progress)
    assert len(answered(copy.run)) == 11
    assert states(copy)["teach"] == "partial"
    assert run_again(copy) == NAMES[1:]
    assert Run(copy.run).summary("teach")["asked"] == 29
    assert answered(copy.run) == answered(finished.run)


# -- out of room


@pytest.mark.parametrize(
    ("line", "stage"), [("teaching", "teach"), ("training", "train"), ("merging", "export"), ("tensors", "export")]
)
def test_a_full_disk_stops_in_one_line_and_the_same_command_goes_on(
    finished: Finished, small_disk: Callable[[int], Path], line: str, stage: str
) -> None:
    disk = small_disk(8 << 20)
    copy = Finished(finished.recipe, disk / "runs", ())
    for name in NAMES[: NAMES.index(stage)]:
        shutil.copytree(finished.run / name, copy.run / name)
    filled: list[Path] = []

    def progress(what: str, done: int, total: int) -> None:
        if what.startswith(line) and not filled:
            filled.append(fill(disk))

    with pytest.raises(Stopped, match=r"\(0 MB free\)") as caught:
        run_again(copy, progress)
    assert caught.value.exit_code == 75
    assert "\n" not in caught.value.message
    assert "room" in caught.value.hint
    assert states(copy)[stage] in ("partial", "missing")
    filled[0].unlink()
    assert run_again(copy)[0] == stage
    for name in SAME_BYTES:
        assert (copy.run / name).read_bytes() == (finished.run / name).read_bytes(), name


def test_a_disk_that_is_full_from_the_start_is_refused_in_one_line(
    finished: Finished, small_disk: Callable[[int], Path]
) -> None:
    disk = small_disk(1 << 20)
    fill(disk)
    with pytest.raises(Stopped) as caught:
        run_again(Finished(finished.recipe, disk / "runs", ()))
    assert "\n" not in caught.value.message
