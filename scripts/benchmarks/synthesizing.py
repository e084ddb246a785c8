"""What N1 and N2 share: a recipe whose prompts its teacher writes, from a description and some prompts it had."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from measure import note

from edgedistill.pipeline import RunSettings, run_recipe
from edgedistill.recipe import Recipe, load_recipe
from edgedistill.records import json_lines, read_prompts, read_rows
from edgedistill.stages.prompts import spread

__all__ = ["synthetic_recipe", "written"]

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
SEEDS = 15
SLOTS = 12  # on two cores; the search for the best number would not show in any figure here


def synthetic_recipe(name: str, folder: Path, table: str) -> Recipe:
    """A copy of a recipe with the table `[prompts.synthesize]` in place of its file, and 15 seeds evenly from that."""
    folder.mkdir(parents=True, exist_ok=True)
    text = (RECIPES / name / "recipe.toml").read_text(encoding="utf-8")
    old = '[prompts]\nfile = "prompts.jsonl"\n'
    assert old in text
    changed = text.replace(old, table)
    if "\nslots = " not in changed:
        changed = changed.replace("[teach]\n", f"[teach]\nslots = {SLOTS}\n")
    (folder / "recipe.toml").write_text(changed, encoding="utf-8")
    for file in ("guide.md", "examples.jsonl", "schema.json", "eval.jsonl", "edge.jsonl"):
        shutil.copyfile(RECIPES / name / file, folder / file)
    rows = read_prompts(RECIPES / name / "prompts.jsonl")
    seeds = spread(rows, len(rows), SEEDS)
    (folder / "seeds.jsonl").write_bytes(json_lines({"messages": [one.messages[0].as_dict()]} for one in seeds))
    return load_recipe(folder)


def written(folder: Path, runs: Path) -> tuple[list[str], dict[str, Any]]:
    """The texts that a run of the recipe in a folder has its teacher write, without the seeds; what it says of them."""
    seen: list[int] = []

    def progress(what: str, done: int, total: int) -> None:
        if what == "writing prompts" and done not in seen:
            seen.append(done)
            note(f"written: {done} of {total}")

    run, _ = run_recipe(folder, RunSettings(runs=runs, offline=True, only="prompts"), progress)
    rows = [row for _, row in read_rows(run.folder("prompts") / "prompts.jsonl")]
    texts = [row["messages"][0]["content"] for row in rows if row.get("_ed", {}).get("source") == "synthesized"]
    return texts, run.summary("prompts")["synthesized"]
