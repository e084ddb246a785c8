"""Which tensors of a mixture have more bits, and which fewer, so that it answers most like its source.

llama.cpp's mixtures follow one rule for all models. Here the tensors are taken in groups (a role in a quarter of the
layers). Of each group is measured how far the model moves if that group alone is rounded as the mixture does it, all
others to 8 bits; where the mixture rounds so finely that nothing would show, to 4 bits. With other types the divergence
changes as the weighed rounding error does (that it is nearly linear in it, group by group: arXiv 2411.17525). Then bits
go where a byte takes most of the divergence away.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidInput
from ..run import Progress, stop_if_asked
from .blocks import block_of, rounding_error, tensor_bytes
from .comparison import ScoredText, divergence_between
from .importance import Importance, read_importance
from .quantize import Mixture, quantize
from .reader import GgufTensor, read_gguf

__all__ = ["Option", "Weighed", "allotted", "cheapest", "exact_pattern", "groups_of"]

QUARTERS = 4
ALL_BUT_ONE = "Q8_0"  # what the other groups are rounded to: nearly nothing is lost by it
AT_A_TIME = 4  # mixtures that are measured in one pass
MOST_BYTES = 2**31  # ... of so many bytes together
OPTIONS = ("Q3_K", "IQ4_XS", "IQ4_NL", "Q4_K", "Q5_0", "Q5_K", "Q5_1", "Q6_K", "Q8_0")
FINE = ("Q6_K", "Q8_0")  # rounded so, a group does too little to be measured
COARSE = ("Q4_K", "IQ4_NL")  # what it is measured in instead, the first that its rows divide into
PLAIN = ("F32", "F16", "BF16")
LEAST = 1e-3  # of the mean damage: what a group is taken for that seems to do none
LAYER = re.compile(r"^blk\.(\d+)\.(.+)\.weight$")


@dataclass(frozen=True)
class Weighed:
    """What the tensors are weighed with."""

    texts: Sequence[ScoredText]
    """To measure on; few are enough."""
    importance: Path | None
    """A GGUF file with the importance matrix."""
    threads: int


@dataclass(frozen=True, slots=True)
class Option:
    """A type for a group of tensors: its bytes, and the divergence that it is expected to cause."""

    kind: str
    size: int
    damage: float


@dataclass(frozen=True)
class Group:
    """Tensors that get one type, and what they are measured in."""

    tensors: tuple[GgufTensor, ...]
    """As the source has them."""
    types: Mapping[str, str]
    """As the mixture has them, or coarser."""


def allotted(source: Path, mixture: Path, limit: int, by: Weighed, progress: Progress) -> dict[str, str]:
    """The type of every tensor that a mixture quantizes, by exact pattern, in a file of at most `limit` bytes.

    `mixture` is the plain one, made of `source`. Raises InvalidInput where nothing in it is quantized, Stopped where
    that was asked for.
    """
    before, after = read_gguf(source), read_gguf(mixture)
    names = [name for name, tensor in after.tensors.items() if tensor.kind not in PLAIN]
    if not names:
        raise InvalidInput(f"{mixture}: nothing in it is quantized", "Take a smaller type.")
    groups = [
        Group(
            tuple(before.tensors[name] for name in part),
            {name: _measured_in(before.tensors[name], after.tensors[name].kind) for name in part},
        )
        for part in groups_of(names)
    ]
    with tempfile.TemporaryDirectory(dir=mixture.parent, prefix=".mixtures-") as folder:
        damages = _damages(source, groups, by, Path(folder), progress)
    importance = None if by.importance is None else read_importance(by.importance)
    options = [_options(source, group, damage, importance) for group, damage in zip(groups, damages, strict=True)]
    fixed = mixture.stat().st_size - sum(after.tensors[name].size for name in names)
    chosen = cheapest(options, limit - fixed)
    return {
        exact_pattern(tensor.name): option.kind
        for group, option in zip(groups, chosen, strict=True)
        for tensor in group.tensors
    }


def _measured_in(tensor: GgufTensor, kind: str) -> str:
    if kind not in FINE:
        return kind
    return next((coarse for coarse in COARSE if _divides(tensor, coarse)), kind)


def _divides(tensor: GgufTensor, kind: str) -> bool:
    return tensor.shape[-1] % block_of(kind)[0] == 0


def exact_pattern(name: str) -> str:
    """What matches this tensor's name alone.

    >>> exact_pattern("blk.0.attn_q.weight")
    '^blk\\\\.0\\\\.attn_q\\\\.weight$'
    """
    return f"^{re.escape(name)}$"


def groups_of(names: Sequence[str]) -> list[list[str]]:
    """The tensors by role and quarter of the layers; each tensor outside of the layers is a group of its own.

    >>> groups_of(["blk.0.attn_q.weight", "blk.1.attn_q.weight", "output.weight", "blk.9.attn_q.weight"])
    [['blk.0.attn_q.weight', 'blk.1.attn_q.weight'], ['output.weight'], ['blk.9.attn_q.weight']]
    """
    found = {name: LAYER.match(name) for name in names}
    layers = 1 + max((int(match[1]) for match in found.values() if match), default=0)
    groups: dict[tuple[str, int], list[str]] = {}
    for name, match in found.items():
        key = (match[2], int(match[1]) * QUARTERS // layers) if match else (name, -1)
        groups.setdefault(key, []).append(name)
    return list(groups.values())


def cheapest(options: Sequence[Sequence[Option]], limit: int) -> list[Option]:
    """One option of each group with little damage together, in at most `limit` bytes (the smallest ones if need be).

    From the smallest on, the step that takes away most damage for a byte is taken, on each group's convex hull.
    """
    hulls = [_hull(one) for one in options]
    at = [0] * len(hulls)
    left = limit - sum(hull[0].size for hull in hulls)
    while True:
        steps = [
            (_slope(hull[place], hull[place + 1]), group)
            for group, (hull, place) in enumerate(zip(hulls, at, strict=True))
            if place + 1 < len(hull) and hull[place + 1].size - hull[place].size <= left
        ]
        if not steps:
            return [hull[place] for hull, place in zip(hulls, at, strict=True)]
        _, group = max(steps)
        left -= hulls[group][at[group] + 1].size - hulls[group][at[group]].size
        at[group] += 1


def _hull(options: Sequence[Option]) -> list[Option]:
    """Options by rising size, each taking away less damage for a byte than the one before."""
    hull: list[Option] = []
    for option in sorted(options, key=lambda one: (one.size, one.damage)):
        if hull and option.damage >= hull[-1].damage:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-1], option):
            hull.pop()
        hull.append(option)
    return hull


def _slope(one: Option, other: Option) -> float:
    return (one.damage - other.damage) / max(1, other.size - one.size)


def _options(source: Path, group: Group, damage: float, importance: Importance | None) -> list[Option]:
    """Every type that the group's rows divide into, with the damage that its rounding error stands for."""

    def error(kinds: Mapping[str, str]) -> float:
        return sum(
            rounding_error(source, tensor, kinds[tensor.name], _weights(importance, tensor)) * _numbers(tensor)
            for tensor in group.tensors
        )

    plain = error(group.types) or 1.0
    found = []
    for kind in OPTIONS:
        if all(_divides(tensor, kind) for tensor in group.tensors):
            size = sum(tensor_bytes(tensor, kind) for tensor in group.tensors)
            share = error({tensor.name: kind for tensor in group.tensors}) / plain
            found.append(Option(kind, size, damage * share))
    return found


