"""N7: word problems (recipes/reasoning-math): a student that learned the teacher's traces, against its untrained
self, and against one that learned the same answers without their traces.

The teacher answers once; the same rows are curated with `reasoning = "keep"` and `"strip"`, and a student learns each
of them with every seed, for as many epochs. Scored is the final number on the recipe's eval rows, greedily decoded.
The untrained student is asked with its own short prompt and with all that the teacher is shown; what counts is the
better one.

Small form: `--seeds 1 --rows 60 --eval 20`, whose figure never holds. With `--work DIR`, a benchmark that was
killed goes on where it was.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from statistics import fmean
from typing import Any

from measure import finish, note
from recipe_students import answered, cut_recipe, kept_in, mean_score, run_until, silent, trained

from edgedistill.records import read_prompts
from edgedistill.stages.candidates import base_candidates, teacher_candidates
from edgedistill.stages.scoring import wilson

RECIPE = "reasoning-math"
WHOLE = (400, 100)  # problems to learn from, and those that are scored
SEEDS = 3
GAIN = 15.0  # points above the untrained student
KEEP = '[curate]\nreasoning = "keep"\n'
ARMS = {"traces": {"[curate]\n": KEEP}, "answers": {"[curate]\n": KEEP.replace("keep", "strip")}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--rows", type=int, default=WHOLE[0], help="problems to learn from")
    parser.add_argument("--eval", type=int, default=WHOLE[1], help="problems that are scored")
    parser.add_argument("--work", type=Path, help="a folder to go on in")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        measure(given, kept_in(given.work or Path(scratch), (given.rows, given.eval), WHOLE))


def measure(given: argparse.Namespace, work: Path) -> None:
    """Do it all, and print the figure."""
    runs = {}
    for arm, changes in ARMS.items():
        folder = cut_recipe(RECIPE, work / arm / "recipe", (given.rows, given.eval), changes)
        if arm != "traces" and not (work / arm / RECIPE / "teach" / "stage.json").is_file():
            for stage in ("prompts", "teach"):  # the teacher answers once for both
                shutil.copytree(work / "traces" / RECIPE / stage, work / arm / RECIPE / stage, dirs_exist_ok=True)
        runs[arm] = run_until(folder, work / arm, ("prompts", "teach", "curate"))
    recipe, run = runs["traces"]
    prompts = read_prompts(recipe.file(recipe.evaluate.file))
    base = {
        one.name: mean_score(answered(one.gguf, recipe, one.preamble), prompts, "number")
        for one in base_candidates(recipe, run, work, silent)
    }
    (teacher,) = teacher_candidates(recipe, run, silent)
    theirs = mean_score(answered(teacher.gguf, recipe, teacher.preamble), prompts, "number")
    note(f"teacher {theirs:.1f} %, untrained {base}")
    scores: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for seed in range(given.seeds):
        for arm, (settings, made) in runs.items():
            out = work / f"{arm}-students"
            out.mkdir(exist_ok=True)
            row = trained(settings, made, seed, out)
            scores[arm].append(mean_score(row["answers"], prompts, "number"))
            note(f"{arm}, seed {seed}: {scores[arm][-1]:.1f} % in {row['seconds']} s")
    tell(
        given,
        {"teacher": theirs, "untrained": base, **scores},
        {arm: one[1].summary("curate") for arm, one in runs.items()},
    )


def tell(given: argparse.Namespace, found: dict[str, Any], curated: dict[str, Any]) -> None:
    untrained = max(found["untrained"].values())
    gain = fmean(found["traces"]) - untrained
    better = sum(one > other for one, other in zip(found["traces"], found["answers"], strict=True))
    is_whole = (given.rows, given.eval) == WHOLE and given.seeds >= SEEDS
    right = round(fmean(found["traces"]) * given.eval / 100)
    finish(
        "N7",
        {"gain": round(gain, 1), "traces_better": better},
        {"gain": GAIN, "traces_better": given.seeds},
        is_whole and gain >= GAIN and better == given.seeds,
        peer="the untrained student (the better of two prompts); the same answers without their traces",
        unit="points of right answers; seeds in which traces are better",
        n=given.eval,
        seeds=given.seeds,
        right={name: value for name, value in found.items()},
        interval_of_traces=wilson(right, given.eval),
        curated=curated,
    )


if __name__ == "__main__":
    main()
