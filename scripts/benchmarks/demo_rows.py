"""The demo's student and what it is trained on, encoded as its training stage does."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from measure import note

from edgedistill.chat import with_system
from edgedistill.recipe import load_recipe
from edgedistill.records import Example, Message, messages_of, read_prompts, read_rows
from edgedistill.run import Run
from edgedistill.stages.imported import base_folder
from edgedistill.students.encode import EncodedExample, Encoder

__all__ = ["RECIPE", "ROWS", "demo_base", "demo_rows"]

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes" / "home-commands"
ROWS = ROOT / "runs" / "home-commands" / "curate" / "train.jsonl"


def demo_base(recipe: Path = RECIPE) -> Path:
    """A recipe's student as a Hugging Face folder, fetched and imported where it is not there yet."""
    with tempfile.TemporaryDirectory() as folder:
        return base_folder(load_recipe(recipe), Run(Path(folder)), lambda what, done, total: None)[1]


def demo_rows(base: Path, path: Path, count: int, seed: int = 0) -> list[EncodedExample]:
    """Rows drawn from a file that the curate stage wrote; without one, the eval set with its own answers."""
    if not path.is_file():
        note(f"{path} is not there: the eval set stands in for it")
    examples = list(_curated(path) if path.is_file() else _expected())
    drawn = random.Random(seed).sample(examples, min(count, len(examples)) or len(examples))
    system = load_recipe(RECIPE).student.system
    encoder = Encoder(base)
    return [encoder.example(replace(one, messages=with_system(system, one.messages))) for one in drawn]


def _curated(path: Path) -> Iterator[Example]:
    for number, row in read_rows(path):
        yield Example(f"{number}", messages_of(f"{path}:{number}", row))


def _expected() -> Iterator[Example]:
    for prompt in read_prompts(RECIPE / "eval.jsonl"):
        answer = json.dumps(prompt.expected, ensure_ascii=False, separators=(",", ":"))
        yield Example(prompt.id, (*prompt.messages, Message("assistant", answer)))
