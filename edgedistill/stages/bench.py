"""bench: how long the teacher and each quant take, and whether that proves the target."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from ..contract import BenchSettings, EvaluateSettings
from ..hardware import governor
from ..llamacpp.timing import TimedModel, TimingTask, token_counter
from ..models.content import size_of
from ..recipe import Recipe
from ..records import Prompt
from ..run import Progress, Run, cores, machine, stop_if_asked, write_whole
from ..teachers.streaming import StreamedModel, StreamingTask
from .candidates import Candidate, answering, greedy, quant_candidates, teacher_candidates
from .latency import CONFIDENCE, PAIRS, bounds, drift, needed, percentiles, plan_for, ratio_of_medians
from .lengths import of_length, recipe_prompts, timed_prompts
from .on_offer import device_rule, held_to, shown_to
from .turns import Contender, Rules, Timed, Timing, fit_together, take_turns

__all__ = ["Trial", "bench", "compare", "make_trial", "time_all"]

BACKEND_REQUESTS = 20  # of a teacher that is no GGUF: its time is money or patience, and only the median is compared
THROUGH_BACKEND = f"through the backend, one at a time, on {BACKEND_REQUESTS} prompts"
CACHES = {
    "cached-prefix": "the model is loaded, and what all prompts share is kept in the KV cache",
    "warm": "the model is loaded, every prompt is computed whole",
    "cold": "a new process for each request, which loads the model (its file may be in the system's cache)",
}


@dataclass(frozen=True)
class Trial:
    """What every candidate is asked, and how: the first `settings.warmup` prompts are not counted."""

    settings: BenchSettings
    prompts: Sequence[Prompt]
    schema: dict[str, Any] | None
    max_tokens: int
    seed: int
    gpu_layers: int = -1
    scratch: Path | None = None
    """Where prefix states may be kept, if anywhere."""
    shown_to: Callable[[Literal["teacher", "student"]], Callable[[Prompt], Prompt]] | None = None
    """A prompt as a teacher or a student sees it; left out, both see it as it is."""

    def asked(self, person: Candidate) -> Sequence[Prompt]:
        """The prompts as a candidate sees them."""
        return self.prompts if self.shown_to is None else list(map(self.shown_to(person.prompt), self.prompts))

    @property
    def threads(self) -> int:
        return self.settings.threads or cores()


def bench(recipe: Recipe, run: Run, out: Path, progress: Progress) -> dict[str, Any]:
    """Write `bench.json`."""
    people = [*quant_candidates(recipe, run), *teacher_candidates(recipe, run, progress)]
    trial = make_trial(people, recipe.bench, recipe, scratch=run.scratch)
    backed = [one for one in people if one.asked is not None]
    result = time_all([one for one in people if one.asked is None], trial, progress)
    settings = trial.settings
    if trial.schema and not settings.output_tokens and not settings.skip_forced and settings.cache != "cold":
        students = [one for one in people if one.kind == "student"]
        skipped = {one.name: _with_skipping(one, trial, progress) for one in students}
        result["candidates"] = [{**one, "forced_skipped": skipped.get(one["name"])} for one in result["candidates"]]
    result["candidates"] += [_through_backend(recipe, one, trial, progress) for one in backed]
    order = [one.name for one in people]
    result["candidates"].sort(key=lambda one: order.index(one["name"]))
    write_whole(out / "bench.json", json.dumps(result, indent=1).encode())
    return {person["name"]: person["latency_ms"]["e2e"] for person in result["candidates"]}


def make_trial(
    people: Sequence[Candidate],
    settings: BenchSettings,
    recipe: Recipe | None,
    source: Iterable[Prompt] | None = None,
    scratch: Path | None = None,
) -> Trial:
    """What the candidates are asked: the recipe's own prompts, or those of another source; under its schema.

    Raises InvalidInput where the prompts are too few.
    """
    if source is None:
        assert recipe is not None
        source = recipe_prompts(recipe)
    seed = recipe.seed if recipe else 0
    prompts = timed_prompts(source, settings, seed, str(recipe.path) if recipe else people[0].name)
    if recipe is not None:  # a stated length is of what the student sees
        prompts = list(map(shown_to(recipe, "student"), prompts))
    evaluated = recipe.evaluate if recipe else EvaluateSettings()
    return Trial(
        settings,
        as_stated(prompts, settings, people),
        device_rule(recipe) if recipe else None,
        settings.output_tokens or evaluated.max_tokens,
        seed,
        recipe.teach.gpu_layers if recipe else -1,
        scratch,
        partial(shown_to, recipe) if recipe else None,
    )


def as_stated(prompts: list[Prompt], settings: BenchSettings, people: Sequence[Candidate]) -> list[Prompt]:
    """The prompts in the length that is stated, by the tokens of the first GGUF, else by four letters a token."""
    if settings.prompt_tokens is None:
        return prompts
    for person in people:
        if person.asked is None:
            with token_counter(person.gguf, person.preamble) as count:
                return of_length(prompts, settings.prompt_tokens, count)
    shown = sum(len(message.content) for message in people[0].preamble)
    return of_length(prompts, settings.prompt_tokens, lambda prompt: (shown + len(prompt.text)) // 4)


def time_all(people: Sequence[Candidate], trial: Trial, progress: Progress, together: bool = False) -> dict[str, Any]:
    """The figures of GGUF files and servers, timed in turns; `together`, each until all have their verdict."""
    contenders = [
        Contender(one.name, 0 if one.path is None else size_of(one.path), _opener(one, trial)) for one in people
    ]
    alone = not fit_together([one.size_bytes for one in contenders])
    most = len(trial.prompts) - trial.settings.warmup
    rules = Rules(trial.settings, plan_for(trial.settings.percentile, most), trial.seed, together, alone)
    timings = take_turns(contenders, rules, progress)
    return {
        "conditions": {**_conditions(trial), "order": "turns of several requests" if alone else "request by request"},
        "machine": {**machine(), "governor": governor()},
        "candidates": [
            {**person.record(), **_figures(timing, rules)} for person, timing in zip(people, timings, strict=True)
        ],
    }


def compare(result: dict[str, Any], metric: str) -> dict[str, Any]:
    """How the first of two candidates stands to the second on the same prompts: the ratio of their medians."""
    one, other = result["candidates"]
    pairs = list(zip(one["times_ms"][metric], other["times_ms"][metric], strict=False))
    ratio, interval = ratio_of_medians([mine for mine, _ in pairs], [theirs for _, theirs in pairs])
    return {
        "candidate": one["name"],
        "against": other["name"],
        "metric": metric,
        "pairs": len(pairs),
        "ratio_of_medians": ratio,
        "ci95": list(interval),
    }


def _with_skipping(person: Candidate, trial: Trial, progress: Progress) -> dict[str, Any]:
    """How `edgedistill answer`, which appends forced tokens in one chunk, stands to decoding them one by one."""
    warmup, order = trial.settings.warmup, random.Random(trial.seed)
    pairs = min(PAIRS, len(trial.prompts) - warmup)
    taken: dict[bool, list[float]] = {False: [], True: []}
    with TimedModel(_task(person, trial)) as timed:
        for number in range(warmup + pairs):
            for jump in order.sample((False, True), 2):
                taken[jump].append(timed.ask(number, jump)["e2e_ms"])
                stop_if_asked()
            progress(f"timing {person.name}, forced tokens skipped", number + 1, warmup + pairs)
    plain, skipping = taken[False][warmup:], taken[True][warmup:]
    ratio, interval = ratio_of_medians(skipping, plain, trial.seed)
    return {"e2e_ms": percentiles(skipping), "ratio_of_medians": ratio, "ci95": list(interval), "pairs": pairs}


def _opener(person: Candidate, trial: Trial) -> Callable[[], Timed]:
    """What loads the candidate, when its turn comes."""
    if person.asked is None:
        return partial(TimedModel, _task(person, trial))
    endless = trial.settings.output_tokens is not None
    task = StreamingTask(
        asked=person.asked,
        preamble=person.preamble,
        schema=None if endless else held_to(trial.schema, person.asked),
        prompts=trial.asked(person),
        max_tokens=trial.max_tokens,
        endless=endless,
        reuses_prefix=trial.settings.cache == "cached-prefix",
    )
    return partial(StreamedModel, task)


def _task(person: Candidate, trial: Trial) -> TimingTask:
    """What a GGUF is asked."""
    endless = trial.settings.output_tokens is not None
    return TimingTask(
        model=person.gguf,
        preamble=person.preamble,
        schema=None if endless else trial.schema,
        prompts=trial.asked(person),
        max_tokens=trial.max_tokens,
        threads=trial.threads,
        gpu_layers=trial.gpu_layers,
        sha256=person.sha256,
        scratch=trial.scratch,
        cache=trial.settings.cache,
        endless=endless,
        skips_forced=trial.settings.skip_forced,
    )


def _conditions(trial: Trial) -> dict[str, Any]:
    settings = trial.settings
    if settings.output_tokens:
        decoding = f"token by token, {settings.output_tokens} of them whatever they say"
    elif trial.schema and settings.skip_forced:
        decoding = "with the tokens that the grammar forces in one chunk, as edgedistill answer decodes GGUF files"
    else:
        grammar = " under the grammar" if trial.schema else ""
        decoding = f"token by token{grammar}, as llama-server and Ollama decode"
    return {
        "threads": trial.threads,
        "requests": len(trial.prompts) - settings.warmup,
        "warmup": settings.warmup,
        "target_ms": list(settings.target_ms),
        "metric": settings.metric,
        "percentile": settings.percentile,
        "confidence": CONFIDENCE,
        "decoding": decoding,
        "cache": f"{settings.cache}: {CACHES[settings.cache]}",
        "prompt_tokens": settings.prompt_tokens,
    }


def _figures(timing: Timing, rules: Rules) -> dict[str, Any]:
    """What bench.json says of a candidate that was timed request by request."""
    times = {name: [record[f"{name}_ms"] for record in timing.requests] for name in ("e2e", "ttft")}
    mine, percentile = times[rules.settings.metric], f"p{rules.plan.percentile}"
    count = timing.decided_at or len(timing.requests)
    # bounds hold where the verdict fell; what is asked behind it, for the sake of pairs, is in the percentiles
    within = {name: {percentile: list(bounds(values[:count], rules.plan))} for name, values in times.items()}
    open_end = timing.verdict == "need more"
    energy = [record["energy_j"] for record in timing.requests if record["energy_j"] is not None]
    steps = [record["tpot_ms"] for record in timing.requests if record["tpot_ms"] is not None]
    return {
        "load_ms": timing.load.get("load_ms"),
        "shared_tokens": timing.load.get("shared_tokens"),
        "runtime": timing.load.get("runtime"),
        "peak_memory_bytes": timing.peak_memory_bytes,
        "n": len(timing.requests),
        "verdict": timing.verdict,
        "decided_at": timing.decided_at,
        "over": timing.over,
        "needed": needed(rules.plan, count, timing.over) if open_end else 0,
        "bounds": within,
        "drift": drift(mine),
        "latency_ms": {name: percentiles(values) for name, values in (("ttft", times["ttft"]), ("e2e", times["e2e"]))},
        "tpot_ms": percentiles(steps) if steps else None,
        "tokens_per_s": round(1000 * len(steps) / sum(steps), 1) if steps else None,
        **_means(timing.requests),
        "energy_j_mean": round(sum(energy) / len(energy), 3) if energy else None,
        "times_ms": times,
    }


def _through_backend(recipe: Recipe, person: Candidate, trial: Trial, progress: Progress) -> dict[str, Any]:
    """The figures of a teacher that is no GGUF; its backend does not tell when the first token came."""
    warmup = trial.settings.warmup
    asked = trial.asked(person)[: warmup + BACKEND_REQUESTS]
    counted = {prompt.id for prompt in asked[warmup:]}
    # answers are written out even where they are a closed set: that is what the teacher would take in its place
    settings = greedy(recipe).model_copy(update={"slots": 1, "closed": False})
    records: list[dict[str, Any]] = []
    assert trial.scratch is not None
    rule = held_to(trial.schema, person.asked)
    with answering(person.task(rule, trial.scratch, asked[0].tools), asked, settings, recipe.seed) as answers:
        for number, completion in enumerate(answers, start=1):
            progress(f"timing {person.name}", number, len(asked))
            stop_if_asked()
            if completion.prompt_id in counted:
                records.append(
                    {
                        "e2e_ms": round(completion.seconds * 1000, 3),
                        "prompt_tokens": completion.prompt_tokens,
                        "completion_tokens": completion.completion_tokens,
                    }
                )
    e2e = percentiles([record["e2e_ms"] for record in records])
    nothing = ("load_ms", "shared_tokens", "peak_memory_bytes", "tokens_per_s", "tpot_ms", "verdict", "bounds", "drift")
    return {
        **person.record(),
        **dict.fromkeys(nothing),
        "timed": THROUGH_BACKEND,
        "n": len(records),
        "latency_ms": {"ttft": dict.fromkeys(e2e), "e2e": e2e},
        **_means(records),
    }


def _means(records: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """The mean token counts; None where not every answer told its own."""
    found: dict[str, float | None] = {}
    for name in ("prompt_tokens", "completion_tokens"):
        counts = [record[name] for record in records if record[name] is not None]
        found[f"{name}_mean"] = round(sum(counts) / len(counts), 1) if len(counts) == len(records) else None
    return found
