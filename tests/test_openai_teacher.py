"""The teacher behind an API: against real servers on pico models, and against one that fails in every way known."""

from __future__ import annotations

import json
import logging
import os
import shutil
import ssl
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from fault_server import HARMLESS, KINDS, MODEL, fault_server, stats_of
from hypothesis import given
from hypothesis import strategies as st
from pico_recipe import SCHEMA
from real_servers import free_port

from edgedistill.errors import EdgeDistillError, InvalidInput, MissingRequirement, Stopped, Unsafe
from edgedistill.recipe import TeacherSettings, TeachSettings
from edgedistill.records import Completion, Example, Message, Prompt, digest
from edgedistill.teachers import TeacherTask, load_teacher
from edgedistill.teachers.address import Endpoint, refuse_address
from edgedistill.teachers.asking import Asker, Conversation, Row
from edgedistill.teachers.capabilities import FORMATS, Capabilities
from edgedistill.teachers.http import Limits, Reply
from edgedistill.teachers.openai import OpenaiTeacher
from edgedistill.teachers.pace import Pace
from edgedistill.teachers.reply import Answer, Failure, Witness, answer_of, refusal_of, said

CANARY = "sk-canary-5f1c9e77d0"
SHORT = Limits(
    connect=2.0,
    first_byte=0.4,
    per_token=0.0,
    body=0.4,
    attempts=4,
    backoff=0.01,
    longest_backoff=0.1,
    longest_retry_after=0.05,
    away=1.0,
    trial=0.05,
)


@pytest.fixture(scope="module")
def faults() -> Iterator[str]:
    with fault_server() as url:
        yield url


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def place(faults: str, request: pytest.FixtureRequest) -> Callable[..., str]:
    """The URL at which the fault server behaves as told, with counts of this test's own."""
    own = digest(request.node.nodeid)[:12]

    def url(kinds: str = "none", rate: str = "1x", stuck: float = 0.0, dialect: str = "plain") -> str:
        return f"{faults}/{dialect}/{kinds}/{rate}/{own}/{stuck}/v1"

    return url


def task_of(url: str, scratch: Path, schema: dict[str, Any] | None = None, **settings: Any) -> TeacherTask:
    teacher = TeacherSettings(**{"backend": "openai", "model": MODEL, "url": url, **settings})
    return TeacherTask(None, digest(url), (Message("system", "You answer."),), schema, scratch, teacher)


def prompts(count: int) -> list[Prompt]:
    return [Prompt(digest(number)[:16], (Message("user", f"question {number}"),)) for number in range(count)]


def asked(teacher: OpenaiTeacher, count: int, **settings: Any) -> dict[str, Completion]:
    """The answers to so many prompts, each the one to its own question."""
    found = list(teacher.complete(prompts(count), TeachSettings(**settings), 0))
    assert len({one.prompt_id for one in found}) == len(found)
    return {one.prompt_id: one for one in found}


def own_text(prompt: Prompt) -> str:
    return f"answer to {prompt.messages[-1].content}"


def gather(answers: Iterator[Completion], found: list[Completion]) -> None:
    """Append answers to `found`, each as it comes."""
    for one in answers:
        found.append(one)


def all_answered(teacher: OpenaiTeacher, count: int, **settings: Any) -> None:
    found = asked(teacher, count, **settings)
    assert {prompt.id: own_text(prompt) for prompt in prompts(count)} == {k: one.text for k, one in found.items()}
    assert teacher.failures == {}


def test_answers_come_with_their_counts(place: Callable[..., str], tmp_path: Path) -> None:
    teacher = load_teacher(task_of(place(), tmp_path))
    (found,) = teacher.complete(prompts(1), TeachSettings(), 0)
    assert (found.text, found.finish_reason, found.completion_tokens) == ("answer to question 0", "stop", 3)
    assert found.prompt_tokens > 0
    assert 0 < found.seconds < 5
    assert found.targets is None
    assert found.answers is None
    teacher.close()
    teacher.close()


def test_no_cookie_is_kept(place: Callable[..., str], tmp_path: Path) -> None:
    url = place()
    all_answered(OpenaiTeacher(task_of(url, tmp_path)), 5)
    assert stats_of(url)["cookies"] == 0


def test_no_prompts_are_no_requests(place: Callable[..., str], tmp_path: Path) -> None:
    url = place()
    assert asked(OpenaiTeacher(task_of(url, tmp_path)), 0) == {}
    assert stats_of(url)["requests"] == 0


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "length"])
def test_a_fault_is_overcome(kind: str, place: Callable[..., str], tmp_path: Path) -> None:
    url = place(kind)
    all_answered(OpenaiTeacher(task_of(url, tmp_path), SHORT), 3)
    seen = stats_of(url)
    assert seen["requests"] <= 1 + 2 * 3, "a request without a fault is never repeated"
    assert seen["requests"] == 1 + 2 * 3 or kind in HARMLESS
    assert seen["trapped"] == 0


