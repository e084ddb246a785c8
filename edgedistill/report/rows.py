"""The rows behind the scores: each prompt with every candidate's answer, and what became of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ..chat import answer_text, json_instance
from ..results import RESULTS, Row, read_results
from ..run import Run

__all__ = ["disagreements", "edge_cases", "outcomes", "result_rows"]


def result_rows(run: Run) -> list[Row]:
    """What became of each row of a run; nothing where it has not been evaluated. Raises what `read_results` raises."""
    return read_results(run.folder("evaluate") / RESULTS)


def outcomes(rows: Iterable[Row], name: str, key: str, kind: str = "eval") -> list[float]:
    """One figure of a candidate for each row of a set in which it has one: `valid`, `score`, `right` or `same`."""
    found = (row["candidates"].get(name, {}).get(key) for row in rows if row["set"] == kind)
    return [float(value) for value in found if value is not None]


def disagreements(rows: Sequence[Row], student: str, teacher: str) -> list[dict[str, Any]]:
    """Rows that a student has wrong or answers otherwise than the teacher; where the teacher is right, first."""
    found = [_beside(row, student, teacher) for row in rows if _is_off(row, student, teacher)]
    return sorted(found, key=lambda one: (one["student_right"] is True, one["teacher_right"] is False, -one["apart"]))


def edge_cases(rows: Sequence[Row], student: str | None, teacher: str | None) -> list[dict[str, Any]]:
    """Every row of the edge set with whether the teacher and a student are right in it; what matters, first."""
    found = [
        {
            **{key: row[key] for key in ("prompt", "tags", "must_pass")},
            "teacher_right": row["candidates"].get(teacher, {}).get("right"),
            "student_right": row["candidates"].get(student, {}).get("right"),
        }
        for row in rows
        if row["set"] == "edge"
    ]
    return sorted(found, key=lambda one: (one["student_right"] is not False, not one["must_pass"]))


def _is_off(row: Row, student: str, teacher: str) -> bool:
    people = row["candidates"]
    return (
        student in people and teacher in people and (not people[student]["same"] or people[student]["right"] is False)
    )


def _beside(row: Row, student: str, teacher: str) -> dict[str, Any]:
    mine, theirs = (row["candidates"][name] for name in (student, teacher))
    expected = None if row["expected"] is None else answer_text(row["expected"])
    return {
        "set": row["set"],
        "prompt": row["prompt"],
        "expected": expected,
        "teacher": theirs["answer"],
        "student": mine["answer"],
        "candidate": student,
        "teacher_right": theirs["right"],
        "student_right": mine["right"],
        "score": mine["score"],
        "apart": _apart(mine["answer"], theirs["answer"] if expected is None else expected),
    }


def _apart(one: str, other: str) -> int:
    """In how many fields two answers differ; texts and other values differ in one or none."""
    first, second = json_instance(one), json_instance(other)
    if isinstance(first, dict) and isinstance(second, dict):
        return sum(first.get(key) != second.get(key) for key in first.keys() | second.keys())
    return 0 if one.strip() == other.strip() else 99 if isinstance(second, dict) else 1
