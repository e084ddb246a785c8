"""Candidates timed in turns, request by request, until each has its verdict.

What changes on the machine meanwhile (it grows hot, something else runs) then hits all of them alike. Where they do not
fit into memory together, they take turns of several requests, one loaded at a time.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..contract import BenchSettings
from ..hardware import energy_joules
from ..run import Progress, stop_if_asked
from .latency import PAIRS, Plan, Verdict

__all__ = ["Contender", "Rules", "Timed", "Timing", "take_turns"]

BLOCK = 25  # requests of a turn where only one candidate is loaded at a time
GROWTH = 1.2  # a loaded model, with its cache, against its file
BESIDES = 256 << 20  # bytes of a process beside its model
SHARE = 0.8  # of the free memory


class Timed(Protocol):
    """A model that is loaded and asked by the number of a prompt; times are in milliseconds."""

    load: dict[str, Any]

    def ask(self, number: int) -> dict[str, Any]:
        """`ttft_ms`, `e2e_ms`, `tpot_ms`, `prompt_tokens`, `completion_tokens`."""

    def close(self) -> dict[str, Any]:
        """End it in good order; the record has `peak_memory_bytes`."""

    def __exit__(self, *_: object) -> None:
        """End it at once."""


@dataclass(frozen=True)
class Contender:
    """Who is timed, how it is loaded, and how large it is on disk."""

    name: str
    size_bytes: int
    open: Callable[[], Timed]


@dataclass(frozen=True)
class Rules:
    """When it is enough: what the first `settings.warmup` prompts take at each load is thrown away."""

    settings: BenchSettings
    plan: Plan
    seed: int
    together: bool = False
    """Go on with each until all have their verdict, so that every prompt is a pair."""
    alone: bool = False
    """Keep one model loaded at a time: turns are of several requests then."""


@dataclass
class Timing:
    """What one candidate took, request by request, in the order of the prompts."""

    name: str
    requests: list[dict[str, Any]] = field(default_factory=list)
    over: int = 0
    """Requests over the target when the verdict fell, or so far."""
    verdict: Verdict = "need more"
    decided_at: int | None = None
    """Requests with which the verdict fell; None where it has not."""
    load: dict[str, Any] = field(default_factory=dict)
    peak_memory_bytes: int | None = None

    def add(self, record: dict[str, Any], rules: Rules) -> None:
        self.requests.append(record)
        if self.decided_at is not None:  # the first verdict holds; a later look could only be another chance
            return
        self.over += record[f"{rules.settings.metric}_ms"] > rules.settings.target_ms[1]
        self.verdict = rules.plan.verdict(len(self.requests), self.over)
        if self.verdict != "need more":
            self.decided_at = len(self.requests)


@dataclass
class _Seat:
    """A contender at the table, loaded or not."""

    contender: Contender
    timing: Timing
    timed: Timed | None = None

    def ask(self, number: int, rules: Rules) -> None:
        """Take the time of the prompt with this number, the warm-up's not counted; load the model before it."""
        warmup = rules.settings.warmup
        if self.timed is None:
            self.timed = self.contender.open()
            for unseen in range(0 if rules.settings.cache == "cold" else warmup):
                self.timed.ask(unseen)
        before = energy_joules()
        record = self.timed.ask(warmup + number)
        after = energy_joules()
        spent = None if before is None or after is None or after < before else round(after - before, 3)
        self.timing.add({**record, "energy_j": spent}, rules)

    def leave(self) -> None:
        """Unload the model, and keep what it tells at the end."""
        if self.timed is None:
            return
        timed, self.timed = self.timed, None
        self.timing.load = self.timing.load or timed.load
        peak = timed.close()["peak_memory_bytes"]
        if peak is not None:
            self.timing.peak_memory_bytes = max(peak, self.timing.peak_memory_bytes or 0)

    def end(self) -> None:
        if self.timed is not None:
            self.timed.__exit__()
            self.timed = None


def take_turns(contenders: Sequence[Contender], rules: Rules, progress: Progress) -> list[Timing]:
    """The timings of the contenders, in their order.

    Raises EdgeDistillError where one of them fails, Stopped where the user asks for it.
    """
    seats = [_Seat(one, Timing(one.name)) for one in contenders]
    block = BLOCK if rules.alone else 1
    order = random.Random(rules.seed)
    try:
        for start in range(0, rules.plan.most, block):
            active = _active(seats, rules)
            order.shuffle(active)
            for seat in active:
                for number in range(start, min(start + block, rules.plan.most)):
                    seat.ask(number, rules)
                    _tell(seats, seat, rules, progress)
                    stop_if_asked()
                    if seat.timing.decided_at and not rules.together:
                        break
                if rules.alone:
                    seat.leave()
        for seat in seats:
            seat.leave()
    finally:
        for seat in seats:
            seat.end()
    return [seat.timing for seat in seats]


def fit_together(sizes: Sequence[int]) -> bool:
    """Whether models of these sizes may be loaded at the same time; one always may."""
    import psutil

    needed = sum(GROWTH * size + BESIDES for size in sizes)
    return len(sizes) == 1 or needed <= SHARE * int(psutil.virtual_memory().available)


def _active(seats: Sequence[_Seat], rules: Rules) -> list[_Seat]:
    """Those that are still timed; whoever is not gives its memory back."""
    undecided = [seat for seat in seats if seat.timing.decided_at is None]
    if rules.together and (undecided or len(seats[0].timing.requests) < PAIRS):
        return list(seats)
    for seat in seats:
        if seat.timing.decided_at is not None:
            seat.leave()
    return undecided


def _tell(seats: Sequence[_Seat], seat: _Seat, rules: Rules, progress: Progress) -> None:
    most = rules.plan.most
    done = sum(most if one.timing.decided_at and not rules.together else len(one.timing.requests) for one in seats)
    progress(f"timing {seat.contender.name}", done, most * len(seats))
