"""A whole recipe on pico models: everything `run` needs, small enough to run in seconds."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pico import pico_gguf, pico_hf_folder

SCHEMA = {
    "type": "object",
    "properties": {"action": {"enum": ["on", "off", "none"]}, "room": {"enum": ["hall", "all"]}},
    "required": ["action", "room"],
    "additionalProperties": False,
}

RECIPE = """\
name = "pico"
description = "A command in, one line of JSON out."
seed = 7
schema_file = "schema.json"
accept_license = "apache-2.0"

[teacher]
model = "{teacher}"
system = "You turn a command into JSON."
guide = "guide.md"
examples = "examples.jsonl"

[student]
model = "{student}"
system = ""

[teach]
max_tokens = 40
slots = 4

[curate]
valid_share = 0.2

[train]
epochs = 2
learning_rate = 1e-2
batch_size = 8
rank = 4
alpha = 8.0
max_length = 128
checkpoint_steps = 2

[quantize]
types = ["Q8_0"]

[evaluate]
file = "eval.jsonl"
edge_file = "edge.jsonl"
max_tokens = 40

[bench]
target_ms = [1000, 60000]
percentile = 50
requests = 20
warmup = 2

[accept]
valid = 0.9
exact_of_teacher = 0.0
must_pass = false
speedup = 0.0
"""

THINGS = ("lamp", "heater", "radio", "television", "curtain", "door lock", "robot vacuum", "fan")
WAYS = (
    "Would you kindly switch on the {} for grandmother",
    "{} off, and be quick about it",
    "I never want to see that {} running again",
    "Tell me whether somebody left the {} on",
    "Start up our {} before breakfast tomorrow",
)
PROMPTS = tuple(way.format(thing) for thing in THINGS for way in WAYS)
EVAL_THINGS = ("bulb", "oven", "blind", "speaker", "gate", "monitor", "kettle", "pump", "boiler")
EVAL_WAYS = ("Shut down this {} at midnight", "Please get my {} going", "Is {} number {} idle?", "{} now! {} {}")
EVAL = tuple(way.format(*[thing] * 3) for thing in EVAL_THINGS for way in EVAL_WAYS)
EDGE = ("", "LIGHT", "emoji 🚀 only", "\n\nfirst a line break")


@dataclass(frozen=True)
class PicoModels:
    """A teacher as a GGUF, a student as a Hugging Face folder."""

    teacher: Path
    student: Path


def pico_models(folder: Path) -> PicoModels:
    """Write both models; the student states its licence, the teacher none."""
    teacher = pico_gguf(folder / "teacher.gguf", "qwen2", tied=False, seed=3)
    student = pico_hf_folder(folder / "student", "llama", seed=1)
    (student / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Pico\n", encoding="utf-8")
    return PicoModels(teacher, student)


def rows(texts: tuple[str, ...], **more: Any) -> bytes:
    lines = ({"messages": [{"role": "user", "content": text}], **more} for text in texts)
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()


def write_pico_recipe(folder: Path, models: PicoModels, changes: dict[str, str] | None = None) -> Path:
    """Write a recipe folder on these models; `changes` replaces texts of recipe.toml. Returns `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    text = RECIPE.format(teacher=models.teacher, student=models.student)
    for old, new in (changes or {}).items():
        assert old in text, old
        text = text.replace(old, new)
    expected = {"action": "on", "room": "all"}
    example = {"role": "assistant", "content": '{"action":"off","room":"hall"}'}
    files = {
        "recipe.toml": text.encode(),
        "schema.json": json.dumps(SCHEMA).encode(),
        "guide.md": b"# Guide\n\nHall is the hall, all is everything else.\n",
        "examples.jsonl": json.dumps({"messages": [{"role": "user", "content": "hall off"}, example]}).encode(),
        "prompts.jsonl": rows(PROMPTS),
        "eval.jsonl": rows(EVAL, expected=expected, tags=["curt"]),
        "edge.jsonl": rows(EDGE, expected=expected, must_pass=True),
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def own_copy(models: PicoModels, folder: Path) -> PicoModels:
    """The same models in another folder, to be damaged there."""
    folder.mkdir(parents=True, exist_ok=True)
    teacher = Path(shutil.copyfile(models.teacher, folder / "teacher.gguf"))
    return PicoModels(teacher, Path(shutil.copytree(models.student, folder / "student")))


def untouched(run: Path) -> dict[str, bytes]:
    """The record of every stage of a run, byte by byte."""
    return {path.parent.name: path.read_bytes() for path in sorted(run.glob("*/stage.json"))}


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
