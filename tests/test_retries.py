"""A wrong answer is tried again with what is wrong shown; the failure is seen by the student and not learned."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from pico import silent
from pico_recipe import edit
from pico_right import RECIPE, asked, taught

from edgedistill.errors import InvalidInput
from edgedistill.pipeline import RunSettings, run_recipe, stage_keys
from edgedistill.recipe import Recipe, TeachSettings, load_recipe
from edgedistill.records import Completion, Prompt, json_lines, read_rows
from edgedistill.run import Run
from edgedistill.stages.asking import Asking, Source, Tally
from edgedistill.stages.curate import curate
from edgedistill.stages.keys import AnswerKeys, drawn_tries, retry_temperature
from edgedistill.stages.retries import TRIES, complained, retry, write_tries
from edgedistill.stages.stored_answers import answers
from edgedistill.store import Store

DOUBLE = asked("Write f that doubles a number.", "assert f(2) == 4 and f(3) == 6")
SQUARE = asked("Write g that squares its argument.", "assert g(3) == 9")
CUBE = asked("Write h, the third power of its argument.", "assert h(2) == 8")
FIRST = {DOUBLE: "f = lambda x: 2 * x", SQUARE: "g = lambda x: x + 5", CUBE: "h = lambda x: x"}
LATER = {SQUARE: ["g = lambda x: x", "g = lambda x: x * x"], CUBE: ["h = lambda x: 6", "h = lambda x: 7"]}


def retried(folder: Path, retries: int) -> tuple[Recipe, Run, list[str]]:
    """A run in which a teacher answered and tried again what was wrong; and the last turn of each question then."""
    text = RECIPE.format(curate='right_by = "tests"\nverifier_memory_mb = 512')
    text = text.replace("samples = 3\ntemperature = 1.0", f"retries = {retries}")
    recipe, run = taught(folder, text, {prompt: [code] for prompt, code in FIRST.items()})
    seen: list[str] = []

    def complete(prompts: Iterator[Prompt], settings: TeachSettings, seed: int) -> Iterator[Completion]:
        for prompt in prompts:
            assert settings.temperature == 0.8  # greedily, it would say the same again
            tries = (len(prompt.messages) - 1) // 2
            task = next(one for one in FIRST if one.messages[0] == prompt.messages[0])
            seen.append(prompt.messages[-1].content)
            yield Completion(prompt.id, LATER[task][tries - 1], "stop", 1, 5, 0.1)

    given = list(answers(recipe, run))
    with Store(run.folder("teach") / "teacher.sqlite") as store:
        path = run.folder("prompts") / "prompts.jsonl"
        keys = AnswerKeys("identity", 1, drawn=drawn_tries(recipe))
        asking = Asking(store, Source(path, "content"), 0, keys, Tally(silent, 3), False)
        told = retry(recipe, asking, given, complete)
        count = len(seen)
        assert retry(recipe, asking, given, complete) == told
        assert len(seen) == count  # what is there is not asked again
    write_tries(run.folder("teach"), told)
    return recipe, run, seen


def test_what_failed_is_seen_and_what_came_of_it_is_learned(tmp_path: Path) -> None:
    recipe, run, seen = retried(tmp_path, retries=2)
    assert len(seen) == 4
    assert "assert h(2) == 8\nAssertionError: h(2) is 2" in seen[1]
    curate(recipe, run, run.begin("curate", "key", afresh=True), silent)
    plain, tried = (row for _, row in read_rows(run.folder("curate") / "train.jsonl"))
    assert [turn["content"] for turn in plain["messages"]] == [DOUBLE.text, FIRST[DOUBLE]]
    assert [turn["role"] for turn in tried["messages"]] == [
        "user",
        "assistant",
        "user",
        "assistant",
        "user",
        "assistant",
    ]
    assert [turn.get("weight") for turn in tried["messages"]] == [None, 0, None, 0, None, None]
    assert tried["messages"][-1]["content"] == "g = lambda x: x * x"
    (rejected,) = (row for _, row in read_rows(run.folder("curate") / "rejected.jsonl"))
    assert rejected["_ed"]["reason"] == "tests failed"
    assert rejected["messages"][-1]["content"] == "h = lambda x: 7"


def test_tries_that_an_older_version_kept_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as older:
        older.setattr(AnswerKeys, "again", AnswerKeys.part)  # before 0.8 they had the keys of answers
        recipe, run, _ = retried(tmp_path, retries=2)
        before = list(answers(recipe, run))
    assert sorted(len(one.tried) for _, many in before for one in many) == [0, 2, 2]
    assert list(answers(recipe, run)) == before


@pytest.mark.parametrize("change", [{"top_p": 0.5}, {"top_k": 5}, {"min_p": 0.1}, {"temperature": 1.0}])
def test_tries_drawn_otherwise_are_other_tries(tmp_path: Path, change: dict[str, float]) -> None:
    recipe, _, _ = retried(tmp_path, retries=1)
    other = recipe.model_copy(update={"teach": recipe.teach.model_copy(update=change)})
    assert len({drawn_tries(recipe), drawn_tries(other), drawn_tries(recipe.model_copy(update={"seed": 9}))}) == 3
    assert retry_temperature(other.teach) == max(0.8, other.teach.temperature)


def test_no_more_tries_are_made_than_the_recipe_says(tmp_path: Path) -> None:
    _, run, seen = retried(tmp_path, retries=1)
    assert len(seen) == 2
    rows = {row["id"]: row["told"] for _, row in read_rows(run.folder("teach") / TRIES)}
    assert {name: len(told) for name, told in rows.items()} == {SQUARE.id: 1, CUBE.id: 1}


def test_a_teacher_is_not_told_what_is_expected() -> None:
    assert "42" not in complained(("wrong answer", "expected is 42"))


def test_something_must_tell_what_is_wrong(tmp_path: Path) -> None:
    text = RECIPE.format(curate="").replace("samples = 3\ntemperature = 1.0", "retries = 1")
    (tmp_path / "recipe.toml").write_text(text, encoding="utf-8")
    with pytest.raises(InvalidInput, match=r"teach\.retries needs"):
        load_recipe(tmp_path)


def test_a_run_tries_again_and_goes_on_from_there(pico_recipe: Path, tmp_path: Path) -> None:
    expected = {"expected": {"action": "on", "room": "all"}}
    rows = [row | expected for _, row in read_rows(pico_recipe / "prompts.jsonl")]
    (pico_recipe / "prompts.jsonl").write_bytes(json_lines(rows))
    edit(pico_recipe / "recipe.toml", "[teach]\n", "[teach]\nretries = 1\nclosed = false\n")
    edit(pico_recipe / "recipe.toml", "[curate]\n", '[curate]\nright_by = "json"\n')
    with pytest.raises(InvalidInput, match=r"train\.max_length"):  # a row that was tried again holds its failures
        run_recipe(pico_recipe, RunSettings(runs=tmp_path / "runs", only="prompts"), silent)
    edit(pico_recipe / "recipe.toml", "max_length = 128", "max_length = 512")
    for stage in ("prompts", "teach"):
        run, ran = run_recipe(pico_recipe, RunSettings(runs=tmp_path / "runs", only=stage), silent)
        assert ran == [stage]
    recipe = load_recipe(pico_recipe)
    found = [given for _, given in answers(recipe, run)]
    told = [row for _, row in read_rows(run.folder("teach") / TRIES)]
    assert len(told) == run.summary("teach")["retried"] == sum(bool(one.tried) for (one,) in found)
    right = [json.loads(one.completion.text) == expected["expected"] for (one,) in found if not one.tried]
    assert all(right)
    assert told  # a pico teacher is not often right
    keys = stage_keys(recipe, run)["teach"]
    edit(pico_recipe / "recipe.toml", 'right_by = "json"', 'right_by = "exact"')
    assert stage_keys(load_recipe(pico_recipe), run)["teach"] != keys
