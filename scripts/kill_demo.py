"""Kill a run at random points, start it again each time, and compare what it ends with to an uninterrupted run.

    python scripts/kill_demo.py recipes/home-commands --reference runs/home-commands --kills 10

The reference says how long the whole takes, so that the kills (SIGKILL to the whole process group) fall anywhere in it.
Prints one line a kill and, last of all, one JSON object. Ends with 1 where a dataset file differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from edgedistill import load_recipe
from edgedistill.run import Run, file_sha256
from edgedistill.stages import STAGES

COMPARED = ("prompts/prompts.jsonl", "curate/train.jsonl", "curate/valid.jsonl", "curate/rejected.jsonl")


def main() -> int:
    options = arguments()
    source = random.Random(options.seed)
    reference = Run(options.reference)
    seconds = sum((reference.record(stage.name) or {})["seconds"] for stage in STAGES)
    run = Run(options.runs / load_recipe(options.recipe).name)
    kills = []
    for number in range(1, options.kills + 1):
        delay = source.uniform(0.2, 1.8) * seconds / (options.kills + 1)
        if (code := start(options, delay)) is not None:
            say(f"the run ended with {code} before kill {number}")
            break
        kills.append(where(run))
        say(f"kill {number} after {delay:.0f} s, in {kills[-1]}")
    code = start(options, None)
    same = {name: file_sha256(run.path / name) == file_sha256(reference.path / name) for name in COMPARED}
    leftovers = [str(path) for path in run.path.rglob("*.partial-*")]
    result = {
        "kills": kills,
        "exit_code": code,
        "same": same,
        "asked_last": run.summary("teach")["asked"],
        "training_resumed_from_step": run.summary("train")["resumed_from"],
        "leftovers": leftovers,
    }
    sys.stdout.write(json.dumps(result) + "\n")
    return 0 if all(same.values()) and not leftovers else 1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--reference", type=Path, required=True, help="a finished run of the same recipe")
    parser.add_argument("--runs", type=Path, default=Path("runs-killed"))
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def start(options: argparse.Namespace, delay: float | None) -> int | None:
    """Run the recipe; kill it after `delay` seconds and return None, or return its exit code."""
    command = [sys.executable, "-m", "edgedistill.cli", "run", str(options.recipe), "--runs", str(options.runs), "-q"]
    child = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
    try:
        return child.wait(delay)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        return None


def where(run: Run) -> str:
    """The stage that was under way."""
    unfinished = [stage.name for stage in STAGES if not (run.record(stage.name) or {}).get("finished")]
    return unfinished[0] if unfinished else "the end"


def say(line: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {line}\n")


if __name__ == "__main__":
    sys.exit(main())
