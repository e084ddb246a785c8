"""Teachers on the fault server: where it behaves as told, prompts to ask there, and answers that belong to them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fault_server import MODEL, fault_server

from edgedistill.recipe import TeacherSettings, TeachSettings
from edgedistill.records import Completion, Message, Prompt, digest
from edgedistill.teachers import TeacherTask
from edgedistill.teachers.http import Limits
from edgedistill.teachers.openai import OpenaiTeacher

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


@pytest.fixture(scope="session")
def faults() -> Iterator[str]:
    """The address of a fault server."""
    with fault_server() as url:
        yield url


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """No key of the user's is sent anywhere."""
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


def teachers_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "teacher" or "asyncio" in thread.name]
