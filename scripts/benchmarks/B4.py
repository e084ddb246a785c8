"""B4: what the bench adds to a request, against a bare loop over llama.cpp's C API that computes the same tokens.

The loop is given the prompt's tokens, decodes them, and samples greedily with llama.cpp's own sampler: no text, no
template, no grammar, no pipe. The bench's time is from the text put into the pipe to the record that comes out of it.
Both take turns, request by request, with contexts of the same shape, each in a process of its own: where its memory
happens to lie makes one process faster than another by more than the bar, so both are started anew for every round.
"""

from __future__ import annotations

import argparse
import ctypes
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from measure import finish, median_interval, note, teacher_gguf

from edgedistill.contract import BenchSettings
from edgedistill.llamacpp.answer import SharedPrompt
from edgedistill.llamacpp.engine import BatchEngine, EngineSettings
from edgedistill.llamacpp.model import LlamaModel, load_llama_cpp
from edgedistill.llamacpp.requests import Request
from edgedistill.llamacpp.sampling import Sampling
from edgedistill.llamacpp.timing import TimedModel, TimingTask, token_counter
from edgedistill.run import cores
from edgedistill.stages.lengths import made_up, of_length, timed_prompts

MOST = 0.01
PAUSE = 0.03  # seconds in which the other's threads come to rest


class BareLoop:
    """llama_decode and llama_sampler_sample, and nothing else."""

    def __init__(self, model: LlamaModel, cells: int, threads: int) -> None:
        self._lib = load_llama_cpp()
        wanted = self._lib.llama_context_default_params()
        wanted.n_ctx, wanted.n_batch, wanted.n_ubatch, wanted.n_seq_max = cells, 512, 512, 2
        wanted.kv_unified, wanted.flash_attn_type, wanted.no_perf = True, 0, True
        wanted.n_threads = wanted.n_threads_batch = threads
        self._context = self._lib.llama_init_from_model(model.handle, wanted)
        self._memory = self._lib.llama_get_memory(self._context)
        self._sampler = self._lib.llama_sampler_init_greedy()

    def answer(self, prompt: Sequence[int], count: int) -> tuple[float, list[int]]:
        """Seconds and tokens of an answer of so many."""
        lib, context, sampler = self._lib, self._context, self._sampler
        tokens = (ctypes.c_int32 * len(prompt))(*prompt)
        one = (ctypes.c_int32 * 1)()
        found = []
        started = time.perf_counter()
        lib.llama_memory_seq_rm(self._memory, -1, -1, -1)
        batch = lib.llama_batch_get_one(tokens, len(prompt))
        while True:
            if lib.llama_decode(context, batch) != 0:
                raise SystemExit("llama_decode failed")
            one[0] = lib.llama_sampler_sample(sampler, context, -1)
            found.append(one[0])
            if len(found) == count:
                return time.perf_counter() - started, found
            batch = lib.llama_batch_get_one(one, 1)


def _serve(link: Connection, path: Path, cells: int, threads: int, count: int) -> None:
    """Seconds of each prompt that comes."""
    with LlamaModel(path, 0) as model:
        loop = BareLoop(model, cells, threads)
        while True:
            link.send(loop.answer(link.recv(), count)[0])


@contextmanager
def _child(path: Path, cells: int, options: argparse.Namespace) -> Iterator[Connection]:
    """A bare loop in a process of its own."""
    started = multiprocessing.get_context("spawn")
    here, there = started.Pipe()
    process = started.Process(target=_serve, args=(there, path, cells, options.threads, options.output_tokens))
    process.start()
    try:
        yield here
    finally:
        process.kill()
        process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--rounds", type=int, default=5, help="with new processes")
    parser.add_argument("--requests", type=int, default=20, help="of each round, by either")
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--output-tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=cores())
    options = parser.parse_args()
    path = teacher_gguf(options.model)
    settings = BenchSettings(percentile=50, requests=max(20, options.requests), warmup=2)
    prompts = timed_prompts(made_up(0), settings, 0, "made up")
    with token_counter(path, ()) as count:
        prompts = of_length(prompts, options.prompt_tokens, count)
    task = TimingTask(
        path, (), None, prompts, options.output_tokens, options.threads, 0, "", None, cache="warm", endless=True
    )
    with LlamaModel(path, 0) as model:
        shared = SharedPrompt(model, ())
        whole = [_tokens(shared, prompt.messages) for prompt in prompts]
        cells = max(map(len, whole)) + options.output_tokens
        equal = _same_tokens(model, BareLoop(model, cells, options.threads), whole[0], options)
    harness, told, loop = list[float](), list[float](), list[float]()
    for number in range(1, options.rounds + 1):
        with TimedModel(task) as timed, _child(path, cells, options) as bare:
            found = _turns(timed, bare, whole, options.requests)
        for into, seconds in zip((harness, told, loop), found, strict=True):
            into += seconds
        note(f"round {number}: {float(np.median(np.array(found[0]) / found[2])):.4f} x")
    ratio, low, high = median_interval(harness, loop)
    inside = median_interval(told, loop)
    finish(
        "B4",
        round(ratio - 1, 4),
        MOST,
        ratio - 1 <= MOST and equal,
        peer="a loop over llama_decode and llama_sampler_sample",
        unit="share of a request's time",
        n=len(loop),
        interval=[round(low - 1, 4), round(high - 1, 4)],
        of_the_time_told=round(inside[0] - 1, 4),
        ms_added=round(1000 * float(np.median(np.array(harness) - np.array(loop))), 3),
        loop_ms=round(1000 * float(np.median(loop)), 2),
        same_tokens=equal,
        file=path.name,
        prompt_tokens=options.prompt_tokens,
        output_tokens=options.output_tokens,
        threads=options.threads,
    )


def _tokens(shared: SharedPrompt, messages: Any) -> list[int]:
    kept, own = shared.split(messages)
    return [*shared.tokens[:kept], *own]


def _same_tokens(model: LlamaModel, bare: BareLoop, prompt: list[int], options: argparse.Namespace) -> bool:
    """Whether our engine, in this process, writes what the loop writes."""
    sampling = Sampling(options.output_tokens)
    settings = EngineSettings(
        1, len(prompt) + options.output_tokens, options.threads, jump=False, flash_attention="off", endless=True
    )
    with BatchEngine(model, settings) as engine:
        answer = next(engine.run([Request("", 0, prompt, sampling)]))
    return list(answer.tokens) == bare.answer(prompt, options.output_tokens)[1]


def _turns(
    timed: TimedModel, bare: Connection, whole: list[list[int]], requests: int
) -> tuple[list[float], list[float], list[float]]:
    """Seconds of each request by the bench as seen from outside, as it tells them, and by the loop."""
    harness, told, loop = [], [], []

    def ours(number: int) -> None:
        time.sleep(PAUSE)
        started = time.perf_counter()
        record = timed.ask(number)
        harness.append(time.perf_counter() - started)
        told.append(record["e2e_ms"] / 1000)

    def theirs(number: int) -> None:
        time.sleep(PAUSE)
        bare.send(whole[number])
        loop.append(bare.recv())

    for number in range(2 + requests):
        for one in (ours, theirs) if number % 2 else (theirs, ours):
            one(number)
    return harness[2:], told[2:], loop[2:]


if __name__ == "__main__":
    main()
