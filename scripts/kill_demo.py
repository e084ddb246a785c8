"""Kill a run at random points, start it again each time, and compare what it ends with to an uninterrupted run.

    python scripts/kill_demo.py recipes/home-commands --reference runs/home-commands --kills 10

The reference says how long the whole takes, so that the kills (SIGKILL to the whole process group) fall anywhere in it.
Prints one line a kill and, last of all, one JSON object. Ends with 1 where anything does not hold.
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
from typing import Any

from edgedistill import load_recipe
from edgedistill.run import Run, file_sha256
from edgedistill.stages import STAGES
from edgedistill.students import checkpoints

COMPARED = ("prompts/prompts.jsonl", "curate/train.jsonl", "curate/valid.jsonl", "curate/rejected.jsonl")


def main() -> int:
    options = arguments()
    source = random.Random(options.seed)
    reference = Run(options.reference)
    seconds = sum(finished(reference, stage.name)["seconds"] for stage in STAGES)
    run = Run(options.runs / load_recipe(options.recipe).name)
    if run.path.exists():
        sys.exit(f"{run.path}: is there already; name another folder with --runs")
    kills = []
    for number in range(1, options.kills + 1):
        delay = source.uniform(0.2, 1.8) * seconds / (options.kills + 1)
        if (code := start(options, delay)) is not None:
            say(f"the run ended with {code} before kill {number}")
            break
        kills.append({"after_s": round(delay, 1), "in": where(run), "step": newest_step(run)})
        say(f"kill {number} after {delay:.0f} s, in {kills[-1]['in']}")
    code = start(options, None)
    same = {name: file_sha256(run.path / name) == file_sha256(reference.path / name) for name in COMPARED}
    leftovers = [str(path) for path in run.path.rglob("*.partial-*")]
    resumed, trained = finished(run, "train")["summary"]["resumed_from"], [kill["step"] for kill in kills]
    holds = {
        "all_kills_fell": len(kills) == options.kills,
        "ended_whole": all(finished(run, stage.name) for stage in STAGES[:-1]),
        "same_rows": all(same.values()),
        "no_leftovers": not leftovers,
        "trained_on_from_a_checkpoint": resumed >= max(trained),
    }
    result = {"kills": kills, "exit_code": code, "same": same, "resumed_from": resumed, "holds": holds}
    sys.stdout.write(json.dumps(result) + "\n")
    return 0 if all(holds.values()) else 1


def finished(run: Run, stage: str) -> dict[str, Any]:
    """The record of a stage that is done."""
    record = run.record(stage)
    if record is None or not record["finished"]:
        sys.exit(f"{run.path}: '{stage}' has not finished")
    return record


def newest_step(run: Run) -> int:
    """The step of the last whole checkpoint, or 0."""
    found = checkpoints.newest(run.folder("train") / "checkpoints")
    return int(found[1]["step"]) if found else 0


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
