"""N8: small Python functions (recipes/code-python): pass@1 of the student before and after, and of the teacher.

The recipe is run to its evaluation: the teacher's code is tried against the tests of its row, what fails is tried
again with the error shown, and the student learns what passes. Everybody writes each eval function once, greedily;
the code is taken out of its fence and run against the row's tests in the sandbox. Intervals are Wilson's, of 95 %. It
holds where the student is better in all, and in no kind of task worse than before.

Small form: `--seeds 1 --rows 40 --eval 16`, whose figure never holds. With `--work DIR`, a benchmark that was
killed goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from statistics import fmean
from typing import Any

from measure import finish, note
from recipe_students import cut_recipe, kept_in, run_until

RECIPE = "code-python"
WHOLE = (180, 72)  # functions to learn from, and those that are scored
STAGES = ("prompts", "teach", "curate", "train", "export", "quantize", "evaluate")
SHOWN = ("teacher", "untrained student, teacher's prompt", "untrained student", "student F16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--rows", type=int, default=WHOLE[0], help="functions to learn from")
    parser.add_argument("--eval", type=int, default=WHOLE[1], help="functions that are scored")
    parser.add_argument("--work", type=Path, help="a folder to go on in")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = kept_in(given.work or Path(scratch), (given.rows, given.eval), WHOLE)
        tell(given, [evaluated(given, work, seed) for seed in range(given.seeds)])


def evaluated(given: argparse.Namespace, work: Path, seed: int) -> dict[str, Any]:
    """pass@1 by candidate, with interval and by kind of task; and what became of the teacher's answers."""
    place = work / str(seed)
    folder = cut_recipe(RECIPE, place / "recipe", (given.rows, given.eval), {"seed = 0": f"seed = {seed}"})
    _, run = run_until(folder, place, STAGES)
    people = json.loads((run.folder("evaluate") / "evaluation.json").read_text(encoding="utf-8"))["candidates"]
    found = {
        one["name"]: {
            "pass_at_1": one["eval"]["score"],
            "interval": one["eval"]["ci95"]["score"],
            "kinds": {kind: row["exact"] for kind, row in one["eval"]["tags"].items()},
        }
        for one in people
        if one["name"] in SHOWN
    }
    for name, one in found.items():
        note(f"seed {seed}: {name}: pass@1 {one['pass_at_1']:.1%} {one['interval']}")
    return {**found, "curated": run.summary("curate"), "taught": run.summary("teach").get("retried")}


def tell(given: argparse.Namespace, found: list[dict[str, Any]]) -> None:
    before = [max((one[name] for name in SHOWN[1:3] if name in one), key=lambda row: row["pass_at_1"]) for one in found]
    after = [one["student F16"] for one in found]
    worse = [
        kind
        for mine, theirs in zip(after, before, strict=True)
        for kind in theirs["kinds"]
        if mine["kinds"][kind] < theirs["kinds"][kind]
    ]
    gain = fmean(one["pass_at_1"] for one in after) - fmean(one["pass_at_1"] for one in before)
    finish(
        "N8",
        {"gain": round(100 * gain, 1), "worse": worse},
        {"gain": "above 0", "worse": []},
        (given.rows, given.eval) == WHOLE and gain > 0 and not worse,
        peer="the untrained student (the better of two prompts)",
        unit="points of pass@1; kinds of task in which it is worse",
        n=given.eval,
        seeds=given.seeds,
        candidates=found,
    )


if __name__ == "__main__":
    main()
