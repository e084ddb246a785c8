"""N1: support tickets synthesised from a description, 15 seeds and axes, against the plain loop "write a new ticket".

The same teacher (Qwen2.5-Coder-1.5B, Q4_K_M) writes both at the same temperature and top-p, behind the same description
and the same 15 seeds, which are evenly picked from the recipe's prompt file. Ours is `[prompts.synthesize]` as a run
does it; the peer is one request, "Write a new ticket.", answered so many times. Figures: distinct-3, of as many texts
of each, evenly picked, since it falls with their number; the share of texts that have a near-duplicate among those
before them (Jaccard of character 4-grams at 0.7); the 15 combinations of category and urgency that were asked for and
filled, and how many of them the recipe's own teacher finds when it sorts some of the tickets, evenly picked, by its
guide.

With `--plain N` the peer is asked so often only: a figure of which it is never said that it holds. With `--sorted 0`
nothing is sorted. With `--work DIR`, a benchmark that was killed goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from measure import finish, note, teacher_gguf
from synthesizing import synthetic_recipe, written

from edgedistill.chat import with_system
from edgedistill.recipe import Recipe, TeacherSettings, TeachSettings
from edgedistill.records import Message, Prompt, digest, prompt_id
from edgedistill.run import file_sha256
from edgedistill.schema import load_schema
from edgedistill.similarity import SimilarTexts
from edgedistill.stages.prompt_source import seeds_of
from edgedistill.stages.prompts import spread
from edgedistill.store import Store
from edgedistill.synthesis import diversity, writing
from edgedistill.teachers import TeacherTask, load_teacher, preamble

RECIPE = "support-triage"
BARS = {"near_duplicates": 0.02, "distinct_3": 1.3, "cells": 15}
AT_ONCE = 60  # answers to the plain request that are asked for at a time
PLAIN = "Write a new ticket."
TASK = (
    "Support tickets: what customers of an app, a shop, a bank, a parcel service, a maker of gadgets or any other "
    "company write to its support. Curt or rambling, angry or polite, with and without greeting, typos and signature."
)
TABLE = """
[prompts.synthesize]
task = {task}
count = {count}
seeds = "seeds.jsonl"
cells = ["category", "urgency"]

[prompts.synthesize.axes]
length = ["a few words", "one sentence", "two or three sentences", "a long paragraph"]
tone = ["angry", "polite", "curt", "rambling", "anxious", "matter-of-fact", "ironic", "confused"]
company = ["a phone app", "a shop for clothes", "a bank", "a maker of kitchen machines", "software for offices",
  "an airline", "a streaming service", "a gym", "an energy supplier", "a game studio", "a school", "a hardware shop"]

[prompts.synthesize.axes.category]
billing = "money: charges, prices, invoices, refunds, subscriptions"
bug = "the product does something wrong: crashes, errors, lost data, a device that broke in use"
account = "access and identity: login, password, codes, hacked, profile, permissions"
shipping = "physical delivery: parcels late, lost, damaged or wrong, tracking, address, customs"
other = "the rest: how a feature works, wishes, praise, staff, press, jobs, spam"

