"""T1: tokens computed per second against llama-bench's pp512, and requests against a loop over llama-cpp-python."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import engine_work
import llama_tools
from measure import finish, median_interval, note, teacher_gguf

from edgedistill.llamacpp.answer import Answerer
from edgedistill.llamacpp.layout import Layout, Work, best_layout
from edgedistill.llamacpp.sampling import Sampling
from edgedistill.records import Prompt
from edgedistill.run import cores

LOOPED = 24  # prompts that the sequential loop answers a round: its rate does not depend on their number


class Ours:
    """The engine in the layout that it finds itself; a new context each time, its prefix included."""

    def __init__(self, answerer: Answerer, prompts: list[Prompt]) -> None:
        self._answerer = answerer
        self._requests = [answerer.request(prompt, Sampling(engine_work.MAX_TOKENS)) for prompt in prompts]
        own = sum(len(request.tokens) for request in self._requests) // len(prompts)
        self.work = Work(len(answerer.shared.tokens), own, engine_work.MAX_TOKENS, False)
        self.layout: Layout = best_layout(answerer.model, self.work, cores(), None)
        self.tokens_per_second = 0.0
        note(f"{len(prompts)} prompts, {self.work}, {self.layout}")

    def __call__(self) -> float:
        started = time.perf_counter()
        with self._answerer.engine(self.layout, self._requests) as engine:
            answers = list(engine.run(self._requests))
            seconds = time.perf_counter() - started
            self.tokens_per_second = engine.decoded_tokens / seconds
        return len(answers) / seconds


def looped(model: Path, prompts: list[Prompt]) -> float:
    """Requests per second of `Llama.create_chat_completion`, which keeps the last prompt's prefix."""
    from llama_cpp import Llama

    llama = Llama(str(model), n_ctx=1024, n_threads=cores(), n_threads_batch=cores(), verbose=False)
    system = {"role": "system", "content": engine_work.SYSTEM}
    started = 0.0
    for number, prompt in enumerate(prompts[: LOOPED + 1]):
        if number == 1:  # the first one decodes the shared prefix: not counted
            started = time.perf_counter()
        turns = [system, {"role": "user", "content": prompt.text}]
        llama.create_chat_completion(turns, max_tokens=engine_work.MAX_TOKENS, temperature=0.0)
    seconds = time.perf_counter() - started
    llama.close()
    return LOOPED / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=256)
    options = parser.parse_args()
    model = teacher_gguf()
    answerer = engine_work.answerer(model)
    prompts = engine_work.prompts(answerer, options.prompts)
    ours = Ours(answerer, prompts)
    figures: dict[str, list[float]] = {"ours": [], "tokens": [], "pp512": [], "loop": []}
    for number in range(options.rounds):
        figures["pp512"].append(llama_tools.llama_bench(model, cores()))
        figures["ours"].append(ours())
        figures["tokens"].append(ours.tokens_per_second)
        figures["loop"].append(looped(model, prompts))
        note(f"round {number + 1}: " + ", ".join(f"{name} {rates[-1]:.3f}" for name, rates in figures.items()))
    tokens = median_interval(figures["tokens"], figures["pp512"])
    loop = median_interval(figures["ours"], figures["loop"])
    finish(
        "T1",
        {"of_pp512": tokens[0], "of_loop": loop[0]},
        {"of_pp512": 0.85, "of_loop": 2.0},
        tokens[0] >= 0.85 and loop[0] >= 2.0,
        peer="llama-bench pp512; a loop over Llama.create_chat_completion",
        unit="x tokens/s; x requests/s",
        intervals={"of_pp512": tokens[1:], "of_loop": loop[1:]},
        n=len(prompts),
        rounds=options.rounds,
        layout=str(ours.layout),
        raw=figures,
    )


if __name__ == "__main__":
    main()
