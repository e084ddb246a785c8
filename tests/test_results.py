"""results.sqlite: what was scored is read back as it was, in the order of the evaluation, and never by halves."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from fabricated_run import evaluation, result_rows
from hypothesis import given
from hypothesis import strategies as st

from edgedistill.errors import EdgeDistillError
from edgedistill.records import Completion
from edgedistill.results import read_results, write_results
from edgedistill.store import Store

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
VALUES = st.recursive(st.none() | st.booleans() | st.integers(-9, 9) | TEXTS, lambda inner: st.lists(inner, max_size=2))
OUTCOMES = st.fixed_dictionaries(
    {
        "answer": TEXTS,
        "valid": st.booleans(),
        "score": st.none() | st.floats(0, 1),
        "right": st.none() | st.booleans(),
        "same": st.booleans(),
    }
)
ROWS = st.fixed_dictionaries(
    {
        "set": st.sampled_from(["eval", "edge"]),
        "id": TEXTS,
        "prompt": TEXTS,
        "expected": VALUES,
        "tags": st.lists(TEXTS, max_size=2),
        "must_pass": st.booleans(),
        "candidates": st.dictionaries(TEXTS, OUTCOMES, max_size=3),
    }
)


def completion() -> Completion:
    return Completion("0" * 16, "on", "stop", 3, 1, 0.1)


@given(st.lists(ROWS, max_size=5))
def test_rows_come_back_as_they_were_in_their_order(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]
) -> None:
    path = tmp_path_factory.mktemp("results") / "results.sqlite"
    write_results(path, rows)
    found = read_results(path)
    assert found == rows
    assert [list(row["candidates"]) for row in found] == [list(row["candidates"]) for row in rows]


def test_scores_stand_beside_the_answers_and_are_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "results.sqlite"
    rows = result_rows(evaluation()["candidates"])
    with Store(path) as store:
        store.add("ab" * 32, completion())
    assert read_results(path) == []
    write_results(path, rows)
    write_results(path, rows[:3])
    assert read_results(path) == rows[:3]
    broken = [*rows[:5], {**rows[5], "prompt": None}]
    with pytest.raises(EdgeDistillError, match="NOT NULL"):
        write_results(path, broken)
    before = path.read_bytes()
    assert read_results(path) == rows[:3]
    with Store(path, read_only=True) as store:
        assert store.get("ab" * 32) == completion()
    assert path.read_bytes() == before


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "results.sqlite"
    path.write_bytes(b"no database" * 200)
    with pytest.raises(EdgeDistillError, match=re.escape(str(path))):
        read_results(path)
    assert read_results(tmp_path / "none.sqlite") == []


def test_the_query_of_the_readme_finds_the_wrong_answers_of_a_student(tmp_path: Path) -> None:
    path = tmp_path / "results.sqlite"
    rows = result_rows(evaluation()["candidates"])
    write_results(path, rows)
    (query,) = re.findall(r"^```sql\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    with closing(sqlite3.connect(path)) as db:
        found = db.execute(query).fetchall()
    wrong = [
        row["candidates"]["student Q8_0"]["answer"] for row in rows if not row["candidates"]["student Q8_0"]["right"]
    ]
    assert sorted(answer for _, _, answer in found) == sorted(wrong)
    assert len(wrong) > 10
