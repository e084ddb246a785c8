"""What the student is asked after each epoch, and that nobody but the recipe's own scorer marks it."""

from __future__ import annotations

from pathlib import Path

import pytest
from pico import silent
from pico_recipe import EVAL, PicoModels, edit, rows
from test_check import found

from edgedistill.pipeline import RunSettings, run_recipe
from edgedistill.recipe import load_recipe
from edgedistill.records import read_rows
from edgedistill.stages.exam import exam_of, unmarked
from edgedistill.stages.train import train
from edgedistill.students.encode import Encoder

TABLE = 'file = "eval.jsonl"\n'


@pytest.fixture
def folder(pico_recipe: Path) -> Path:
    """A recipe whose answers are free text, and whose student answers two eval prompts after each epoch."""
    edit(pico_recipe / "recipe.toml", 'schema_file = "schema.json"\n', "")
    edit(pico_recipe / "recipe.toml", "[train]\n", "[train]\nscore_prompts = 2\n")
    return pico_recipe


def scored_by(folder: Path, lines: str, expected: object) -> None:
    edit(folder / "recipe.toml", TABLE, f"{TABLE}{lines}\n")
    for name in ("eval.jsonl", "edge.jsonl"):
        (folder / name).write_bytes(rows(EVAL, expected=expected))


def marked(folder: Path, models: PicoModels, *answers: str) -> float:
    encoder = Encoder(models.student)
    exam = exam_of(load_recipe(folder), encoder)
    assert exam is not None
    assert len(exam.prompts) == 2
    return exam.score([encoder.completion(answer) for answer in answers])


def test_code_is_run_against_its_tests(folder: Path, models: PicoModels) -> None:
    scored_by(folder, 'scorer = "tests"', ["assert f(2) == 4"])
    right, wrong = "```python\ndef f(x):\n    return 2 * x\n```", "def f(x):\n    return x"
    assert marked(folder, models, right, wrong) == 0.5
    assert marked(folder, models, "assert f(2) == 4", wrong) == 0.0, "what the tests say is no answer"


def test_an_answer_is_marked_by_the_scorer_of_the_recipe_without_what_was_thought(
    folder: Path, models: PicoModels
) -> None:
    scored_by(folder, 'scorer = "number"', 40)
    assert marked(folder, models, "<think>41</think>It is 40.", "Answer: 41") == 0.5


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ('scorer = "command"\ncommand = ["true"]', "the scorer 'command' is only asked in evaluate"),
        ('scorer = "judge"\njudge = {{ model = "{teacher}" }}', "the scorer 'judge' is only asked in evaluate"),
    ],
)
def test_what_cannot_be_marked_during_training_is_said(folder: Path, models: PicoModels, lines: str, why: str) -> None:
    scored_by(folder, lines.format(teacher=models.teacher), "yes")
    assert exam_of(load_recipe(folder), Encoder(models.student)) is None
    said = f"train.score_prompts = 2 does nothing: {why}"
    assert unmarked(load_recipe(folder)) == said
    assert found(folder)["scorer"].endswith(f"; warning: {said}")


def test_rows_without_a_right_answer_and_tools_that_are_run_make_no_exam(folder: Path) -> None:
    recipe = load_recipe(folder)
    assert unmarked(recipe) == ""
    tools = recipe.tools.model_copy(update={"file": "tools.json", "results": "teacher"})
    assert "tools are only run in evaluate" in unmarked(recipe.model_copy(update={"tools": tools}))
    (folder / "eval.jsonl").write_bytes(rows(EVAL))
    assert "no eval row has one question and a right answer" in unmarked(recipe)
    edit(folder / "recipe.toml", "score_prompts = 2\n", "")
    assert unmarked(load_recipe(folder)) == ""


def test_training_keeps_the_score_of_each_epoch_or_warns_that_there_is_none(pico_recipe: Path, tmp_path: Path) -> None:
    edit(pico_recipe / "recipe.toml", "[train]\n", "[train]\nscore_prompts = 2\n")
    scored_by(pico_recipe, 'scorer = "tests"', "assert True")
    for stage in ("prompts", "teach", "curate"):
        run, _ = run_recipe(pico_recipe, RunSettings(runs=tmp_path / "runs", offline=True, only=stage), silent)
    told = {}
    for scorer in ("tests", "command"):
        if scorer == "command":
            edit(pico_recipe / "recipe.toml", 'scorer = "tests"', 'scorer = "command"\ncommand = ["true"]')
        out = tmp_path / scorer
        summary = train(load_recipe(pico_recipe), run, out, silent)
        scores = [row["score"] for _, row in read_rows(out / "metrics.jsonl") if row.get("score") is not None]
        told[scorer] = len(scores), summary["warnings"]
    why = "train.score_prompts = 2 does nothing: the scorer 'command' is only asked in evaluate"
    assert told == {"tests": (2, []), "command": (0, [why])}
