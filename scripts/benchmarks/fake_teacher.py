"""A teacher that answers at once, and a run of very many prompts for it: what is measured is all but the teacher."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType

from edgedistill import teachers
from edgedistill.recipe import Recipe, TeacherSettings, TeachSettings, load_recipe
from edgedistill.records import Completion, Example, Prompt, Wanted
from edgedistill.run import Run

RECIPE = """
name = "many"
[teacher]
model = "fake"
[student]
model = "student"
[train]
max_length = 512
"""
WORDS = 20_000
FAKE = TeacherSettings.model_construct(
    **{**TeacherSettings(model="fake").model_dump(), "backend": "fake", "url": "fake:"}
)

Speak = Callable[[Iterable[Prompt]], Iterator[Completion]]


def answer(prompts: Iterable[Prompt]) -> Iterator[Completion]:
    """An answer to each prompt, at once."""
    for prompt in prompts:
        yield Completion(prompt.id, f"The answer to this is number {int(prompt.id, 16)}.", "stop", 100, 12, 0.01)


class FakeTeacher:
    def __init__(self, speak: Speak) -> None:
        self._speak = speak

    def complete(
        self, prompts: Iterable[Prompt], settings: TeachSettings, seed: int, wanted: Wanted | None = None
    ) -> Iterator[Completion]:
        return self._speak(prompts)

    def score(self, examples: Iterable[Example], settings: TeachSettings, seed: int) -> Iterator[Completion]:
        raise NotImplementedError

    def close(self) -> None:
        pass


def install(speak: Speak = answer) -> None:
    """Make `backend = "fake"` a teacher of this process."""
    module = ModuleType("edgedistill.teachers.fake")
    module.load = lambda task: FakeTeacher(speak)  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    teachers.BACKENDS["fake"] = teachers.Backend("json", "nothing", scores=False)


def recipe_in(folder: Path) -> Recipe:
    """The recipe of a folder that `write` has filled, with the fake teacher."""
    loaded = load_recipe(folder)
    recipe = loaded.model_copy(update={"teacher": FAKE, "teachers": (FAKE,)})
    object.__setattr__(recipe, "_path", loaded.path)
    return recipe


def run_in(folder: Path) -> Run:
    return Run(folder / "run", offline=True)


def write(folder: Path, count: int) -> None:
    """A recipe with so many prompts, of which one in twenty nearly repeats an earlier one."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    source = random.Random(0)
    words = ["".join(source.choices("abcdefghijklmnopqrstuvwxyz", k=source.randint(3, 9))) for _ in range(WORDS)]
    with (folder / "prompts.jsonl").open("w", encoding="utf-8") as file:
        for text in texts(source, words, count):
            file.write(json.dumps({"messages": [{"role": "user", "content": text}]}) + "\n")
    with (folder / "eval.jsonl").open("w", encoding="utf-8") as file:
        for text in texts(source, words, 500):
            file.write(json.dumps({"messages": [{"role": "user", "content": text}], "expected": "x"}) + "\n")


def texts(source: random.Random, words: list[str], count: int) -> Iterator[str]:
    """Texts of six to twenty words."""
    earlier = "please"
    for number in range(count):
        if number % 20 == 19:
            yield f"{earlier}, please {number % 1000:03}"
            continue
        text = " ".join(source.choices(words, k=source.randint(6, 20)))
        if number % 1000 == 0:
            earlier = text
        yield text


def collected(folder: Path) -> Run:
    """The run of a folder, with all its prompts as its first stage would leave them if none repeated another."""
    run = run_in(folder)
    (run.begin("prompts", "key", afresh=True) / "prompts.jsonl").write_bytes((folder / "prompts.jsonl").read_bytes())
    run.finish("prompts", "key", {}, 1.0)
    return run