REASONS = {
    "rate_limited": "HTTP 429",
    "rate_limited_until": "HTTP 429",
    "error_500": "HTTP 500",
    "error_502": "HTTP 502",
    "error_503": "HTTP 503",
    "echoes_key": "HTTP 500",
    "reset": "connection broken off",
    "closed": "connection broken off",
    "cut": "connection broken off",
    "bad_chunk": "connection broken off",
    "not_http": "connection broken off",
    "header_flood": "connection broken off",
    "silent": "no answer in time",
    "drip": "no end of the answer in time",
    "torn_json": "an answer that is not JSON",
    "nested": "an answer that is not JSON",
    "event_stream": "an answer that is not JSON",
    "html": "an answer that is not JSON but text/html",
    "no_choices": "an answer without choices",
    "error_in_200": "an answer without choices",
    "empty": "an empty answer",
    "null": "an empty answer",
    "parts": "an answer that is not text",
    "another_model": "an answer of another model",
    "filtered": "finish_reason 'content_filter'",
    "tool_call": "finish_reason 'tool_calls'",
    "huge": "an answer larger than 8 MiB",
    "huge_stated": "an answer larger than 8 MiB",
    "bomb": "an answer larger than 8 MiB",
    "not_utf8": "an answer that is not UTF-8",
    "half_a_pair": "an answer with half a surrogate pair",
    "to_metadata": "HTTP 302, a redirect",
    "to_a_file": "HTTP 307, a redirect",
    "to_a_trap": "HTTP 308, a redirect",
}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in HARMLESS])
def test_a_prompt_that_always_fails_is_listed_and_the_others_are_kept(kind: str, faults: str, tmp_path: Path) -> None:
    url = f"{faults}/plain/{kind}/0x/3/0.1/v1"
    teacher = OpenaiTeacher(task_of(url, tmp_path), replace(SHORT, attempts=2))
    found: list[Completion] = []
    with pytest.raises(EdgeDistillError, match=r"^2 of 20 prompts got no answer: ") as caught:
        gather(teacher.complete(prompts(20), TeachSettings(slots=4), 0), found)
    assert type(caught.value) is EdgeDistillError
    assert set(teacher.failures.values()) == {REASONS[kind]}
    assert REASONS[kind] in caught.value.message
    assert caught.value.hint == "Run the same command again: only these are asked."
    texts = {one.prompt_id: one.text for one in found}
    assert len(texts) == len(found)
    assert texts == {prompt.id: own_text(prompt) for prompt in prompts(20) if prompt.id not in teacher.failures}


def test_a_third_of_faults_of_every_kind_costs_little(place: Callable[..., str], tmp_path: Path) -> None:
    url = place("all", "0.3", 0.005)
    teacher = OpenaiTeacher(task_of(url, tmp_path), replace(SHORT, attempts=8))
    found: list[Completion] = []
    try:
        gather(teacher.complete(prompts(300), TeachSettings(), 0), found)
    except EdgeDistillError as error:
        assert type(error) is EdgeDistillError  # noqa: PT017
    own = {prompt.id: own_text(prompt) for prompt in prompts(300)}
    assert all(one.text == ("answer to" if one.finish_reason == "length" else own[one.prompt_id]) for one in found)
    ids = [*(one.prompt_id for one in found), *teacher.failures]
    assert sorted(ids) == sorted(own)
    assert len(teacher.failures) <= 6
    seen = stats_of(url)
    assert len(seen["faults"]) >= 25
    assert seen["requests"] <= 1.6 * 300


HUGE_AT_ONCE = """
import asyncio, resource, sys
from edgedistill.teachers.address import Endpoint
from edgedistill.teachers.http import Client, Limits, NoReply

async def ask(client):
    try:
        await client.ask("chat/completions", {"messages": [{"content": "x"}]})
    except NoReply as error:
        return error.reason

async def main():
    endpoint = Endpoint("http", "127.0.0.1", int(sys.argv[1]), sys.argv[2])
    async with Client(endpoint, None, Limits(body=120.0)) as client:
        await ask(client)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        reasons = {reason for _ in range(2) for reason in await asyncio.gather(*(ask(client) for _ in range(64)))}
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    sys.stdout.write(f"{grown // (2**20 if sys.platform == 'darwin' else 2**10)} {reasons}")

asyncio.run(main())
"""


