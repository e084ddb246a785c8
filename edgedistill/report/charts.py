"""The charts of a report, as SVG text that takes its ink from the page around it.

The same run gives the same bytes. Colours are Okabe and Ito's, which colour-blind people tell apart
(https://jfly.uni-koeln.de/color/); shape and label say the same again.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from .wording import megabytes, percent, visible

__all__ = ["latency_chart", "loss_chart", "rejection_chart"]

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#888888"
INK = "#717273"
"""Mid-grey, replaced by the page's own text colour."""

STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "edgedistill",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 10.5,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": INK,
    "grid.alpha": 0.18,
}
LARGEST_BUBBLE, SMALLEST_BUBBLE = 400.0, 40.0  # points squared
TIMES = {"e2e": "end to end", "ttft": "first text"}
LINE = 6.5  # height of a line of text on the score's axis, in %


def latency_chart(candidates: Sequence[dict[str, Any]], target: dict[str, Any], chosen: str | None) -> str | None:
    """Score against latency: a bubble for each timed candidate, a line for each that was only scored.

    The bubble's area is the file's size (the smallest for a server, whose size nobody knows), the bar upwards and
    downwards the 95 % interval, the bar to the left ends at the median. The dashed line joins those that no other beats
    in score and latency (Pareto). None where nothing was both scored and timed.
    """
    metric = "score" if any((one["eval"] or {}).get("score") is not None for one in candidates) else "agreement"
    scored = [one for one in candidates if one["eval"] and one["eval"][metric] is not None]
    bubbles = [_Bubble.of(one, metric, target) for one in scored if _is_timed(one, target["metric"])]
    if not bubbles:
        return None

    def draw(axes: Any) -> None:
        _target_band(axes, bubbles, target["target_ms"])
        _reference_lines(axes, [one for one in scored if one["kind"] == "base"], metric)
        _pareto_line(axes, bubbles)
        largest = max(bubble.size_bytes or 1 for bubble in bubbles)
        for bubble, height in zip(bubbles, _spread([bubble.score for bubble in bubbles], LINE), strict=True):
            _draw_bubble(axes, bubble, LARGEST_BUBBLE * (bubble.size_bytes or 0) / largest, bubble.name == chosen)
            _label(axes, bubble, height)
        axes.set_xlabel(f"{TIMES[target['metric']]}, p{target['percentile']} (bar to the left: median), ms")
        axes.set_ylabel(_score_label(scored, metric))

    return _svg("latency", (5.6, 4.1), draw)


def loss_chart(points: Sequence[dict[str, Any]]) -> str | None:
    """Training loss over the steps, as measured and smoothed, with the validation loss and the score where measured.

    None where there are no points.
    """
    if not points:
        return None

    def draw(axes: Any) -> None:
        steps, losses = [row["step"] for row in points], [row["loss"] for row in points]
        axes.plot(steps, losses, color=GREY, linewidth=0.8, alpha=0.45)
        axes.plot(steps, smoothed(losses), color=BLUE, linewidth=2, label="training, smoothed")
        valid = [(row["step"], row["valid_loss"]) for row in points if row.get("valid_loss") is not None]
        if valid:
            axes.plot(*zip(*valid, strict=True), "D", color=ORANGE, markersize=7, linestyle="none", label="validation")
        axes.set_ylim(bottom=0)
        axes.grid(axis="y")
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("loss, nats per token")
        scores = [(row["step"], 100 * row["score"]) for row in points if row.get("score") is not None]
        _draw_scores(axes, scores)
        axes.legend(frameon=False, loc="center right" if scores else "upper right")  # scores end on top

    return _svg("loss", (5.6, 3.0), draw)


def _draw_scores(axes: Any, scores: Sequence[tuple[int, float]]) -> None:
    """The share of right answers after each epoch, on an axis of its own at the right."""
    if not scores:
        return
    right = axes.twinx()
    right.plot(*zip(*scores, strict=True), "s-", color=GREEN, markersize=5, linewidth=1)
    right.set_ylim(0, 100)
    right.set_ylabel("right answers, %", color=GREEN)


