"""D1: memory at 500,000 rows against 50,000, of each stage that all rows go through: it must not grow with them.

Each stage runs in a process of its own, with a fake teacher that answers at once.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from fake_teacher import collected, install, recipe_in, run_in, write
from measure import finish, note

from edgedistill.hardware import peak_memory

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

LARGEST_RATIO = 1.2
MOST_MEMORY = 1024  # MB
STAGES = ("prompts", "teach", "curate", "tokens")


def megabytes_held() -> float:
    return peak_memory() / 2**20


def silent(what: str, done: int, total: int) -> None:
    pass


def one_stage(stage: str, folder: Path) -> dict[str, Any]:
    """Run a stage in this process; return rows, seconds and the peak of memory."""
    recipe, run = recipe_in(folder), run_in(folder)
    started = time.monotonic()
    if stage == "tokens":
        from pico import pico_hf_folder

        from edgedistill.stages.taught import TaughtRows
        from edgedistill.students.encode import Encoder

        encoder = Encoder(pico_hf_folder(folder / "student"))
        before, started = megabytes_held(), time.monotonic()
        with TaughtRows(recipe, run, encoder) as taught:
            rows = len(taught.examples("train"))
    else:
        from importlib import import_module

        install()
        function = getattr(import_module(f"edgedistill.stages.{stage}"), stage)
        before = megabytes_held()
        # what `prompts` keeps is not what the others are given: each of them sees all rows
        name = "first" if stage == "prompts" else stage
        summary = function(recipe, run, run.begin(name, "key", afresh=True), silent)
        run.finish(name, "key", summary, 1.0)
        rows = {"prompts": lambda: summary["kept"] + summary["dropped"], "teach": lambda: summary["rows"]}.get(
            stage, lambda: summary["prompts"]
        )()
    return {
        "rows": rows,
        "seconds": round(time.monotonic() - started, 1),
        "before": before,
        "peak": megabytes_held(),
    }


def measured(rows: int) -> dict[str, dict[str, Any]]:
    """What each stage took for so many rows."""
    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, rows)
        collected(folder)
        for stage in STAGES:
            command = [sys.executable, __file__, "--stage", stage, "--folder", name]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found[stage] = json.loads(done.stdout)
            note(f"{rows} rows, {stage}: {found[stage]}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--stage", choices=STAGES)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if options.stage:
        sys.stdout.write(json.dumps(one_stage(options.stage, options.folder)))
        return
    few, many = measured(options.rows // 10), measured(options.rows)
    ratios = {stage: round(many[stage]["peak"] / few[stage]["peak"], 3) for stage in STAGES}
    most = max(many[stage]["peak"] for stage in STAGES)
    finish(
        "D1",
        max(ratios.values()),
        LARGEST_RATIO,
        max(ratios.values()) <= LARGEST_RATIO and most < MOST_MEMORY,
        unit="x the memory at a tenth of the rows",
        n=options.rows,
        ratios=ratios,
        peak_mb={stage: round(many[stage]["peak"]) for stage in STAGES},
        rows_per_s={stage: round(many[stage]["rows"] / many[stage]["seconds"]) for stage in STAGES},
    )


if __name__ == "__main__":
    main()