def _weights(importance: Importance | None, tensor: GgufTensor) -> NDArray[np.float32] | None:
    if importance is None or tensor.name not in importance.sums or len(tensor.shape) != 2:
        return None
    return importance.weights(tensor.name)


def _numbers(tensor: GgufTensor) -> int:
    numbers, size = block_of(tensor.kind)
    return tensor.size // size * numbers


def _damages(source: Path, groups: Sequence[Group], by: Weighed, folder: Path, progress: Progress) -> list[float]:
    """How far the model moves if one group alone is rounded to its types; the files go to `folder`."""
    everywhere = folder / "all.gguf"
    quantize(source, everywhere, ALL_BUT_ONE, by.threads, Mixture(by.importance))
    (before,) = divergence_between(source, [everywhere], by.texts, by.threads, _silent)
    count = max(1, min(AT_A_TIME, MOST_BYTES // everywhere.stat().st_size))
    found: list[float] = []
    for part in _parts(groups, count):
        files = []
        for number, group in enumerate(part):
            stop_if_asked()
            files.append(folder / f"{number}.gguf")
            types = {exact_pattern(name): kind for name, kind in group.types.items()}
            quantize(source, files[-1], ALL_BUT_ONE, by.threads, Mixture(by.importance, types))
        found += [one.mean - before.mean for one in divergence_between(source, files, by.texts, by.threads, _silent)]
        progress("weighing the tensors", len(found), len(groups))
    least = LEAST * sum(max(0.0, damage) for damage in found) / len(found)
    return [max(damage, least) for damage in found]


def _parts(groups: Sequence[Group], count: int) -> Iterator[Sequence[Group]]:
    for start in range(0, len(groups), count):
        yield groups[start : start + count]


def _silent(what: str, done: int, total: int) -> None:
    """Progress of a part that is told as a whole."""
