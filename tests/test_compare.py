"""compare: what changed between two runs or two candidates, row by row, and what cannot be compared."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fabricated_run import HOSTILE, fabricated_run

from edgedistill.commands.compare import show_comparison
from edgedistill.errors import EdgeDistillError, InvalidInput
from edgedistill.report.rows import result_rows
from edgedistill.results import RESULTS, write_results
from edgedistill.run import Run

Q8, Q4 = "student Q8_0", "student Q4_K_M"


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Run, Run]:
    return fabricated_run(tmp_path / "one")[1], fabricated_run(tmp_path / "two")[1]


def change(run: Run, edit: Callable[[list[dict[str, Any]]], None]) -> None:
    rows = result_rows(run)
    edit(rows)
    write_results(run.folder("evaluate") / RESULTS, rows)


def without_right_answer(row: dict[str, Any]) -> None:
    row["expected"] = None
    for one in row["candidates"].values():
        one |= {"score": None, "right": None}


def compared(capsys: pytest.CaptureFixture[str], *runs: Run, names: tuple[str, str] | None = None) -> dict[str, Any]:
    show_comparison(tuple(run.path for run in runs), names, 5, as_json=True)
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_two_candidates_of_one_run_are_told_apart(runs: tuple[Run, Run], capsys: pytest.CaptureFixture[str]) -> None:
    found = compared(capsys, runs[0], names=(Q8, Q4))
    one = found["sets"]["eval"]
    assert (one["n"], one["fixed"], one["broken"], one["still_wrong"]) == (150, 0, 3, 18)
    assert one["score"]["difference"] == pytest.approx(-0.02)
    assert one["score"]["ci95"][0] < -0.02 < one["score"]["ci95"][1]
    assert one["score"]["p"] == 0.25
    assert [row["change"] for row in found["rows"]] == ["broken"] * 4 + ["still wrong"] * 31
    assert found["rows"][0]["first"]["right"]
    assert not found["rows"][0]["second"]["right"]


def test_a_run_is_compared_with_another_by_its_chosen_student(
    runs: tuple[Run, Run], capsys: pytest.CaptureFixture[str]
) -> None:
    def mend(rows: list[dict[str, Any]]) -> None:
        rows[140]["candidates"][Q4] |= {"right": True, "score": 1.0, "answer": "mended"}
        del rows[7]
        without_right_answer(rows[8])
        rows[8]["candidates"][Q4]["answer"] = "other"

    change(runs[1], mend)
    with pytest.raises(InvalidInput, match=r"the right answer to .* is \{.*\} in .* and null in "):
        compared(capsys, *runs)

    def forget(rows: list[dict[str, Any]]) -> None:
        without_right_answer(rows[9])

    change(runs[0], forget)
    found = compared(capsys, *runs)
    assert (found["first"]["candidate"], found["second"]["candidate"]) == (Q4, Q4)
    one = found["sets"]["eval"]
    assert (one["n"], one["only_first"], one["only_second"]) == (149, 1, 0)
    assert (one["fixed"], one["broken"], one["other_answer"]) == (1, 0, 1)
    assert next(row for row in found["rows"] if row["change"] == "fixed")["second"]["answer"] == "mended"


def test_the_text_quotes_rows_that_cannot_steer_a_terminal(
    runs: tuple[Run, Run], capsys: pytest.CaptureFixture[str]
) -> None:
    show_comparison((runs[0].path,), (Q8, Q4), 2, as_json=False)
    out = capsys.readouterr().out
    for words in ("eval: 150 rows in both", "88 % to 86 %: −2.0 points", "0 fixed, 3 broken", "broken (2 of 4):"):
        assert words in out
    assert HOSTILE not in out
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", out)


def test_what_cannot_be_compared_is_refused(runs: tuple[Run, Run], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InvalidInput, match="compared with what"):
        compared(capsys, runs[0])
    with pytest.raises(InvalidInput, match="3 runs"):
        compared(capsys, *runs, runs[0])
    with pytest.raises(InvalidInput, match="no candidate 'x'") as error:
        compared(capsys, *runs, names=("x", Q4))
    assert Q8 in error.value.hint
    with pytest.raises(EdgeDistillError, match="not a run folder"):
        show_comparison((runs[0].path, runs[0].path.parent), None, 5, as_json=True)

    def rename(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            row["id"] = f"x{row['id']}"

    change(runs[1], rename)
    with pytest.raises(InvalidInput, match="no row in common"):
        compared(capsys, *runs)
    (runs[1].folder("evaluate") / RESULTS).unlink()
    with pytest.raises(EdgeDistillError, match="evaluated by an earlier version"):
        compared(capsys, *runs)
    runs[1].forget("evaluate")
    (runs[1].folder("evaluate") / "evaluation.json").rename(runs[1].path / "aside")
    with pytest.raises(InvalidInput, match="no scores by example"):
        compared(capsys, *runs)
    (runs[1].path / "aside").rename(runs[1].folder("evaluate") / "evaluation.json")
    path = runs[1].folder("evaluate") / "evaluation.json"
    change(runs[1], lambda rows: rows.extend(result_rows(runs[0])))
    path.write_text(path.read_text(encoding="utf-8").replace('"scorer": "exact"', '"scorer": "f1"'), encoding="utf-8")
    with pytest.raises(InvalidInput, match=r"by 'exact', .* by 'f1'"):
        compared(capsys, *runs)