def test_many_bodies_of_a_gigabyte_at_once_take_little_memory(place: Callable[..., str]) -> None:
    parts = urlsplit(place("huge", "999x"))
    command = [sys.executable, "-c", HUGE_AT_ONCE, str(parts.port), parts.path]
    grown, _, reasons = subprocess.run(command, capture_output=True, text=True, check=True).stdout.partition(" ")
    assert reasons == "{'an answer larger than 8 MiB'}"
    assert int(grown) < 150, "MB"


def test_retries_end_with_what_all_rows_together_may_cost(place: Callable[..., str], tmp_path: Path) -> None:
    url = place("empty", "9x")
    teacher = OpenaiTeacher(task_of(url, tmp_path), SHORT)
    with pytest.raises(EdgeDistillError, match="200 of 200 prompts got no answer: an empty answer"):
        asked(teacher, 200)
    assert stats_of(url)["requests"] <= 1 + 1.6 * 200 + SHORT.spare_retries


@pytest.mark.parametrize(("kind", "least"), [("rate_limited", 0.95), ("rate_limited_until", 0.95)])
def test_retry_after_is_honoured(kind: str, least: float, place: Callable[..., str], tmp_path: Path) -> None:
    url = place(kind)
    all_answered(OpenaiTeacher(task_of(url, tmp_path), replace(SHORT, longest_retry_after=5.0)), 1)
    _, first, second = stats_of(url)["times"]
    assert least <= second - first < 4


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7.0),
        ("100000", 120.0),
        ("Wed, 21 Oct 2150 07:28:00 GMT", 120.0),
        ("Wed, 21 Oct 2150 07:28:00", 120.0),
        *((nothing, 0.0) for nothing in ("", "-3", "soon", "1e9", "٣", "Wed, 21 Oct 2015 07:28:00 GMT")),
    ],
)
def test_what_a_server_asks_for_is_read_and_capped(header: str, seconds: float) -> None:
    assert refusal_of(Reply(429, {"retry-after": header}, b""), None, 120.0).wait == seconds


def test_more_requests_go_out_while_they_bring_more_answers(place: Callable[..., str], tmp_path: Path) -> None:
    url = place(dialect="slow")
    all_answered(OpenaiTeacher(task_of(url, tmp_path)), 300)
    assert stats_of(url)["most_under_way"] >= 16


def test_no_more_requests_go_out_than_the_recipe_allows(place: Callable[..., str], tmp_path: Path) -> None:
    url = place(dialect="slow")
    all_answered(OpenaiTeacher(task_of(url, tmp_path)), 20, slots=3)
    assert stats_of(url)["most_under_way"] == 3


def test_a_server_that_does_one_at_a_time_is_not_swamped(place: Callable[..., str], tmp_path: Path) -> None:
    url = place(dialect="serial")
    all_answered(OpenaiTeacher(task_of(url, tmp_path)), 100)
    assert stats_of(url)["most_under_way"] <= 8


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def greet_for_ever(pace: Pace, clock: Clock, failure: Failure, sent: list[float]) -> None:
    """Send one failing small question after another, each as soon as it may go."""
    while True:
        assert pace.delay() is None, "nothing else is sent"
        clock.now += pace.trial_delay()
        sent.append(clock.now)
        pace.tried(failure)


def test_a_crowded_server_halves_the_requests_once_for_each_burst() -> None:
    clock = Clock()
    pace = Pace(Limits(), 64, clock)
    pace.limit = 16
    tickets = [pace.begin() for _ in range(16)]
    clock.now += 1
    for ticket in tickets[:6]:
        assert pace.fail(ticket, Failure("HTTP 429", crowded=True))
    assert pace.limit == 8
    assert pace.delay() is None
    assert pace.fail(tickets[6], Failure("HTTP 429", crowded=True, wait=3.0))
    for ticket in tickets[7:]:
        pace.succeed(ticket)
    assert pace.delay() == 3.0


def test_a_server_that_is_away_is_greeted_now_and_then_and_given_up() -> None:
    clock = Clock()
    pace = Pace(Limits(), 64, clock)
    gone = Failure("no connection", away=True)
    assert not pace.fail(pace.begin(), gone), "it is not the row's fault"
    sent = [clock.now]
    with pytest.raises(Stopped, match=r"the server has failed every request for 6[0-9] s: no connection"):
        greet_for_ever(pace, clock, gone, sent)
    assert min(later - earlier for earlier, later in pairwise(sent)) >= 0.5
    assert 8 <= len(sent) <= 40


