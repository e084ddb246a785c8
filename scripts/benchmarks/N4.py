"""N4: home-commands with wrong labels among its answers: a student of the curated rows against one of all rows.

`python N4.py --work FOLDER` asks the demo's teacher for its answers, puts another row's answer in the place of one in
ten, curates these rows with `[curate.noise]`, and trains on what is left and on all of them, `--seeds` times each. By
default curate drops what is suspicious; with `--ways asked all` the teacher is asked for it again, and its answers vote
with the one that is there. `--seeds 0` trains nothing and says what curate found.

`python N4.py --gold` needs neither teacher nor student: of all home-commands rows that have a right answer, with one
answer in ten swapped by each of three seeds, it says how many of the swapped and how many of the good ones are
suspicious; `--times 30` with another bound than the default's.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from curating import taught_run
from distilling import RECIPE, Trial, Workshop, options, share_equal
from measure import finish, note, teacher_gguf

from edgedistill.curation.noise import LabelNoise, labels_of
from edgedistill.recipe import load_recipe
from edgedistill.records import Completion, Prompt, read_prompts, read_rows
from edgedistill.stages.curate import curate
from edgedistill.stages.scoring import equal
from edgedistill.students.encode import EncodedExample
from edgedistill.students.lessons import hard_lesson
from edgedistill.vetting import NoiseSettings

STUDENT = "smollm2-135m-instruct"
WRONG, SEED = 0.1, 4
CURATE = """\
name = "n4"
schema_file = "schema.json"
[teacher]
model = {model}
system = {system}
guide = "guide.md"
examples = "examples.jsonl"
[teach]
max_tokens = 48
[student]
model = "s"
[curate.noise]
action = "{action}"
times = {times}
"""
ACTIONS = {"curated": "drop", "asked": "ask again"}


def with_wrong(answers: dict[str, str], seed: int = SEED) -> tuple[dict[str, str], set[str]]:
    """The answers, one in ten of which is another row's that says something else; whose they are."""
    source = random.Random(seed)
    names = sorted(answers)
    wrong = set(source.sample(names, int(WRONG * len(names))))
    others = [answers[name] for name in names]
    given = dict(answers)
    for name in sorted(wrong):
        given[name] = source.choice([one for one in others if not equal(one, answers[name])])
    return given, wrong


