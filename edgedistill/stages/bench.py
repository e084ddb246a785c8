"""bench: how long the teacher and each quant take, against the target."""

from __future__ import annotations

import json
import random
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import InvalidInput
from ..llamacpp.timing import TimingTask, measure, percentiles
from ..recipe import Recipe
from ..records import Message, Prompt, iter_prompts
from ..run import Progress, Run, cores, file_sha256, machine, stop_if_asked, write_whole
from ..schema import load_schema
from .candidates import Candidate, answering, greedy, quant_candidates, teacher_candidates

__all__ = ["bench", "bench_files", "require_timed", "timed_prompts"]

BACKEND_REQUESTS = 20  # of a teacher that is no GGUF: its time is money or patience, and only the median is compared
THROUGH_BACKEND = f"through the backend, one at a time, on {BACKEND_REQUESTS} prompts"


def bench(recipe: Recipe, run: Run, out: Path, progress: Progress) -> dict[str, Any]:
    """Write `bench.json`."""
    people = [*quant_candidates(recipe, run), *teacher_candidates(recipe, run, progress)]
    result = _measure(recipe, people, run.scratch, progress)
    write_whole(out / "bench.json", json.dumps(result, indent=1).encode())
    return {person["name"]: person["latency_ms"]["e2e"] for person in result["candidates"]}


def bench_files(recipe: Recipe, paths: Sequence[Path], progress: Progress) -> dict[str, Any]:
    """Latency of any GGUF files on the recipe's prompts, each behind the student's system text."""
    from ..chat import with_system

    shown: tuple[Message, ...] = with_system(recipe.student.system, ())
    names = [path.name for path in paths]
    people = [
        Candidate(
            path.name if names.count(path.name) == 1 else str(path),
            "student",
            "",
            path,
            file_sha256(path),
            shown,
            "student",
        )
        for path in paths
    ]
    return _measure(recipe, people, None, progress)


def timed_prompts(recipe: Recipe) -> list[Prompt]:
    """Warm-up prompts, then the ones that are timed: all distinct, eval prompts first, in an order of the seed.

    Raises InvalidInput where the recipe's files hold too few.
    """
    require_timed(recipe)
    prompts = _distinct(recipe)
    timed, warmup = list(islice(prompts, recipe.bench.requests)), deque(prompts, maxlen=recipe.bench.warmup)
    random.Random(recipe.seed).shuffle(timed)
    return [*warmup, *timed]


def require_timed(recipe: Recipe) -> None:
    """Raise InvalidInput where the recipe's files hold too few prompts; no more of them is read than that takes."""
    settings = recipe.bench
    count = sum(1 for _ in islice(_distinct(recipe), settings.requests + settings.warmup))
    if count < settings.requests + settings.warmup:
        raise InvalidInput(
            f"{recipe.path}: bench.requests is {settings.requests} and bench.warmup {settings.warmup}, but the eval "
            f"and prompt files hold only {count} distinct prompts",
            "Write more prompts, or lower bench.requests.",
        )


def _distinct(recipe: Recipe) -> Iterator[Prompt]:
    """Every prompt with words, once: those of the eval set, then the others."""
    seen: set[str] = set()
    for path in (recipe.file(recipe.evaluate.file), recipe.file(recipe.prompts.file)):
        for prompt in iter_prompts(path):
            if prompt.text.strip() and prompt.id not in seen:
                seen.add(prompt.id)
                yield prompt


def _measure(recipe: Recipe, people: Sequence[Candidate], scratch: Path | None, progress: Progress) -> dict[str, Any]:
    settings = recipe.bench
    prompts = timed_prompts(recipe)
    schema = load_schema(recipe) if recipe.evaluate.constrained else None
    found = []
    for number, person in enumerate(people):
        records = []
        for record in _records(recipe, person, schema, prompts, scratch):
            records.append(record)
            done = min(len(records), len(prompts))
            progress(f"timing {person.name}", number * len(prompts) + done, len(people) * len(prompts))
            stop_if_asked()
        found.append({**person.record(), **_figures(records)})
    return {
        "conditions": {
            "threads": cores(),
            "requests": settings.requests,
            "warmup": settings.warmup,
            "target_ms": list(settings.target_ms),
            "percentile": settings.percentile,
            "decoding": "token by token under the schema's grammar" if schema else "token by token",
            "cache": "warm; what all prompts share is kept in the KV cache",
        },
        "machine": machine(),
        "candidates": found,
    }


def _records(
    recipe: Recipe, person: Candidate, schema: dict[str, Any] | None, prompts: Sequence[Prompt], scratch: Path | None
) -> Iterator[dict[str, Any]]:
    """A record of the load, one of each request, and a last one, as `timing.measure` yields them."""
    if person.asked is None:
        task = TimingTask(
            model=person.gguf,
            preamble=person.preamble,
            schema=schema,
            prompts=prompts,
            warmup=recipe.bench.warmup,
            max_tokens=recipe.evaluate.max_tokens,
            threads=cores(),
            gpu_layers=recipe.teach.gpu_layers,
            sha256=person.sha256,
            scratch=scratch,
        )
        yield from measure(task)
        return
    assert scratch is not None
    yield {"load_ms": None, "shared_tokens": None, "timed": THROUGH_BACKEND}
    asked = prompts[: recipe.bench.warmup + BACKEND_REQUESTS]
    counted = {prompt.id for prompt in asked[recipe.bench.warmup :]}
    # answers are written out even where they are a closed set: that is what the teacher would take in its place
    settings = greedy(recipe).model_copy(update={"slots": 1, "closed": False})
    with answering(person.task(schema, scratch), asked, settings, recipe.seed) as answers:
        for completion in answers:
            if completion.prompt_id in counted:
                yield {
                    "ttft_ms": None,
                    "e2e_ms": round(completion.seconds * 1000, 3),
                    "prompt_tokens": completion.prompt_tokens,
                    "completion_tokens": completion.completion_tokens,
                }
    yield {"peak_memory_bytes": None}


def _figures(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures of one candidate from its records; a backend does not tell when the first token came."""
    load, *requests, last = records
    e2e = percentiles([request["e2e_ms"] for request in requests])
    ttft: Mapping[str, float | None] = dict.fromkeys(e2e)
    rate = None
    if all(request["ttft_ms"] is not None for request in requests):
        ttft = percentiles([request["ttft_ms"] for request in requests])
        decoded = sum(max(0, request["completion_tokens"] - 1) for request in requests)
        decoding = sum(request["e2e_ms"] - request["ttft_ms"] for request in requests) / 1000
        rate = round(decoded / decoding, 1) if decoding else None
    return {
        **load,
        **last,
        "n": len(requests),
        "latency_ms": {"ttft": ttft, "e2e": e2e},
        "tokens_per_s": rate,
        "prompt_tokens_mean": round(sum(request["prompt_tokens"] for request in requests) / len(requests), 1),
        "completion_tokens_mean": round(sum(request["completion_tokens"] for request in requests) / len(requests), 1),
    }