def test_a_server_that_asks_for_time_is_given_it_but_not_for_ever() -> None:
    clock = Clock()
    pace = Pace(Limits(), 64, clock)
    crowded = Failure("HTTP 429", crowded=True, wait=120.0)
    assert all([pace.fail(pace.begin(), crowded) for _ in range(6)])
    sent: list[float] = []
    with pytest.raises(Stopped):
        greet_for_ever(pace, clock, crowded, sent)
    assert 600 <= clock.now - 1000 <= 900
    assert len(sent) <= 7


def test_what_a_working_server_fails_is_the_rows_fault_and_an_outage_is_not() -> None:
    pace = Pace(Limits(), 1, Clock())
    assert all([pace.fail(pace.begin(), Failure("HTTP 500")) for _ in range(6)])
    assert pace.away
    stretch = pace.stretch
    pace.tried(None)
    assert not pace.away
    assert pace.stretch not in pace.outages
    assert all([pace.fail(pace.begin(), Failure("HTTP 500")) for _ in range(6)])
    pace.tried(Failure("HTTP 502"))
    assert pace.outages == {stretch + 1}


def test_a_last_prompt_that_always_fails_is_not_taken_for_a_server_that_is_away(
    place: Callable[..., str], tmp_path: Path
) -> None:
    teacher = OpenaiTeacher(task_of(place("error_500", "9x"), tmp_path), replace(SHORT, attempts=8))
    with pytest.raises(EdgeDistillError, match="1 of 1 prompts got no answer: HTTP 500"):
        asked(teacher, 1)


def test_outages_do_not_count_against_a_row_however_many_hit_it() -> None:
    failing, answer = Failure("HTTP 502"), Answer("yes", "stop", MODEL)
    attempts = iter([*[failing] * 6, *[failing] * 6, *[failing] * 6, answer])
    greetings = iter([failing, answer, failing, failing, answer, failing, answer])

    async def attempt(row: Row, useless: int) -> Answer | Failure:
        return next(attempts)

    async def greet() -> Answer | Failure:
        return next(greetings)

    @asynccontextmanager
    async def session() -> AsyncIterator[Conversation]:
        yield Conversation(attempt, greet)

    limits = replace(SHORT, attempts=8, trial=0.01)
    asker = Asker(session, Pace(limits, 1), limits, 1)
    assert list(asker.results(iter([Row(prompts(1)[0], 0)]))) == [(Row(prompts(1)[0], 0), answer)]
    assert next(greetings, None) is None


def test_a_server_that_is_away_for_a_while_loses_nothing(place: Callable[..., str], tmp_path: Path) -> None:
    url = place(dialect="away")
    limits = replace(SHORT, attempts=8, trial=0.5, away=10.0)
    all_answered(OpenaiTeacher(task_of(url, tmp_path), limits), 100)
    seen = stats_of(url)
    late = [when for when in seen["times"] if seen["away_from"] + 0.4 < when < seen["away_from"] + 2]
    assert len(late) <= 4, "less than two a second"


def test_a_server_that_ends_and_comes_back_loses_nothing(tmp_path: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}/slow/none/0x/0/0/v1"
    teacher = OpenaiTeacher(task_of(url, tmp_path), replace(SHORT, away=20.0))
    answers = teacher.complete(prompts(60), TeachSettings(slots=4), 0)
    with fault_server(port):
        found = [next(answers) for _ in range(20)]
    timer = threading.Timer(1.0, lambda: None)
    timer.start()
    timer.join()
    with fault_server(port):
        found += answers
    assert {one.prompt_id: one.text for one in found} == {prompt.id: own_text(prompt) for prompt in prompts(60)}


def test_a_server_that_does_not_come_back_stops_the_run(tmp_path: Path) -> None:
    port = free_port()
    teacher = OpenaiTeacher(task_of(f"http://127.0.0.1:{port}/slow/none/0x/0/0/v1", tmp_path), SHORT)
    answers = teacher.complete(prompts(200), TeachSettings(), 0)
    with fault_server(port):
        next(answers)
    with pytest.raises(Stopped, match=r"failed every request for [0-9]+ s: no connection") as caught:
        list(answers)
    assert caught.value.hint == "See that it runs, then run the same command again."
    assert not teachers_threads()


