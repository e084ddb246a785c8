"""What changed between two candidates on the same rows: which are fixed, which broken, and whether that is chance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..chat import answer_text
from ..errors import InvalidInput
from ..recipe import Recipe
from ..results import Row
from ..run import Run
from .rows import result_rows
from .statistics import differ, mcnemar
from .summary import document

__all__ = ["CHANGES", "compare"]

CHANGES = ("broken", "fixed", "still wrong", "other answer")
"""Right before and wrong now; the reverse; wrong both times; not the same answer, where nobody knows the right one."""


def compare(one: tuple[Recipe, Run, str | None], other: tuple[Recipe, Run, str | None]) -> dict[str, Any]:
    """The rows that both have answered, by what became of them, and how the second's scores differ from the first's.

    Each is a run with the name of a candidate in it, by default the chosen one, or the one that came nearest. The
    result is JSON-able: `first`, `second`, `sets` by name, and the `rows` that are not right both times, the worst
    first. Raises InvalidInput where a candidate is not there, where the runs were scored otherwise, where a right
    answer differs, or where no row is in both.
    """
    sides = [_side(*side) for side in (one, other)]
    scorers = [side["scorer"] for side in sides]
    if scorers[0] != scorers[1]:
        raise InvalidInput(
            f"{sides[0]['run']} was scored by '{scorers[0]}', {sides[1]['run']} by '{scorers[1]}'",
            "Evaluate both with the same evaluate.scorer.",
        )
    rows = _shared(sides)
    changes = [_change(row, other_row, sides) for row, other_row in rows]
    return {
        "first": {key: sides[0][key] for key in ("run", "candidate")},
        "second": {key: sides[1][key] for key in ("run", "candidate")},
        "scorer": scorers[0],
        "sets": {kind: _set(kind, changes, sides) for kind in dict.fromkeys(row["set"] for row in changes)},
        "rows": sorted(
            (row for row in changes if row["change"] in CHANGES), key=lambda row: CHANGES.index(row["change"])
        ),
    }


def _side(recipe: Recipe, run: Run, name: str | None) -> dict[str, Any]:
    """A run's rows and the candidate that is meant."""
    found = document(recipe, run)
    rows = result_rows(run)
    if not rows:
        raise InvalidInput(f"{run.path}: no scores by example", f"Evaluate it: edgedistill evaluate {recipe.path}")
    known = list(rows[0]["candidates"])
    name = name or found["best"] or known[-1]
    if name not in known:
        raise InvalidInput(f"{run.path}: no candidate '{name}'", f"It has {', '.join(known)}.")
    return {"run": str(run.path), "candidate": name, "scorer": found["scorer"], "rows": rows}


def _shared(sides: Sequence[dict[str, Any]]) -> list[tuple[Row, Row]]:
    """The rows of both, in the first one's order."""
    theirs = {(row["set"], row["id"]): row for row in sides[1]["rows"]}
    found = []
    for row in sides[0]["rows"]:
        twin = theirs.get((row["set"], row["id"]))
        if twin is None:
            continue
        if twin["expected"] != row["expected"]:
            raise InvalidInput(
                f"the right answer to {row['prompt'][:60]!r} is {answer_text(row['expected'])} in {sides[0]['run']} "
                f"and {answer_text(twin['expected'])} in {sides[1]['run']}",
                "Evaluate both on the same eval file.",
            )
        found.append((row, twin))
    if not found:
        raise InvalidInput(
            f"{sides[0]['run']} and {sides[1]['run']} have no row in common", "Evaluate both on the same eval file."
        )
    return found


def _change(row: Row, twin: Row, sides: Sequence[dict[str, Any]]) -> dict[str, Any]:
    first, second = row["candidates"][sides[0]["candidate"]], twin["candidates"][sides[1]["candidate"]]
    before, after = first["right"], second["right"]
    if before is None or after is None:
        change = "same answer" if first["answer"].strip() == second["answer"].strip() else "other answer"
    else:
        change = {(True, True): "right", (True, False): "broken", (False, True): "fixed"}.get(
            (before, after), "still wrong"
        )
    shown = {key: row[key] for key in ("set", "id", "prompt", "expected", "tags", "must_pass")}
    sides_of = {"first": first, "second": second}
    kept = {name: {key: one[key] for key in ("answer", "score", "right")} for name, one in sides_of.items()}
    return {"change": change, **shown, **kept}


def _set(kind: str, changes: Sequence[dict[str, Any]], sides: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the rows of one set come to."""
    mine = [row for row in changes if row["set"] == kind]
    scored = [row for row in mine if row["first"]["score"] is not None and row["second"]["score"] is not None]
    before, after = ([row[name]["score"] for row in scored] for name in ("first", "second"))
    counts = {change.replace(" ", "_"): sum(row["change"] == change for row in mine) for change in CHANGES}
    figures = None
    if scored:
        difference = differ(after, before)
        figures = {
            "first": sum(before) / len(before),
            "second": sum(after) / len(after),
            "difference": difference.mean,
            "ci95": difference.interval,
            "p": mcnemar(counts["fixed"], counts["broken"]),
        }
    alone = [sum(row["set"] == kind for row in side["rows"]) - len(mine) for side in sides]
    return {"n": len(mine), "only_first": alone[0], "only_second": alone[1], **counts, "score": figures}