def rejection_chart(rejected: dict[str, int]) -> str | None:
    """How many rows each reason threw out, the most frequent on top; None where none was."""
    reasons = sorted(((count, reason) for reason, count in rejected.items() if count), reverse=True)
    if not reasons:
        return None

    def draw(axes: Any) -> None:
        names = [visible(reason) for _, reason in reasons]
        bars = axes.barh(names, [count for count, _ in reasons], color=BLUE, height=0.62)
        axes.bar_label(bars, padding=4)
        axes.invert_yaxis()
        axes.margins(x=0.1)
        axes.spines["bottom"].set_visible(False)
        axes.tick_params(axis="x", bottom=False, labelbottom=False)
        axes.tick_params(axis="y", left=False)

    return _svg("rejected", (5.6, 0.4 + 0.36 * len(reasons)), draw)


def smoothed(values: Sequence[float], keep: float = 0.9) -> list[float]:
    """An exponential moving average without the bias of its start (as in Adam, arXiv 1412.6980).

    >>> smoothed([2.0, 2.0, 2.0])
    [2.0, 2.0, 2.0]
    """
    found, total = [], 0.0
    for count, value in enumerate(values, start=1):
        total = keep * total + (1 - keep) * value
        found.append(round(total / (1 - keep**count), 9))
    return found


@dataclass(frozen=True)
class _Bubble:
    """A candidate as it is drawn: times in ms, scores in %."""

    name: str
    is_teacher: bool
    size_bytes: int | None
    latency: float
    median: float
    score: float
    bounds: tuple[float, float]

    @classmethod
    def of(cls, one: dict[str, Any], metric: str, target: dict[str, Any]) -> _Bubble:
        times, score = one["latency_ms"][target["metric"]], 100 * one["eval"][metric]
        low, high = one["eval"]["ci95"].get(metric) or (score / 100, score / 100)
        return cls(
            name=one["name"],
            is_teacher=one["kind"] == "teacher",
            size_bytes=one["size_bytes"],
            latency=times[f"p{target['percentile']}"],
            median=times["p50"],
            score=score,
            bounds=(100 * low, 100 * high),
        )