def test_where_no_server_is_it_is_said_soon(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    started = time.monotonic()
    with pytest.raises(Stopped, match=f"no server answers at {url}: no connection"):
        asked(OpenaiTeacher(task_of(url, tmp_path)), 1)
    assert time.monotonic() - started < 5


def test_a_swapped_model_stops_the_run(place: Callable[..., str], tmp_path: Path) -> None:
    url = place(dialect="swapped")
    teacher = OpenaiTeacher(task_of(url, tmp_path), SHORT)
    found: list[Completion] = []
    with pytest.raises(Stopped, match="the server now answers as 'swapped', not 'pico'"):
        gather(teacher.complete(prompts(100), TeachSettings(slots=4), 0), found)
    assert 20 <= len(found) <= 30, "nothing of the other model"


def test_a_name_of_its_own_for_the_model_is_learnt(place: Callable[..., str], tmp_path: Path) -> None:
    witness = Witness("gpt")
    answers = [Answer("x", "stop", model) for model in ("stray", "gpt-0613", "gpt-0613")]
    assert [witness.meet(answer) for answer in answers] == [False, False, True]
    assert witness.check(answers[1]) is None
    assert witness.check(answers[0]) == Failure("an answer of another model")


def test_equal_answers_are_repeats_only_where_ids_tell_them_apart() -> None:
    def answer(id: str, digest: bytes = b"1") -> Answer:
        return Answer("x", "stop", "pico", id=id, digest=digest)

    witness = Witness("pico")
    assert [witness.check(answer("")) for _ in range(3)] == [None, None, None]
    assert [witness.check(answer("same", digest)) for digest in (b"1", b"2", b"2", b"1")] == [None] * 4
    witness = Witness("pico")
    witness.meet(answer("a", b"1"))
    assert witness.check(answer("b", b"2")) is None
    assert witness.check(answer("a", b"1")) == Failure("the answer to another request")


def teachers_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "teacher" or "asyncio" in thread.name]


def test_prompts_are_pulled_as_there_is_room_and_closing_leaves_nothing(
    place: Callable[..., str], tmp_path: Path
) -> None:
    pulled = 0

    def endless() -> Iterator[Prompt]:
        nonlocal pulled
        main = threading.current_thread()
        while True:
            assert threading.current_thread() is main, "a row may come from a database, which is one thread's"
            yield Prompt(digest(pulled)[:16], (Message("user", f"question {pulled}"),))
            pulled += 1

    teacher = OpenaiTeacher(task_of(place(dialect="slow"), tmp_path))
    answers = teacher.complete(endless(), TeachSettings(slots=8), 0)
    for _ in range(20):
        next(answers)
    assert pulled < 60
    answers.close()
    assert not teachers_threads()


@pytest.mark.parametrize("how", ["generator", "teacher"])
def test_closing_cancels_what_is_under_way(how: str, place: Callable[..., str], tmp_path: Path) -> None:
    teacher = OpenaiTeacher(task_of(place("silent", "0x", 0.3), tmp_path))
    answers = teacher.complete(prompts(40), TeachSettings(), 0)
    started = time.monotonic()
    next(answers)
    if how == "teacher":
        teacher.close()
        with pytest.raises(Stopped, match="the teacher was closed"):
            list(answers)
    else:
        answers.close()
    assert not teachers_threads()
    assert time.monotonic() - started < 5
    assert len(list(teacher.complete(prompts(1), TeachSettings(), 0))) == 1


def test_the_first_ctrl_c_is_heard_while_a_server_is_silent(
    place: Callable[..., str], tmp_path: Path, ask_to_stop: Callable[[], None]
) -> None:
    teacher = OpenaiTeacher(task_of(place("silent", "9x"), tmp_path))
    threading.Timer(0.5, ask_to_stop).start()
    started = time.monotonic()
    with pytest.raises(Stopped, match="stopped as asked"):
        asked(teacher, 4)
    assert time.monotonic() - started < 5
    assert not teachers_threads()


