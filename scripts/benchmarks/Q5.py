"""Q5: how much of what a 3-bit quant of the demo's student lost is regained by healing it.

The student is that of `--run`, a run of recipes/home-commands; without one, SmolLM2-135M is trained here for one epoch,
by the recipe's own stages, on right answers instead of a teacher's: examples.jsonl, edge.jsonl, 120 rows of eval.jsonl.
Measured is the mean KL from the 16-bit student at every token of right answers to commands of eval.jsonl that neither
training nor healing has seen, by llama.cpp on the files themselves, before and after.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from demo_rows import RECIPE
from measure import finish, note

from edgedistill.chat import answer_text, with_system
from edgedistill.llamacpp.comparison import ScoredText
from edgedistill.pipeline import load_run
from edgedistill.recipe import Recipe, load_recipe
from edgedistill.records import Example, Message, Prompt, json_lines, messages_of, read_prompts, read_rows
from edgedistill.run import Run, write_whole
from edgedistill.stages.export import F16_NAME, export
from edgedistill.stages.healing import heal_quants
from edgedistill.stages.held_out import text_of
from edgedistill.stages.quantizing import QuantizingTask, make
from edgedistill.stages.train import train
from edgedistill.students.encode import Encoder

HELD_OUT, VALID = 80, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, help="a finished run of the demo")
    parser.add_argument("--work", type=Path, required=True, help="a folder, to go on from where it is filled already")
    parser.add_argument("--steps", type=int, default=30, help="optimizer steps of healing")
    parser.add_argument("--types", nargs="+", default=["Q3_K_M"], help="the first one decides")
    given = parser.parse_args()
    asked = [row for row in read_prompts(RECIPE / "eval.jsonl") if row.expected is not None]
    random.Random(0).shuffle(asked)
    recipe, run = load_run(given.run) if given.run is not None else _trained(given.work, asked[HELD_OUT:])
    recipe = recipe.model_copy(
        update={"quantize": recipe.quantize.model_copy(update={"heal": True, "heal_steps": given.steps})}
    )
    held_out = asked if given.run is not None else asked[:HELD_OUT]
    texts = _texts(recipe, run, [_answered(prompt) for prompt in held_out])
    found = {name: _healed(recipe, run, name, given.work, texts) for name in given.types}
    value = found[given.types[0]]["regained"]
    finish(
        "Q5",
        value,
        0.5,
        value >= 0.5,
        peer=f"{given.types[0]} as llama.cpp's quantizer makes it with an importance matrix of the task",
        unit="share of the KL from the 16-bit student that is regained",
        n=sum(text.scored for text in texts),
        texts=len(texts),
        types=found,
    )


def _trained(work: Path, shown: Sequence[Prompt]) -> tuple[Recipe, Run]:
    """The demo's recipe and a run whose student has learned the right answers, made where it is not there yet."""
    demo, run = load_recipe(RECIPE), Run(work)
    short = demo.train.model_copy(update={"epochs": 1, "batch_size": 8, "checkpoint_steps": 5})
    recipe = demo.model_copy(update={"train": short})
    if (run.folder("export") / "parity.json").is_file():
        return recipe, run
    rows = [dict(row) for _, row in read_rows(RECIPE / "examples.jsonl")]
    rows += [_row(prompt) for prompt in (*_right(RECIPE / "edge.jsonl"), *shown)]
    random.Random(0).shuffle(rows)
    write_whole(run.folder("curate") / "valid.jsonl", json_lines(rows[:VALID]))
    write_whole(run.folder("curate") / "train.jsonl", json_lines(rows[VALID:]))
    write_whole(run.folder("prompts") / "prompts.jsonl", (RECIPE / "prompts.jsonl").read_bytes())
    train(recipe, run, run.folder("train"), _said)
    export(recipe, run, run.folder("export"), _said)
    return recipe, run


def _healed(recipe: Recipe, run: Run, name: str, work: Path, texts: Sequence[ScoredText]) -> dict[str, Any]:
    """What was measured of one quant type; the quant is made as the stage makes it, weighed by importance."""
    source, settings = run.folder("export") / F16_NAME, recipe.quantize.model_copy(update={"types": (name,)})
    shown = [messages_of(str(number), row) for number, row in read_rows(run.folder("curate") / "train.jsonl")]
    task = QuantizingTask(source, work / recipe.name, settings, _texts(recipe, run, shown), "training rows")
    path = make(task, _said)[name].path
    found = heal_quants(recipe, run, {name: path}, texts, _said)[name]
    before, after = found["before"]["mean"], found["after"]["mean"]
    regained = round(1 - after / before, 4) if found["kept"] else 0.0
    note(f"{name}: KL {before:.5f}, healed {after:.5f}, {regained:.1%} regained in {found['seconds']} s")
    return {**found, "regained": regained, "bytes": path.stat().st_size}


def _texts(recipe: Recipe, run: Run, turns: Sequence[tuple[Message, ...]]) -> list[ScoredText]:
    """Conversations in the student's tokens, scored at those of the answers."""
    encoder = Encoder(run.folder("export") / "student")
    rows = (encoder.example(Example("", with_system(recipe.student.system, one))) for one in turns)
    return [text_of(row) for row in rows]


def _right(path: Path) -> Iterator[Prompt]:
    return (prompt for prompt in read_prompts(path) if prompt.expected is not None)


def _answered(prompt: Prompt) -> tuple[Message, ...]:
    return (*prompt.messages, Message("assistant", answer_text(prompt.expected)))


def _row(prompt: Prompt) -> dict[str, Any]:
    return {"messages": [message.as_dict() for message in _answered(prompt)]}


def _said(what: str, done: int, total: int) -> None:
    if done % 5 == 0 or done == total:
        note(f"{what}: {done} of {total}")


if __name__ == "__main__":
    main()
