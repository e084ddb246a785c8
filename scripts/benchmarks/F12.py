"""F12: a teacher's server that fails three requests in ten, in every way known, and one prompt in 200 for good.

Each prompt must be answered with its own answer or listed with a reason, none twice; the server's own count of requests
must stay under 1.6 a prompt, and memory must not grow by 300 MB while bodies of 1 GB are offered.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from measure import finish, note

from edgedistill.errors import EdgeDistillError, Stopped
from edgedistill.hardware import peak_memory
from edgedistill.recipe import TeacherSettings, TeachSettings
from edgedistill.records import Completion, Message, Prompt, digest
from edgedistill.teachers import TeacherTask
from edgedistill.teachers.http import Limits
from edgedistill.teachers.openai import OpenaiTeacher

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
from fault_server import MODEL, fault_server, stats_of

ROWS = 10_000
FAULTY = 0.3
STUCK = 0.005
MOST_REQUESTS = 1.6
MOST_MEMORY = 300  # MB
LEAST_KINDS = 14
# a server that is never slow but on purpose: what waits in production for a minute waits here for half a second
LIMITS = Limits(
    connect=2.0,
    first_byte=0.5,
    per_token=0.0,
    body=0.5,
    backoff=0.02,
    longest_backoff=0.3,
    longest_retry_after=0.1,
    trial=0.1,
)


def prompts(rows: int) -> Iterator[Prompt]:
    for number in range(rows):
        yield Prompt(digest(number)[:16], (Message("user", f"question {number}"),))


def gather(teacher: OpenaiTeacher, rows: int, found: list[Completion]) -> str:
    """Append every answer to `found`; the last words where rows were left without one."""
    try:
        for one in teacher.complete(prompts(rows), TeachSettings(), 0):
            found.append(one)
            if len(found) % 1000 == 0:
                note(f"{len(found)} of {rows} answered")
    except Stopped:
        raise
    except EdgeDistillError as error:
        return error.message
    return ""


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else ROWS
    with fault_server() as base, tempfile.TemporaryDirectory() as scratch:
        url = f"{base}/plain/all/{FAULTY}/F12/{STUCK}/v1"
        settings = TeacherSettings(backend="openai", model=MODEL, url=url)
        teacher = OpenaiTeacher(TeacherTask(None, "", (), None, Path(scratch), settings), LIMITS)
        found: list[Completion] = []
        before, started = psutil.Process().memory_info().rss / 2**20, time.monotonic()
        last_words = gather(teacher, rows, found)
        seconds, grown = time.monotonic() - started, peak_memory() / 2**20 - before
        seen = stats_of(url)
    own = {prompt.id: f"answer to {prompt.messages[0].content}" for prompt in prompts(rows)}
    times = Counter(one.prompt_id for one in found) + Counter(list(teacher.failures))
    result: dict[str, Any] = {
        "answered": len(found),
        "cut_off": sum(one.finish_reason == "length" for one in found),
        "listed_as_failed": len(teacher.failures),
        "lost": sum(times[name] == 0 for name in own),
        "doubled": sum(count > 1 for count in times.values()),
        "of_another_row": sum(one.finish_reason == "stop" and one.text != own[one.prompt_id] for one in found),
        "without_a_reason": sum(not reason for reason in teacher.failures.values()),
        "requests": seen["requests"],
        "requests_per_row": round(seen["requests"] / rows, 3),
        "faults": sum(seen["faults"].values()),
        "kinds": len(seen["faults"]),
        "memory_growth_mb": round(grown, 1),
        "seconds": round(seconds, 1),
    }
    note(last_words)
    wrong = ("lost", "doubled", "of_another_row", "without_a_reason")
    holds = (
        not any(result[name] for name in wrong)
        and result["requests_per_row"] <= MOST_REQUESTS
        and result["memory_growth_mb"] < MOST_MEMORY
        and result["kinds"] >= LEAST_KINDS
    )
    bar = {**dict.fromkeys(wrong, 0), "requests_per_row": MOST_REQUESTS, "memory_growth_mb": MOST_MEMORY}
    finish("F12", result, bar, holds, peer=None, unit="prompts and requests", n=rows)


if __name__ == "__main__":
    main()
