"""How sizes are made of a 16-bit model: weighed by importance, with bits moved, the best of several kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..contract import QuantizeSettings
from ..llamacpp.allotment import Weighed, allotted
from ..llamacpp.comparison import ScoredText, divergence_between, importance_of
from ..llamacpp.importance import write_importance
from ..llamacpp.quantize import Mixture, quantize, require_types
from ..llamacpp.speed import token_ms
from ..run import Progress, cores, stop_if_asked

__all__ = ["Made", "QuantizingTask", "make", "pareto", "pick", "require_quantizable"]

FEW = 512  # scored tokens that tell which groups of tensors matter
WIDE = ("Q8_0", "Q6_K")  # types of which hardly anything is lost: no bits are moved
AS_FAST = 1.03  # times of writing a token that count as equal


@dataclass(frozen=True)
class QuantizingTask:
    """A 16-bit GGUF, the sizes that are wanted of it, and texts that tell what matters in it."""

    source: Path
    stem: Path
    """The path of every file without `-TYPE.gguf`."""
    settings: QuantizeSettings
    learnt: Sequence[ScoredText]
    """Texts to weigh with; what is lost is measured on others."""
    dataset: str
    """What they are called in the importance matrix."""

    def path(self, name: str) -> Path:
        return self.stem.with_name(f"{self.stem.name}-{name}.gguf")


@dataclass(frozen=True)
class Made:
    """A file, and how it differs from the plain type."""

    path: Path
    tensor_types: Mapping[str, str] = field(default_factory=dict)
    """Types of single tensors, where bits were moved."""


def require_quantizable(settings: QuantizeSettings) -> str:
    """What will be made, as found; raise InvalidInput where a tensor's type is none, or needs an importance matrix."""
    mixture = Mixture(Path() if settings.imatrix else None, settings.tensor_types or {})
    for name in settings.made:
        require_types(name, mixture)
    found = f"the best of {', '.join(settings.made)}" if settings.is_auto else ", ".join(settings.made)
    notes = ["weighed by importance"] if settings.imatrix else []
    notes += [f"{len(settings.tensor_types)} rules for tensors"] if settings.tensor_types else []
    notes += [f"bits moved up to {settings.growth:g} x the size"] if settings.growth > 1 else []
    return "; ".join([found, *notes])


def make(task: QuantizingTask, progress: Progress) -> dict[str, Made]:
    """Write every size; the importance matrix is left beside them as `imatrix.gguf`.

    Raises Stopped where that was asked for or the disk is full, EdgeDistillError where llama.cpp fails.
    """
    importance = _weighed(task, progress)
    made: dict[str, Made] = {}
    names = task.settings.made
    for number, name in enumerate(names):
        stop_if_asked()
        progress("quantizing", number, len(names))
        mixture = Mixture(importance, task.settings.tensor_types or {})
        quantize(task.source, task.path(name), name, cores(), mixture)
        made[name] = Made(task.path(name), mixture.tensor_types)
        if task.settings.growth > 1 and name not in WIDE:
            made[name] = _moved(task, name, importance, progress)
    progress("quantizing", len(names), len(names))
    return made


def _weighed(task: QuantizingTask, progress: Progress) -> Path | None:
    if not task.settings.imatrix or not task.learnt:
        return None
    path = task.stem.with_name("imatrix.gguf")
    write_importance(importance_of(task.source, task.learnt, cores(), progress), path, task.dataset)
    return path


def _moved(task: QuantizingTask, name: str, importance: Path | None, progress: Progress) -> Made:
    """The size with its bits moved, where that is nearer to the source on the same texts; else as it was."""
    plain, few = task.path(name), _few(task.learnt)
    limit = int(task.settings.growth * plain.stat().st_size)
    types = allotted(task.source, plain, limit, Weighed(few, importance, cores()), progress)
    moved = plain.with_name(f"{plain.name}.moved")
    try:
        quantize(task.source, moved, name, cores(), Mixture(importance, types))
        before, after = divergence_between(task.source, [plain, moved], few, cores(), progress)
        if moved.stat().st_size > limit or after.mean >= before.mean:
            return Made(plain)
        moved.replace(plain)
        return Made(plain, types)
    finally:
        moved.unlink(missing_ok=True)


def _few(texts: Sequence[ScoredText]) -> list[ScoredText]:
    """Some texts from all over, of so many scored tokens."""
    every = max(1, sum(text.scored for text in texts) // FEW)
    return list(texts[::every])


def pareto(figures: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The names whose figures none of the others has at least as good, all of them: `bytes`, `kl`, `token_ms`.

    Times within 3 % of each other count as equal.

    >>> small, slow = {"bytes": 1, "kl": 2.0, "token_ms": 1.01}, {"bytes": 2, "kl": 2.5, "token_ms": 1.0}
    >>> pareto({"small": small, "slow": slow, "good": {"bytes": 3, "kl": 1.0, "token_ms": 2.0}})
    ['small', 'good']
    """

    def beats(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
        is_as_good = one["bytes"] <= other["bytes"] and one["kl"] <= other["kl"]
        is_better = one["bytes"] < other["bytes"] or one["kl"] < other["kl"]
        return bool(is_as_good and is_better and one["token_ms"] <= AS_FAST * other["token_ms"])

    return [
        name
        for name, one in figures.items()
        if not any(beats(other, one) for another, other in figures.items() if another != name)
    ]


def pick(made: Mapping[str, Made], quality: Mapping[str, dict[str, Any]]) -> dict[str, Made]:
    """The Pareto set of size, divergence from the source and time for a token; the others' files are removed.

    Notes each one's `token_ms` and whether it is `kept` in its quality.
    """
    for name, taken in zip(made, token_ms([one.path for one in made.values()], cores()), strict=True):
        quality[name]["token_ms"] = round(taken, 3)
    figures = {
        name: {"bytes": one["bytes"], "kl": one["f16_quant"]["mean"], "token_ms": one["token_ms"]}
        for name, one in quality.items()
    }
    kept = pareto(figures)
    for name, one in made.items():
        quality[name]["kept"] = name in kept
        if name not in kept:
            one.path.unlink()
    return {name: made[name] for name in kept}
