"""How fast a server is asked, and what becomes of the answers when it is crowded, away, swapped or silent."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from fault_server import MODEL, fault_server, stats_of
from openai_asking import SHORT, all_answered, asked, gather, own_text, prompts, task_of, teachers_threads
from real_servers import free_port

from edgedistill.errors import EdgeDistillError, Stopped
from edgedistill.recipe import TeachSettings
from edgedistill.records import Completion
from edgedistill.teachers.asking import Asker, Conversation, Row
from edgedistill.teachers.http import Limits, Reply
from edgedistill.teachers.openai import OpenaiTeacher
from edgedistill.teachers.pace import Pace
from edgedistill.teachers.reply import Answer, Failure, refusal_of


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


def test_where_no_server_is_it_is_said(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    with pytest.raises(Stopped, match=f"no server answers at {url}: no connection"):
        asked(OpenaiTeacher(task_of(url, tmp_path)), 1)


def test_a_swapped_model_stops_the_run(place: Callable[..., str], tmp_path: Path) -> None:
    url = place(dialect="swapped")
    teacher = OpenaiTeacher(task_of(url, tmp_path), SHORT)
    found: list[Completion] = []
    with pytest.raises(Stopped, match="the server now answers as 'swapped', not 'pico'"):
        gather(teacher.complete(prompts(100), TeachSettings(slots=4), 0), found)
    assert 20 <= len(found) <= 30, "nothing of the other model"


@pytest.mark.parametrize("how", ["generator", "teacher"])
def test_closing_cancels_what_is_under_way(how: str, faults: str, tmp_path: Path) -> None:
    # of this seed, 11 of 40 prompts are never answered; the greeting and the first prompt are
    teacher = OpenaiTeacher(task_of(f"{faults}/plain/silent/0x/4/0.3/v1", tmp_path))
    answers = teacher.complete(prompts(40), TeachSettings(), 0)
    next(answers)
    if how == "teacher":
        teacher.close()
        with pytest.raises(Stopped, match="the teacher was closed"):
            list(answers)
    else:
        answers.close()
    assert not teachers_threads()
    assert len(list(teacher.complete(prompts(1), TeachSettings(), 0))) == 1


def test_the_first_ctrl_c_is_heard_while_a_server_is_silent(
    place: Callable[..., str], tmp_path: Path, ask_to_stop: Callable[[], None]
) -> None:
    teacher = OpenaiTeacher(task_of(place("silent", "9x"), tmp_path))
    threading.Timer(0.5, ask_to_stop).start()
    with pytest.raises(Stopped, match="stopped as asked"):
        asked(teacher, 4)
    assert not teachers_threads()


def test_an_account_without_credit_stops_the_run() -> None:
    with pytest.raises(Stopped, match="HTTP 402: no credit is left"):
        refusal_of(Reply(402, {}, b""), None, 1.0)
    with pytest.raises(Stopped, match="HTTP 429: no credit is left"):
        refusal_of(Reply(429, {}, b'{"error": {"code": "insufficient_quota"}}'), None, 1.0)