@pytest.mark.parametrize("kind", ["none", "echoes_key"])
def test_the_key_shows_up_nowhere(
    kind: str,
    place: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MY_KEY", f"  {CANARY}\n")
    caplog.set_level(logging.DEBUG)
    url = place(kind, "0x", 0.2)
    teacher = OpenaiTeacher(task_of(url, tmp_path, SCHEMA, api_key_env="MY_KEY"), SHORT)
    text = ""
    try:
        text += repr(list(teacher.complete(prompts(20), TeachSettings(), 0)))
    except EdgeDistillError as error:
        text += "".join(traceback.format_exception(error)) + repr(error) + error.hint
    assert stats_of(url)["keys"] == [f"Bearer {CANARY}"], "it was sent with every request"
    text += repr(teacher.failures) + caplog.text + "".join(capfd.readouterr()) + repr(vars(teacher)["_task"])
    text += "".join(path.read_text() + path.name for path in tmp_path.rglob("*") if path.is_file())
    assert "httpx2" in caplog.text
    assert CANARY not in text
    assert CANARY[3:12] not in text


def test_without_a_key_none_is_sent(place: Callable[..., str], tmp_path: Path) -> None:
    url = place()
    all_answered(OpenaiTeacher(task_of(url, tmp_path)), 2)
    assert stats_of(url)["keys"] == [""]


def test_a_key_that_is_wrong_or_missing_is_said_without_it(
    place: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = place(dialect="wants_key")
    with pytest.raises(EdgeDistillError, match="HTTP 401: it asks for a key") as caught:
        asked(OpenaiTeacher(task_of(url, tmp_path)), 1)
    assert "teacher.api_key_env" in caught.value.hint
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    with pytest.raises(EdgeDistillError, match=r"^the server answers HTTP 401: it does not accept the key$"):
        asked(OpenaiTeacher(task_of(url, tmp_path)), 1)
    monkeypatch.setenv("OPENAI_API_KEY", "right-key-1234")
    all_answered(OpenaiTeacher(task_of(url, tmp_path)), 1)


@pytest.mark.parametrize("key", ["sk-1\nX-Header: 1", "two words", "schlüssel", "sk\x00"])
def test_what_is_no_key_is_not_sent(key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {**os.environ, "OPENAI_API_KEY": key})
    with pytest.raises(InvalidInput, match=r"^the environment variable OPENAI_API_KEY holds no key$"):
        OpenaiTeacher(task_of("http://127.0.0.1/v1", tmp_path))


@given(st.text(min_size=8, max_size=40), st.text(max_size=60), st.text(max_size=60), st.integers(0, 30))
def test_no_piece_of_a_key_is_quoted(key: str, before: str, after: str, start: int) -> None:
    piece = key[start % (len(key) - 7) :][:8]
    body = json.dumps({"error": {"message": before + piece + after}}, ensure_ascii=False)
    assert piece not in said(body.encode("utf-8", "surrogatepass"), key)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ('{"error": {"message": "too\\nlong", "code": 1}}', "too long"),
        ('{"error": "no"}', "no"),
        ('{"detail": [{"loc": ["x"]}]}', '[{"loc": ["x"]}]'),
        ("<html>nginx</html>", ""),
        ("plain \x1b[31m text", "plain  [31m text"),
        ("", ""),
    ],
)
def test_a_servers_words_are_one_plain_line(body: str, text: str) -> None:
    assert said(body.encode(), "sk-key-123456") == text


def test_an_account_without_credit_stops_the_run() -> None:
    with pytest.raises(Stopped, match="HTTP 402: no credit is left"):
        refusal_of(Reply(402, {}, b""), None, 1.0)
    with pytest.raises(Stopped, match="HTTP 429: no credit is left"):
        refusal_of(Reply(429, {}, b'{"error": {"code": "insufficient_quota"}}'), None, 1.0)


@given(
    st.one_of(
        st.binary(),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(),
            lambda inner: (
                st.lists(inner)
                | st.dictionaries(
                    st.sampled_from(
                        ["choices", "message", "content", "finish_reason", "model", "id", "usage", "prompt_tokens"]
                    ),
                    inner,
                )
            ),
        ).map(lambda value: json.dumps(value).encode()),
    )
)
def test_no_reply_is_too_strange_to_be_judged(body: bytes) -> None:
    assert isinstance(answer_of(Reply(200, {}, body)), (Answer, Failure))


BAD_ADDRESSES = (
    "169.254.169.254",
    "169.254.0.1",
    "::ffff:169.254.169.254",
    "2002:a9fe:a9fe::1",
    "64:ff9b::a9fe:a9fe",
    "fe80::1",
    "fe80::1%eth0",
    "fd00:ec2::254",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "0.0.0.0",
    "::",
    "224.0.0.1",
    "ff02::1",
    "not-an-address",
)


@pytest.mark.parametrize("address", BAD_ADDRESSES)
def test_a_name_at_a_metadata_address_is_refused_before_anything_connects(address: str, tmp_path: Path) -> None:
    for found in ([address], ["127.0.0.1", address]):
        task = task_of("https://teacher.example/v1", tmp_path, plain_http=True)
        teacher = OpenaiTeacher(task, SHORT, lambda host, port, found=found: found)  # type: ignore[misc]
        with pytest.raises(Unsafe, match=r"^teacher.url: teacher.example is at "):
            asked(teacher, 1)


@pytest.mark.parametrize("host", ["169.254.169.254", "[fe80::1]", "[fd00:ec2::254]", "2852039166", "0xa9fea9fe"])
def test_a_metadata_address_in_the_url_is_refused_however_it_is_written(host: str, tmp_path: Path) -> None:
    with pytest.raises(Unsafe, match="which no teacher may have"):
        asked(OpenaiTeacher(task_of(f"http://{host}/v1", tmp_path, plain_http=True), SHORT), 1)


