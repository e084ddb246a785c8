"""How long a model will take on a machine, and how much memory, before there is a model: shape times profile.

A pass of n rows takes the sum over matrices of weights x cost(type, n), a layer's own cost x layers, and attention's
cost x n x tokens in front. Under a schema, choosing a token takes its time besides. TTFT is the passes over the prompt,
TPOT the mean of the steps behind it; end to end is their sum over the request. The text's own handling (template,
tokenizer: some 0.3 ms) is left out.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import InvalidInput
from .calibration import Profile
from .context import MICRO_BATCH
from .shapes import Shape

__all__ = ["ERROR", "Forecast", "file_bytes", "forecast", "longest_answer", "longest_prompt"]

ERROR = 0.1  # of a prediction; of 15 that were measured (`make bench ID=B6`) 9 were nearer, all nearer than 0.16
TOKEN_BYTES = 40  # of the vocabulary in a file: text, type and its merge
PROCESS_BYTES = 77_000_000  # Python and the libraries, as measured ...
LOADED_BYTES = 470  # ... and of each token of the vocabulary in memory
TO_MS = 1e-6


@dataclass(frozen=True)
class Forecast:
    """What a request will take, in milliseconds, and the process in bytes."""

    size_bytes: int
    memory_bytes: int
    ttft_ms: float
    tpot_ms: float
    e2e_ms: float


def forecast(
    shape: Shape, types: Mapping[str, str], profile: Profile, prompt: int, output: int, shared: int = 0
) -> Forecast:
    """The prediction for a prompt of so many own tokens behind `shared` ones that are kept, and an answer of `output`.

    Raises InvalidInput where the profile does not know a type.
    """
    ttft = sum(
        _pass_ms(shape, types, profile, min(MICRO_BATCH, prompt - start), shared + start)
        for start in range(0, prompt, MICRO_BATCH)
    )
    ttft += profile.choosing * TO_MS
    steps = max(0, output - 1)
    tpot = _pass_ms(shape, types, profile, 1, shared + prompt + steps // 2) + profile.choosing * TO_MS
    size = file_bytes(shape, types)
    kv = shape.kv_bytes * -(-(shared + prompt + output) // 256) * 256
    memory = size + kv + PROCESS_BYTES + LOADED_BYTES * shape.tensors["token_embd.weight"][0]
    return Forecast(size, memory, round(ttft, 3), round(tpot, 3), round(ttft + steps * tpot, 3))


def longest_answer(
    shape: Shape, types: Mapping[str, str], profile: Profile, prompt: int, limit_ms: float, shared: int = 0
) -> int:
    """Tokens of the longest answer that will be there in time; 0 where not even the first will."""
    first = forecast(shape, types, profile, prompt, 1, shared)
    step = forecast(shape, types, profile, prompt, 2, shared).tpot_ms
    return 0 if first.ttft_ms > limit_ms else 1 + int((limit_ms - first.ttft_ms) / step)


def longest_prompt(
    shape: Shape, types: Mapping[str, str], profile: Profile, output: int, limit_ms: float, shared: int = 0
) -> int:
    """Tokens of the longest prompt with which an answer of so many will be there in time; 0 where none will."""
    low, high = 0, 1 << 15
    while low < high:
        middle = (low + high + 1) // 2
        late = forecast(shape, types, profile, middle, output, shared).e2e_ms > limit_ms
        low, high = (low, middle - 1) if late else (middle, high)
    return low


def file_bytes(shape: Shape, types: Mapping[str, str]) -> int:
    """Bytes of the GGUF file; its vocabulary is estimated."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    total = TOKEN_BYTES * shape.tensors["token_embd.weight"][0]
    for name, dims in shape.tensors.items():
        block, width = GGML_QUANT_SIZES[GGMLQuantizationType[types[name]]]
        total += math.prod(dims) // block * width
    return total


def _pass_ms(shape: Shape, types: Mapping[str, str], profile: Profile, rows: int, front: int) -> float:
    counts: Counter[tuple[str, int]] = Counter()
    for name, dims in shape.tensors.items():
        counts[types[name], shape.rows(name, rows)] += dims[0] * dims[-1]
    weights = sum(count * between(_known(profile, kind), taken) for (kind, taken), count in counts.items() if taken)
    layers = shape.layers * between(profile.layer, rows)
    # a token attends to those in front and, on average, to half of its own pass; llama.cpp computes whole passes
    attention = shape.layers * shape.attention * rows * (front + rows / 2) * between(profile.attention, rows)
    return (weights + layers + attention) * TO_MS


def _known(profile: Profile, kind: str) -> Mapping[int, float]:
    if kind not in profile.weights:
        raise InvalidInput(f"the profile of {profile.cpu} does not know {kind}", "Make it anew there, for this model.")
    return profile.weights[kind]


def between(costs: Mapping[int, float], rows: int) -> float:
    """The cost at a number of rows: on the line between the measured ones; behind the last, in proportion to it.

    >>> between({1: 10.0, 4: 22.0}, 2), between({1: 10.0, 4: 22.0}, 8)
    (14.0, 44.0)
    """
    counts = list(costs)
    if rows >= counts[-1]:
        return costs[counts[-1]] * rows / counts[-1]
    place = max(1, bisect_left(counts, rows))
    low, high = counts[place - 1], counts[place]
    return costs[low] + (costs[high] - costs[low]) * (rows - low) / (high - low)
