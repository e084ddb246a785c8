"""How fast a machine computes, kept as a small profile: what a weight of each type costs, a layer, and attention.

Measured on models of noise, through llama.cpp itself: one wide one a type, larger than caches, whose time is that of
its matrices, and a narrow one, whose time is all the rest.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

from ..errors import InvalidInput
from ..records import digest
from ..run import Progress, cores, cpu_name, stop_if_asked, write_whole
from .context import Context, ContextSettings
from .model import LlamaModel
from .shapes import Shape, shape_of_config, write_shaped

__all__ = [
    "PASSES",
    "Profile",
    "calibrate",
    "load_profile",
    "profile_path",
    "read_profile",
    "taken_by_others",
    "write_profile",
]

PASSES = (1, 2, 4, 8, 16, 32, 64, 128)  # rows of a step
ROUNDS = 3
MOST_ROUNDS = 12
BUSY = 0.3  # of the processor, taken by others: a profile that was made then is made anew, and refuses nothing
QUICK_MS = 60.0  # of a shorter pass more rounds are taken
DEPTH = 768  # tokens in front, for attention
VOCABULARY = 256
clock = time.perf_counter_ns
WIDE = (1024, 3072, 6)  # width, inner width and layers: 66 M weights, 37 MB in 4 bits
TYPES = (
    *("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
    *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS"),
)


@dataclass(frozen=True)
class Profile:
    """A machine. Costs are nanoseconds by the rows of a pass: of one weight, of one layer; and of attention, of one
    number of a query with one token in front.
    """

    cpu: str
    threads: int
    llama_cpp: str
    memory_bytes: int
    busy: float
    """Share of the processor that others took while it was measured."""
    weights: Mapping[str, Mapping[int, float]]
    layer: Mapping[int, float]
    attention: Mapping[int, float]
    choosing: float = 0.0
    """Nanoseconds that choosing a token takes besides the pass: what holding it to a request's schema does."""


def profile_path(folder: Path, threads: int) -> Path:
    """Where the profile of this machine and library is kept."""
    key = digest(cpu_name(), threads, metadata.version("llama-cpp-python"))
    return folder / f"{key[:24]}.json"


def load_profile(folder: Path, threads: int = 0) -> Profile | None:
    """The profile of this machine, or None where there is none that holds."""
    try:
        return read_profile(profile_path(folder, threads or cores()))
    except InvalidInput:
        return None


def read_profile(path: Path) -> Profile:
    """The profile in a file.

    Raises InvalidInput where it is none.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        costs = {kind: _costs(cost) for kind, cost in data["weights"].items() if kind in TYPES}
        return Profile(
            cpu=str(data["cpu"]),
            threads=int(data["threads"]),
            llama_cpp=str(data["llama_cpp"]),
            memory_bytes=int(data["memory_bytes"]),
            busy=float(data["busy"]),
            weights=costs,
            layer=_costs(data["layer"]),
            attention=_costs(data["attention"]),
        )
    except OSError as error:
        raise InvalidInput(
            f"{path}: {error.strerror}", "Make it there with: edgedistill fit MODEL --save FILE"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidInput(
            f"{path}: no profile ({error!r})", "Make it with: edgedistill fit MODEL --save FILE"
        ) from error


def _costs(data: Mapping[str, Any]) -> dict[int, float]:
    found = {int(rows): float(cost) for rows, cost in data.items()}
    if 1 not in found or len(found) < 2 or not all(rows > 0 and 0 <= cost < 1e12 for rows, cost in found.items()):
        raise ValueError("costs")
    return dict(sorted(found.items()))


def calibrate(types: Iterable[str], folder: Path, progress: Progress, threads: int = 0) -> Profile:
    """The profile of this machine with these types in it, kept in the folder; only what is missing is measured.

    `threads` compute; 0 is every physical core.

    Raises Stopped where that was asked for in between.
    """
    import psutil

    wanted = sorted(set(types) - {"F32"})
    threads = threads or cores()
    known = load_profile(folder, threads)
    if known is not None and known.busy > BUSY:
        known = None
    missing = [kind for kind in wanted if known is None or kind not in known.weights]
    if known is not None and not missing:
        return known
    cpu = psutil.cpu_times()
    mine = time.process_time()
    with tempfile.TemporaryDirectory() as scratch:
        layer, attention = (known.layer, known.attention) if known else _narrow(Path(scratch), threads)
        found = dict(known.weights) if known else {}
        for number, kind in enumerate(missing):
            progress(f"calibrating {kind}", number, len(missing))
            found[kind] = _wide(Path(scratch), kind, (layer, threads))
    profile = Profile(
        cpu=cpu_name(),
        threads=threads,
        llama_cpp=metadata.version("llama-cpp-python"),
        memory_bytes=psutil.virtual_memory().total,
        busy=max(known.busy if known else 0.0, taken_by_others(cpu, psutil.cpu_times(), time.process_time() - mine)),
        weights=found,
        layer=layer,
        attention=attention,
    )
    write_profile(profile, profile_path(folder, threads))
    return profile


def write_profile(profile: Profile, path: Path) -> None:
    """Write a profile, for another machine to ask for this one."""
    write_whole(path, json.dumps(asdict(profile), indent=1).encode())


def taken_by_others(before: Any, after: Any, mine: float) -> float:
    """Share of the processor's time that others took."""
    spent = [sum(times) - getattr(times, "idle", 0.0) - getattr(times, "iowait", 0.0) for times in (before, after)]
    whole = sum(after) - sum(before)
    return round(max(0.0, spent[1] - spent[0] - mine) / whole, 3) if whole > 0 else 0.0


