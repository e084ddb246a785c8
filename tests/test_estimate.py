"""A dry run asks a few rows for real and says what all of them will take; it leaves nothing behind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from conftest import Finished
from fault_server import fault_server, stats_of
from hypothesis import given
from hypothesis import strategies as st
from pico_recipe import PROMPTS, edit, rows, untouched

from edgedistill.cli import cli
from edgedistill.commands.estimate import TRIED, spread
from edgedistill.records import json_lines, read_prompts


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with fault_server() as address:
        yield f"{address}/plain/none/0/1/0/v1"


def dry_run(recipe: Path, runs: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["teach", str(recipe), "--dry-run", "--runs", str(runs), "--offline", *arguments])


def estimated(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.output
    found: list[dict[str, Any]] = json.loads(result.stdout)["teachers"]
    return found


def test_a_few_rows_stand_for_all(pico_recipe: Path, tmp_path: Path) -> None:
    (one,) = estimated(dry_run(pico_recipe, tmp_path / "runs", "--json", "-q"))
    assert (one["name"], one["model"], one["rows"], one["tried"]) == ("teacher", "teacher", len(PROMPTS), 8)
    assert one["prompt_tokens"] == pytest.approx(one["prompt_tokens_mean"] * len(PROMPTS), abs=len(PROMPTS))
    assert 0 < one["completion_tokens_mean"] <= 40
    assert one["seconds"] > 0
    assert one["is_upper_bound"] is True
    assert one["bytes"] > 300 * len(PROMPTS)
    assert one["price"] is None
    assert not (tmp_path / "runs").exists()


def test_it_is_told_in_words(pico_recipe: Path, tmp_path: Path) -> None:
    result = dry_run(pico_recipe, tmp_path / "runs")
    assert result.exit_code == 0, result.output
    assert f"teacher (teacher): {len(PROMPTS)} rows to ask, 8 were tried and thrown away\n" in result.stdout
    assert "time: at most about" in result.stdout
    assert "price" not in result.stdout
    assert "Near-duplicates" in result.stdout


@pytest.mark.parametrize("count", [1, 2, 7])
def test_fewer_rows_are_all_tried(pico_recipe: Path, tmp_path: Path, count: int) -> None:
    (pico_recipe / "prompts.jsonl").write_bytes(rows(PROMPTS[:count]))
    (one,) = estimated(dry_run(pico_recipe, tmp_path / "runs", "--json"))
    assert (one["rows"], one["tried"], one["is_upper_bound"]) == (count, count, False)


def test_what_is_answered_already_is_not_asked_and_the_run_stays_as_it_is(finished: Finished) -> None:
    before = untouched(finished.run)
    (one,) = estimated(dry_run(finished.recipe, finished.runs, "--json"))
    assert (one["rows"], one["tried"], one["seconds"], one["bytes"]) == (0, 0, 0.0, 0)
    assert untouched(finished.run) == before
    assert "no rows to ask" in dry_run(finished.recipe, finished.runs).stdout


def test_what_is_answered_in_part_is_asked_in_part(finished: Finished, tmp_path: Path) -> None:
    copy = finished.copied(tmp_path)
    with (copy.run / "prompts" / "prompts.jsonl").open("ab") as file:
        file.write(rows(("Something new", "Something newer")))
    (one,) = estimated(dry_run(copy.recipe, copy.runs, "--json"))
    assert (one["rows"], one["tried"]) == (2, 2)


def test_given_answers_are_not_asked_for(pico_recipe: Path, tmp_path: Path) -> None:
    answer = {"role": "assistant", "content": '{"action":"off","room":"hall"}'}
    asked = [
        [message.as_dict() for message in prompt.messages] for prompt in read_prompts(pico_recipe / "prompts.jsonl")
    ]
    (pico_recipe / "given.jsonl").write_bytes(json_lines({"messages": [*turns, answer]} for turns in asked[3:]))
    edit(pico_recipe / "recipe.toml", "[teach]\n", '[teach]\nanswers = "given.jsonl"\n')
    (one,) = estimated(dry_run(pico_recipe, tmp_path / "runs", "--json"))
    assert one["rows"] == 3


def test_a_server_is_asked_each_row_once_and_its_price_is_told(pico_recipe: Path, tmp_path: Path, server: str) -> None:
    text = (pico_recipe / "recipe.toml").read_text(encoding="utf-8")
    lines = f'backend = "openai"\nurl = "{server}"\nmodel = "pico"\nprice_in = 1000.0\nprice_out = 2000.0\n'
    head, tail = text.split("[teacher]\n")
    (pico_recipe / "recipe.toml").write_text(f"{head}[teacher]\n{lines}{tail.partition(chr(10))[2]}", encoding="utf-8")
    (one,) = estimated(dry_run(pico_recipe, tmp_path / "runs", "--json"))
    assert (one["model"], one["rows"], one["tried"]) == ("pico", len(PROMPTS), 8)
    paid = one["prompt_tokens"] * 1000 / 1e6 + one["completion_tokens"] * 2000 / 1e6
    assert one["price"] == pytest.approx(paid, rel=0.01)
    assert sum(text in PROMPTS for text in stats_of(server)["asked"]) == 8
    assert "price: about " in dry_run(pico_recipe, tmp_path / "runs").stdout


@given(st.integers(0, 10**6))
def test_the_rows_tried_are_spread_from_the_first_to_the_last(count: int) -> None:
    places = sorted(spread(count))
    assert len(places) == min(count, TRIED)
    if count:
        assert (places[0], places[-1]) == (0, count - 1)
        gaps = [after - before for before, after in pairwise(places)]
        assert max(gaps, default=0) - min(gaps, default=0) <= 1
