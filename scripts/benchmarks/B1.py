"""B1: prompt and decode speed as `edgedistill bench` measures them, against llama-bench: same file, flags and threads.

Ours are whole requests, text in and text out: a prompt's speed is its tokens over the time to the first text, with
tokenization and sampling in it; writing's is of the steps behind the first text. llama-bench computes the same numbers
of tokens, writing at the depth of the prompt.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import llama_tools
import numpy as np
from measure import finish, median_interval, note, teacher_gguf

from edgedistill.contract import BenchSettings
from edgedistill.llamacpp.timing import TimedModel, TimingTask, token_counter
from edgedistill.records import Prompt
from edgedistill.run import cores, file_sha256
from edgedistill.stages.lengths import made_up, of_length, timed_prompts

WITHIN = 0.03
WARMUP = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="qwen2.5-coder-0.5b-instruct")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--requests", type=int, default=4, help="of each round, by either")
    parser.add_argument("--prompt-tokens", type=int, default=256)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=cores())
    options = parser.parse_args()
    path = options.path = teacher_gguf(options.model)
    prompts = _prompts(path, options.prompt_tokens)
    with token_counter(path, ()) as count:
        tokens = round(float(np.mean([count(prompt) for prompt in prompts])))
    task = TimingTask(
        model=path,
        preamble=(),
        schema=None,
        prompts=prompts,
        max_tokens=options.output_tokens,
        threads=options.threads,
        gpu_layers=0,
        sha256=file_sha256(path),
        scratch=None,
        cache="warm",
        endless=True,
    )
    with TimedModel(task) as timed:
        mine, theirs = _rounds(timed, options, tokens)
        runtime = timed.load["runtime"]
    ratios = {name: median_interval(mine[name], theirs[name]) for name in mine}
    finish(
        "B1",
        {name: ratio[0] for name, ratio in ratios.items()},
        {"within": WITHIN},
        all(abs(ratio[0] - 1) <= WITHIN for ratio in ratios.values()),
        peer="llama-bench",
        unit="x tokens/s",
        n=options.rounds,
        intervals={name: ratio[1:] for name, ratio in ratios.items()},
        tokens_per_s={name: round(float(np.median(rates)), 1) for name, rates in mine.items()},
        file=path.name,
        prompt_tokens=tokens,
        output_tokens=options.output_tokens,
        threads=options.threads,
        runtime=runtime,
    )


def _prompts(path: Path, tokens: int) -> list[Prompt]:
    """More distinct prompts than are asked; they are asked in turns."""
    settings = BenchSettings(percentile=50, warmup=WARMUP)
    with token_counter(path, ()) as count:
        return of_length(timed_prompts(made_up(0), settings, 0, "made up"), tokens, count)


def _rounds(
    timed: TimedModel, options: argparse.Namespace, tokens: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Rates of each round, ours and llama-bench's; the first round is not counted."""
    mine: dict[str, list[float]] = {"prompt": [], "writing": []}
    theirs: dict[str, list[float]] = {"prompt": [], "writing": []}
    size = ("-fa", "0", "-ngl", "0")  # as the bench runs on a processor
    for number in range(options.rounds + 1):
        first = number % 2 == 0
        ours = _ours(timed, number, options) if first else {}
        peer = {
            "prompt": llama_tools.llama_bench(options.path, options.threads, tokens, 0, options.requests, *size),
            "writing": llama_tools.llama_bench(
                options.path, options.threads, 0, options.output_tokens, options.requests, "-d", str(tokens), *size
            ),
        }
        ours = ours or _ours(timed, number, options)
        note(f"round {number}: ours {ours}, llama-bench {peer}")
        if number:
            for name in mine:
                mine[name].append(ours[name])
                theirs[name].append(peer[name])
    return mine, theirs


def _ours(timed: TimedModel, number: int, options: argparse.Namespace) -> dict[str, float]:
    count = options.requests
    found = [timed.ask((number * count + k) % 20) for k in range(count + 1)][1:]  # the first one warms up, as theirs
    return {
        "prompt": float(np.mean([1000 * one["prompt_tokens"] / one["ttft_ms"] for one in found])),
        "writing": float(np.mean([1000 / one["tpot_ms"] for one in found])),
    }


if __name__ == "__main__":
    main()
