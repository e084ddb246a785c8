"""The row store: what was acknowledged is there after anything, once."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgedistill.errors import EdgeDistillError, Stopped
from edgedistill.records import Completion, Place
from edgedistill.run import file_sha256
from edgedistill.store import Mark, Store

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
COMPLETIONS = st.builds(
    Completion,
    prompt_id=TEXT,
    text=TEXT,
    finish_reason=st.sampled_from(["stop", "length"]),
    prompt_tokens=st.integers(0, 2**40),
    completion_tokens=st.integers(0, 2**40),
    seconds=st.floats(0, 1e6),
    sample=st.integers(0, 63),
    targets=st.none() | st.binary(max_size=40),
    answers=st.none() | st.dictionaries(TEXT, st.floats(0, 1), min_size=1, max_size=3),
)

ADD_ROWS = """
import hashlib, sys
from pathlib import Path
from edgedistill.records import Completion
from edgedistill.store import Store

with Store(Path(sys.argv[1])) as store:
    number = len(store)
    while True:
        key = hashlib.sha256(f"key{number}".encode()).hexdigest()
        store.add(key, Completion(f"id{number}", f"text {number} " * 20, "stop", 1, 1, 0.5))
        sys.stdout.write(f"{number}\\n")
        sys.stdout.flush()
        number += 1
"""


def named(text: str) -> str:
    """A key: the sha256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def completion(text: str = "hello") -> Completion:
    return Completion("id", text, "stop", 3, 2, 0.25)


@given(st.dictionaries(st.text().map(lambda text: named(repr(text))), COMPLETIONS, max_size=5))
def test_any_row_comes_back_as_it_was_in_the_order_of_the_keys(
    tmp_path_factory: pytest.TempPathFactory, rows: dict[str, Completion]
) -> None:
    path = tmp_path_factory.mktemp("store") / "rows.sqlite"
    with Store(path) as store:
        for key, row in rows.items():
            store.add(key, row)
            assert key in store
            assert store.get(key) == row
    with Store(path, read_only=True) as store:
        assert dict(store.rows()) == rows
        assert [key for key, _ in store.rows()] == sorted(rows)
        assert len(store) == len(rows)


def test_a_key_keeps_its_first_answer(tmp_path: Path) -> None:
    with Store(tmp_path / "rows.sqlite") as store:
        assert store.add(named("key"), completion("first")) is True
        assert store.add(named("key"), completion("second")) is False
        assert store.get(named("key")) == completion("first")
        assert len(store) == 1


def test_a_key_that_is_not_there_is_none(tmp_path: Path) -> None:
    with Store(tmp_path / "rows.sqlite") as store:
        assert store.get(named("key")) is None
        assert named("key") not in store


def test_a_closed_store_is_one_file_and_reading_changes_no_byte_of_it(tmp_path: Path) -> None:
    path = tmp_path / "rows.sqlite"
    with Store(path) as store:
        store.add(named("key"), completion())
    before = file_sha256(path)
    with Store(path, read_only=True) as store:
        assert store.get(named("key")) == completion()
    assert [item.name for item in tmp_path.iterdir()] == ["rows.sqlite"]
    assert file_sha256(path) == before


@pytest.mark.parametrize("name", ["a b.sqlite", "100%25.sqlite", "what?mode=memory#.sqlite", "ünï.sqlite"])
def test_any_file_name_is_only_a_name(tmp_path: Path, name: str) -> None:
    with Store(tmp_path / name) as store:
        store.add(named("key"), completion())
    assert [item.name for item in tmp_path.iterdir()] == [name]


def test_a_file_that_is_no_store_is_refused_by_name_with_a_way_out(tmp_path: Path) -> None:
    path = tmp_path / "rows.sqlite"
    path.write_bytes(b"not a database" * 100)
    for read_only in (False, True):
        with pytest.raises(EdgeDistillError, match=r"rows\.sqlite: ") as caught:
            Store(path, read_only)
        assert "delete it" in caught.value.hint


def test_a_damaged_store_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "rows.sqlite"
    with Store(path) as store:
        for number in range(500):
            store.add(named(f"key{number}"), completion("x" * 200))
    data = bytearray(path.read_bytes())
    data[4096 * 3 : 4096 * 3 + 200] = b"\xff" * 200
    path.write_bytes(data)
    with pytest.raises(EdgeDistillError, match=r"rows\.sqlite: ") as caught:
        Store(path)
    assert "\n" not in caught.value.message


def test_nothing_to_read_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(EdgeDistillError, match=r"rows\.sqlite: "):
        Store(tmp_path / "rows.sqlite", read_only=True)
    assert not list(tmp_path.iterdir())


def test_a_full_store_stops_and_keeps_all_rows_before(tmp_path: Path) -> None:
    path = tmp_path / "rows.sqlite"
    with Store(path) as store:
        store.add(named("key"), completion())
        store._db.execute("PRAGMA max_page_count = 8")
        with pytest.raises(Stopped, match=r"rows\.sqlite: .*full"):
            store.add(named("large"), completion("x" * 100_000))
        assert store.get(named("key")) == completion()
    with Store(path) as store:
        assert [key for key, _ in store.rows()] == [named("key")]


def killed_after(path: Path, seconds: float) -> int:
    """Kill -9 a child that adds rows; return the number of the last row it was told is stored."""
    child = subprocess.Popen([sys.executable, "-c", ADD_ROWS, str(path)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    first = child.stdout.readline()
    time.sleep(seconds)
    os.kill(child.pid, signal.SIGKILL)
    told = (first + child.stdout.read()).split(b"\n")
    child.wait()
    child.stdout.close()
    return int(told[-2])  # behind the last line break stands nothing, or half a number


def test_a_store_that_somebody_reads_stops_and_keeps_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgedistill.store.sqlite3.connect", partial(sqlite3.connect, timeout=0))
    store = Store(tmp_path / "s.sqlite")
    store.add(named("key"), completion())
    with closing(sqlite3.connect(tmp_path / "s.sqlite")) as reader:
        assert reader.execute("SELECT count(*) FROM answers").fetchone() == (1,)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM answers").fetchone()
        with pytest.raises(Stopped, match=r"s\.sqlite: another program has it open") as caught:
            store.close()
    assert caught.value.hint == "Close it there, and give the same command again."
    with Store(tmp_path / "s.sqlite") as store:
        assert store.get(named("key")) == completion()


def test_no_acknowledged_row_is_lost_to_ten_kills(tmp_path: Path) -> None:
    path = tmp_path / "rows.sqlite"
    source = random.Random(0)
    for _ in range(10):
        last = killed_after(path, source.uniform(0.0, 0.03))
        with Store(path) as store:
            assert named(f"key{last}") in store
            rows = len(store)
            assert last + 1 <= rows <= last + 2
            assert all(named(f"key{number}") in store for number in range(rows))


def test_a_mark_is_kept_and_says_nothing_of_other_content(tmp_path: Path) -> None:
    path = tmp_path / "rows.sqlite"
    mark = Mark("content", Place(120, 3), 3, 60)
    with Store(path) as store:
        assert store.marked("teacher", "content") == Mark("content")
        store.mark("teacher", mark, durable=True)
    with Store(path) as store:
        assert store.marked("teacher", "content") == mark
        assert store.marked("teacher", "other") == Mark("other")


def test_rows_of_another_version_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.sqlite"
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE completions (key TEXT)")
    with pytest.raises(EdgeDistillError, match="another version"):
        Store(path)
