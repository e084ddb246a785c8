"""Which weight gets how many bits: the types of all tensors of a file that is not to be larger than a limit.

Rounding adds to the KL divergence, in first order, the sum over all weights of how sensitive the model is to a weight
times the square of the relative error of its rounding (the linearity theorem of HIGGS, arXiv 2411.17525). The errors
are measured on rows of each weight, for each type, in the metric of the importance matrix. The sensitivities are
measured by one forward pass a group of weights: the group is rounded in the memory of the open 16-bit model, and the
divergence from the model as it was is taken. What is left is a knapsack, solved by one Lagrange multiplier.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidInput
from ..records import TENSOR_TYPES
from ..run import stop_if_asked
from .divergence import Distributions
from .forward import Forward, ForwardSettings, LogitRoom, Piece, TokenRow, pieces_of
from .importance import Importance, Usage
from .model import LlamaModel, load_llama_cpp
from .reader import GgufFile, GgufTensor, dequantized_rows, read_gguf

__all__ = ["Weight", "allocate", "sensitive_weights"]

Report = Callable[[int, int], None]

WIDE = ("Q3_K", "IQ4_XS", "Q4_K", "Q5_K", "Q6_K", "Q8_0")
"""Types that are tried where rows are a multiple of 256 values; of the others, those are tried in `NARROW`."""
NARROW = ("Q4_0", "IQ4_NL", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
SUPER_BLOCK, BLOCK = 256, 32
PROBE = {SUPER_BLOCK: "Q4_K", BLOCK: "Q4_0"}  # what a group is rounded to, to see what that does
SAMPLED = 64  # rows of a weight whose errors are measured
PARTS = 3  # groups that a kind of weight is divided into, from the first layers to the last
KEPT_BYTES = 128 << 20  # of the 16-bit model's logits, which are in memory from the first pass to the last
LEAST = 1e-9  # nats; what noise makes less than that, or negative
LAYER = re.compile(r"blk\.(\d+)\.(.+)\.weight")


@dataclass(frozen=True)
class Weight:
    """One weight: what each type would cost, in bytes and in nats."""

    name: str
    sizes: Mapping[str, int]
    costs: Mapping[str, float]
    """The divergence that rounding to this type adds, in nats."""


def sensitive_weights(
    path: Path, rows: Sequence[TokenRow], usage: Mapping[str, Usage], settings: ForwardSettings, report: Report
) -> list[Weight]:
    """Every weight of a 16-bit GGUF that its importance matrix knows, with what each type would cost.

    `rows` are as many as `KEPT_BYTES` of logits allow; the rest is not looked at. Raises InvalidInput where the file's
    weights are not of 16 bits.
    """
    file = read_gguf(path)
    groups = _groups(file, usage)
    errors = {tensor.name: _errors(path, tensor, usage) for group in groups for tensor in group}
    gained = _sensitivities(path, _few(path, rows), groups, usage, (settings, report))
    found = []
    for group, gain in zip(groups, gained, strict=True):
        probed = sum(errors[tensor.name][_probe(tensor)] for tensor in group)
        for tensor in group:
            costs = {kind: gain * error / probed for kind, error in errors[tensor.name].items()}
            found.append(Weight(tensor.name, {kind: _size(tensor, kind) for kind in costs}, costs))
    return found


def allocate(weights: Sequence[Weight], room: int) -> dict[str, str]:
    """The type of each weight, so that they cost little and take at most `room` bytes together.

    Raises InvalidInput where even the smallest types take more.

    >>> cheap = Weight("a", {"Q4_0": 10, "Q8_0": 20}, {"Q4_0": 1.0, "Q8_0": 0.1})
    >>> allocate([cheap, Weight("b", {"Q4_0": 10, "Q8_0": 20}, {"Q4_0": 5.0, "Q8_0": 0.5})], 35)
    {'a': 'Q4_0', 'b': 'Q8_0'}
    """
    smallest = {one.name: min(one.sizes, key=lambda kind, one=one: (one.sizes[kind], one.costs[kind])) for one in weights}  # type: ignore[misc]
    if _taken(weights, smallest) > room:
        raise InvalidInput(
            f"the weights take {_taken(weights, smallest) >> 20} MB at least, {room >> 20} MB are allowed",
            "Raise size_limit in [quantize].",
        )
    low, high = 0.0, max(max(one.costs.values()) for one in weights)  # nats a byte
    best = smallest
    for _ in range(100):
        middle = (low + high) / 2
        chosen = {one.name: _cheapest(one, middle) for one in weights}
        if _taken(weights, chosen) <= room:
            best, high = chosen, middle
        else:
            low = middle
    return _filled(weights, best, room)


def _cheapest(weight: Weight, price: float) -> str:
    return min(weight.costs, key=lambda kind: weight.costs[kind] + price * weight.sizes[kind])


def _taken(weights: Sequence[Weight], chosen: Mapping[str, str]) -> int:
    return sum(one.sizes[chosen[one.name]] for one in weights)


def _filled(weights: Sequence[Weight], chosen: dict[str, str], room: int) -> dict[str, str]:
    """The same, with what room was left given to those that gain most of it."""
    chosen = dict(chosen)
    left = room - _taken(weights, chosen)
    while True:
        steps = []
        for one in weights:
            now = chosen[one.name]
            for kind, cost in one.costs.items():
                more = one.sizes[kind] - one.sizes[now]
                if cost < one.costs[now] and more <= left:
                    steps.append(((one.costs[now] - cost) / max(1, more), one.name, kind, more))
        if not steps:
            return chosen
        _, name, kind, more = max(steps)
        chosen[name] = kind
        left -= more


def _groups(file: GgufFile, usage: Mapping[str, Usage]) -> list[list[GgufTensor]]:
    """The weights by kind and part of the depth; what lies outside of the layers is a group of its own."""
    weights = [one for one in file.tensors.values() if len(one.shape) == 2 and one.name in usage]
    if not weights or any(one.kind not in ("F16", "BF16", "F32") for one in weights):
        raise InvalidInput(f"{file.path}: its weights are not of 16 or 32 bits", "Name a GGUF of type F16, BF16 or F32.")
    weights = [one for one in weights if one.shape[-1] % BLOCK == 0]
    layers = 1 + max(int(found[1]) for found in map(LAYER.fullmatch, file.tensors) if found)

    def place(tensor: GgufTensor) -> tuple[str, int]:
        found = LAYER.fullmatch(tensor.name)
        return (found[2], int(found[1]) * PARTS // layers) if found else (tensor.name, 0)

    return [list(group) for _, group in groupby(sorted(weights, key=place), key=place)]


def _types(tensor: GgufTensor) -> tuple[str, ...]:
    return WIDE if tensor.shape[-1] % SUPER_BLOCK == 0 else NARROW


def _probe(tensor: GgufTensor) -> str:
    return PROBE[SUPER_BLOCK if tensor.shape[-1] % SUPER_BLOCK == 0 else BLOCK]


def _size(tensor: GgufTensor, kind: str) -> int:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    block, width = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    return int(np.prod(tensor.shape)) // block * width


def _errors(path: Path, tensor: GgufTensor, usage: Mapping[str, Usage]) -> dict[str, float]:
    """For each type, the square of the relative error of the products with this weight, from some of its rows."""
    step = max(1, tensor.shape[0] // SAMPLED)
    numbers = range(0, tensor.shape[0], step)
    values = np.concatenate([dequantized_rows(path, tensor, number, number + 1) for number in numbers])
    means = usage[tensor.name].mean()[0]
    whole = float((values**2 @ means).sum()) or 1.0
    return {
        kind: float(((_rounded(values, kind, means) - values) ** 2 @ means).sum()) / whole for kind in _types(tensor)
    }


def _rounded(values: NDArray[np.float32], kind: str, means: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows as they come back from a type: float32 of the same shape."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize

    values = np.ascontiguousarray(values, np.float32)
    block, width = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    rows, columns = values.shape
    out = np.empty((rows, columns // block * width), np.uint8)
    addresses = (values.ctypes.data, out.ctypes.data, 0, rows, columns, means.ctypes.data)
    _native_quantize()(TENSOR_TYPES[kind], *addresses)
    found: NDArray[np.float32] = dequantize(out, GGMLQuantizationType[kind])
    return found


def _native_quantize() -> Callable[..., int]:
    address, number = ctypes.c_void_p, ctypes.c_int64
    form = ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_int, address, address, number, number, number, address)
    return form(("ggml_quantize_chunk", load_llama_cpp()._lib))


def _few(path: Path, rows: Sequence[TokenRow]) -> list[TokenRow]:
    """The first rows, as many as their logits may be kept in memory; one at least."""
    with LlamaModel(path, vocab_only=True) as model:
        most = KEPT_BYTES // (4 * model.vocab_size)
    found: list[TokenRow] = []
    for row in rows:
        most -= len(row.answer)
        if most < 0 and found:
            break
        found.append(row)
    return found


def _sensitivities(
    path: Path,
    rows: Sequence[TokenRow],
    groups: Sequence[Sequence[GgufTensor]],
    usage: Mapping[str, Usage],
    how: tuple[ForwardSettings, Report],
) -> list[float]:
    """The mean divergence in nats that each group adds, rounded to its probe type while all others are as they were."""
    settings, report = how
    pieces = pieces_of(rows, max(1, settings.logit_bytes * 2 // (4 * usage_width(path))))
    watch = Importance()
    found = []
    with Forward(path, rows, pieces, replace(settings, writable=True), watch) as model:
        base = [Distributions(model.logits(piece, LogitRoom())) for piece in pieces]
        room = LogitRoom()
        for number, group in enumerate(groups, start=1):
            with _Changed(path, group, usage, watch.places):
                kl = [one.divergence(Distributions(model.logits(piece, room))) for one, piece in zip(base, pieces, strict=True)]
            found.append(max(LEAST, float(np.concatenate(kl).mean())))
            report(number, len(groups))
            stop_if_asked()
    return found
