"""How many answers at a time, in shared or split cells: found by a short measurement, kept per model and machine.

More rows in a step read the weights fewer times, until the arithmetic is the limit; every row also attends over the
cells in use, which in a shared buffer grow with the slots. Where the best lies depends on kernels, caches and the
lengths at hand, so it is measured: a few steps of each number of slots, at the depth that the work will have.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from ..errors import EdgeDistillError
from ..records import digest
from ..run import cpu_name, stop_if_asked, write_whole
from .context import Context, ContextSettings, State
from .model import LlamaModel

__all__ = ["Layout", "Work", "best_layout", "measured_rates"]

COUNTS = (1, 4, 8, 16, 32, 64, 128)
GAIN = 1.03  # a larger number of slots must be faster than a smaller one by this
GIVE_UP = 0.9  # of the best rate so far: below it twice in a row, larger numbers are not tried; once may be chance
SPLIT_PREFIX = 1024  # tokens; a longer prefix is not copied for every slot
STEPS = 3
WAY = 2  # of measuring: what an older one found is not used
MEMORY_SHARE = 0.4  # of what is free
CORES_BESIDE = 0.25  # that other processes may take of the cores that are measured


@dataclass(frozen=True)
class Layout:
    """Answers at a time, and whether each has cells of its own."""

    slots: int
    split: bool


@dataclass(frozen=True)
class Work:
    """What is to be done: tokens of the shared prefix, of a prompt's own part and of an answer; in chunks?

    Forced tokens of a grammar come in chunks, and so does what is new in a conversation: only shared cells take these
    in one batch with the others.
    """

    shared: int
    own: int
    answer: int
    chunks: bool

    @property
    def rounded(self) -> Work:
        """The work in coarse sizes: what is alike shares a measurement."""
        shared, own, answer = (1 << max(0, n - 1).bit_length() for n in (self.shared, self.own, self.answer))
        return Work(shared, own, answer, self.chunks)


def best_layout(model: LlamaModel, work: Work, threads: int, folder: Path | None) -> Layout:
    """The layout with the most tokens per second for work like this; measured once a model, machine and library.

    What was measured beside other work on the same cores is not kept. Raises Stopped where that was asked for in
    between.
    """
    kept = folder / f"layout-{_key(model, work, threads)}.json" if folder else None
    if kept is not None and kept.is_file():
        try:
            return Layout(**json.loads(kept.read_text(encoding="utf-8"))["best"])
        except (OSError, ValueError, KeyError, TypeError):  # it is measured again, that is all
            pass
    rates: dict[Layout, float] = {}
    since = _clocks()
    for split in (False, True) if _may_split(work) else (False,):
        rates |= {Layout(slots, split): rate for slots, rate in measured_rates(model, work, threads, split).items()}
    best = fastest(rates)
    if kept is not None and not _was_disturbed(since, _clocks(), threads):
        rows = [{**asdict(layout), "tokens_per_second": round(rate, 2)} for layout, rate in rates.items()]
        write_whole(kept, json.dumps({"best": asdict(best), "work": asdict(work), "rates": rows}, indent=1).encode())
    return best


def fastest(rates: dict[Layout, float]) -> Layout:
    """The layout with the highest rate; of those that are hardly slower, the one with the fewest slots.

    >>> fastest({Layout(8, False): 60.0, Layout(16, False): 100.0, Layout(32, False): 101.0})
    Layout(slots=16, split=False)
    """
    limit = max(rates.values()) / GAIN
    return min((layout for layout, rate in rates.items() if rate >= limit), key=lambda layout: layout.slots)


def measured_rates(
    model: LlamaModel, work: Work, threads: int, split: bool, counts: Sequence[int] = COUNTS
) -> dict[int, float]:
    """Tokens per second of writing answers, by the number of slots, at the depth in the middle of an answer."""
    depth = work.own + work.answer // 2
    rates: dict[int, float] = {}
    states: dict[int, State] = {}
    for slots in counts:
        if rates and not _fits_memory(model, work, slots, split):
            break
        settings = ContextSettings(*_shape(work, slots, split), threads, split=split)
        rates[slots] = _rate(model, work, settings, depth, states)
        if len(rates) > 1 and max(list(rates.values())[-2:]) < GIVE_UP * max(rates.values()):
            break
    return rates


def _shape(work: Work, slots: int, split: bool) -> tuple[int, int]:
    """Cells and sequences of a context for so many slots."""
    each = work.own + work.answer
    return (work.shared + each, slots + 2) if split else (work.shared + (slots + 1) * each, slots + 2)


def _rate(model: LlamaModel, work: Work, settings: ContextSettings, depth: int, states: dict[int, State]) -> float:
    """Tokens per second at the depth: the prefix and `depth` tokens are computed once and copied to every slot.

    `states` keeps what was computed for other contexts, by the position where it begins.
    """
    slots = settings.sequences - 2
    context = Context(model, settings)
    try:
        filled = min(work.shared, SPLIT_PREFIX)  # of a longer prefix only the beginning: it costs time, and no order
        _fill_slots(context, slots, filled, depth, states)
        times = []
        for step in range(STEPS + 1):
            stop_if_asked()
            context.batch.clear()
            for slot in range(1, slots + 1):
                context.batch.add([1], filled + depth + step, slot, 1)
            started = time.perf_counter()
            context.decode()
            context.logits(0)
            times.append(time.perf_counter() - started)
        return slots / min(times[1:])
    finally:
        context.close()


def _fill_slots(context: Context, slots: int, shared: int, depth: int, states: dict[int, State]) -> None:
    """Give every slot the prefix and cells of its own, without computing them more than once."""
    spare = slots + 1
    if context.settings.split:
        _fill(context, spare, 0, shared + depth, {})  # llama.cpp restores no state into split cells
        for slot in range(1, spare):
            context.copy(spare, slot)
        return
    _fill(context, 0, 0, shared, states)
    _fill(context, spare, shared, depth, states)
    context.cut(spare)
    for slot in range(1, spare):
        if shared not in states or not context.restore(slot, states[shared]):
            raise EdgeDistillError("llama.cpp does not take a sequence's state", "Set teach.slots.")
        context.copy(0, slot)


def _fill(context: Context, sequence: int, start: int, count: int, states: dict[int, State]) -> None:
    """Compute the tokens, or take the state that another context had behind them."""
    if not count or (start in states and context.restore(sequence, states[start])):
        return
    step = context.batch.capacity
    for at in range(start, start + count, step):
        stop_if_asked()
        context.batch.clear()
        context.batch.add([1] * min(step, start + count - at), at, sequence, 0)
        context.decode()
    state = context.state(sequence)
    if state is not None:
        states[start] = state


@dataclass(frozen=True, slots=True)
class _Clocks:
    """Seconds: of the clock, of all processes on the processors, and of this process."""

    wall: float
    everyone: float
    own: float


def _clocks() -> _Clocks:
    import psutil

    told = psutil.cpu_times()
    everyone = told.user + told.system + getattr(told, "nice", 0.0)
    return _Clocks(time.perf_counter(), everyone, time.process_time())


def _was_disturbed(since: _Clocks, now: _Clocks, threads: int) -> bool:
    """Whether others took more than the cores that this process left.

    >>> start, all_busy = _Clocks(0.0, 0.0, 0.0), 10.0 * os.cpu_count()
    >>> _was_disturbed(start, _Clocks(10.0, all_busy, 10.0), threads=1)  # one thread had a core of its own
    False
    >>> _was_disturbed(start, _Clocks(10.0, all_busy, 5.0), threads=1)  # and here half of one
    True
    """
    others = (now.everyone - since.everyone) - (now.own - since.own)
    spare = max(0, (os.cpu_count() or 1) - threads)
    return others > (spare + CORES_BESIDE) * (now.wall - since.wall)


def _may_split(work: Work) -> bool:
    return not work.chunks and work.shared <= SPLIT_PREFIX


def _fits_memory(model: LlamaModel, work: Work, slots: int, split: bool) -> bool:
    import psutil

    cells, sequences = _shape(work, slots, split)
    needed = model.kv_bytes * cells * (sequences if split else 1)
    return bool(needed < MEMORY_SHARE * psutil.virtual_memory().available)


def _key(model: LlamaModel, work: Work, threads: int) -> str:
    size = model.path.stat().st_size
    version = metadata.version("llama-cpp-python")
    named = (model.metadata("general.name"), model.metadata("general.file_type"), size)
    return digest(named, cpu_name(), threads, version, asdict(work.rounded), WAY)[:24]
