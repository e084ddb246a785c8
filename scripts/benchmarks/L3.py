"""L3: scoring given answers, against the limit: llama-bench's pp512 less the output head at every scored position."""

from __future__ import annotations

import time
from dataclasses import replace

import engine_work
import llama_tools
from measure import finish, median_interval, note, teacher_gguf

from edgedistill.llamacpp.answer import SCORED
from edgedistill.llamacpp.context import Context, ContextSettings
from edgedistill.llamacpp.layout import Layout
from edgedistill.llamacpp.model import LlamaModel
from edgedistill.llamacpp.sampling import Sampling
from edgedistill.run import cores
from edgedistill.targets import CaptureSettings

ROUNDS, ROWS = 5, 512


def head_seconds(model: LlamaModel) -> float:
    """Seconds that the output head takes for one row: a batch with the logits of all rows, less one with a single."""
    times = {1: [], ROWS: []}  # type: dict[int, list[float]]
    context = Context(model, ContextSettings(ROWS, 1, cores(), flash_attention="off"))
    for _ in range(4):
        for wanted, found in times.items():
            context.cut(0)
            context.batch.clear()
            context.batch.add(list(range(1000, 1000 + ROWS)), 0, 0, wanted)
            started = time.perf_counter()
            context.decode()
            context.logits(ROWS - 1)
            found.append(time.perf_counter() - started)
    context.close()
    return (min(times[ROWS][1:]) - min(times[1][1:])) / (ROWS - 1)


def main() -> None:
    path = teacher_gguf()
    answerer = engine_work.answerer(path)
    prompts = engine_work.prompts(answerer, 64)
    keep = CaptureSettings("top_k", 0.995, 64, 50)
    sampling = Sampling(engine_work.MAX_TOKENS, capture=keep)
    with answerer.engine(Layout(32, split=True), [answerer.request(p, sampling) for p in prompts]) as engine:
        written = {one.id: one.tokens for one in engine.run([answerer.request(p, Sampling(60)) for p in prompts])}
    end = answerer.model.end_of_turn
    requests = [replace(answerer.request(prompt, sampling), given=(*written[prompt.id], end)) for prompt in prompts]
    scored = sum(len(request.given) for request in requests)
    mine, limits = [], []
    for number in range(ROUNDS + 1):
        speed = llama_tools.llama_bench(path, cores())
        head = head_seconds(answerer.model)
        with answerer.engine(Layout(SCORED, split=False), requests) as engine:
            before = engine.decoded_tokens
            started = time.perf_counter()
            for _ in engine.run(requests):
                pass
            seconds = time.perf_counter() - started
            rows = engine.decoded_tokens - before
        limit = rows / (rows / speed + scored * head)
        note(f"{rows / seconds:.1f} of {limit:.1f} tokens/s; pp512 {speed:.1f}, head {1000 * head:.2f} ms a row")
        if number:
            mine.append(rows / seconds)
            limits.append(limit)
    value, low, high = median_interval(mine, limits)
    finish("L3", value, 0.9, value >= 0.9, peer="pp512 less the output head at each scored position",
           unit="x tokens/s", n=len(prompts), interval=[low, high], scored=scored)  # fmt: skip


if __name__ == "__main__":
    main()
