"""Runs whose teacher has answered, made on the spot: what curate is measured on."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from edgedistill.recipe import Recipe, load_recipe
from edgedistill.records import Completion, Message, Prompt, prompt_id
from edgedistill.run import Run
from edgedistill.stages.keys import row_key
from edgedistill.store import Store

__all__ = ["asked", "sentence", "taught_run"]

IDENTITY = "teacher"
BLOCK = 2000
SYLLABLES = (
    "ba",
    "co",
    "du",
    "fe",
    "gi",
    "lo",
    "ma",
    "ne",
    "pi",
    "ra",
    "su",
    "ta",
    "vo",
    "wi",
    "ze",
    "cha",
    "dro",
    "fla",
)
# common words, so that a sentence is English, and made-up names, so that no two sentences are alike
COMMON = re.findall(
    r"\w+",
    """
the a of to and in for with on that this from by at it is was were will can have had not but when while after before
into over under about between during through your our their my one two some many each other more most order parcel
invoice window kitchen garden battery printer account charge morning evening weather station train ticket doctor teacher
student lesson picture number question answer river mountain bridge engine wheel paper please send open close check
write read find move carry build paint clean repair cancel return deliver explain small large old new early late quick
slow warm cold bright quiet broken missing different better wrong right
""",
)


def sentence(source: random.Random, words: int) -> str:
    """So many words, every fourth of which is a name that no other sentence is likely to have."""
    said = []
    for place in range(words):
        name = "".join(source.choice(SYLLABLES) for _ in range(3))
        said.append(name if place % 4 == 3 else source.choice(COMMON))
    return f"{' '.join(said).capitalize()}."


def asked(text: str, tags: tuple[str, ...] = ()) -> Prompt:
    messages = (Message("user", text),)
    return Prompt(prompt_id(messages), messages, tags=tags)


def taught_run(
    folder: Path, recipe: str, rows: Iterable[tuple[Prompt, list[Completion]]], evals: Iterable[str] = ("nothing",)
) -> tuple[Recipe, Run]:
    """A recipe and its run after teach: each prompt with its answers, by sample."""
    (folder / "recipe.toml").write_text(recipe, encoding="utf-8")
    texts = (json.dumps({"messages": [{"role": "user", "content": text}]}) for text in evals)
    (folder / "eval.jsonl").write_text("".join(f"{line}\n" for line in texts), encoding="utf-8")
    (folder / "prompts.jsonl").write_text("", encoding="utf-8")
    run = Run(folder / "run")
    prompts = run.begin("prompts", "key", afresh=True) / "prompts.jsonl"
    out = run.begin("teach", "key", afresh=True)
    left: Iterator[tuple[Prompt, list[Completion]]] = iter(rows)
    with prompts.open("w", encoding="utf-8") as file, Store(out / "teacher.sqlite") as store:
        while block := list(islice(left, BLOCK)):
            for prompt, completions in block:
                row: dict[str, Any] = {"messages": [turn.as_dict() for turn in prompt.messages]}
                file.write(json.dumps(row | ({"tags": list(prompt.tags)} if prompt.tags else {})) + "\n")
                for sample, one in enumerate(completions):
                    store.add(row_key(prompt, IDENTITY, sample), one)
    run.finish("teach", "key", {"teachers": [{"identity": IDENTITY}], "failed": 0}, 1.0)
    return load_recipe(folder), run
