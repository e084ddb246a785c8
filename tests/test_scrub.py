"""Personal data and secrets are replaced before a teacher sees them; nothing of them is left in the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from pico_recipe import edit

from edgedistill.cli import cli
from edgedistill.errors import Unsafe
from edgedistill.pipeline import stage_keys
from edgedistill.preflight import check
from edgedistill.recipe import load_recipe
from edgedistill.records import json_lines, read_rows
from edgedistill.run import Run
from edgedistill.scrub import Names, scrubbed
from edgedistill.sensitive import find
from edgedistill.stages.prompts import prompts

MAIL, PHONE, CARD = "anna.lind@example.org", "+49 30 901820", "4111 1111 1111 1111"
VALUES = st.sampled_from([MAIL, PHONE, CARD, "DE89 3704 0044 0532 0130 00", "sk-abcdefghij0123456789"])
PLAIN = st.text("abc xyz\n.,", max_size=12).map(lambda text: f" {text} ")
REMOTE = 'backend = "openai"\nurl = "https://api.example.com/v1"\nlicence = "apache-2.0"\nmodel = "big"\n'


def asked(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


@given(pieces=st.lists(st.tuples(PLAIN, VALUES), max_size=6), end=PLAIN)
def test_every_value_is_replaced_and_all_else_stays(pieces: list[tuple[str, str]], end: str) -> None:
    names = Names()
    replaced = names.replace("".join(f"{text}{value}" for text, value in pieces) + end)
    assert find(replaced) == []
    assert names.counts.total() == len(pieces)
    assert all(text in replaced for text, _ in pieces)
    for value in {value for _, value in pieces}:
        assert value not in replaced


def test_a_value_has_one_name_in_a_row_however_it_is_written_and_another_has_another() -> None:
    call = {"type": "function", "function": {"name": "mail", "arguments": json.dumps({"to": MAIL.upper()})}}
    row = {
        "messages": [
            {"role": "user", "content": f"Mail {MAIL} and b@example.org"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "user", "content": f"Call {PHONE}"},
        ],
        "_ed": {
            "source": "log.jsonl:1",
            "system": f"You are {MAIL}",
            "answer": [{"role": "assistant", "content": PHONE}],
        },
    }
    made, counts = scrubbed(row)
    assert made["messages"][0]["content"] == "Mail [E_MAIL_1] and [E_MAIL_2]"
    assert made["messages"][1]["tool_calls"][0]["function"] == {"name": "mail", "arguments": '{"to": "[E_MAIL_1]"}'}
    assert made["_ed"]["system"] == "You are [E_MAIL_1]"
    assert made["_ed"]["answer"][0]["content"] == made["messages"][2]["content"].removeprefix("Call ") == "[PHONE_1]"
    assert counts == {"e-mail": 4, "phone": 2}


def run_prompts(recipe: Path, folder: Path) -> tuple[Run, dict[str, Any]]:
    run = Run(folder / "run", offline=True)
    return run, prompts(load_recipe(recipe), run, run.begin("prompts", "key", True), lambda what, done, total: None)


@pytest.mark.parametrize(("scrub", "is_replaced"), [("", True), ("scrub = false\n", False), ("scrub = true\n", True)])
def test_a_log_is_scrubbed_unless_the_recipe_says_no(
    pico_recipe: Path, tmp_path: Path, scrub: str, is_replaced: bool
) -> None:
    edit(pico_recipe / "recipe.toml", "[teach]", f'[prompts]\nfile = "log.jsonl"\n{scrub}\n[teach]')
    lines = [{"model": "m", **asked(f"Write to {MAIL} about lamp {number}, {'x' * number}")} for number in range(3)]
    (pico_recipe / "log.jsonl").write_bytes(json_lines(lines))
    run, summary = run_prompts(pico_recipe, tmp_path)
    left = b"".join(path.read_bytes() for path in run.path.rglob("*") if path.is_file())
    assert (MAIL.encode() not in left) is is_replaced
    assert summary.get("replaced") == ({"e-mail": 3} if is_replaced else None)
    assert summary.get("prompts_with_replacements") == (3 if is_replaced else None)


def test_own_rows_are_left_alone_unless_the_recipe_says_so(pico_recipe: Path, tmp_path: Path) -> None:
    (pico_recipe / "prompts.jsonl").write_bytes(json_lines([asked(f"Call {PHONE}")]))
    run, _ = run_prompts(pico_recipe, tmp_path)
    assert PHONE in (run.folder("prompts") / "prompts.jsonl").read_text(encoding="utf-8")
    edit(pico_recipe / "recipe.toml", "[teach]", "[prompts]\nscrub = true\n\n[teach]")
    run, _ = run_prompts(pico_recipe, tmp_path)
    (row,) = [row for _, row in read_rows(run.folder("prompts") / "prompts.jsonl")]
    assert row["messages"][0]["content"] == "Call [PHONE_1]"


def test_personal_data_does_not_go_to_another_machine_unasked(pico_recipe: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    found = {one.what: one.found for one in check(load_recipe(pico_recipe), run)}
    assert found["personal data"] == "stays on this machine"
    text = (pico_recipe / "recipe.toml").read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if line.startswith("model = "))
    (pico_recipe / "recipe.toml").write_text(text.replace(f"{line}\n", REMOTE, 1), encoding="utf-8")
    found = {one.what: one.found for one in check(load_recipe(pico_recipe), run)}
    assert found["personal data"] == "none found in what goes to https://api.example.com/v1"
    with (pico_recipe / "prompts.jsonl").open("ab") as file:
        file.write(json_lines([asked(f"My card is {CARD}")]))
    with pytest.raises(Unsafe, match=r"holds what looks like personal data \(card\), which would go to https"):
        check(load_recipe(pico_recipe), run)
    before = stage_keys(load_recipe(pico_recipe), run)
    edit(pico_recipe / "recipe.toml", "[teach]", "[prompts]\nscrub = false\n\n[teach]")
    found = {one.what: one.found for one in check(load_recipe(pico_recipe), run)}
    assert found["personal data"] == "sent to https://api.example.com/v1 as it is"
    assert stage_keys(load_recipe(pico_recipe), run) == before
    edit(pico_recipe / "recipe.toml", "scrub = false", "scrub = true")
    found = {one.what: one.found for one in check(load_recipe(pico_recipe), run)}
    assert found["personal data"] == "replaced before a teacher sees it"
    assert stage_keys(load_recipe(pico_recipe), run)["prompts"] != before["prompts"]


def test_the_command_counts_what_it_replaced_and_shows_none_of_it(tmp_path: Path) -> None:
    log, out = tmp_path / "log.jsonl", tmp_path / "prompts.jsonl"
    log.write_bytes(json_lines([{"model": "m", **asked(f"Write to {MAIL} or {PHONE}")}]))
    arguments = ["prompts", "--import", str(log), "--out", str(out)]
    result = CliRunner().invoke(cli, arguments)
    assert "personal data replaced: 1 e-mail, 1 phone" in result.stdout
    assert MAIL not in result.output + out.read_text(encoding="utf-8")
    result = CliRunner().invoke(cli, [*arguments, "--no-scrub", "--json"])
    assert json.loads(result.stdout)["replaced"] is None
    assert MAIL in out.read_text(encoding="utf-8")
