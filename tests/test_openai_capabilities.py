"""What a server knows of the API is found out by asking: schemas, parameters, models."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from fault_server import stats_of
from openai_asking import SHORT, all_answered, asked, prompts, task_of
from pico_recipe import SCHEMA

from edgedistill.errors import EdgeDistillError, InvalidInput
from edgedistill.recipe import TeachSettings
from edgedistill.records import Message, Prompt
from edgedistill.teachers.capabilities import FORMATS, Capabilities, Question
from edgedistill.teachers.openai import OpenaiTeacher

CAPABLE = (
    ("plain", "json_schema"),
    ("lm_studio", "json_schema"),
    ("no_json_schema", "json_object with schema"),
    ("no_json_schema+no_schema_key", "json_object"),
    ("ignores_format+obedient", "json_object"),
    ("no_format+obedient", "prompt"),
    ("lm_studio+no_json_schema+obedient", "prompt"),
)


@pytest.mark.parametrize(("dialect", "form"), CAPABLE)
def test_a_schema_is_kept_in_the_best_way_that_a_server_really_knows(
    dialect: str, form: str, place: Callable[..., str], tmp_path: Path
) -> None:
    url = place(dialect=dialect)
    teacher = OpenaiTeacher(task_of(url, tmp_path, SCHEMA), SHORT)
    found = asked(teacher, 5)
    assert {one.text for one in found.values()} == {'{"action": "on", "room": "hall"}'}
    assert teacher.capabilities is not None
    assert teacher.capabilities.format == form
    body = stats_of(url)["bodies"][-1]
    shown = form in ("json_object", "prompt")
    assert ("JSON Schema:" in body["messages"][0]["content"]) is shown
    assert body["messages"][0]["content"].startswith("You answer.")
    make = FORMATS[form]
    assert body.get("response_format") == (make(SCHEMA) if make else None)


def test_answers_that_do_not_match_the_schema_are_asked_again_twice_with_other_seeds(
    place: Callable[..., str], tmp_path: Path
) -> None:
    url = place(dialect="no_format")
    teacher = OpenaiTeacher(task_of(url, tmp_path, SCHEMA), SHORT)
    with pytest.raises(
        EdgeDistillError, match="3 of 3 prompts got no answer: an answer that does not match the schema"
    ):
        asked(teacher, 3)
    bodies = [body for body in stats_of(url)["bodies"] if body["messages"][-1]["content"] == "question 0"]
    assert len({body["seed"] for body in bodies}) == len(bodies) == 3


def test_what_a_server_takes_is_found_out_once(place: Callable[..., str], tmp_path: Path) -> None:
    url = place(dialect="no_json_schema")
    one, two = (OpenaiTeacher(task_of(url, tmp_path, SCHEMA), SHORT) for _ in range(2))
    asked(one, 1)
    first = stats_of(url)["requests"]
    asked(two, 1)
    assert stats_of(url)["requests"] == first + 2, "a greeting and a prompt"
    assert one.capabilities == two.capabilities
    asked(two, 1)
    assert stats_of(url)["requests"] == first + 3
    (path,) = tmp_path.iterdir()
    for broken in (b"", b"[]", b'{"format": "yaml"}', b'{"seed": 1}', b'{"what": 1}', b'{"limit": "x"}', b"\xff"):
        path.write_bytes(broken)
        asked(OpenaiTeacher(task_of(url, tmp_path, SCHEMA), SHORT), 1)
        assert json.loads(path.read_text())["format"] == "json_object with schema"


def test_what_was_found_out_is_looked_at_again_where_it_no_longer_holds(
    place: Callable[..., str], tmp_path: Path
) -> None:
    url = place(dialect="no_seed")
    asked(OpenaiTeacher(task_of(url, tmp_path), SHORT), 1)
    (path,) = tmp_path.iterdir()
    path.write_text(path.read_text().replace('"seed": false', '"seed": true'))
    teacher = OpenaiTeacher(task_of(url, tmp_path), SHORT)
    all_answered(teacher, 1)
    assert teacher.capabilities == Capabilities(seed=False)
    assert '"seed": false' in path.read_text()


def test_capabilities_are_found_among_faults(place: Callable[..., str], tmp_path: Path) -> None:
    url = place("all", "0.3", dialect="no_json_schema")
    teacher = OpenaiTeacher(task_of(url, tmp_path, SCHEMA), SHORT)
    asked(teacher, 1)
    assert teacher.capabilities == Capabilities(format="json_object with schema")


@pytest.mark.parametrize(
    ("dialect", "missing"),
    [("no_seed", {"seed"}), ("no_top_k+no_min_p", {"top_k", "min_p"}), ("no_top_k", {"top_k"}), ("plain", set())],
)
def test_parameters_that_a_server_does_not_take_are_left_out(
    dialect: str, missing: set[str], place: Callable[..., str], tmp_path: Path
) -> None:
    url = place(dialect=dialect)
    teacher = OpenaiTeacher(task_of(url, tmp_path), SHORT)
    all_answered(teacher, 2, temperature=0.5, top_p=0.9, top_k=20, min_p=0.1, max_tokens=77)
    body = stats_of(url)["bodies"][-1]
    wanted = {"temperature": 0.5, "top_p": 0.9, "top_k": 20, "min_p": 0.1, "max_tokens": 77}
    assert {k: v for k, v in body.items() if k in wanted} == {k: v for k, v in wanted.items() if k not in missing}
    assert ("seed" in body) is ("seed" not in missing)
    assert {name for name in ("seed", "top_k", "min_p") if not getattr(teacher.capabilities, name)} == missing


def test_the_newer_name_of_max_tokens_is_known(place: Callable[..., str], tmp_path: Path) -> None:
    url = place(dialect="no_max_tokens")
    all_answered(OpenaiTeacher(task_of(url, tmp_path), SHORT), 2, max_tokens=9)
    assert stats_of(url)["bodies"][-1]["max_completion_tokens"] == 9


def test_what_cannot_be_left_out_is_said_in_the_servers_words(place: Callable[..., str], tmp_path: Path) -> None:
    said_so = r"refuses teach.temperature = 0: HTTP 400 \(unsupported: no_temperature\)"
    with pytest.raises(InvalidInput, match=said_so):
        asked(OpenaiTeacher(task_of(place(dialect="no_temperature"), tmp_path), SHORT), 1)


def test_a_schema_is_asked_about_at_the_temperature_that_is_used(place: Callable[..., str], tmp_path: Path) -> None:
    teacher = OpenaiTeacher(task_of(place(dialect="only_temperature_1"), tmp_path, SCHEMA), SHORT)
    asked(teacher, 2, temperature=1.0)
    assert teacher.capabilities == Capabilities(format="json_schema")


def test_a_refusal_of_every_prompt_ends_the_run(place: Callable[..., str], tmp_path: Path) -> None:
    url = place(dialect="no_system")
    with pytest.raises(InvalidInput, match=r"the server refuses every prompt: HTTP 400 \(unsupported: no_system\)"):
        asked(OpenaiTeacher(task_of(url, tmp_path), SHORT), 100)
    assert stats_of(url)["requests"] < 20


def test_a_refusal_of_one_prompt_is_that_prompts_and_is_not_repeated(place: Callable[..., str], tmp_path: Path) -> None:
    url = place(dialect="no_emoji")
    teacher = OpenaiTeacher(task_of(url, tmp_path), SHORT)
    rows = [*prompts(10), Prompt("ffffffffffffffff", (Message("user", "🚀"),))]
    with pytest.raises(EdgeDistillError, match=r"1 of 11 prompts got no answer: HTTP 400 \(unsupported: no_emoji\)"):
        list(teacher.complete(rows, TeachSettings(), 0))
    assert set(teacher.failures) == {"ffffffffffffffff"}
    assert stats_of(url)["requests"] == 12


def test_a_model_that_a_server_does_not_list_is_refused_with_those_it_has(
    place: Callable[..., str], tmp_path: Path
) -> None:
    with pytest.raises(InvalidInput, match="has no model 'pico'") as caught:
        asked(OpenaiTeacher(task_of(place(dialect="other_models"), tmp_path)), 1)
    assert caught.value.hint == "It has 'other-0', 'other-1', 'other-2', 'other-3', 'other-4' and 4 more."


@pytest.mark.parametrize("dialect", ["no_models", "llama_server"])
def test_servers_list_their_models_in_their_own_ways_or_not_at_all(
    dialect: str, place: Callable[..., str], tmp_path: Path
) -> None:
    all_answered(OpenaiTeacher(task_of(place(dialect=dialect), tmp_path)), 2)


def test_an_url_that_is_not_the_apis_is_said(place: Callable[..., str], tmp_path: Path) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_error(404)

        do_GET = do_POST

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(InvalidInput, match="refuses a plain question: HTTP 404") as caught:
            asked(OpenaiTeacher(task_of(f"http://127.0.0.1:{server.server_port}", tmp_path), SHORT), 1)
        server.shutdown()
    assert caught.value.hint == "Check teacher.url and teacher.model."


def test_a_turn_that_is_only_seen_is_sent_as_any_other() -> None:
    turns = (Message("user", "One?"), Message("assistant", "1", is_learned=False), Message("user", "Two?"))
    body = Capabilities().body("m", Question(turns, max_tokens=9), None)
    assert body["messages"] == [{"role": turn.role, "content": turn.content} for turn in turns]
