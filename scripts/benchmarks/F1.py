"""F1: a run of 4,000 rows, killed 200 times: no row that was told to be there is lost, doubled or asked again."""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO

from fake_teacher import collected, install, recipe_in, run_in, write
from measure import finish, note

from edgedistill.records import Completion, Prompt, read_prompts
from edgedistill.store import Store

AT_A_TIME = 8  # prompts
SECONDS = 0.0002  # an answer
LONGEST = 0.008  # seconds from the first row that is told to the kill
EARLY = 0.2  # of the kills, the share that may come before the first row


def child(folder: Path, session: int, deadline: float) -> None:
    """Teach, and write to two logs what is asked and what is told to be there, each by one write to the end.

    Where there is a deadline, the process dies as by kill -9 so many seconds after the first row that it tells.
    """
    asked, told = (os.open(folder / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT) for name in ("asked", "told"))
    last: list[str] = []
    source = random.Random(session)
    killer = threading.Timer(deadline, os.kill, (os.getpid(), signal.SIGKILL))

    def speak(prompts: Iterable[Prompt]) -> Iterator[Completion]:
        rows = iter(prompts)
        while some := list(islice(rows, AT_A_TIME)):
            for prompt in some:
                os.write(asked, f"{session} {prompt.id}\n".encode())
            source.shuffle(some)
            for prompt in some:
                time.sleep(SECONDS)
                last[:] = [prompt.id]
                yield Completion(prompt.id, f"{session} {prompt.id}", "stop", 1, 1, SECONDS)

    def progress(what: str, done: int, total: int) -> None:
        if last:
            os.write(told, f"{session} {last[0]}\n".encode())
            if deadline and killer.ident is None:
                killer.start()

    install(speak)
    from edgedistill.stages.teach import teach

    run = run_in(folder)
    summary = teach(recipe_in(folder), run, run.begin("teach", "key", afresh=False), progress)
    assert summary["failed"] == 0


def started(folder: Path, session: int, deadline: float) -> subprocess.Popen[bytes]:
    """A process that teaches."""
    arguments = ["--folder", str(folder), "--session", str(session), "--deadline", str(deadline)]
    return subprocess.Popen([sys.executable, __file__, *arguments])


def killed(folder: Path, session: int, source: random.Random) -> bool:
    """Teach in a process that is killed at a random moment; return whether it was still at it."""
    with started(folder, session, source.uniform(0.0, LONGEST)) as process:
        if source.random() < EARLY:
            time.sleep(source.uniform(0.0, 1.0))
            process.send_signal(signal.SIGKILL)
    return process.returncode == -signal.SIGKILL


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def log(file: IO[str]) -> list[tuple[int, str]]:
    """Session and prompt of each whole line."""
    lines = [line.split() for line in file if line.endswith("\n")]
    return [(int(session), prompt) for session, prompt in lines]


def faults(folder: Path, rows: int) -> dict[str, int]:
    """How many rows were lost, doubled or asked again, by the logs and by the store."""
    with (folder / "told").open() as one, (folder / "asked").open() as other:
        told, asked = log(one), log(other)
    first = {prompt: session for session, prompt in reversed(told)}
    prompts = {prompt.id for prompt in read_prompts(folder / "prompts.jsonl")}
    with Store(folder / "run" / "teach" / "teacher.sqlite", read_only=True) as store:
        stored = Counter(completion.prompt_id for _, completion in store.rows())
        texts = {completion.prompt_id: completion.text for _, completion in store.rows()}
    note(f"{len(told)} rows told, {len(asked)} asked in {len({session for session, _ in asked})} sessions")
    return {
        "lost": sum(texts.get(prompt) != f"{session} {prompt}" for prompt, session in first.items()),
        "doubled": len(told) - len(first) + sum(count - 1 for count in stored.values()),
        "asked_again": sum(session > first.get(prompt, session) for session, prompt in asked),
        "missing": len(prompts - stored.keys()) + rows - len(prompts),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--session", type=int)
    parser.add_argument("--deadline", type=float)
    options = parser.parse_args()
    if options.folder:
        child(options.folder, options.session, options.deadline)
        return
    source = random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, options.rows)
        collected(folder)
        at_it = 0
        for session in range(options.kills):
            at_it += killed(folder, session, source)
            if session % 20 == 19:
                note(f"{session + 1} kills, {_size(folder / 'told') // 20} rows or so")
        with started(folder, options.kills, 0.0) as process:
            pass
        assert process.returncode == 0, "the last session failed"
        found = faults(folder, options.rows)
    finish(
        "F1",
        sum(found.values()),
        0,
        not any(found.values()) and at_it == options.kills,
        unit="rows lost, doubled or asked again",
        n=options.kills,
        rows=options.rows,
        killed_at_work=at_it,
        **found,
    )


if __name__ == "__main__":
    main()
