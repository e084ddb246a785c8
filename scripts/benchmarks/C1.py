"""C1: support tickets: what `teach.calibrate = "batch"` is worth to the teacher of recipes/support-triage.

The teacher tells the probability of every closed answer to each of the recipe's prompts, as teach has it do. The recipe
has no right answers to these; triage_tickets.jsonl has those of 100 of them, given one by one by the recipe's guide.
None of them is an eval row, an edge case or an example. Counted are the tickets whose most probable answer is right,
before and after each answer's probability is divided by its mean over the prompts.

Small form: `--tickets 3 --others 0`: whether it works. With `--work DIR`, a benchmark that was killed goes on where it
was.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from measure import finish, note, teacher_gguf

from edgedistill.recipe import Recipe, load_recipe
from edgedistill.records import Completion, Prompt, digest, read_prompts, read_rows
from edgedistill.run import file_sha256
from edgedistill.schema import load_schema
from edgedistill.stages.calibration import calibrated, prior_of
from edgedistill.stages.candidates import answering
from edgedistill.stages.scoring import equal
from edgedistill.store import Store
from edgedistill.teachers import TeacherTask, preamble

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "support-triage"
TICKETS = Path(__file__).with_name("triage_tickets.jsonl")
COUNT = 100


def read_tickets(recipe: Recipe) -> list[Prompt]:
    """The tickets with right answers: prompts of the recipe, and in no other of its files."""
    tickets = read_prompts(TICKETS)
    texts = {one.text for one in tickets}
    assert len(texts) == COUNT
    for name in ("eval.jsonl", "edge.jsonl", "examples.jsonl"):
        assert texts.isdisjoint(row["messages"][0]["content"] for _, row in read_rows(recipe.file(name))), name
    assert texts <= {one.text for one in read_prompts(recipe.file(recipe.prompts.file))}
    return tickets


def told(recipe: Recipe, prompts: Sequence[Prompt], work: Path) -> list[Completion]:
    """The teacher's completion of each prompt, with its probabilities; those in the store are not asked again."""
    path = teacher_gguf(recipe.teacher.model)
    schema, shown = load_schema(recipe), preamble(recipe)
    task = TeacherTask(path, file_sha256(path), shown, schema, work, recipe.teacher)
    content = [task.sha256, [message.as_dict() for message in shown], schema, recipe.teach.model_dump()]
    keys = {prompt.id: digest(prompt.id, content) for prompt in prompts}
    with Store(work / "answers.sqlite") as store:
        held = store.held(list(keys.values()))
        todo = [prompt for prompt in prompts if keys[prompt.id] not in held]
        if todo:
            with answering(task, todo, recipe.teach, recipe.seed) as completions:
                for number, one in enumerate(completions, start=1):
                    store.add(keys[one.prompt_id], one)
                    if number % 50 == 0:
                        note(f"the teacher answered {number} of {len(todo)}")
        return list(store.find(list(keys.values())).values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tickets", type=int, default=COUNT, help="tickets that are scored")
    parser.add_argument("--others", type=int, help="other prompts, for the means alone; by default all")
    parser.add_argument("--work", type=Path, help="a folder to go on in")
    options = parser.parse_args()
    recipe = load_recipe(RECIPE)
    tickets = read_tickets(recipe)[: options.tickets]
    right = {one.id: one.expected for one in tickets}
    others = [one for one in read_prompts(recipe.file(recipe.prompts.file)) if one.id not in right]
    with tempfile.TemporaryDirectory() as scratch:
        work = options.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        found = told(recipe, [*tickets, *others[: options.others]], work)
    prior = prior_of(found)
    scored = [one for one in found if one.prompt_id in right]
    before = {one.prompt_id for one in scored if equal(one.text, right[one.prompt_id])}
    after = {one.prompt_id for one in scored if equal(calibrated(one, prior).text, right[one.prompt_id])}
    is_whole = options.tickets == COUNT and options.others is None
    finish(
        "C1",
        {"right": len(after)},
        {"right": f"above the peer's {len(before)}"},
        is_whole and len(after) > len(before),
        peer="the teacher's most probable answer as it is",
        unit="tickets",
        n=len(scored),
        peer_right=len(before),
        won=len(after - before),
        lost=len(before - after),
        prompts_of_the_means=len(found),
    )


if __name__ == "__main__":
    main()
