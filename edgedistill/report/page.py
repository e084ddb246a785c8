"""The report of a run as one HTML file: no script, nothing from elsewhere, every text of a stranger escaped."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from ..recipe import Recipe
from ..run import Run, write_whole
from .charts import latency_chart, loss_chart, rejection_chart
from .summary import document, training_points
from .wording import (
    chance,
    difference,
    duration,
    interval,
    megabytes,
    milliseconds,
    nats,
    one_line,
    percent,
    plain,
    visible,
)

__all__ = ["losses", "page", "write_report"]

SHOWN_DISAGREEMENTS = 20
LONGEST_TEXT = 400


def write_report(recipe: Recipe, run: Run) -> Path:
    """Write `report.html` of a run, whole or not at all; return its path."""
    path = run.path / "report.html"
    write_whole(path, page(document(recipe, run), training_points(run)).encode())
    return path


def page(document: dict[str, Any], points: Sequence[dict[str, Any]]) -> str:
    """The HTML text for a run's document and the points of its training."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "percent": percent,
        "interval": interval,
        "ms": milliseconds,
        "nats": nats,
        "difference": difference,
        "chance": chance,
        "mb": megabytes,
        "duration": duration,
        "plain": plain,
        "short": lambda text: one_line(text, LONGEST_TEXT),
    }
    charts = {
        "latency": latency_chart(document["candidates"], document["target"], document["chosen"]),
        "loss": loss_chart(points),
        "rejected": rejection_chart(document["data"]["rejected"]),
    }
    source = resources.files(__package__).joinpath("report.html").read_text(encoding="utf-8")
    html = environment.from_string(source).render(
        document=document,
        charts=charts,
        shown=_named(document, document["best"]),
        teacher=_teacher(document),
        fields=_fields(document["candidates"]),
        tags=_tags(document),
        waterfall=_waterfall(document["data"]),
        disagreements=document["disagreements"][:SHOWN_DISAGREEMENTS],
        losses=losses(document["quality"]),
        comparisons=_comparisons(document),
    )
    return visible(html)


STEPS = {
    "teacher_f16": "training: teacher to 16-bit student",
    "f16_quant": "quantizing: 16-bit student to this",
    "teacher_quant": "both: teacher to this",
}
"""The divergences of `quality.json`, and what each is the loss of."""


FIGURES = ("mean", "p99", "p999", "top1")
"""Of a divergence in nats: its mean, two percentiles, and the share of tokens with the same most probable one."""


def losses(quality: dict[str, Any]) -> list[dict[str, Any]]:
    """What each quant has lost, step by step: the quant, the figures of each step that was measured, what they say."""
    found = []
    for quant, one in quality.items():
        measured = {what: one[key] for key, what in STEPS.items() if key in one}
        steps = [{"what": what, **{name: kl.get(name) for name in FIGURES}} for what, kl in measured.items()]
        worst = one.get("worst", [])[:SHOWN_WORST]
        found.append({"quant": quant, "steps": steps, "advice": _advice(one), "worst": worst})
    return [one for one in found if one["steps"]]


SHOWN_WORST = 3
"""Tokens of each quant that are quoted."""

SMALL, LARGE = 0.2, 0.5
"""Shares of the whole loss up to which, and from which on, quantizing is not or is what to mend."""


def _advice(one: dict[str, Any]) -> str:
    """Which step to mend first, where both were measured."""
    trained, quantized = one.get("teacher_f16") or {}, one.get("f16_quant") or {}
    if "mean" not in trained or "mean" not in quantized:
        return ""
    share = quantized["mean"] / ((trained["mean"] + quantized["mean"]) or 1)
    lost = f"quantizing made {percent(round(share, 2))} of the loss"
    if share < SMALL:
        return f"{lost}: train more, or on more or better rows; more bits would change little"
    if share > LARGE:
        return f"{lost}: quantize less; a larger type would help more than training"
    return f"{lost}: both a larger type and more training would help"


def _comparisons(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The best student's differences from others, then that of its own prompt from the teacher's whole one."""
    kinds = {one["name"]: one["kind"] for one in document["candidates"]}
    found = [one for one in document["comparisons"] if one["candidate"] == document["best"]]
    return found + [one for one in document["comparisons"] if kinds[one["other"]] == "student" and one not in found]


def _named(document: dict[str, Any], name: str | None) -> dict[str, Any] | None:
    return next((one for one in document["candidates"] if one["name"] == name), None)


def _teacher(document: dict[str, Any]) -> dict[str, Any] | None:
    """The first teacher, with which all others are compared."""
    return next((one for one in document["candidates"] if one["kind"] == "teacher"), None)


def _fields(candidates: Sequence[dict[str, Any]]) -> list[str]:
    """Every field of the right answers, in their order."""
    return list(dict.fromkeys(field for one in candidates for field in (one["eval"] or {}).get("fields", {})))


def _tags(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """Set, tag, and how many rows there are and what share is right by candidate's name; hardest for the best first."""
    shown = {"teacher": _teacher(document), "best": _named(document, document["best"])}
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for role, one in shown.items():
        for kind in ("edge", "eval"):
            for tag, counted in (((one or {}).get(kind) or {}).get("tags") or {}).items():
                rows.setdefault((kind, tag), {"n": counted["n"]})[role] = counted["exact"]
    ordered = sorted(rows.items(), key=lambda item: (item[0][0], item[1].get("best") or 0.0, item[0][1]))
    return [(kind, tag, row) for (kind, tag), row in ordered]


def _waterfall(data: dict[str, Any]) -> list[dict[str, Any]]:
    """What became of the prompts, step by step: what it is, how many, and the change where there is one."""
    steps: list[dict[str, Any]] = []
    if data["prompts"] is not None:
        steps.append(
            {"what": "prompts in the file", "count": data["prompts"] + (data["repeated"] or 0), "change": None}
        )
        if data["repeated"]:
            steps.append({"what": "repeat an earlier prompt", "count": None, "change": -data["repeated"]})
    if data["taught"] is not None:
        what = "answered by the teacher" if data["taught"] <= (data["prompts"] or 0) else "answers to them"
        steps.append({"what": what, "count": data["taught"], "change": None})
    if data["failed"]:
        steps.append({"what": "got no answer", "count": None, "change": -data["failed"]})
    for reason, count in sorted(data["rejected"].items(), key=lambda item: (-item[1], item[0])):
        steps.append({"what": f"thrown out: {reason}", "count": None, "change": -count})
    for outcome, what in (("changed", "got another label when asked again"), ("kept", "kept with a suspicious label")):
        if data["suspicious"].get(outcome):
            steps.append({"what": what, "count": data["suspicious"][outcome], "change": None})
    if data["train"] is not None:
        steps.append({"what": "to learn from", "count": data["train"], "change": None})
        steps.append({"what": "to measure the loss on", "count": data["valid"], "change": None})
    largest = max((step["count"] or 0 for step in steps), default=0) or 1
    return [{**step, "share": (step["count"] or -step["change"]) / largest} for step in steps]
