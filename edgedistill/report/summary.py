"""A run as one document: the verdict, every candidate, and all that the figures depend on.

It is made from what the stages left; of a run that is under way it holds what is there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ..errors import EdgeDistillError
from ..models.licences import LICENCES
from ..recipe import Recipe
from ..records import read_rows
from ..results import Row
from ..run import Run, file_sha256
from .judge import Judgement, judge
from .rows import disagreements, edge_cases, outcomes, result_rows
from .statistics import differ

__all__ = ["document", "judge", "training_points"]

BENCH_KEYS = (
    "latency_ms",
    "n",
    "verdict",
    "decided_at",
    "over",
    "needed",
    "bounds",
    "drift",
    "tpot_ms",
    "energy_j_mean",
    "forced_skipped",
    "timed",
    "tokens_per_s",
    "prompt_tokens_mean",
    "shared_tokens",
    "completion_tokens_mean",
    "load_ms",
    "peak_memory_bytes",
)
SHOWN = 40  # disagreements
MODEL_KEYS = ("name", "quant", "sha256", "source", "licence", "imported_from_quant", "pruned")


def document(recipe: Recipe, run: Run) -> dict[str, Any]:
    """The document of a run, JSON-able: `candidates`, `verdict`, `chosen`, `reasons` and their conditions.

    Raises EdgeDistillError where a file of the run is damaged.
    """
    evaluation = _read(run, "evaluate", "evaluation.json") or {}
    rows = result_rows(run)
    if evaluation and not rows:
        raise EdgeDistillError(f"{run.path}: evaluated by an earlier version", "Redo it with --from evaluate.")
    bench = _read(run, "bench", "bench.json") or {}
    candidates = _candidates(evaluation.get("candidates", []), bench.get("candidates", []))
    judgement = _judged(candidates, rows, recipe)
    stages = _stages(run)
    last: dict[str, Any] = next((stage for stage in reversed(stages) if stage["finished"]), {})
    return {
        "recipe": {
            "name": recipe.name,
            "description": recipe.description,
            "sha256": file_sha256(run.path / "recipe.toml"),
        },
        "verdict": judgement.verdict,
        "chosen": judgement.chosen,
        "best": judgement.best,
        "reasons": list(judgement.reasons),
        "bars": {
            name: [{key: value for key, value in asdict(bar).items() if key != "is_score"} for bar in bars]
            for name, bars in judgement.bars.items()
        },
        **_from_rows(rows, candidates, judgement, recipe),
        "candidates": candidates,
        "reference": evaluation.get("reference"),
        "scorer": evaluation.get("scorer"),
        "files": {"eval": None, "edge": None, **evaluation.get("files", {})},
        "target": {
            "target_ms": list(recipe.bench.target_ms),
            "percentile": recipe.bench.percentile,
            "metric": recipe.bench.metric,
        },
        "conditions": bench.get("conditions", {}),
        "machine": bench.get("machine") or last.get("machine", {}),
        "versions": last.get("versions", {}),
        "stages": [{key: stage[key] for key in ("name", "finished", "seconds", "finished_at")} for stage in stages],
        "data": _data(run),
        "warnings": [warning for stage in ("teach", "train") for warning in _summary(run, stage).get("warnings", [])],
        "training": _training(run),
        "quality": _read(run, "quantize", "quality.json") or {},
        "parity": _read(run, "export", "parity.json") or {},
        "models": {**_teachers(run), "student": _base(run)},
    }


def training_points(run: Run) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`, or nothing where the training has not ended."""
    path = run.folder("train") / "metrics.jsonl"
    return [row for _, row in read_rows(path)] if path.is_file() else []


def _judged(candidates: list[dict[str, Any]], rows: Sequence[Row], recipe: Recipe) -> Judgement:
    """The verdict over the teacher and those students that may be packaged: the quants that the recipe asks for."""
    asked = [one for one in candidates if one["kind"] != "student" or one["quant"] in recipe.quantize.made]
    return judge(asked, rows, recipe.accept, recipe.bench, _both_prompts(candidates))


def _both_prompts(candidates: Sequence[dict[str, Any]]) -> tuple[str, str] | None:
    """The student that was asked with its own prompt and with the teacher's whole one, by its two names."""
    students = [one for one in candidates if one["kind"] == "student"]
    for whole in (one for one in students if one.get("prompt") == "teacher"):
        own = (one["name"] for one in students if one["quant"] == whole["quant"] and one is not whole)
        return next(own), whole["name"]
    return None


def _from_rows(
    rows: Sequence[Row], candidates: list[dict[str, Any]], judgement: Judgement, recipe: Recipe
) -> dict[str, Any]:
    """What only the rows tell: differences, edge cases, and where the best student and the teacher disagree."""
    teacher = next((one["name"] for one in candidates if one["kind"] == "teacher"), None)
    best = judgement.best
    return {
        "comparisons": _comparisons(candidates, rows, recipe),
        "edge_cases": edge_cases(rows, best, teacher),
        "disagreements": disagreements(rows, best, teacher)[:SHOWN] if best and teacher else [],
        "judge_wavers": _wavering(rows) if recipe.evaluate.scorer == "judge" else None,
    }


