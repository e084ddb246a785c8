"""Runs whose teacher has answered, made on the spot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pico import silent

from edgedistill.recipe import Recipe, load_recipe
from edgedistill.records import Completion, Message, Prompt, json_lines, prompt_id
from edgedistill.run import Run
from edgedistill.stages.curate import curate
from edgedistill.stages.keys import row_key
from edgedistill.stages.prompt_source import prompt_row
from edgedistill.store import Store

__all__ = ["RECIPE", "asked", "curated", "taught"]

RECIPE = """
name = "right"
[teacher]
model = "t.gguf"
[student]
model = "s"
[teach]
samples = 3
temperature = 1.0
[curate]
valid_share = 0.0
{curate}
"""


def asked(text: str, expected: Any = None) -> Prompt:
    messages = (Message("user", text),)
    return Prompt(prompt_id(messages), messages, expected)


def taught(folder: Path, recipe: str, rows: Mapping[Prompt, Sequence[str]]) -> tuple[Recipe, Run]:
    """A recipe and its run after teach: each prompt with its answers by sample, of as many tokens as they have words.

    An answer that ends with "..." was cut off.
    """
    (folder / "recipe.toml").write_text(recipe, encoding="utf-8")
    (folder / "eval.jsonl").write_bytes(json_lines([{"messages": [{"role": "user", "content": "nothing"}]}]))
    run = Run(folder / "run")
    written = run.begin("prompts", "key", afresh=True) / "prompts.jsonl"
    written.write_bytes(json_lines(map(prompt_row, rows)))
    (folder / "prompts.jsonl").write_bytes(written.read_bytes())
    with Store(run.begin("teach", "key", afresh=True) / "teacher.sqlite") as store:
        for prompt, answers in rows.items():
            for sample, text in enumerate(answers):
                done = "length" if text.endswith("...") else "stop"
                one = Completion(prompt.id, text, done, 1, len(text.split()), 0.1, sample)
                store.add(row_key(prompt, "identity", sample), one)
    run.finish("teach", "key", {"teachers": [{"identity": "identity"}], "failed": 0}, 1.0)
    return load_recipe(folder), run


def curated(folder: Path, curate_lines: str, rows: dict[Prompt, list[str]]) -> tuple[Recipe, Run, dict[str, Any]]:
    """A run with three samples to each prompt; and its statistics."""
    recipe, run = taught(folder, RECIPE.format(curate=curate_lines), rows)
    return recipe, run, curate(recipe, run, run.begin("curate", "key", afresh=True), silent)
