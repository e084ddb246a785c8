"""The row store of teacher outputs: one SQLite file a run.

A row is committed before it counts as progress. Its key is a digest of all that decides the answer (messages, teacher,
system text, parameters, schema), so changing one prompt redoes one row, and a row answered twice is stored once.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

from .errors import EdgeDistillError
from .records import Completion
from .run import no_room

__all__ = ["Store"]

TABLE = """
CREATE TABLE IF NOT EXISTS completions (
    key TEXT PRIMARY KEY,
    prompt_id TEXT NOT NULL,
    text TEXT NOT NULL,
    finish_reason TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    seconds REAL NOT NULL
) WITHOUT ROWID
"""
MEND = "Restore the file; or delete it, and run the stage again."
COLUMNS = "prompt_id, text, finish_reason, prompt_tokens, completion_tokens, seconds"


class Store:
    """Completions by key. Use it as a context manager: closing folds the journal into the one file.

    With `read_only` not a byte of the file changes, so that the checksum of a finished stage holds.
    """

    def __init__(self, path: Path, read_only: bool = False) -> None:
        self._path = path
        self._read_only = read_only
        try:
            where = f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rwc'}"
            self._db = sqlite3.connect(where, isolation_level=None, uri=True)
            if not read_only:
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=NORMAL")
            damage = self._db.execute("PRAGMA quick_check(1)").fetchone()[0]
            if damage != "ok":
                raise EdgeDistillError(f"{path}: damaged ({' '.join(damage.split())})", MEND)
            if not read_only:
                self._db.execute(TABLE)
        except sqlite3.DatabaseError as error:
            raise self._error(error) from error

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __contains__(self, key: str) -> bool:
        return self._db.execute("SELECT 1 FROM completions WHERE key = ?", (key,)).fetchone() is not None

    def __len__(self) -> int:
        count: int = self._db.execute("SELECT count(*) FROM completions").fetchone()[0]
        return count

    def add(self, key: str, completion: Completion) -> None:
        """Store one completion: committed, it survives a killed process. A key that is there keeps its first answer.

        Raises Stopped where the disk is full; all rows before it are kept.
        """
        row = (
            key,
            completion.prompt_id,
            completion.text,
            completion.finish_reason,
            completion.prompt_tokens,
            completion.completion_tokens,
            completion.seconds,
        )
        try:
            self._db.execute(f"INSERT OR IGNORE INTO completions (key, {COLUMNS}) VALUES (?,?,?,?,?,?,?)", row)
        except sqlite3.DatabaseError as error:
            raise self._error(error) from error

    def get(self, key: str) -> Completion | None:
        """The completion of a key, or None."""
        row = self._db.execute(f"SELECT {COLUMNS} FROM completions WHERE key = ?", (key,)).fetchone()
        return Completion(*row) if row else None

    def rows(self) -> Iterator[tuple[str, Completion]]:
        """All keys and completions, in the order of their keys."""
        for key, *row in self._db.execute(f"SELECT key, {COLUMNS} FROM completions ORDER BY key"):
            yield key, Completion(*row)

    def close(self) -> None:
        """Fold the journal into the file and close it, so that its checksum is final."""
        try:
            if not self._read_only:
                self._db.execute("PRAGMA journal_mode=DELETE")
        except sqlite3.DatabaseError as error:
            raise self._error(error) from error
        finally:
            self._db.close()

    def _error(self, error: sqlite3.DatabaseError) -> EdgeDistillError:
        if "full" in str(error) or "disk I/O" in str(error):
            return no_room(self._path, OSError(str(error)))
        return EdgeDistillError(f"{self._path}: {error}", MEND)