def test_a_name_that_moves_to_a_metadata_address_is_refused(place: Callable[..., str], tmp_path: Path) -> None:
    url = place()
    lookups = 0

    def moving(host: str, port: int) -> list[str]:
        nonlocal lookups
        lookups += 1
        return ["127.0.0.1"] if lookups <= 5 else ["169.254.169.254"]

    teacher = OpenaiTeacher(task_of(url.replace("127.0.0.1", "teacher.example"), tmp_path), SHORT, moving)
    with pytest.raises(Unsafe):
        asked(teacher, 50)
    assert stats_of(url)["requests"] <= 5, "each connection went to the address that was looked at"


def test_plain_http_stays_on_this_machine_unless_it_is_allowed(tmp_path: Path) -> None:
    for address in ("10.0.0.5", "192.168.1.2", "8.8.8.8", "::ffff:8.8.8.8", "2001:db8::1"):
        with pytest.raises(Unsafe, match="plain http would send prompts and key in the clear"):
            asked(OpenaiTeacher(task_of("http://teacher.example/v1", tmp_path), SHORT, lambda h, p, a=address: [a]), 1)  # type: ignore[misc]
        refuse_address(Endpoint("http", "teacher.example", 80, "/v1", plain_http=True), address)
        refuse_address(Endpoint("https", "teacher.example", 443, "/v1"), address)
    for address in ("127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"):
        refuse_address(Endpoint("http", "teacher.example", 80, "/v1"), address)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("ftp://127.0.0.1/v1", "is not an http or https URL"),
        ("file:///etc/passwd", "is not an http or https URL"),
        ("127.0.0.1:8080/v1", "is not an http or https URL"),
        ("http:///v1", "is not an http or https URL"),
        ("http://[::1/v1", "is not a URL"),
        ("http://127.0.0.1:99999/v1", "is not a URL"),
        ("http://127.0.0.1:x/v1", "is not a URL"),
        (f"https://user:{CANARY}@host/v1", "holds a user or a password"),
        (f"https://{CANARY}@host/v1", "holds a user or a password"),
        (f"https://host/v1?key={CANARY}", "holds a query or a fragment"),
        (f"http://user:{CANARY}@[::1/v1", "is not a URL"),
    ],
)
def test_what_is_no_url_is_said(url: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=reason) as caught:
        OpenaiTeacher(task_of(url, tmp_path))
    assert CANARY not in "".join(traceback.format_exception(caught.value))


def test_proxies_and_passwords_of_the_environment_are_not_used(
    place: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login user password secret\n")
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    url = place()
    all_answered(OpenaiTeacher(task_of(url, tmp_path / "scratch")), 2)
    monkeypatch.undo()
    assert stats_of(url)["keys"] == [""]


@contextmanager
def secure_server(folder: Path) -> Iterator[tuple[int, list[str]]]:
    """An https server for teacher.example, and the Host headers that it was sent."""
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=teacher.example"]
    made += [
        "-addext",
        "subjectAltName=DNS:teacher.example",
        "-keyout",
        str(folder / "key"),
        "-out",
        str(folder / "pem"),
    ]
    subprocess.run(made, check=True, capture_output=True)
    hosts: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hosts.append(self.headers["Host"])
            self.send_response(404)
            self.end_headers()

        def do_POST(self) -> None:
            hosts.append(self.headers["Host"])
            length = int(self.headers["Content-Length"])
            text = json.loads(self.rfile.read(length))["messages"][-1]["content"]
            choice = {"message": {"content": f"answer to {text}"}, "finish_reason": "stop"}
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"model": MODEL, "choices": [choice]}).encode())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "pem", folder / "key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port, hosts
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="a certificate cannot be made here: no openssl")
def test_the_certificate_is_checked_against_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx2

    with secure_server(tmp_path) as (port, hosts):

        def asks(name: str) -> OpenaiTeacher:
            task = task_of(f"https://{name}:{port}/v1", tmp_path / "scratch")
            return OpenaiTeacher(task, SHORT, lambda host, port: ["127.0.0.1"])

        with pytest.raises(Unsafe, match=f"teacher.example:{port} shows a certificate that is not trusted"):
            asked(asks("teacher.example"), 1)
        assert not hosts, "nothing was sent"
        trusted = ssl.create_default_context(cafile=str(tmp_path / "pem"))
        monkeypatch.setattr(httpx2, "AsyncClient", partial(httpx2.AsyncClient, verify=trusted))
        with pytest.raises(Unsafe, match="not trusted"):
            asked(asks("another.example"), 1)
        assert not hosts
        all_answered(asks("teacher.example"), 2)
        assert set(hosts) == {f"teacher.example:{port}"}


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


