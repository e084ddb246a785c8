"""D4: `edgedistill teach` on a run of 500,000 answered rows that was killed: seconds from its start to a new row.

The whole command in a process of its own: Python's start, check, checksums of what earlier stages left, the store, a
server that answers at once. The new row is seen where it is committed, in the store's journal; then the command is
killed by kill -9, so that the next one finds a journal to recover too.
"""

from __future__ import annotations

import argparse
import os
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from fake_teacher import FakeTeacher, answer, write
from measure import finish, note

from edgedistill.records import Completion, Prompt

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

MOST_SECONDS = 3.0
LEFT = 2000  # rows without an answer
UNIQUE = 0.949  # of the prompts that `write` makes, those that repeat no earlier one
RECIPE = """
name = "many"
[teacher]
backend = "openai"
url = "{url}"
model = "pico"
licence = "apache-2.0"
[student]
model = "{student}"
[train]
max_length = 1024
"""


def fill(recipe: Path, runs: Path) -> None:
    """Answer all rows but some in this process, at once instead of by the server; then die as by kill -9."""
    from edgedistill.pipeline import RunSettings, run_recipe
    from edgedistill.teachers import openai

    def speak(prompts: Iterable[Prompt]) -> Iterator[Completion]:
        yield from answer(prompts)

    def progress(what: str, done: int, total: int) -> None:
        if "(" in what and done >= total - LEFT:
            os.kill(os.getpid(), signal.SIGKILL)

    openai.load = lambda task: FakeTeacher(speak)  # type: ignore[assignment,return-value]
    run_recipe(recipe, RunSettings(runs=runs, only="teach"), progress)
    raise AssertionError("every row was there")


def rows_in(store: Path) -> int:
    """Rows of a store whose journal stays where it is."""
    db = sqlite3.connect(f"{store.resolve().as_uri()}?mode=ro", uri=True)
    count: int = db.execute("SELECT count(*) FROM answers").fetchone()[0]
    db.close()
    return count


def command(*arguments: str | Path) -> list[str]:
    return [str(Path(sys.executable).with_name("edgedistill")), *map(str, arguments)]


def opened(recipe: Path, runs: Path) -> float:
    """Seconds from the start of the command to the first row that it commits."""
    journal = runs / "many" / "teach" / "teacher.sqlite-wal"
    before = journal.stat()
    started = time.monotonic()
    process = subprocess.Popen(command("teach", recipe, "--runs", runs, "--quiet"), stdout=subprocess.DEVNULL)
    try:
        while True:
            now = journal.stat()
            if (now.st_mtime_ns, now.st_size) != (before.st_mtime_ns, before.st_size):
                break
            assert process.poll() is None, "the command ended without a new row"
            time.sleep(0.002)
        return time.monotonic() - started
    finally:
        process.kill()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the run is made and kept; by default nowhere")
    parser.add_argument("--fill", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.fill:
        fill(options.fill, options.folder)
        return
    with tempfile.TemporaryDirectory() as name:
        measure(options.folder or Path(name), options.rows, options.times)


def measure(folder: Path, rows: int, times: int) -> None:
    from fault_server import fault_server
    from pico import pico_hf_folder

    recipe, runs = folder / "recipe", folder / "runs"
    store = runs / "many" / "teach" / "teacher.sqlite"
    write(recipe, int((rows + LEFT) / UNIQUE))
    student = pico_hf_folder(folder / "student", "llama")
    (student / "README.md").write_text("---\nlicense: apache-2.0\n---\n", encoding="utf-8")
    with fault_server() as server:
        text = RECIPE.format(url=f"{server}/plain/none/0x/many/0/v1", student=student.resolve())
        (recipe / "recipe.toml").write_text(text, encoding="utf-8")
        subprocess.run(command("prompts", recipe, "--runs", runs, "--quiet"), check=True, stdout=subprocess.DEVNULL)
        note("the prompts are collected")
        started = time.monotonic()
        subprocess.run([sys.executable, __file__, "--fill", recipe, "--folder", runs], check=False)
        filled, found = rows_in(store), []
        note(f"{filled} rows after {time.monotonic() - started:.0f} s")
        assert filled >= rows
        opened(recipe, runs)  # it finds out what the server takes, once; and leaves a journal
        for _ in range(times):
            before = rows_in(store)
            found.append(opened(recipe, runs))
            assert rows_in(store) > before, "what was seen was no row"
            note(f"{found[-1]:.2f} s")
    value = round(statistics.median(found), 2)
    finish(
        "D4",
        value,
        MOST_SECONDS,
        value <= MOST_SECONDS,
        unit="s",
        n=times,
        rows=filled,
        longest=round(max(found), 2),
    )


if __name__ == "__main__":
    main()
