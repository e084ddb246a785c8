"""N2: home-commands: a student of synthesised prompts alone, against one of the prompts that people wrote.

The recipe's teacher writes commands from a description, axes and 15 seeds, which are evenly picked from the recipe's
prompt file (`[prompts.synthesize]`, as a run does it). Then there are two recipes that differ in their prompt file
alone: the commands that were written, without the seeds, and as many of the hand-written ones, evenly picked. For each
the teacher answers, curate throws out what it does, and a student learns the rest, with the recipe's own settings and
every seed. Scored is `exact` on the recipe's eval rows, answered under its schema.

`--small` takes 80 prompts, 20 eval rows and one epoch, to see that all of it works: its figure, as that
of any other form but the whole, never holds. With `--work DIR`, a benchmark that was killed goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from measure import finish, note
from recipe_students import RECIPES, cut_recipe, kept_in, mean_score, run_until, trained
from synthesizing import synthetic_recipe, written

from edgedistill.records import json_lines, read_prompts
from edgedistill.stages.prompts import spread

RECIPE = "home-commands"
WHOLE = (1000, 200)  # prompts to learn from, of each kind, and commands that are scored
SEEDS = 3
BAR = 0.92  # of the exact accuracy of the other student
STAGES = ("prompts", "teach", "curate")
SMALL = {"rows": 80, "eval": 20, "seeds": 1}
ONE_EPOCH = {"epochs = 4": "epochs = 1"}
TASK = (
    "Spoken commands for a home, as a speech recogniser writes them down: what people say to a voice assistant. "
    "Curt, polite, indirect, rambling, by children or non-native speakers, with corrections, complaints and reasons, "
    "numbers as digits or in words. Some are no commands for the home at all."
)
TABLE = """
[prompts.synthesize]
task = {task}
count = {count}
seeds = "seeds.jsonl"
longest = 200
cells = ["wish"]

[prompts.synthesize.axes]
room = ["the kitchen", "the bedroom", "the living room or lounge", "the bathroom", "the office or study", "the hallway",
  "the garage", "the whole house", "no room is named", "a correction: first one room, then another"]
manner = ["three or four words", "polite, a whole sentence", "a complaint or a hint that names no action",
  "the reason first, then the wish", "rambling, with small talk", "slang", "a small child", "a non-native speaker",
  "a correction of what was just said", "a plain order"]

[prompts.synthesize.axes.wish]
"light on" = "lamps or lighting on; or it is too dark"
"light off" = "lamps or lighting off; or a lamp is too bright"
"light set" = "brightness to a percentage, half, full; or brighter, dimmer"
"light asked" = "a question: is a lamp on, how bright is it"
"heating on" = "heating, radiator or air conditioning on; or it is too cold"
"heating off" = "heating, radiator or air conditioning off; or it is too hot"
"heating set" = "temperature to a number of degrees; or warmer, cooler"
"heating asked" = "a question: how warm is it, is the heating on"
"blind open" = "blinds, curtains or shutters up or open"
"blind close" = "blinds, curtains or shutters down or closed; or the sun is in somebody's eyes"
"blind set" = "blinds or curtains to half or to a percentage"
"blind asked" = "a question: are the blinds or curtains open or closed"
"door lock" = "a door locked, shut or secured"
"door unlock" = "a door unlocked or opened"
"door asked" = "a question: is a door locked or open"
"music on" = "music, radio or a speaker on, or something played"
"music off" = "music, radio or a speaker off, stopped or paused"
"music set" = "the volume of music or a speaker to a number, mute; or louder, quieter"
"music asked" = "a question: is music playing, how loud is it"
"television on" = "the television on"
"television off" = "the television off"
"television set" = "the television's channel or volume to a number; or louder, quieter"
"television asked" = "a question: is the television on, which channel is it"
"vacuum on" = "the robot vacuum starts; or a floor is dirty"
"vacuum off" = "the robot vacuum stops or goes back to its dock"
"vacuum asked" = "a question: is the robot vacuum running, is it done"
"another machine" = "an oven, kettle, washing machine, alarm clock, car or phone"
"small talk" = "chat, jokes, thanks, something that happened"
"a question about the world" = "facts, weather, news, sums"
"a timer or a list" = "a reminder, timer, appointment or shopping list"
"an order not to" = "do not do something with a lamp, door or other device at home"
"""


def write_prompts(folder: Path, texts: Sequence[str]) -> None:
    """The texts in place of a recipe's prompts."""
    rows = ({"messages": [{"role": "user", "content": text}]} for text in texts)
    (folder / "prompts.jsonl").write_bytes(json_lines(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=WHOLE[0], help="prompts to learn from, of each kind")
    parser.add_argument("--eval", type=int, default=WHOLE[1], help="commands that are scored")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--small", action="store_true", help="80 prompts, 20 eval rows, one epoch: whether it works")
    parser.add_argument("--work", type=Path, help="a folder to go on in")
    given = parser.parse_args()
    if given.small:
        vars(given).update(SMALL)
    with tempfile.TemporaryDirectory() as scratch:
        work = given.work or Path(scratch)
        measure(given, work / "small" if given.small else kept_in(work, (given.rows, given.eval), WHOLE))


def measure(given: argparse.Namespace, work: Path) -> None:
    """Do it all, and print the figure."""
    table = TABLE.format(task=json.dumps(TASK), count=given.rows)
    synthetic_recipe(RECIPE, work / "writing", table)
    made, told = written(work / "writing", work / "writing-runs")
    people = [one.text for one in read_prompts(RECIPES / RECIPE / "prompts.jsonl")]
    texts = {"synthesized": made, "hand-written": list(spread(people, len(people), len(made)))}
    exact: dict[str, list[float]] = {way: [] for way in texts}
    runs = {}
    for way, prompts in texts.items():
        folder = cut_recipe(RECIPE, work / way / "recipe", (0, given.eval), ONE_EPOCH if given.small else {})
        write_prompts(folder, prompts)
        runs[way] = run_until(folder, work / way, STAGES)
    for seed in range(given.seeds):
        for way, (recipe, run) in runs.items():
            out = work / f"{way}-students"
            out.mkdir(exist_ok=True)
            row = trained(recipe, run, seed, out)
            rows = read_prompts(recipe.file(recipe.evaluate.file))
            exact[way].append(round(mean_score(row["answers"], rows, "exact"), 2))
            note(f"{way}, seed {seed}: {exact[way][-1]:.1f} % right, {row['steps']} steps, {row['seconds']} s")
    ours, theirs = fmean(exact["synthesized"]), fmean(exact["hand-written"])
    share = round(ours / theirs, 3) if theirs else None
    is_whole = (given.rows, given.eval) == WHOLE and given.seeds >= SEEDS and not given.small
    finish(
        "N2",
        share,
        BAR,
        is_whole and share is not None and share >= BAR,
        peer="a student of as many hand-written prompts",
        unit="share of the peer's exact accuracy",
        n=given.eval,
        exact=exact,
        prompts=len(made),
        learned={way: run.summary("curate")["train"] for way, (_, run) in runs.items()},
        synthesis={key: told[key] for key in ("written", "requests", "dropped", "stopped", "unfilled")},
        small=given.small,
    )


if __name__ == "__main__":
    main()
