"""What became of every row that was measured, candidate by candidate: two tables beside the answers in one SQLite file.

    examples(example, kind, prompt_id, prompt, expected, tags, must_pass)
    scores(example, candidate, answer, valid, score, right, same)

`expected` and `tags` are JSON; `expected` is NULL where nobody knows the right answer, and then so are `score` and
`right`. `valid`, `right`, `same` and `must_pass` are 0 or 1.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

from .store import connect, store_error

__all__ = ["RESULTS", "Row", "read_results", "write_results"]

RESULTS = "results.sqlite"
Row = dict[str, Any]
"""`set`, `id`, `prompt`, `expected`, `tags`, `must_pass`, and `candidates`: for each name `answer`, `valid`, `score`,
`right`, `same`."""

TABLES = """
DROP TABLE IF EXISTS scores;
DROP TABLE IF EXISTS examples;
CREATE TABLE examples (
    example INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    prompt_id TEXT NOT NULL,
    prompt TEXT NOT NULL,
    expected TEXT,
    tags TEXT NOT NULL,
    must_pass INTEGER NOT NULL
);
CREATE TABLE scores (
    example INTEGER NOT NULL REFERENCES examples,
    candidate TEXT NOT NULL,
    answer TEXT NOT NULL,
    valid INTEGER NOT NULL,
    score REAL,
    right INTEGER,
    same INTEGER NOT NULL,
    UNIQUE (example, candidate)
);
"""
OUTCOME = ("answer", "valid", "score", "right", "same")
KNOWN = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name IN ('examples', 'scores')"


def write_results(path: Path, rows: Iterable[Row]) -> None:
    """Replace the scores in a file, all or none of them; the answers in it stay.

    Raises Stopped where the disk is full, EdgeDistillError where the file is damaged.
    """
    examples, scores = [], []
    for number, row in enumerate(rows):
        expected = None if row["expected"] is None else _json(row["expected"])
        examples.append(
            (number, row["set"], row["id"], row["prompt"], expected, _json(row["tags"]), bool(row["must_pass"]))
        )
        scores += [(number, name, *(one[key] for key in OUTCOME)) for name, one in row["candidates"].items()]
    try:
        with closing(connect(path)) as db:
            db.executescript(f"BEGIN IMMEDIATE; {TABLES}")
            db.executemany("INSERT INTO examples VALUES (?,?,?,?,?,?,?)", examples)
            db.executemany("INSERT INTO scores VALUES (?,?,?,?,?,?,?)", scores)
            db.execute("COMMIT")
    except sqlite3.DatabaseError as error:
        raise store_error(path, error) from error


def read_results(path: Path) -> list[Row]:
    """The rows in their order, each candidate in the order of the evaluation; none where nothing has been scored.

    Raises EdgeDistillError where the file is damaged.
    """
    if not path.is_file():
        return []
    try:
        with closing(connect(path, read_only=True)) as db:
            if db.execute(KNOWN).fetchone()[0] != 2:
                return []
            rows = {one[0]: _row(one) for one in db.execute("SELECT * FROM examples ORDER BY example")}
            for number, name, answer, valid, score, right, same in db.execute("SELECT * FROM scores ORDER BY rowid"):
                rows[number]["candidates"][name] = {
                    "answer": answer,
                    "valid": bool(valid),
                    "score": score,
                    "right": None if right is None else bool(right),
                    "same": bool(same),
                }
    except (sqlite3.DatabaseError, KeyError, ValueError) as error:
        raise store_error(path, error) from error
    return list(rows.values())


def _row(columns: tuple[Any, ...]) -> Row:
    _, kind, prompt_id, prompt, expected, tags, must_pass = columns
    return {
        "set": kind,
        "id": prompt_id,
        "prompt": prompt,
        "expected": None if expected is None else json.loads(expected),
        "tags": json.loads(tags),
        "must_pass": bool(must_pass),
        "candidates": {},
    }


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