def test_samples_have_seeds_of_their_own(place: Callable[..., str], tmp_path: Path) -> None:
    url = place()
    settings = TeachSettings(samples=3, temperature=1.0)
    found = list(OpenaiTeacher(task_of(url, tmp_path)).complete(prompts(4), settings, 7))
    assert sorted((one.prompt_id, one.sample) for one in found) == sorted(
        (p.id, n) for p in prompts(4) for n in range(3)
    )
    seeds = {body["seed"] for body in stats_of(url)["bodies"][-12:]}
    assert seeds == {((7 ^ int(prompt.id[:8], 16)) + n) % 2**31 for prompt in prompts(4) for n in range(3)}


def test_an_answer_that_is_cut_off_says_so(place: Callable[..., str], tmp_path: Path) -> None:
    found = asked(OpenaiTeacher(task_of(place("length"), tmp_path)), 2)
    assert {(one.text, one.finish_reason) for one in found.values()} == {("answer to", "length")}


def test_distributions_are_not_to_be_had(tmp_path: Path) -> None:
    teacher = OpenaiTeacher(task_of("http://127.0.0.1/v1", tmp_path))
    with pytest.raises(MissingRequirement, match="does not tell whole distributions"):
        teacher.complete(prompts(1), TeachSettings(targets="top_k"), 0)
    with pytest.raises(MissingRequirement, match="does not tell the distribution"):
        teacher.score([Example("1", ())], TeachSettings(), 0)


@pytest.fixture(params=["llama_server", "mlx_server"])
def real(request: pytest.FixtureRequest) -> tuple[str, str]:
    found: tuple[str, str] = request.getfixturevalue(request.param)
    return found


def of_real(real: tuple[str, str], scratch: Path, schema: dict[str, Any] | None = None) -> OpenaiTeacher:
    return OpenaiTeacher(task_of(real[0], scratch, schema, model=real[1]))


def texts(teacher: OpenaiTeacher, count: int, seed: int = 0, **settings: Any) -> dict[str, str]:
    found = list(teacher.complete(prompts(count), TeachSettings(**settings), seed))
    assert sorted(one.prompt_id for one in found) == sorted(prompt.id for prompt in prompts(count))
    assert all(one.prompt_tokens > 0 for one in found)
    assert all(one.completion_tokens > 0 for one in found)
    return {one.prompt_id: one.text for one in found}


def test_a_real_server_answers_every_prompt_once_and_alike(real: tuple[str, str], tmp_path: Path) -> None:
    teacher = of_real(real, tmp_path)
    alone, together = (texts(teacher, 8, max_tokens=8, slots=slots) for slots in (1, 4))
    assert alone == together
    assert teacher.capabilities == Capabilities()


def test_a_real_server_repeats_what_a_seed_sampled(real: tuple[str, str], tmp_path: Path) -> None:
    teacher = of_real(real, tmp_path)
    sampled = {"max_tokens": 8, "temperature": 1.0, "top_k": 200, "min_p": 0.001, "slots": 1}
    one, same, other = (texts(teacher, 6, seed, **sampled) for seed in (1, 1, 2))
    assert one == same
    assert one != other
    assert len(set(one.values())) > 3, "each prompt has a seed of its own"


def test_a_real_server_says_that_an_answer_is_cut_off(real: tuple[str, str], tmp_path: Path) -> None:
    found = list(of_real(real, tmp_path).complete(prompts(3), TeachSettings(max_tokens=4), 0))
    assert {one.finish_reason for one in found} == {"length"}


def test_a_real_server_holds_its_answers_to_the_schema(llama_server: tuple[str, str], tmp_path: Path) -> None:
    teacher = of_real(llama_server, tmp_path, SCHEMA)
    for text in texts(teacher, 10, max_tokens=60).values():
        row = json.loads(text)
        assert row.keys() == {"action", "room"}
        assert row["room"] in ("hall", "all")
    assert teacher.capabilities == Capabilities(format="json_object with schema")


def test_a_real_server_that_ignores_the_schema_is_found_out(mlx_server: tuple[str, str], tmp_path: Path) -> None:
    teacher = of_real(mlx_server, tmp_path, SCHEMA)
    found: list[Completion] = []
    with suppress(EdgeDistillError):
        gather(teacher.complete(prompts(3), TeachSettings(max_tokens=100, temperature=1.0), 0), found)
    assert len(found) + len(teacher.failures) == 3
    assert all(one.finish_reason == "length" for one in found), "what does not match the schema passes for no answer"
    assert set(teacher.failures.values()) <= {"an answer that does not match the schema", "an empty answer"}
    assert teacher.capabilities == Capabilities(format="prompt")


def test_a_model_that_a_real_server_does_not_have_is_refused(real: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="has no model 'another'"):
        asked(OpenaiTeacher(task_of(real[0], tmp_path, model="another")), 1)