def weights_of(shape: Shape, rows: int, taken: int) -> int:
    """How many of a model's weights are multiplied with `taken` rows in a pass of so many."""
    return sum(dims[0] * dims[-1] for name, dims in shape.tensors.items() if shape.rows(name, rows) == taken)


def _llama(name: str, width: int, heads: tuple[int, int, int], inner: int, layers: int) -> Shape:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": VOCABULARY,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "head_dim": heads[2],
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
    }
    return shape_of_config(name, config)


def _narrow(scratch: Path, threads: int) -> tuple[dict[int, float], dict[int, float]]:
    """What a layer costs besides its matrices, and attention."""
    shape = _llama("narrow", 64, (16, 4, 64), 64, 16)
    path = scratch / "narrow.gguf"
    write_shaped(path, shape, {name: "F16" if len(dims) > 1 else "F32" for name, dims in shape.tensors.items()})
    with LlamaModel(path) as model:
        near, far = _times(model, 0, threads), _times(model, DEPTH, threads)
    layer = {rows: near[rows] / shape.layers for rows in PASSES}
    reads = shape.layers * shape.attention * DEPTH
    return layer, {rows: max(0.0, far[rows] - near[rows]) / (reads * rows) for rows in PASSES}


def _wide(scratch: Path, kind: str, known: tuple[Mapping[int, float], int]) -> dict[int, float]:
    """What a weight of a type costs, in a pass of so many rows; known are a layer's cost and the threads."""
    layer, threads = known
    shape = _llama("wide", WIDE[0], (16, 4, WIDE[0] // 16), *WIDE[1:])
    path = scratch / "wide.gguf"
    write_shaped(path, shape, {name: kind if len(dims) > 1 else "F32" for name, dims in shape.tensors.items()})
    with LlamaModel(path) as model:
        found = _times(model, 0, threads)
    path.unlink()
    costs: dict[int, float] = {}
    whole = weights_of(shape, 1, 1)
    costs[1] = max(0.0, found[1] - shape.layers * layer[1]) / whole
    for rows in PASSES[1:]:
        alone = weights_of(shape, rows, 1)
        rest = found[rows] - shape.layers * layer[rows] - alone * costs[1]
        costs[rows] = max(0.0, rest) / (whole - alone)
    return costs


def _times(model: LlamaModel, depth: int, threads: int) -> dict[int, float]:
    """The median nanoseconds of a pass, by its rows, with so many tokens in front: what a usual request meets."""
    cells = depth + PASSES[-1]
    found: dict[int, float] = {}
    with closing(Context(model, ContextSettings(-(-cells // 256) * 256, 1, threads))) as context:
        for start in range(0, depth, context.batch.capacity):
            _pass(context, start, min(context.batch.capacity, depth - start))
        _pass(context, depth, 1)  # reads the file for the first time
        for rows in PASSES:
            taken: list[float] = []
            while len(taken) < ROUNDS or (sum(taken) < QUICK_MS * 1e6 and len(taken) < MOST_ROUNDS):
                stop_if_asked()
                context.cut(0, depth)
                taken.append(_pass(context, depth, rows))
            found[rows] = median(taken)
    return found


def _pass(context: Context, at: int, rows: int) -> float:
    """Nanoseconds of computing so many rows behind a position."""
    context.batch.clear()
    context.batch.add([1 + number % 200 for number in range(rows)], at, 0, 1)
    started = clock()
    context.decode()
    context.logits(rows - 1)
    return float(clock() - started)