[prompts.synthesize.axes.urgency]
low = "nothing is wrong: a question, a request, a wish, praise"
medium = "something is wrong or late, but they can go on"
high = "they are blocked, money was taken wrongly, safety or data is at risk, or it is due today"
"""


def plain_loop(recipe: Recipe, work: Path, count: int) -> list[str]:
    """What the teacher writes when it is told so often to write a new ticket."""
    settings = recipe.prompts.synthesize
    assert settings is not None
    shown = "\n".join(f"- {seed.text}" for seed in seeds_of(recipe))
    system = f"You write support tickets. {settings.task}\n\nSome that people wrote:\n{shown}"
    path = teacher_gguf()
    task = TeacherTask(path, file_sha256(path), with_system(system, ()), None, work, TeacherSettings(model=str(path)))
    messages = (Message("user", PLAIN),)
    prompt = Prompt(prompt_id(messages), messages)
    how = writing(settings, recipe.teach).model_copy(update={"max_tokens": settings.longest // 3, "samples": AT_ONCE})
    keys = [digest("plain", system, how.model_dump(mode="json"), number) for number in range(count)]
    with Store(work / "plain.sqlite") as store:
        teacher = None
        for start in range(0, count, AT_ONCE):
            if len(store.held(keys[start : start + AT_ONCE])) == len(keys[start : start + AT_ONCE]):
                continue
            teacher = teacher or load_teacher(task)
            for one in teacher.complete([prompt], how, start * 1000):
                if start + one.sample < count:
                    store.add(keys[start + one.sample], replace(one, sample=0))
            note(f"the plain loop: {start + AT_ONCE} of {count}")
        if teacher is not None:
            teacher.close()
        found = store.find(keys)
    return [found[key].text.strip() for key in keys]


def near_duplicates(texts: Sequence[str], threshold: float, work: Path) -> float:
    """The share of texts that resemble one before them."""
    with SimilarTexts(threshold, work) as seen:
        found = [seen.screen([(str(number), text)])[0] for number, text in enumerate(texts)]
    return sum(one is not None for one in found) / len(texts)


def sorted_by_teacher(recipe: Recipe, texts: Sequence[str], work: Path) -> Counter[str]:
    """How many tickets the recipe's teacher puts into each of the 15 cells."""
    path = teacher_gguf()
    task = TeacherTask(
        path, file_sha256(path), preamble(recipe), load_schema(recipe), work, TeacherSettings(model=str(path))
    )
    teacher = load_teacher(task)
    prompts = [Prompt(prompt_id((Message("user", text),)), (Message("user", text),)) for text in texts]
    try:
        answers = [json.loads(one.text) for one in teacher.complete(prompts, TeachSettings(max_tokens=32), 0)]
    finally:
        teacher.close()
    return Counter(f"{one['category']}, {one['urgency']}" for one in answers)


def measured(recipe: Recipe, texts: Sequence[str], counts: tuple[int, int], work: Path) -> dict[str, Any]:
    """The figures of some texts; `counts` says how many are compared, and how many are sorted."""
    settings = recipe.prompts.synthesize
    assert settings is not None
    compared, some = (list(spread(texts, len(texts), count)) for count in counts)
    found = {
        **diversity(compared),
        "near_duplicates": round(near_duplicates(texts, settings.near_duplicate, work), 4),
        "sorted": len(some),
    }
    if some:
        cells = sorted_by_teacher(recipe, some, work)
        found["cells_by_teacher"] = len(cells)
        found["smallest_cell_by_teacher"] = min(cells.values()) if len(cells) == BARS["cells"] else 0
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=600)
    parser.add_argument("--plain", type=int, help="Answers to the plain request; as many as ours, unless said.")
    parser.add_argument("--sorted", type=int, default=150, help="Tickets of each kind that the teacher sorts.")
    parser.add_argument("--work", type=Path, help="A folder to go on in.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = options.work or Path(scratch)
        table = TABLE.format(task=json.dumps(TASK), count=options.count)
        recipe = synthetic_recipe(RECIPE, work / "recipe", table)
        mine, told = written(work / "recipe", work / "runs")
        theirs = plain_loop(recipe, work, min(len(mine), options.plain or len(mine)))
        texts = {"ours": mine, "plain": theirs}
        counts = len(theirs), options.sorted
        found = {name: measured(recipe, those, counts, work) for name, those in texts.items()}
    ratio = found["ours"]["distinct_3"] / found["plain"]["distinct_3"]
    filled = sum(1 for name, count in told["cells"].items() if ", " in name and count)
    value = {
        "near_duplicates": found["ours"]["near_duplicates"],
        "distinct_3": round(ratio, 3),
        "cells": filled,
    }
    holds = (
        len(mine) == len(theirs) >= options.count
        and value["near_duplicates"] <= BARS["near_duplicates"]
        and ratio >= BARS["distinct_3"]
        and filled == BARS["cells"]
    )
    finish(
        "N1",
        value,
        BARS,
        holds,
        peer='the loop "Write a new ticket."',
        unit="share of texts; x the peer's distinct-3; cells filled",
        n=len(mine),
        compared=len(theirs),
        **found,
        synthesis={key: told[key] for key in ("written", "requests", "dropped", "stopped", "unfilled")},
    )


if __name__ == "__main__":
    main()
