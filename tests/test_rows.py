"""Answers go out as files and come back: whole, or with every bad line named and all good ones kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from conftest import Finished
from pico_recipe import PROMPTS, PicoModels, edit, untouched, write_pico_recipe

from edgedistill.cli import cli
from edgedistill.records import Completion, json_lines
from edgedistill.store import Store

Rows = list[dict[str, Any]]


class Place:
    """A recipe and its runs."""

    def __init__(self, recipe: Path, runs: Path) -> None:
        self.recipe, self.runs = recipe, runs
        self.file = runs.parent / "rows.jsonl"

    @property
    def teach(self) -> Path:
        return self.runs / "pico" / "teach"

    def call(self, command: str, *arguments: object) -> Result:
        where = ("--runs", self.runs, "--offline", "-q")
        return CliRunner().invoke(cli, [command, str(self.recipe), *map(str, (*where, *arguments))])

    def exported(self, *flags: str) -> Rows:
        result = self.call("teach", "--export", self.file, *flags)
        assert result.exit_code == 0, result.output
        return [json.loads(line) for line in self.file.read_bytes().splitlines()]

    def imported(self, data: bytes | Rows, code: int = 0) -> dict[str, Any]:
        self.file.write_bytes(data if isinstance(data, bytes) else json_lines(data))
        result = self.call("teach", "--import", self.file, "--json")
        assert result.exit_code == code, result.output
        found: dict[str, Any] = json.loads(result.stdout)
        return found

    def stored(self) -> dict[str, Completion]:
        with Store(self.teach / "teacher.sqlite", read_only=True) as store:
            return dict(store.rows())

    def quarantined(self) -> list[str]:
        path = self.teach / "quarantine.jsonl"
        return [json.loads(line)["reason"] for line in path.read_bytes().splitlines()] if path.exists() else []


@pytest.fixture
def empty(models: PicoModels, tmp_path: Path) -> Callable[..., Place]:
    """Makes a place whose prompts are collected and not answered."""

    def make(name: str = "empty", changes: dict[str, str] | None = None) -> Place:
        place = Place(write_pico_recipe(tmp_path / name / "recipe", models, changes), tmp_path / name / "runs")
        assert place.call("prompts").exit_code == 0
        return place

    return make


@pytest.fixture
def full(finished: Finished) -> Place:
    return Place(finished.recipe, finished.runs)


ASKED = {"slots = 4": 'slots = 4\ntemperature = 1.0\nsamples = 2\ntargets = "top_k"'}


def test_answers_come_back_as_they_went(empty: Callable[..., Place]) -> None:
    first, other = empty("first", ASKED), empty("other", ASKED)
    assert first.call("teach").exit_code == 0
    rows = first.exported()
    assert len(rows) == 2 * len(PROMPTS)
    assert other.imported(first.file.read_bytes()) == {
        "recipe": "pico",
        "new": len(rows),
        "known": 0,
        "bad": 0,
        "named": [],
        "torn": False,
        "folder": str(other.teach),
    }
    assert other.stored() == first.stored()
    assert any(row.targets for row in other.stored().values())
    assert other.exported() == rows
    before = other.stored()
    assert json.loads(other.call("teach", "--json").stdout)["summary"]["asked"] == 0
    assert other.stored() == before


def test_an_exported_row_is_a_chat_row_with_our_own_under_one_key(full: Place) -> None:
    before = untouched(full.runs / "pico")
    rows = full.exported()
    assert untouched(full.runs / "pico") == before
    assert [row["messages"][0]["content"] for row in rows] == list(PROMPTS)
    assert all(set(row) == {"messages", "_ed"} for row in rows)
    assert all([turn["role"] for turn in row["messages"]] == ["user", "assistant"] for row in rows)
    own = rows[0]["_ed"]
    assert (own["teacher"], own["sample"]) == (0, 0)
    assert own["params"]["max_tokens"] == 40
    stored = full.stored()[own["sha"]]
    assert own["usage"] == {"prompt_tokens": stored.prompt_tokens, "completion_tokens": stored.completion_tokens}
    assert own.get("answers") == stored.answers
    assert (own["id"], own["seconds"], own["finish_reason"]) == (stored.prompt_id, stored.seconds, stored.finish_reason)
    assert rows[0]["messages"][1]["content"] == stored.text


def test_a_finished_stage_takes_nothing_and_stays_finished(full: Place) -> None:
    before = untouched(full.runs / "pico")
    found = full.imported(full.exported())
    assert (found["new"], found["known"]) == (0, len(PROMPTS))
    assert untouched(full.runs / "pico") == before
    assert full.call("status").exit_code == 0
    assert not json.loads(full.call("teach", "--json").stdout)["ran"]


def test_what_is_still_to_be_asked_goes_out_as_requests_and_its_answers_come_back(empty: Callable[..., Place]) -> None:
    place = empty()
    todo = place.exported("--todo")
    assert len(todo) == len(PROMPTS)
    first = todo[0]
    assert set(first) == {"custom_id", "model", "messages", "max_tokens", "temperature", "response_format"}
    assert first["messages"][0]["role"] == "system"
    assert first["messages"][0]["content"].startswith("You turn a command into JSON.")
    assert first["messages"][-1] == {"role": "user", "content": PROMPTS[0]}
    assert first["response_format"]["json_schema"]["schema"]["required"] == ["action", "room"]

    answer = {"role": "assistant", "content": '{"action":"on","room":"hall"}'}
    simple = [{"custom_id": row["custom_id"], "messages": [*row["messages"], answer]} for row in todo[:30]]
    simple += [{"_ed": {"sha": row["custom_id"]}, "messages": [row["messages"][-1], answer]} for row in todo[30:35]]
    assert place.imported(simple)["new"] == 35
    stored = place.stored()
    assert stored[first["custom_id"]] == Completion(
        stored[first["custom_id"]].prompt_id, answer["content"], "stop", 0, 0, 0.0
    )
    assert [row["custom_id"] for row in place.exported("--todo")] == [row["custom_id"] for row in todo[35:]]
    ran = json.loads(place.call("teach", "--json").stdout)
    assert (ran["summary"]["asked"], ran["summary"]["rows"]) == (5, 40)


def test_each_sample_is_a_request_with_a_seed_of_its_own(empty: Callable[..., Place]) -> None:
    changes = {"slots = 4": "slots = 4\ntemperature = 0.7\ntop_p = 0.9\nsamples = 3"}
    todo = empty(changes=changes).exported("--todo")
    assert len(todo) == 3 * len(PROMPTS) == len({row["custom_id"] for row in todo})
    assert all((row["temperature"], row["top_p"]) == (0.7, 0.9) for row in todo)
    assert len({row["seed"] for row in todo[:3]}) == 3


def test_requests_for_distributions_are_refused(empty: Callable[..., Place]) -> None:
    result = empty(changes=ASKED).call("teach", "--export", "x.jsonl", "--todo")
    assert result.exit_code == 3
    assert "targets" in result.stderr


def bad_lines(row: dict[str, Any]) -> dict[str, tuple[Any, str]]:
    """Lines that are wrong in one way each, and a word of what is said of them."""

    def own(**changes: Any) -> dict[str, Any]:
        return {**row, "_ed": {**row["_ed"], **changes}}

    question, answer = row["messages"]
    return {
        "no JSON": (b"{", "not a line of JSON"),
        "a list": ([], "must be a JSON object"),
        "not UTF-8": (b'"\xff"', "not a line of JSON"),
        "no key": ({"messages": row["messages"]}, "no custom_id or _ed.sha"),
        "half a key": (own(sha=row["_ed"]["sha"][:10]), "64 hex digits"),
        "another's key": (own(sha="0" * 64), "no answer that this recipe asks for"),
        "no messages": ({"custom_id": row["_ed"]["sha"]}, "needs messages"),
        "no answer": ({**row, "messages": [question]}, "the last message must be the assistant's"),
        "another question": ({**row, "messages": [{**question, "content": "else"}, answer]}, "not those of"),
        "odd reason": (own(finish_reason="tired"), "finish_reason"),
        "odd usage": (own(usage=3), "usage"),
        "odd count": (own(usage={"prompt_tokens": -1}), "usage.prompt_tokens"),
        "odd time": (own(seconds="long"), "seconds"),
        "odd answers": (own(answers={"a": "b"}), "answers must be probabilities"),
        "other answers": (own(answers={"x": 1.0}), "the answer among them"),
        "odd targets": (own(targets="x"), "targets must be base64"),
        "damaged targets": (own(targets="AAAA"), "targets of version"),
        "odd own": ({**row, "_ed": 5}, "_ed must be an object"),
    }


def test_every_bad_line_is_named_and_put_aside_and_the_good_ones_are_kept(
    full: Place, empty: Callable[..., Place]
) -> None:
    rows = full.exported()
    place = empty()
    bad = bad_lines(rows[0])
    data = json_lines(rows[:3])
    for line, _ in bad.values():
        data += line + b"\n" if isinstance(line, bytes) else json_lines([line])
    data += json_lines(rows[3:5]) + json_lines(rows[5:6])[:-30]
    found = place.imported(data, code=3)
    assert (found["new"], found["bad"], found["torn"]) == (5, len(bad), True)
    assert len(place.stored()) == 5
    reasons = place.quarantined()
    for number, (reason, (name, (_, words))) in enumerate(zip(reasons, bad.items(), strict=True), start=4):
        assert reason.startswith(f"{place.file}:{number}: "), name
        assert words in reason, name
    assert found["named"] == reasons
    assert place.imported(rows)["new"] == len(rows) - 5
    assert place.quarantined() == []


def test_bad_lines_end_in_one_line_and_a_hint(full: Place, empty: Callable[..., Place]) -> None:
    rows = full.exported()
    place = empty()
    place.file.write_bytes(json_lines(rows[:2]) + b"{}\n" * 30 + b'{"messages": [')
    result = place.call("teach", "--import", place.file)
    assert result.exit_code == 3
    assert result.stdout == f"2 new answers from {place.file}, 0 were there already\n"
    lines = result.stderr.splitlines()
    assert lines[0].startswith(f"  {place.file}:3: no custom_id")
    assert lines[-4:-2] == ["  and 10 more", "  the last line ends in its middle, and was left out"]
    assert lines[-2] == f"error: {place.file}: 30 lines were not taken"
    assert "quarantine.jsonl" in lines[-1]


def test_answers_to_another_recipe_are_none_of_this_one(full: Place, empty: Callable[..., Place]) -> None:
    rows = full.exported()
    found = empty(changes={"max_tokens = 40": "max_tokens = 41"}).imported(rows, code=3)
    assert (found["new"], found["bad"]) == (0, len(rows))


def test_rows_without_targets_are_refused_where_the_recipe_keeps_them(empty: Callable[..., Place]) -> None:
    place, other = empty("a", ASKED), empty("b", ASKED)
    assert place.call("teach").exit_code == 0
    rows = place.exported()
    del rows[0]["_ed"]["targets"]
    assert (found := other.imported(rows, code=3))["bad"] == 1
    assert "no targets" in found["named"][0]


def test_a_stage_of_another_recipe_stays_refused(finished: Finished, tmp_path: Path) -> None:
    copy = finished.copied(tmp_path)
    place = Place(copy.recipe, copy.runs)
    edit(copy.recipe / "recipe.toml", "max_tokens = 40\nslots", "max_tokens = 39\nslots")
    record = (place.teach / "stage.json").read_bytes()
    todo = place.exported("--todo")
    answer = {"role": "assistant", "content": '{"action":"on","room":"hall"}'}
    assert place.imported([{**row, "messages": [*row["messages"], answer]} for row in todo])["new"] == len(PROMPTS)
    assert (place.teach / "stage.json").read_bytes() == record
    assert place.call("teach").exit_code == 1
    assert place.call("run", "--from", "teach").exit_code in (0, 3, 4)
    assert json.loads((place.teach / "stage.json").read_text())["summary"]["asked"] == 0


def test_prompts_come_first(models: PicoModels, tmp_path: Path) -> None:
    place = Place(write_pico_recipe(tmp_path / "recipe", models), tmp_path / "runs")
    for flag in ("--export", "--import"):
        result = place.call("teach", flag, tmp_path / "x.jsonl")
        assert result.exit_code == 3
        assert "edgedistill prompts RECIPE" in result.stderr


def test_a_file_that_is_not_there_is_named(empty: Callable[..., Place], tmp_path: Path) -> None:
    place = empty()
    result = place.call("teach", "--import", tmp_path / "nowhere.jsonl")
    assert result.exit_code == 3
    assert "nowhere.jsonl: No such file" in result.stderr
    result = place.call("teach", "--export", tmp_path / "no" / "folder.jsonl")
    assert result.exit_code == 1
    assert "folder.jsonl: No such file" in result.stderr


@pytest.mark.parametrize(
    "flags",
    [("--export", "a", "--import", "b"), ("--todo",), ("--dry-run", "--export", "a"), ("--todo", "--import", "a")],
)
def test_one_thing_at_a_time(flags: tuple[str, ...], pico_recipe: Path) -> None:
    result = CliRunner().invoke(cli, ["teach", str(pico_recipe), *flags])
    assert result.exit_code == 2
    assert "Error" in result.stderr
