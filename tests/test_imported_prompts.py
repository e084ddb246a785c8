"""Prompts in other people's forms in a run, in its keys, and on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from foreign_rows import asked, openai_row, written
from pico_recipe import edit

from edgedistill.cli import cli
from edgedistill.errors import InvalidInput
from edgedistill.pipeline import stage_keys
from edgedistill.preflight import check
from edgedistill.recipe import load_recipe
from edgedistill.records import json_lines, read_prompts, read_rows
from edgedistill.run import Run
from edgedistill.stages.prompts import prompts


def test_a_run_reads_what_the_recipe_names_and_keeps_where_each_row_is_from(pico_recipe: Path, tmp_path: Path) -> None:
    edit(pico_recipe / "recipe.toml", "[teach]", '[prompts]\nfile = "chats.jsonl"\n\n[teach]')
    rows = [openai_row(asked(f"{thing} please", "ok"), "S") for thing in ("lamp", "heater", "radio", "lamp")]
    written(pico_recipe / "chats.jsonl", json_lines(rows))
    recipe, run = load_recipe(pico_recipe), Run(tmp_path / "run", offline=True)
    assert "4 prompts in chats.jsonl (format openai)" in {one.what: one.found for one in check(recipe, run)}["prompts"]
    summary = prompts(recipe, run, run.begin("prompts", "key", afresh=True), lambda what, done, total: None)
    assert (summary["kept"], summary["dropped"], summary["format"]) == (3, 1, "openai")
    (_, first), *_ = read_rows(run.folder("prompts") / "prompts.jsonl")
    assert first["_ed"]["source"].endswith("chats.jsonl:1")
    assert first["_ed"]["system"] == "S"
    assert sorted(path.name for path in run.folder("prompts").iterdir()) == [
        "dropped.jsonl",
        "prompts.jsonl",
        "stage.json",
    ]


def test_check_names_every_bad_line_of_an_imported_file(pico_recipe: Path, tmp_path: Path) -> None:
    edit(pico_recipe / "recipe.toml", "[teach]", '[prompts]\nfile = "rows.csv"\n\n[teach]')
    written(pico_recipe / "rows.csv", "prompt,label\na,b\nc\nd,e\nf,g,h\n")
    with pytest.raises(InvalidInput) as refused:
        check(load_recipe(pico_recipe), Run(tmp_path / "run", offline=True))
    lines = refused.value.message.splitlines()
    assert [line.partition(": ")[0].rpartition("/")[2] for line in lines] == ["rows.csv:3", "rows.csv:5"]


def test_keys_of_runs_that_name_no_format_are_as_they_were(pico_recipe: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "run", offline=True)
    assert "format" not in load_recipe(pico_recipe).prompts.deciding()
    before = stage_keys(load_recipe(pico_recipe), run)
    edit(pico_recipe / "recipe.toml", "[teach]", '[prompts]\nformat = "rows"\n\n[teach]')
    assert stage_keys(load_recipe(pico_recipe), run)["prompts"] != before["prompts"]


def test_a_folder_of_texts_is_part_of_the_key(pico_recipe: Path, tmp_path: Path) -> None:
    edit(pico_recipe / "recipe.toml", "[teach]", '[prompts]\nfile = "texts"\n\n[teach]')
    (pico_recipe / "texts").mkdir()
    written(pico_recipe / "texts" / "a.txt", "hall")
    run = Run(tmp_path / "run", offline=True)
    before = stage_keys(load_recipe(pico_recipe), run)
    written(pico_recipe / "texts" / "a.txt", "kitchen")
    assert stage_keys(load_recipe(pico_recipe), run)["prompts"] != before["prompts"]


def imported(*arguments: str) -> Any:
    return CliRunner().invoke(cli, ["prompts", *arguments])


def test_the_command_writes_what_a_run_would_read(tmp_path: Path) -> None:
    rows = [openai_row(asked("Is it on?", "Yes."), "Be brief."), openai_row(asked("And now?"), "Be brief.")]
    source = written(tmp_path / "chats.jsonl", json_lines([rows[0], {"messages": 3}, rows[1]]))
    out, answers = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    result = imported("--import", str(source), "--out", str(out), "--answers", str(answers), "--json", "-q")
    assert result.exit_code == 3
    assert f"{source}:2: no messages" in result.stderr
    told = json.loads(result.stdout)
    assert {key: told[key] for key in ("format", "rows", "answers", "bad", "system_texts")} == {
        "format": "openai",
        "rows": 2,
        "answers": 1,
        "bad": 1,
        "system_texts": 1,
    }
    assert [prompt.text for prompt in read_prompts(out)] == ["Is it on?", "And now?"]
    ((_, row),) = read_rows(answers)
    assert [turn["role"] for turn in row["messages"]] == ["user", "assistant"]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["RECIPE", "--import", "x"],
        ["RECIPE", "--out", "x"],
        ["--import", "x"],
        ["--import", "x", "--out", "y", "--format", "z"],
    ],
)
def test_a_command_line_that_contradicts_itself_is_refused(arguments: list[str]) -> None:
    assert imported(*arguments).exit_code == 2
