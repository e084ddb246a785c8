"""N6: the recipe tool-calls, whole: the student against its untrained self and against the teacher.

One `edgedistill run` of the recipe in a folder of its own, then the eval rows' mean score (share of right arguments of
all calls; words where no tool fits) of the student that the run chose, or else of its largest quant; of the untrained
student, by the better of its two prompts; and of the teacher.

`--small` takes 200 of the prompts and one epoch, to see that all of it works: its figure says nothing of the bar. With
`--work DIR`, a benchmark that was killed goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import finish, note

from edgedistill.errors import GateMissed
from edgedistill.pipeline import RunSettings, run_recipe
from edgedistill.recipe import load_recipe
from edgedistill.report.summary import document
from edgedistill.run import Run

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "tool-calls"
BARS = {"points": 30.0, "of_teacher": 0.92}
SMALL = {'file = "prompts.jsonl"': 'file = "prompts.jsonl"\nlimit = 200', "epochs = 4": "epochs = 1"}


def copied(work: Path, is_small: bool) -> Path:
    """The recipe in a folder of the benchmark's own."""
    folder = work / "recipe"
    if folder.is_dir():
        return folder
    work.mkdir(parents=True, exist_ok=True)
    shutil.copytree(RECIPE, folder)
    text = (folder / "recipe.toml").read_text(encoding="utf-8")
    for old, new in SMALL.items() if is_small else ():
        assert old in text, old
        text = text.replace(old, new)
    (folder / "recipe.toml").write_text(text, encoding="utf-8")
    return folder


def ran(folder: Path, runs: Path) -> Run:
    """The recipe's run, whole; that nothing was accepted is a figure too."""
    shown = ""

    def progress(what: str, done: int, total: int) -> None:
        nonlocal shown
        line = f"{what.partition(' (')[0]}: {10 * done // max(total, 1) * 10} %"
        if line != shown:
            shown = line
            note(line)

    try:
        run, _ = run_recipe(folder, RunSettings(runs=runs, offline=True), progress)
    except GateMissed as verdict:
        note(str(verdict))
        run = Run(runs / load_recipe(folder).name, offline=True)
    return run


def scores(run: Run) -> dict[str, float]:
    """Each candidate's mean score on the eval rows."""
    evaluation: dict[str, Any] = json.loads((run.folder("evaluate") / "evaluation.json").read_text(encoding="utf-8"))
    return {one["name"]: one["eval"]["score"] for one in evaluation["candidates"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--small", action="store_true", help="200 prompts, one epoch: whether it works.")
    parser.add_argument("--work", type=Path, help="A folder to go on in.")
    options = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        work = options.work or Path(scratch)
        work = work / "small" if options.small else work  # it is never taken for the whole
        folder = copied(work, options.small)
        run = ran(folder, work / "runs")
        recipe = load_recipe(folder)
        found, told = scores(run), document(recipe, run)
        stats = run.summary("curate")
    minutes = (time.monotonic() - started) / 60
    student = told["chosen"] or f"student {recipe.quantize.types[0]}"
    untrained = max(score for name, score in found.items() if name.startswith("untrained"))
    points = round(100 * (found[student] - untrained), 1)
    share = round(found[student] / found["teacher"], 3)
    chosen = next(one for one in told["candidates"] if one["name"] == student)
    finish(
        "N6",
        {"points": points, "of_teacher": share},
        BARS,
        not options.small and points >= BARS["points"] and share >= BARS["of_teacher"],
        peer="the untrained student by its better prompt; the teacher",
        unit="points of mean score; share of the teacher's mean score",
        n=told["files"]["eval"]["n"],
        student=student,
        scores=found,
        verdict=told["verdict"],
        rows={"train": stats["train"], "rejected": stats["rejected"]},
        minutes=round(minutes, 1),
        small=options.small,
        latency=chosen.get("latency_ms"),
    )


if __name__ == "__main__":
    main()
