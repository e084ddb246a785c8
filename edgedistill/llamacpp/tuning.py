"""The settings with which a model answers fastest on this machine, found by short measurements in turns, and kept.

Threads and the size of a micro-batch change no answer. How keys and values are kept may: another way is only taken
where the answers to the prompts at hand stay the same.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from ..errors import EdgeDistillError
from ..records import Message, digest
from ..run import Progress, cores, cpu_name, stop_if_asked, write_whole
from .calibration import taken_by_others
from .context import MICRO_BATCH, Context, ContextSettings, FlashAttention, KvType
from .model import LlamaModel, load_llama_cpp
from .runtime import Reply, Runtime, RuntimeSettings
from .speculative import WORTH_IT, looked_up, needed_acceptance

__all__ = ["Case", "thread_counts", "tune", "tuned", "with_layout"]

ROUNDS = 5
GAIN = 1.03  # a setting takes the place of the plain one where it is faster by this
ROWS = (1, 2, 3, 4, 5, 8)  # of a step, for the curve on which guessing ahead is judged
MICRO_BATCHES = (128, 256, MICRO_BATCH)
LAYOUTS: tuple[tuple[KvType, FlashAttention], ...] = (("f16", "auto"), ("f16", "off"), ("q8_0", "on"))
KEPT = ("threads", "prompt_threads", "micro_batch", "kv_type", "flash_attention", "drafted")
HEAD = 1 << 20  # bytes of a file that tell models of one shape from others
DEPTH, OWN, ANSWER = 32, 64, 64  # tokens, where no prompts are given

Option = TypeVar("Option")


@dataclass(frozen=True)
class Case:
    """What the model does: what it is shown first, what its answers must be, and prompts like those that will come."""

    preamble: tuple[Message, ...]
    schema: dict[str, Any] | None
    max_tokens: int
    prompts: tuple[tuple[Message, ...], ...]


@dataclass(frozen=True)
class _Shape:
    """A typical request: tokens already there, of the prompt, steps behind it, and rows of such a step."""

    depth: int
    own: int
    steps: int
    rows: int


def tuned(model: Path, folder: Path) -> RuntimeSettings | None:
    """The settings that `tune` kept for models of this shape on this machine; None where there are none that hold."""
    try:
        kept = json.loads(_place(model, folder).read_text(encoding="utf-8"))["settings"]
        settings = RuntimeSettings(**{name: kept[name] for name in KEPT})
    except (OSError, ValueError, KeyError, TypeError):
        return None
    counts = (settings.threads, settings.prompt_threads, settings.micro_batch, settings.drafted + 1)
    known = (settings.kv_type, settings.flash_attention) in LAYOUTS
    return settings if known and all(type(count) is int and 0 < count <= 4096 for count in counts) else None


def tune(path: Path, case: Case, folder: Path, progress: Progress) -> dict[str, Any]:
    """Measure, keep and return `settings`, `measured` (milliseconds by setting) and `speculation`.

    `busy` is the share of the processor that others took meanwhile. Raises EdgeDistillError where the model cannot be
    loaded, Stopped where that was asked for in between.
    """
    import psutil

    plain, before, mine = RuntimeSettings(cores()), psutil.cpu_times(), time.process_time()
    with LlamaModel(path) as model:
        told, answers = _answers(path, case, plain, progress)
        shape = _shape(told)
        progress("timing threads", 1, 5)
        threads = _threads(model, shape)
        best = replace(plain, threads=_fastest(threads["step_ms"]), prompt_threads=_fastest(threads["prompt_ms"]))
        progress("timing layouts", 2, 5)
        layouts = _layouts(model, shape, best)
        best, refused = with_layout(path, case, best, layouts, answers)
        progress("timing batches", 3, 5)
        batches = _batches(model, shape, best)
        best = replace(best, micro_batch=_fastest(batches, MICRO_BATCH) if batches else MICRO_BATCH)
        progress("timing steps of several rows", 4, 5)
        curve = _curve(model, shape, best)
        pairs = [
            (model.tokenize(turns[-1].content, special=False), model.tokenize(reply.text, special=False))
            for turns, reply in zip(case.prompts, told, strict=True)
        ]
    speculation = _speculation(curve, pairs, case.schema is not None)
    best = _with_guesses(path, case, best, speculation, answers)
    found = {
        "settings": {name: asdict(best)[name] for name in KEPT},
        "measured": {**threads, "request_ms": layouts, "micro_batch_prompt_ms": batches, "step_ms_by_rows": curve},
        "changed_answers": refused,
        "request": asdict(shape),
        "busy": taken_by_others(before, psutil.cpu_times(), time.process_time() - mine),
        "speculation": {**speculation, "on": best.drafted > 0},
    }
    write_whole(_place(path, folder), json.dumps(found, indent=1).encode())
    return found


def thread_counts(most: int) -> list[int]:
    """Numbers of threads that are tried.

    >>> thread_counts(2), thread_counts(12)
    ([1, 2], [1, 2, 3, 4, 6, 8, 12])
    """
    return [count for count in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64) if count < most] + [most]


def _place(model: Path, folder: Path) -> Path:
    """Where the settings for a model's shape on this machine are kept; which weights it has does not matter."""
    with model.open("rb") as file:
        head = hashlib.sha256(file.read(HEAD)).hexdigest()
    version = metadata.version("llama-cpp-python")
    return folder / f"{digest(head, model.stat().st_size, cpu_name(), cores(), version)[:24]}.json"


