"""`edgedistill init`: a recipe of the user's own, with comments, that `check` takes after two edits."""

from __future__ import annotations

import json
import re
from pathlib import Path

import click

from ..errors import InvalidInput
from ..records import json_lines
from ..run import write_whole

__all__ = ["write_recipe"]

RECIPE = """\
# What the small model shall do. Run it with: edgedistill run {folder}
name = "{name}"                 # also the run folder and the packaged model's name
description = ""
seed = 0
# schema_file = "schema.json"   # a JSON Schema for the answers; remove the line for free text

[teacher]                       # who is asked
backend = "llamacpp"
model = "path/to/teacher.gguf"  # a GGUF file, org/repo:file.gguf on the hub, or a name of the catalogue
system = "Answer with one word: positive, negative or neutral."
# guide = "guide.md"            # a longer text that is put after the system text
# examples = "examples.jsonl"   # solved examples: rows that end with the assistant's answer

[student]                       # who learns
backend = "torch"
model = "path/to/student"       # a Hugging Face folder or a GGUF, org/repo on the hub, or a name of the catalogue
system = ""                     # short is fast: the student learns what the teacher had to be told

[prompts]
file = "prompts.jsonl"          # what is asked: the more and the more varied, the better

[teach]
max_tokens = 64                 # longest answer
temperature = 0.0
slots = 16                      # prompts answered at the same time

[train]
method = "lora"                 # or "full": all weights, more memory
epochs = 3
learning_rate = 1e-3            # for "full" try 2e-4
batch_size = 16
rank = 16
alpha = 32.0

[quantize]
types = ["Q8_0", "Q4_K_M"]

[evaluate]
file = "eval.jsonl"             # rows with the right answers, which no one is trained on
max_tokens = 64

[bench]
target_ms = [100, 500]          # end to end, per answer
percentile = 50                 # 95, with 100 or more distinct prompts: to prove it takes 90 requests
warmup = 2

[accept]                        # the least that you allow: the eval rows must show, at 95 %, that it is above
valid = 0.95                    # 59 eval rows can show it, if all are valid
exact_of_teacher = 0.9          # right answers, relative to the teacher's own
agreement = 0.0
"""

PROMPTS = (
    "The parcel came a day early, lovely.",
    "Third time it broke. I want my money back.",
    "It does what it says.",
    "The manual is in the box.",
    "Best coffee I have had all year!",
    "Never again.",
    "The screen is bright, but the battery dies by noon.",
    "My order number is 4471.",
    "Setup took five minutes and everything just worked.",
    "Support kept me waiting for an hour and then hung up.",
    "It is blue.",
    "I would buy it again tomorrow.",
    "The zip jammed on the second day.",
    "We moved to a new office in May.",
    "So much quieter than the old one, what a relief.",
    "Arrived broken, and nobody answers my mails.",
    "The cable is two metres long.",
    "My kids love it.",
    "Cheap plastic, it smells awful.",
    "Works, nothing special.",
)
EVAL = (
    ("Absolutely delighted with this lamp.", "positive"),
    ("The handle came off in my hand.", "negative"),
    ("It weighs three kilos.", "neutral"),
    ("Fast, friendly, and cheaper than I thought.", "positive"),
    ("I regret buying this.", "negative"),
    ("The shop opens at nine.", "neutral"),
)


def write_recipe(folder: Path, as_json: bool) -> None:
    """Write `recipe.toml` and sample data into a folder that holds no recipe yet.

    Raises InvalidInput where there is one, or where the folder's name is no name for a run.
    """
    name = folder.resolve().name
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise InvalidInput(f"{folder}: '{name}' is no name for a run", "Use letters, digits, '.', '_' and '-'.")
    files = {
        "prompts.jsonl": json_lines({"messages": [_user(text)]} for text in PROMPTS),
        "eval.jsonl": json_lines({"messages": [_user(text)], "expected": answer} for text, answer in EVAL),
        "recipe.toml": RECIPE.format(name=name, folder=folder).encode(),
    }
    for file in files:
        if (folder / file).exists():
            raise InvalidInput(f"{folder / file}: is there already", "Choose another folder.")
    for file, data in files.items():
        write_whole(folder / file, data)
    if as_json:
        click.echo(json.dumps({"folder": str(folder), "files": list(files)}))
    else:
        click.echo(f"{folder}: {', '.join(files)}")
        click.echo(f"Set teacher.model and student.model, then: edgedistill check {folder}")


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}
