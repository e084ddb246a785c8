"""F2: trainings that are killed at random moments end in the same bits as one that was not, in both backends.

A pico model learns distributions under dropout for some steps, with a checkpoint every few. A process trains and gets
SIGKILL a random time behind its first step, so in the middle of steps and of checkpoints alike; another one goes on.
Adapter and recorded losses must be those of the training that nobody killed, and no more than one interval between
checkpoints may be redone.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from measure import finish, note

from edgedistill.recipe import StudentSettings, TrainSettings
from edgedistill.students import BACKENDS, TrainingData, TrainStep, load_student

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))
from pico import pico_hf_folder
from S8 import examples, soft_lesson

KILLS = 20
SETTINGS = TrainSettings(
    epochs=6, learning_rate=1e-3, batch_size=4, rank=4, alpha=8.0, dropout=0.1, loss="soft", checkpoint_steps=3
)


def train(backend: str, base: Path, out: Path) -> None:
    """Train, telling each step on standard output."""

    def report(moment: Any) -> None:
        if isinstance(moment, TrainStep):
            sys.stdout.write(f"{moment.step}\n")
            sys.stdout.flush()

    student = load_student(StudentSettings(backend=backend, model=str(base)), base)  # type: ignore[arg-type]
    student.train(TrainingData(examples(), examples()[:4], 3, soft_lesson), SETTINGS, out, report)


def steps_of(backend: str, base: Path, out: Path, kill_after: float | None = None) -> tuple[list[int], float, bool]:
    """The steps that a process took, the seconds from its first one to the end, and whether it was killed before that.

    `kill_after` counts from the first step.
    """
    command = [sys.executable, __file__, "--child", backend, str(base), str(out)]
    with tempfile.TemporaryFile("w+") as said:
        with subprocess.Popen(command, stdout=said, stderr=subprocess.PIPE, text=True) as child:
            while child.poll() is None and os.fstat(said.fileno()).st_size == 0:
                time.sleep(0.001)
            started = time.perf_counter()
            if kill_after is not None:
                time.sleep(kill_after)
                child.send_signal(signal.SIGKILL)
            _, errors = child.communicate()
        seconds, killed = time.perf_counter() - started, child.returncode == -signal.SIGKILL
        if child.returncode and not killed:
            sys.exit(errors)
        said.seek(0)
        return [int(line) for line in said.read().splitlines()], seconds, killed


def left(out: Path) -> tuple[dict[str, bytes], list[float]]:
    """What a training left: its adapter, and the losses that it recorded."""
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    weights = {path.name: path.read_bytes() for path in (out / "adapter").glob("*.safetensors")}
    return weights, [json.loads(line)["loss"] for line in lines]


def survived(backend: str, base: Path, folder: Path, moments: Sequence[float]) -> dict[str, Any]:
    """How many trainings, killed at these moments (shares of the time that they take), ended in the same bits."""
    steps, seconds, _ = steps_of(backend, base, folder / "whole")
    expected, equal, redone = left(folder / "whole"), 0, []
    for number, moment in enumerate(moments):
        out, killed, wait = folder / str(number), False, moment * seconds
        while not killed:
            before, _, killed = steps_of(backend, base, out, wait)
            wait /= 2  # it was over already: nothing is left of it to kill, so sooner
            if not killed:
                shutil.rmtree(out)
        after, _, _ = steps_of(backend, base, out)
        is_equal = left(out) == expected
        equal += is_equal
        redone.append(before[-1] + 1 - (after or [before[-1] + 1])[0])
        verdict = "equal" if is_equal else "NOT EQUAL"
        note(f"{backend}: killed behind step {before[-1]} of {steps[-1]}, {redone[-1]} redone: {verdict}")
    return {"equal": equal, "redone": max(redone)}


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        train(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=KILLS)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    drawn = random.Random(options.seed)
    found = {}
    for backend in BACKENDS:
        with tempfile.TemporaryDirectory() as name:
            base = pico_hf_folder(Path(name) / "base")
            moments = [drawn.random() for _ in range(options.kills)]
            found[backend] = survived(backend, base, Path(name), moments)
    equal, bar = sum(each["equal"] for each in found.values()), options.kills * len(BACKENDS)
    holds = equal == bar and all(each["redone"] <= SETTINGS.checkpoint_steps for each in found.values())
    finish("F2", equal, bar, holds, peer="the same, not killed", unit="of all resumed bit-equal", n=bar, backends=found)


if __name__ == "__main__":
    main()