def _wavering(rows: Sequence[Row]) -> float | None:
    """Of the answers that a judge does not always find as good as the right one, those that it does in one order."""
    scores = [one["score"] for row in rows for one in row["candidates"].values()]
    asked = [score for score in scores if score is not None and score < 1]
    return round(sum(score == 0.5 for score in asked) / len(asked), 4) if asked else None


def _comparisons(candidates: list[dict[str, Any]], rows: Sequence[Row], recipe: Recipe) -> list[dict[str, Any]]:
    """How each student's scores on the eval set differ from those of the teachers and of the untrained student.

    And how those of one student with its own prompt differ from those with the teacher's whole one.
    """
    students = [one["name"] for one in candidates if one["kind"] == "student"]
    others = [one["name"] for one in candidates if one["kind"] != "student"]
    pairs = [(one, other) for one in students for other in others]
    both = _both_prompts(candidates)
    found = []
    for one, other in [*pairs, *([both] if both else [])]:
        mine, theirs = (outcomes(rows, name, "score") for name in (one, other))
        if mine and len(mine) == len(theirs):
            difference = asdict(differ(mine, theirs, recipe.evaluate.right_from))
            found.append({"candidate": one, "other": other, **difference})
    return found


def _read(run: Run, stage: str, name: str) -> Any:
    """A JSON file that a stage left, or None where it is not there."""
    path = run.folder(stage) / name
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise EdgeDistillError(f"{path}: not JSON ({error})", f"Redo it with --from {stage}.") from error


def _candidates(evaluated: list[dict[str, Any]], timed: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Scores and times of each candidate by its name, one row a candidate, in the order of the evaluation."""
    times = {one["name"]: one for one in timed}
    rows = []
    for one in evaluated:
        rows.append({"eval": None, "edge": None, **one, **_times(times.pop(one["name"], {}))})
    for one in times.values():
        identity = {key: one[key] for key in ("name", "kind", "quant", "size_bytes", "sha256")}
        rows.append({**identity, "eval": None, "edge": None, **_times(one)})
    return rows


def _times(bench: dict[str, Any]) -> dict[str, Any]:
    return {key: bench.get(key) for key in BENCH_KEYS}


def _stages(run: Run) -> list[dict[str, Any]]:
    """What each stage recorded, in the order in which they began."""
    found = []
    for path in sorted(run.path.glob("*/stage.json")):
        record = run.record(path.parent.name)
        if record is not None:
            found.append({"name": path.parent.name, "seconds": None, "finished_at": None, **record})
    return sorted(found, key=lambda stage: (stage.get("started_at") or "", stage["finished_at"] or "~"))


def _summary(run: Run, stage: str) -> dict[str, Any]:
    record = run.record(stage) or {}
    summary: dict[str, Any] = record.get("summary") or {}
    return summary


def _data(run: Run) -> dict[str, Any]:
    """How many prompts there were, and where they went."""
    prompts, stats = _summary(run, "prompts"), _read(run, "curate", "stats.json") or {}
    return {
        "repeated": prompts.get("dropped"),
        "prompts": prompts.get("kept", stats.get("prompts")),
        "taught": _summary(run, "teach").get("rows"),
        "failed": _summary(run, "teach").get("failed", 0),
        "rejected": stats.get("rejected", {}),
        "examples": stats.get("examples", {}),
        "suspicious": stats.get("suspicious", {}),
        "train": stats.get("train"),
        "valid": stats.get("valid"),
    }


def _training(run: Run) -> dict[str, Any]:
    return {key: value for key, value in _summary(run, "train").items() if key not in ("base", "warnings")}


def _teachers(run: Run) -> dict[str, Any]:
    """Each teacher by its name among the candidates."""
    taught = _summary(run, "teach")
    asked = taught.get("teachers") or [taught.get("teacher") or {}]
    roles = ["teacher", *(f"teacher {number}" for number in range(2, len(asked) + 1))]
    return {role: _model(record, _packaged(run, role)) for role, record in zip(roles, asked, strict=True)}


def _base(run: Run) -> dict[str, Any]:
    return _model(_summary(run, "train").get("base") or {}, _packaged(run, "student"))


def _packaged(run: Run, role: str) -> str | None:
    """The licence that the package stage vetted, where it has run."""
    licence: str | None = _summary(run, "package").get("licences", {}).get(role)
    return licence


def _model(record: dict[str, Any], vetted: str | None) -> dict[str, Any]:
    """Name, source and licence of a model, with what its licence asks for."""
    licence = vetted or record.get("licence")
    known = LICENCES.get(licence or "")
    return {
        **{key: record.get(key) for key in MODEL_KEYS},
        "licence": licence,
        "licence_name": known.name if known else licence,
        "conditions": known.conditions if known else None,
    }
