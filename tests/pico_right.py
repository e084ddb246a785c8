"""Runs whose teacher gave three samples to each prompt, made on the spot: for the tests of what is right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pico import silent

from edgedistill.recipe import Recipe, load_recipe
from edgedistill.records import Completion, Message, Prompt, json_lines, prompt_id, read_prompts
from edgedistill.run import Run
from edgedistill.stages.curate import curate
from edgedistill.stages.keys import row_key
from edgedistill.stages.prompt_source import prompt_row
from edgedistill.store import Store

__all__ = ["asked", "curated"]

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


def curated(folder: Path, curate_lines: str, rows: dict[Prompt, list[str]]) -> tuple[Recipe, Run, dict[str, Any]]:
    """A run with three samples to each prompt, of as many tokens as they have words; and its statistics."""
    (folder / "recipe.toml").write_text(RECIPE.format(curate=curate_lines), encoding="utf-8")
    (folder / "eval.jsonl").write_bytes(json_lines([{"messages": [{"role": "user", "content": "nothing"}]}]))
    run = Run(folder / "run")
    written = run.begin("prompts", "key", afresh=True) / "prompts.jsonl"
    written.write_bytes(json_lines(map(prompt_row, rows)))
    (folder / "prompts.jsonl").write_bytes(written.read_bytes())
    out = run.begin("teach", "key", afresh=True)
    with Store(out / "teacher.sqlite") as store:
        for prompt in read_prompts(written):
            for sample, text in enumerate(rows[prompt]):
                done = "length" if text.endswith("...") else "stop"
                one = Completion(prompt.id, text, done, 1, len(text.split()), 0.1, sample)
                store.add(row_key(prompt, "identity", sample), one)
    run.finish("teach", "key", {"teachers": [{"identity": "identity"}], "failed": 0}, 1.0)
    recipe = load_recipe(folder)
    return recipe, run, curate(recipe, run, run.begin("curate", "key", afresh=True), silent)
