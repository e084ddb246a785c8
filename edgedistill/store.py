"""The row store of teacher outputs: one SQLite file a run.

A row is committed before it counts as progress. Its key is a digest of all that decides the answer (messages, teacher,
system text, parameters, schema), so changing one prompt redoes one row, and a row answered twice is stored once.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import EdgeDistillError, Stopped
from .records import Completion, Place
from .run import no_room

__all__ = ["Mark", "Store", "connect", "store_error"]

FORMAT = 2
TABLES = f"""
BEGIN;
CREATE TABLE IF NOT EXISTS answers (
    key BLOB PRIMARY KEY NOT NULL,
    prompt_id TEXT NOT NULL,
    teacher INTEGER NOT NULL,
    sample INTEGER NOT NULL,
    text TEXT NOT NULL,
    finish_reason TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    seconds REAL NOT NULL,
    answers TEXT,
    targets BLOB
);
CREATE TABLE IF NOT EXISTS marks (
    identity TEXT PRIMARY KEY NOT NULL,
    content TEXT NOT NULL,
    offset INTEGER NOT NULL,
    line INTEGER NOT NULL,
    rows INTEGER NOT NULL,
    tokens INTEGER NOT NULL
) WITHOUT ROWID;
PRAGMA user_version = {FORMAT};
COMMIT;
"""
MEND = "Restore the file; or delete it, and run the stage again."
COLUMNS = "prompt_id, text, finish_reason, prompt_tokens, completion_tokens, seconds, sample, answers"
TARGETS = "targets"
NO_TARGETS = "CASE WHEN targets IS NULL THEN NULL ELSE x'' END"
ASKED_AT_ONCE = 900  # keys in one query; SQLite was long limited to 999 variables
LARGEST_CHECKED = 512 << 20  # bytes; reading through a larger file at each start would take longer than it is worth
CACHE_KIB = 16384
BEGINNING = Place()


@dataclass(frozen=True, slots=True)
class Mark:
    """How far a file of prompts has been answered without a gap: that place, and what lies before it.

    `content` is a digest of what was asked; a mark of another content says nothing.
    """

    content: str
    place: Place = BEGINNING
    rows: int = 0
    tokens: int = 0


class Store:
    """Completions by key, a sha256 in hex. Use it as a context manager: closing folds the journal into the one file.

    With `read_only` not a byte of the file changes, so that the checksum of a finished stage holds.
    """

    def __init__(self, path: Path, read_only: bool = False) -> None:
        self._path = path
        self._read_only = read_only
        try:
            self._db = connect(path, read_only)
        except sqlite3.DatabaseError as error:
            raise self._error(error) from error
        try:
            self._open()
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise self._error(error) from error
        except EdgeDistillError:
            self._db.close()
            raise

    def _open(self) -> None:
        self._db.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        if not self._read_only:
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
        if self._path.stat().st_size <= LARGEST_CHECKED:
            damage = self._db.execute("PRAGMA quick_check(1)").fetchone()[0]
            if damage != "ok":
                raise EdgeDistillError(f"{self._path}: damaged ({' '.join(damage.split())})", MEND)
        found = self._db.execute("PRAGMA user_version").fetchone()[0]
        is_empty = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
        if found != FORMAT and not is_empty:
            raise EdgeDistillError(
                f"{self._path}: rows of another version of edgedistill (format {found}, this one reads {FORMAT})",
                "Use that version; or delete the file, and run the stage again.",
            )
        if is_empty and not self._read_only:
            self._db.executescript(TABLES)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __contains__(self, key: str) -> bool:
        return bool(self.held([key]))

    def __len__(self) -> int:
        count: int = self._one("SELECT count(*) FROM answers")[0]
        return count

    def add(self, key: str, completion: Completion, teacher: int = 0) -> bool:
        """Store one completion; return whether it is new. Committed, it survives a killed process.

        A key that is there keeps its first answer. Raises Stopped where the disk is full; all rows before it are kept.
        """
        answers = completion.answers
        row = (
            bytes.fromhex(key),
            completion.prompt_id,
            completion.text,
            completion.finish_reason,
            completion.prompt_tokens,
            completion.completion_tokens,
            completion.seconds,
            completion.sample,
            None if answers is None else json.dumps(answers, ensure_ascii=False, separators=(",", ":")),
            completion.targets,
            teacher,
        )
        marks = ",".join("?" * len(row))
        try:
            done = self._db.execute(
                f"INSERT OR IGNORE INTO answers (key, {COLUMNS}, targets, teacher) VALUES ({marks})", row
            )
        except sqlite3.DatabaseError as error:
            raise self._error(error) from error
        return done.rowcount == 1

    def held(self, keys: Sequence[str]) -> dict[str, int]:
        """Those of the keys that are there, each with its completion's tokens."""
        return {key.hex(): tokens for key, tokens in self._rows_of(keys, "completion_tokens")}

    def find(self, keys: Sequence[str], targets: bool = True) -> dict[str, Completion]:
        """The completions of those of the keys that are there; without `targets`, b"" stands for any."""
        columns = f"{COLUMNS}, {TARGETS if targets else NO_TARGETS}"
        return {key.hex(): _completion(row) for key, *row in self._rows_of(keys, columns)}

    def get(self, key: str) -> Completion | None:
        """The completion of a key, or None."""
        return self.find([key]).get(key)

    def rows(self) -> Iterator[tuple[str, Completion]]:
        """All keys and completions, in the order of their keys."""
        try:
            for key, *row in self._db.execute(f"SELECT key, {COLUMNS}, {TARGETS} FROM answers ORDER BY key"):
                yield key.hex(), _completion(row)
        except sqlite3.DatabaseError as error:
            raise self._error(error) from error

    def marked(self, identity: str, content: str) -> Mark:
        """How far a teacher had come; the beginning, where it was asked something else."""
        row = self._one(
            "SELECT offset, line, rows, tokens FROM marks WHERE identity = ? AND content = ?", (identity, content)
        )
        return Mark(content) if row is None else Mark(content, Place(row[0], row[1]), row[2], row[3])

    def mark(self, identity: str, mark: Mark, durable: bool = False) -> None:
        """Remember how far a teacher has come. With `durable`, all rows so far survive a power cut too.

        Raises Stopped where the disk is full.
        """
        place = mark.place
        row = (identity, mark.content, place.offset, place.line, mark.rows, mark.tokens)
        try:
            self._db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            self._db.execute("INSERT OR REPLACE INTO marks VALUES (?,?,?,?,?,?)", row)
            self._db.execute("PRAGMA synchronous = NORMAL")
        except sqlite3.DatabaseError as error:
            raise self._error(error) from error

    def expect(self, rows: Iterable[tuple[str, str, int, int]]) -> None:
        """Remember, until the store is closed, which keys an import may bring: key, prompt id, teacher, sample."""
        try:
            self._db.execute(
                "CREATE TEMP TABLE IF NOT EXISTS expected (key BLOB PRIMARY KEY, prompt_id, teacher, sample)"
            )
            self._db.execute("BEGIN")
            self._db.executemany(
                "INSERT OR IGNORE INTO expected VALUES (?,?,?,?)", ((bytes.fromhex(key), *row) for key, *row in rows)
            )
            self._db.execute("COMMIT")
        except sqlite3.DatabaseError as error:
            raise self._error(error) from error

    def expected(self, key: str) -> tuple[str, int, int] | None:
        """Prompt id, teacher and sample of an expected key."""
        found: tuple[str, int, int] | None = self._one(
            "SELECT prompt_id, teacher, sample FROM expected WHERE key = ?", (bytes.fromhex(key),)
        )
        return found

    def close(self) -> None:
        """Fold the journal into the file and close it, so that its checksum is final."""
        try:
            if not self._read_only:
                self._db.execute("PRAGMA journal_mode = DELETE")
        except sqlite3.DatabaseError as error:
            raise self._error(error) from error
        finally:
            self._db.close()

    def _rows_of(self, keys: Sequence[str], columns: str) -> Iterator[tuple[Any, ...]]:
        try:
            for start in range(0, len(keys), ASKED_AT_ONCE):
                part = [bytes.fromhex(key) for key in keys[start : start + ASKED_AT_ONCE]]
                places = ",".join("?" * len(part))
                yield from self._db.execute(f"SELECT key, {columns} FROM answers WHERE key IN ({places})", part)
        except sqlite3.DatabaseError as error:
            raise self._error(error) from error

    def _one(self, query: str, values: Sequence[Any] = ()) -> Any:
        try:
            return self._db.execute(query, values).fetchone()
        except sqlite3.DatabaseError as error:
            raise self._error(error) from error

    def _error(self, error: sqlite3.DatabaseError) -> EdgeDistillError:
        return store_error(self._path, error)


def connect(path: Path, read_only: bool = False) -> sqlite3.Connection:
    """A connection that commits each statement by itself; with `read_only`, not a byte of the file changes."""
    where = f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rwc'}"
    return sqlite3.connect(where, isolation_level=None, uri=True)


def store_error(path: Path, error: Exception) -> EdgeDistillError:
    """The error a user sees where SQLite refuses: resumable where the disk is full, or somebody else has the file."""
    if "full" in str(error) or "disk I/O" in str(error):
        return no_room(path, OSError(str(error)))
    if "database is locked" in str(error):
        return Stopped(f"{path}: another program has it open", "Close it there, and give the same command again.")
    return EdgeDistillError(f"{path}: {error}", MEND)


def _completion(row: Sequence[Any]) -> Completion:
    """A completion from `COLUMNS` and its targets."""
    prompt_id, text, finish_reason, prompt_tokens, completion_tokens, seconds, sample, answers, targets = row
    return Completion(
        prompt_id=prompt_id,
        text=text,
        finish_reason=finish_reason,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        seconds=seconds,
        sample=sample,
        targets=targets,
        answers=None if answers is None else json.loads(answers),
    )
