"""D4: a run of 500,000 answered rows that was killed is opened again: seconds from the start of Python to a new row.

`imports` are in it. `changed` is the same where prompts were added since, so that all rows are looked up again.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from fake_teacher import answer, collected, install, recipe_in, run_in, write
from measure import finish, note

from edgedistill.records import Completion, Prompt

MOST_SECONDS = 3.0
LEFT = 100  # rows without an answer


def child(folder: Path, until: int) -> None:
    """Teach until so many rows are there; then say so, and die as by kill -9."""
    started = time.monotonic()

    def speak(prompts: Iterable[Prompt]) -> Iterator[Completion]:
        yield from answer(prompts)

    def progress(what: str, done: int, total: int) -> None:
        if "(" in what and done >= until:
            sys.stdout.write(f"{imported:.3f} {time.monotonic() - started:.3f}\n")
            sys.stdout.flush()
            os.kill(os.getpid(), signal.SIGKILL)

    install(speak)
    from edgedistill.stages.teach import teach

    imported = time.monotonic() - started
    run = run_in(folder)
    teach(recipe_in(folder), run, run.begin("teach", "key", afresh=False), progress)
    raise AssertionError("every row was there")


def opened(folder: Path, until: int = 0) -> float:
    """Seconds from the start of a process to the first new row (or to the one that makes `until` of them)."""
    command = [sys.executable, __file__, "--folder", str(folder), "--until", str(until)]
    started = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        seconds = time.monotonic() - started
    note(f"{seconds:.2f} s; in it, after measure's own imports: teach imported, first new row: {said.strip()} s")
    assert said, "the process failed"
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--until", type=int)
    options = parser.parse_args()
    if options.folder:
        child(options.folder, options.until)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, options.rows + LEFT)
        run = collected(folder)
        filled = opened(folder, options.rows)
        seconds = [opened(folder) for _ in range(options.times)]
        with (run.folder("prompts") / "prompts.jsonl").open("ab") as file:
            file.write(b'{"messages": [{"role": "user", "content": "one more"}]}\n')
        changed = opened(folder)
    value = round(statistics.median(seconds), 2)
    finish(
        "D4",
        value,
        MOST_SECONDS,
        value <= MOST_SECONDS,
        unit="s",
        n=options.times,
        rows=options.rows,
        longest=round(max(seconds), 2),
        changed=round(changed, 2),
        filled_rows_per_s=round(options.rows / filled),
    )


if __name__ == "__main__":
    main()
