"""The teacher behind an API, against a server that fails in every way known."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from fault_kinds import HARMLESS, KINDS
from fault_server import stats_of
from hypothesis import given
from hypothesis import strategies as st
from openai_asking import SHORT, all_answered, asked, gather, own_text, prompts, task_of, teachers_threads

from edgedistill.errors import EdgeDistillError, MissingRequirement
from edgedistill.recipe import TeachSettings
from edgedistill.records import Completion, Example, Message, Prompt, digest
from edgedistill.teachers import load_teacher
from edgedistill.teachers.http import Reply
from edgedistill.teachers.openai import OpenaiTeacher
from edgedistill.teachers.reply import Answer, Failure, Witness, answer_of


def test_answers_come_with_their_counts(place: Callable[..., str], tmp_path: Path) -> None:
    teacher = load_teacher(task_of(place(), tmp_path))
    (found,) = teacher.complete(prompts(1), TeachSettings(), 0)
    assert (found.text, found.finish_reason, found.completion_tokens) == ("answer to question 0", "stop", 3)
    assert found.prompt_tokens > 0
    assert found.seconds > 0
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