def curated(
    prompts: Sequence[Prompt], given: dict[str, str], evals: Sequence[Prompt], action: str, times: float
) -> tuple[dict[str, str], dict[str, str]]:
    """What curate does with these answers, by prompt id: the reason of each row that it throws out; other answers."""
    rows = ((one, [Completion(one.id, given[one.id], "stop", 1, 1, 0.1)]) for one in prompts)
    teacher = load_recipe(RECIPE).teacher
    told = {"model": json.dumps(str(teacher_gguf(teacher.model))), "system": json.dumps(teacher.system)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in ("schema.json", "guide.md", "examples.jsonl"):
            shutil.copy(RECIPE.parent / file, folder)
        recipe, run = taught_run(
            folder, CURATE.format(action=action, times=times, **told), rows, [one.text for one in evals]
        )
        curate(recipe, run, run.begin("curate", "key", afresh=True), lambda what, done, total: None)
        rejected, *learned = (
            [row for _, row in read_rows(run.folder("curate") / f"{name}.jsonl")]
            for name in ("rejected", "train", "valid")
        )
    new = {row["_ed"]["id"]: row["messages"][-1]["content"] for rows in learned for row in rows}
    return {row["_ed"]["id"]: row["_ed"]["reason"] for row in rejected}, new


def found_of(gone: dict[str, str], wrong: set[str], count: int) -> dict[str, Any]:
    """How many of the wrong rows are thrown out, and how many good ones, by reason."""
    return {
        "rows": count,
        "wrong": len(wrong),
        "wrong_thrown_out": dict(Counter(reason for name, reason in gone.items() if name in wrong)),
        "good_thrown_out": dict(Counter(reason for name, reason in gone.items() if name not in wrong)),
    }


def gold() -> dict[str, tuple[str, str]]:
    """Text and right answer of every row of the demo that has one, by prompt id."""
    found: dict[str, tuple[str, str]] = {}
    for name in ("eval.jsonl", "edge.jsonl"):
        rows = read_prompts(RECIPE.with_name(name))
        found |= {one.id: (one.text, json.dumps(one.expected)) for one in rows}
    for _, row in read_rows(RECIPE.with_name("examples.jsonl")):
        asked, answered = row["messages"]
        found[f"example: {asked['content']}"] = asked["content"], answered["content"]
    return found


def tell_gold(times: float, seeds: Sequence[int] = (0, 1, 2)) -> None:
    """The share of swapped answers that are suspicious, and that of the others."""
    rows = gold()
    names = list(rows)
    shares: dict[str, list[float]] = {"found": [], "good_suspected": []}
    for seed in seeds:
        given, wrong = with_wrong({name: answer for name, (_, answer) in rows.items()}, seed)
        noise = LabelNoise(times)
        for name, (text, _) in rows.items():
            noise.add(name, text, labels_of(given[name]))
        suspects = {names[one.row] for one in noise.ranked()}
        shares["found"].append(len(suspects & wrong) / len(wrong))
        shares["good_suspected"].append(len(suspects - wrong) / (len(rows) - len(wrong)))
        note(f"seed {seed}: {shares['found'][-1]:.1%} of the swapped, {shares['good_suspected'][-1]:.1%} of the others")
    value = {name: round(100 * fmean(found), 1) for name, found in shares.items()}
    holds = value["found"] > value["good_suspected"]
    finish(
        "N4-gold",
        value,
        {"found": "above good_suspected"},
        holds,
        peer="none",
        unit="%",
        n=len(rows),
        seeds=len(seeds),
        times=times,
    )


class _Shop(Workshop):
    """The workshop with other answers than the teacher's, and with some of the rows."""

    given: dict[str, str]

    def example(self, prompt: Prompt) -> EncodedExample:
        right = self._answers[prompt.id]
        self._answers[prompt.id] = replace(right, text=self.given.get(prompt.id, right.text))
        try:
            return super().example(prompt)
        finally:
            self._answers[prompt.id] = right


def main() -> None:
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("--gold", action="store_true", help="how many labels are suspicious; needs none of the others")
    own.add_argument("--times", type=float, default=NoiseSettings().times, help="curate.noise.times")
    first, _ = own.parse_known_args()
    if first.gold:
        return tell_gold(first.times)
    args = options(__doc__, rows=1000, epochs=4, ways=("curated", "all", "asked"), parents=[own])
    shop = _Shop(STUDENT, args)
    rows = shop.rows
    shop.given, wrong = with_wrong({one.id: shop.answer(one) for one in rows})
    all_given, way_curated = shop.given, next(way for way in args.ways if way != "all")
    gone, new = curated(rows, all_given, shop.eval, ACTIONS[way_curated], args.times)
    found = found_of(gone, wrong, len(rows))
    changed = [name for name, answer in new.items() if not equal(answer, json.loads(all_given[name]))]
    found["wrong_changed"] = sum(name in wrong for name in changed)
    found["good_changed"] = len(changed) - found["wrong_changed"]
    note(json.dumps(found))
    right = {one.id: one.expected for one in shop.eval}
    exact: dict[str, list[float]] = {way: [] for way in args.ways}
    for seed in range(args.seeds):
        for way in args.ways:
            shop.rows = rows if way == "all" else [one for one in rows if one.id not in gone]
            shop.given = all_given if way == "all" else all_given | new
            result = shop.result(Trial(f"n4-{way}", seed, hard_lesson, hard_lesson), shop.example)
            exact[way].append(round(share_equal(result["answers"], right), 2))
    better = sum(one > other for one, other in zip(exact[way_curated], exact["all"], strict=True))
    value = {"better": better, "exact": exact}
    bar = {"better": 3, "of": 3}
    finish("N4", value, bar, better == args.seeds == 3, peer="all rows", unit="%", n=len(right), curate=found)


if __name__ == "__main__":
    main()