def _target_band(axes: Any, bubbles: Sequence[_Bubble], target_ms: Sequence[float]) -> None:
    """The axes, wide enough for all, with the target shaded and named."""
    low, high = max(target_ms[0], 1.0), target_ms[1]
    left = min([low, *(bubble.median for bubble in bubbles)]) / 1.5
    right = max([high, *(bubble.latency for bubble in bubbles)]) * 1.9
    axes.set_xscale("log")
    axes.set_xlim(left, right)
    ticks = [step * 10**power for power in range(7) for step in (1, 2, 5) if left <= step * 10**power <= right]
    axes.set_xticks(ticks, labels=[f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(0, 104)
    axes.set_yticks(range(0, 101, 20))
    axes.grid(axis="y")
    axes.axvspan(low, high, color=GREEN, alpha=0.14, linewidth=0)
    name = f"target {target_ms[0]:g}–{high:g} ms"
    axes.text((low * high) ** 0.5, 1.02, name, ha="center", transform=axes.get_xaxis_transform())


def _pareto_line(axes: Any, bubbles: Sequence[_Bubble]) -> None:
    """A line through the candidates that no other beats, from the fastest to the best."""
    best = pareto([(bubble.latency, bubble.score) for bubble in bubbles])
    if len(best) > 1:
        axes.plot(*zip(*best, strict=True), color=GREY, linewidth=1.2, linestyle="--", zorder=1)


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of points (lower is better, higher is better) those that no other beats in both, in their order.

    >>> pareto([(3.0, 90.0), (1.0, 80.0), (2.0, 70.0), (1.0, 75.0)])
    [(1.0, 80.0), (3.0, 90.0)]
    """
    found: list[tuple[float, float]] = []
    for point in sorted(set(points), key=lambda one: (one[0], -one[1])):
        if not found or point[1] > found[-1][1]:
            found.append(point)
    return found


def _is_timed(one: dict[str, Any], metric: str) -> bool:
    """Whether the time that the target is for was measured; a server's first token is not."""
    return bool(one["latency_ms"]) and all(value is not None for value in one["latency_ms"][metric].values())


def _score_label(scored: Sequence[dict[str, Any]], metric: str) -> str:
    if metric == "agreement":
        return "same answer as the teacher, %"
    is_share = all(one["eval"]["score"] == one["eval"]["exact"] for one in scored)
    return "right answers, %" if is_share else "mean score, %"


def _reference_lines(axes: Any, base: Sequence[dict[str, Any]], metric: str) -> None:
    """A dotted line at the score of each untrained candidate, named at its right end."""
    scores = [100 * one["eval"][metric] for one in base]
    for one, score, height in zip(base, scores, _spread(scores, LINE), strict=True):
        axes.axhline(score, color=GREY, linestyle=":", linewidth=1.2)
        text = f"{visible(one['name'])}: {percent(score / 100)}"
        axes.text(0.99, height + 0.8, text, ha="right", fontsize=9.5, transform=axes.get_yaxis_transform())


def _draw_bubble(axes: Any, bubble: _Bubble, area: float, is_chosen: bool) -> None:
    x, y = bubble.latency, bubble.score
    colour, marker = (ORANGE, "s") if bubble.is_teacher else (BLUE, "o")
    axes.plot([x, x], bubble.bounds, color=colour, linewidth=1.3)
    axes.plot([bubble.median, x], [y, y], color=colour, linewidth=1.3)
    area = max(SMALLEST_BUBBLE, area)
    axes.scatter([x], [y], s=area, color=colour, marker=marker, alpha=0.8, linewidth=0, zorder=3)
    if is_chosen:
        axes.scatter([x], [y], s=area * 1.4 + 140, marker=marker, facecolor="none", edgecolor=colour, linewidth=1.6)


def _label(axes: Any, bubble: _Bubble, height: float) -> None:
    """The name where there is room: students right of their bubble, the teacher well below its own."""
    size = f", {megabytes(bubble.size_bytes)}" if bubble.size_bytes else ""
    text = f"{visible(bubble.name)}{size}: {percent(bubble.score / 100)}"
    side, gap = ("right", 12) if bubble.is_teacher else ("left", 16)
    axes.annotate(
        text,
        (bubble.latency, height),
        (gap, -40 if bubble.is_teacher else 0),
        textcoords="offset points",
        ha=side,
        va="top" if bubble.is_teacher else "center",
        zorder=4,
    )


def _spread(heights: Sequence[float], apart: float) -> list[float]:
    """The heights, the lower ones moved down until no two are closer than `apart`, none below 1.

    >>> _spread([50.0, 49.0, 80.0], 5.0)
    [50.0, 45.0, 80.0]
    """
    order = sorted(range(len(heights)), key=lambda index: -heights[index])
    placed = list(heights)
    for above, below in pairwise(order):
        placed[below] = min(placed[below], placed[above] - apart)
    floor = 1.0
    for index in reversed(order):
        placed[index] = max(placed[index], floor)
        floor = placed[index] + apart
    return placed


def _svg(name: str, size: tuple[float, float], draw: Callable[[Any], None]) -> str:
    """The SVG element that `draw` leaves on its axes, `size` in inches; its ids begin with `name`."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    out = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.add_subplot())
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        FigureCanvasSVG(figure).print_svg(out, metadata=nothing)
    text = out.getvalue()
    svg = text[text.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r'(id="|url\(#|href="#)', rf"\1{name}-", svg)
    return re.sub(r'(<svg [^>]*?)width="[^"]*"', r"\1", re.sub(r'(<svg [^>]*?)height="[^"]*"', r"\1", svg))
