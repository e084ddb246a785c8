"""Running the pico recipe again and again in its folder of runs, and what must be the same each time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from conftest import Finished
from pico import silent

from edgedistill.pipeline import STAGES, RunSettings, run_recipe, stage_keys
from edgedistill.recipe import load_recipe
from edgedistill.run import Run
from edgedistill.store import Store

NAMES = [stage.name for stage in STAGES]

# what does not hang on the clock: equal after any kill
SAME_BYTES = (
    "prompts/prompts.jsonl",
    "curate/train.jsonl",
    "curate/valid.jsonl",
    "curate/rejected.jsonl",
    "curate/stats.json",
    "train/adapter/adapter_model.safetensors",
    "export/student/model.safetensors",
    "export/student-f16.gguf",
    "export/parity.json",
    "quantize/pico-Q8_0.gguf",
    "quantize/quality.json",
    "evaluate/evaluation.json",
)


def run_again(finished: Finished, progress: Any = silent, **settings: Any) -> list[str]:
    """Run the recipe in its folder of runs; return the names of the stages that ran."""
    return run_recipe(finished.recipe, RunSettings(runs=finished.runs, offline=True, **settings), progress)[1]


def states(finished: Finished) -> dict[str, str]:
    recipe, run = load_recipe(finished.recipe), Run(finished.run, offline=True)
    keys = stage_keys(recipe, run)
    return {name: run.state(name, keys[name]) for name in NAMES}


def answered(run: Path) -> dict[str, str]:
    with Store(run / "teach" / "teacher.sqlite", read_only=True) as store:
        return {key: completion.text for key, completion in store.rows()}
