"""Latency of one GGUF, measured as a user would see it: text in, text out, one request at a time.

Run as a child process, so that load time and peak memory are this model's alone:
`python -m edgedistill.llamacpp.timing`, the task as JSON on standard input, one JSON line a request on standard output.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import EdgeDistillError
from ..hardware import peak_memory
from ..records import Message, Prompt
from .child import child_environment, end_with_parent

__all__ = ["TimingTask", "measure", "percentiles"]

QUANTILES = (50, 90, 95, 99)


@dataclass(frozen=True)
class TimingTask:
    """What is timed: the first `warmup` prompts are answered and thrown away."""

    model: Path
    preamble: Sequence[Message]
    schema: dict[str, Any] | None
    prompts: Sequence[Prompt]
    warmup: int
    max_tokens: int
    threads: int
    gpu_layers: int
    sha256: str
    scratch: Path | None
    """Where prefix states may be kept, if anywhere."""


def measure(task: TimingTask) -> Iterator[dict[str, Any]]:
    """Yield a record per request, after a first one for the load.

    A request: `ttft_ms`, `e2e_ms` (from the text handed in to the first text and to the last), `prompt_tokens` (own,
    uncached), `completion_tokens`. The load: `load_ms`, `shared_tokens`. The last record: `peak_memory_bytes`.
    Raises EdgeDistillError where the child fails.
    """
    data = {
        "model": str(task.model),
        "preamble": [message.as_dict() for message in task.preamble],
        "schema": task.schema,
        "prompts": [[message.as_dict() for message in prompt.messages] for prompt in task.prompts],
        "warmup": task.warmup,
        "max_tokens": task.max_tokens,
        "threads": task.threads,
        "gpu_layers": task.gpu_layers,
        "sha256": task.sha256,
        "scratch": str(task.scratch) if task.scratch else None,
    }
    command = [sys.executable, "-m", "edgedistill.llamacpp.timing"]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=child_environment(),
        start_new_session=True,  # the terminal's Ctrl-C is for the parent
    ) as child:
        try:
            assert child.stdin is not None
            assert child.stdout is not None
            with suppress(BrokenPipeError):  # a child that ended before it read says why in its exit code
                child.stdin.write(json.dumps(data))
                child.stdin.close()
            for line in child.stdout:
                record = json.loads(line)
                if "error" in record:
                    raise failure(record)
                yield record
        finally:
            child.kill() if child.poll() is None else None
    if child.returncode != 0:
        raise EdgeDistillError(f"{task.model}: timing ended with code {child.returncode}", "Is there enough memory?")


def failure(record: dict[str, Any]) -> EdgeDistillError:
    """The error that the child met, with its exit code."""
    error = EdgeDistillError(record["error"], record["hint"])
    error.exit_code = record["exit_code"]
    return error


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p90, p95 and p99 as order statistics (nearest rank): each is a value that was measured.

    >>> percentiles([3.0, 1.0, 2.0])
    {'p50': 2.0, 'p90': 3.0, 'p95': 3.0, 'p99': 3.0}
    """
    ordered = sorted(values)
    return {f"p{q}": round(ordered[max(0, -(-len(ordered) * q // 100) - 1)], 2) for q in QUANTILES}


def main() -> None:
    """Answer the task on standard input, request by request."""
    from .answer import Answerer, AnswererSettings
    from .layout import Layout
    from .prefix import PrefixCache
    from .sampling import Sampling

    end_with_parent()
    task = json.load(sys.stdin)
    started = time.perf_counter()
    preamble = [Message(**message) for message in task["preamble"]]
    cache = PrefixCache(Path(task["scratch"]), task["sha256"]) if task["scratch"] else None
    settings = AnswererSettings(task["threads"], task["gpu_layers"], prefix_cache=cache)
    answerer = Answerer(Path(task["model"]), preamble, task["schema"], settings)
    prompts = [Prompt("00000000", tuple(Message(**turn) for turn in turns)) for turns in task["prompts"]]
    sampling = Sampling(task["max_tokens"])
    loaded = time.perf_counter()
    requests = [answerer.request(prompt, sampling) for prompt in prompts]  # to know the longest; part of no figure
    opening = time.perf_counter()
    with answerer, answerer.engine(Layout(1, split=False), requests, jump=False) as engine:
        load_ms = (time.perf_counter() - opening + loaded - started) * 1000
        _tell({"load_ms": round(load_ms, 1), "shared_tokens": len(answerer.shared.tokens)})
        for number, prompt in enumerate(prompts):
            asked = time.perf_counter()
            request = answerer.request(prompt, sampling)
            admitted = time.perf_counter()
            answer = next(engine.run([request]))
            e2e = time.perf_counter() - asked
            if number >= task["warmup"]:
                _tell(
                    {
                        "ttft_ms": round((admitted - asked + answer.first_seconds) * 1000, 3),
                        "e2e_ms": round(e2e * 1000, 3),
                        "prompt_tokens": len(request.tokens),
                        "completion_tokens": len(answer.tokens),
                    }
                )
    _tell({"peak_memory_bytes": peak_memory()})


def _tell(record: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(record) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    try:
        main()
    except EdgeDistillError as failed:
        _tell({"error": failed.message, "hint": failed.hint, "exit_code": failed.exit_code})
        sys.exit(failed.exit_code)