def _answers(
    path: Path, case: Case, settings: RuntimeSettings, progress: Progress | None = None
) -> tuple[list[Reply], list[str]]:
    """The answers under some settings."""
    replies = []
    with Runtime(path, case.preamble, case.schema, settings) as runtime:
        for number, turns in enumerate(case.prompts):
            if progress is not None:
                progress("answering", number, len(case.prompts))
            stop_if_asked()
            replies.append(runtime.answer(turns, case.max_tokens))
    return replies, [reply.text for reply in replies]


def _shape(replies: Sequence[Reply]) -> _Shape:
    if not replies:
        return _Shape(DEPTH, OWN, ANSWER, 1)
    count = len(replies)
    steps = max(1, round(sum(reply.steps - 1 for reply in replies) / count))
    tokens = sum(reply.tokens for reply in replies) / count
    return _Shape(
        depth=max(reply.shared_tokens for reply in replies),
        own=max(1, round(sum(reply.prompt_tokens for reply in replies) / count)),
        steps=steps,
        rows=max(1, round(tokens / (steps + 1))),
    )


class _Timer:
    """A context at the depth of a request; each measurement leaves it as it was."""

    def __init__(self, model: LlamaModel, shape: _Shape, settings: RuntimeSettings) -> None:
        self.depth = shape.depth
        cells = shape.depth + max(shape.own + shape.rows, ROWS[-1], 1)
        flash: FlashAttention = settings.flash_attention
        self.context = Context(
            model,
            ContextSettings(
                -(-cells // 256) * 256,
                1,
                settings.threads,
                flash_attention=flash,
                micro_batch=settings.micro_batch,
                kv_type=settings.kv_type,
            ),
        )
        self.set_threads(settings.threads, settings.prompt_threads or settings.threads)
        if self.depth:
            self.time(self.depth, 0)

    def close(self) -> None:
        self.context.close()

    def set_threads(self, step: int, prompt: int) -> None:
        load_llama_cpp().llama_set_n_threads(self.context.handle, step, prompt)

    def request(self, shape: _Shape) -> float:
        """Milliseconds of a typical request."""
        return self.time(shape.own) + shape.steps * self.time(shape.rows)

    def time(self, rows: int, at: int | None = None) -> float:
        """Milliseconds of computing so many rows behind the depth, the last one's logits read."""
        at = self.depth if at is None else at
        started = time.perf_counter()
        for start in range(0, rows, self.context.batch.capacity):
            count = min(self.context.batch.capacity, rows - start)
            self.context.batch.clear()
            self.context.batch.add([1] * count, at + start, 0, 1)
            self.context.decode()
        self.context.logits(count - 1)
        taken = (time.perf_counter() - started) * 1000
        if at == self.depth:
            self.context.cut(0, self.depth)
        return taken


def _in_turns(options: Mapping[Option, Callable[[], float]]) -> dict[Option, float]:
    """The best of several rounds of each measurement, taken in turns after one that is not counted."""
    found: dict[Option, float] = {}
    for number in range(ROUNDS + 1):
        for option, measured in options.items():
            stop_if_asked()
            value = measured()
            if number:
                found[option] = round(min(value, found.get(option, value)), 3)
    return found


def _fastest(found: Mapping[int, float], plain: int | None = None) -> int:
    """The fastest setting; the plain one, else the smallest, of those that are hardly slower.

    >>> _fastest({1: 10.0, 2: 5.0, 4: 4.9}), _fastest({128: 9.9, 512: 10.0}, 512)
    (2, 512)
    """
    good = [option for option, value in found.items() if value <= min(found.values()) * GAIN]
    return plain if plain in good and plain is not None else min(good)


def _threads(model: LlamaModel, shape: _Shape) -> dict[str, dict[int, float]]:
    counts = thread_counts(cores())
    with closing(_Timer(model, shape, RuntimeSettings(cores()))) as timer:

        def timed(count: int, rows: int) -> Callable[[], float]:
            def once() -> float:
                timer.set_threads(count, count)
                return timer.time(rows)

            return once

        return {
            "step_ms": _in_turns({count: timed(count, shape.rows) for count in counts}),
            "prompt_ms": _in_turns({count: timed(count, shape.own) for count in counts}),
        }


def _layouts(model: LlamaModel, shape: _Shape, settings: RuntimeSettings) -> dict[str, float]:
    """Milliseconds of a typical request by the layout of keys and values, all in turns."""
    with ExitStack() as stack:
        timers: dict[str, _Timer] = {}
        for kv_type, flash in LAYOUTS:
            how = replace(settings, kv_type=kv_type, flash_attention=flash)
            try:
                timers[how.layout] = stack.enter_context(closing(_Timer(model, shape, how)))
            except EdgeDistillError:  # not every head size can be rounded
                if how.layout == settings.layout:
                    raise
        options = {layout: lambda timer=timer: timer.request(shape) for layout, timer in timers.items()}
        return _in_turns(options)


def with_layout(
    path: Path, case: Case, settings: RuntimeSettings, found: Mapping[str, float], answers: Sequence[str]
) -> tuple[RuntimeSettings, list[str]]:
    """The settings with the fastest layout that changes no answer, and the faster ones that did change some."""
    refused: list[str] = []
    known = [replace(settings, kv_type=kv, flash_attention=flash) for kv, flash in LAYOUTS]
    ranked = sorted((one for one in known if one.layout in found), key=lambda one: found[one.layout])
    for one in ranked:
        if found[one.layout] * GAIN >= found[settings.layout]:
            break
        if case.prompts and _answers(path, case, one)[1] == list(answers):
            return one, refused
        refused.append(one.layout)
    return settings, refused


def _with_guesses(
    path: Path, case: Case, settings: RuntimeSettings, found: Mapping[str, Any], answers: Sequence[str]
) -> RuntimeSettings:
    """The settings with tokens guessed ahead, where that promises enough and changes no answer."""
    if found["promised"] is None or found["promised"] <= WORTH_IT:
        return settings
    guessing = replace(settings, drafted=found["drafted"])
    return guessing if _answers(path, case, guessing)[1] == list(answers) else settings


def _batches(model: LlamaModel, shape: _Shape, settings: RuntimeSettings) -> dict[int, float]:
    """Milliseconds of the prompt by the rows of a micro-batch; nothing where one holds every prompt."""
    if shape.own <= MICRO_BATCHES[0]:
        return {}
    with ExitStack() as stack:
        timers = {
            rows: stack.enter_context(closing(_Timer(model, shape, replace(settings, micro_batch=rows))))
            for rows in MICRO_BATCHES
        }
        return _in_turns({rows: lambda timer=timer: timer.time(shape.own) for rows, timer in timers.items()})  # type: ignore[misc]


def _curve(model: LlamaModel, shape: _Shape, settings: RuntimeSettings) -> dict[int, float]:
    """Milliseconds of a step by its rows."""
    with closing(_Timer(model, shape, settings)) as timer:
        return _in_turns({rows: lambda rows=rows: timer.time(rows) for rows in ROWS})  # type: ignore[misc]


def _speculation(
    curve: Mapping[int, float], pairs: Sequence[tuple[Sequence[int], Sequence[int]]], under_schema: bool
) -> dict[str, Any]:
    """What guessing ahead by looking up would give: the best number of tokens, and what it takes to be worth it."""
    needed = {rows - 1: needed_acceptance(rows - 1, curve) for rows in curve if rows > 1}
    found: dict[str, Any] = {"worth_from": WORTH_IT, "needed_acceptance": needed, "promised": None, "drafted": None}
    if under_schema:  # what could be guessed is what must follow, and that is not decoded one by one anyway
        return {**found, "why": "tokens that must follow are skipped already"}
    if not any(answer for _, answer in pairs):
        return {**found, "why": "no prompts whose answers could be guessed"}
    promised = {drafted: looked_up(pairs, drafted).promise(drafted, curve) for drafted in needed}
    best = max(promised, key=lambda drafted: promised[drafted])
    return {
        **found,
        "promised": round(promised[best], 3),
        "drafted": best,
        "acceptance": round(looked_up(pairs, best).acceptance, 3),
        "why": f"by looking up what followed the same words, on {len(pairs)} prompts",
    }
