"""`edgedistill bench`: the stage of a recipe; or the latency of a run's quants, any GGUF files or a server."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from ..chat import with_system
from ..contract import BenchSettings
from ..errors import GateMissed, InvalidInput
from ..models import check_gguf
from ..pipeline import load_run
from ..recipe import Recipe, TeacherSettings, load_recipe
from ..records import Prompt, iter_prompts
from ..report.summary import document
from ..report.wording import milliseconds
from ..run import Run, file_sha256, is_run, orderly_stop
from ..stages.bench import compare, make_trial, time_all
from ..stages.candidates import Candidate
from ..stages.lengths import distinct, made_up
from .progress import Bars
from .run import run_stage
from .target import target_ms

__all__ = ["BenchOptions", "bench_command", "bench_targets"]

URL = re.compile(r"https?://", re.IGNORECASE)
SHOWN = {"e2e": "end to end", "ttft": "first text"}


@dataclass(frozen=True)
class BenchOptions:
    """What the command line says instead of a recipe; None where it says nothing."""

    recipe: Path | None
    prompts: Path | None
    vs: str | None
    model: str | None
    api_key_env: str
    target: str | None
    settings: dict[str, Any]
    """Keys of `[bench]`."""

    def changed(self) -> dict[str, Any]:
        """The keys of `[bench]` that are said."""
        found = {key: value for key, value in self.settings.items() if value is not None}
        if self.target is not None:
            found["target_ms"] = target_ms(self.target)
        return found


def bench_command(targets: Sequence[str], **flags: Any) -> int:
    """What the command line asks for; the exit code."""
    names = ("metric", "percentile", "requests", "cache", "threads", "prompt_tokens", "output_tokens")
    settings = {name: flags.pop(name) for name in names}
    if settings["percentile"] is not None:
        settings["percentile"] = int(settings["percentile"])
    own = {name: flags.pop(name) for name in ("recipe", "prompts", "vs", "model", "api_key_env", "target")}
    return bench_targets(targets, BenchOptions(**own, settings=settings), **flags)


def bench_targets(targets: Sequence[str], options: BenchOptions, as_json: bool, quiet: bool, **where: Any) -> int:
    """Print the figures; return 0 where every target passes, else the code of a gate missed.

    The stage of a recipe only measures: it returns 0. Its verdict is that of `run`.
    """
    changed = options.changed()
    plain = not changed and options.prompts is None and options.vs is None
    if plain and len(targets) == 1 and _is_recipe(targets[0]):
        run_stage(Path(targets[0]), "bench", as_json, quiet, **where)
        return 0
    recipe, run = _recipe_of(targets, options, where["runs"], where["offline"])
    people = [one for target in targets for one in _candidates(target, recipe, run, options)]
    settings = BenchSettings.model_validate({**(recipe.bench.model_dump() if recipe else {}), **changed})
    people = _named_apart(_against(people, targets, recipe, run, options) if options.vs else people)
    _refuse_cold_servers(people, settings)
    source = _source(targets[0], recipe, options, settings)
    trial = make_trial(people, settings, recipe, source)
    with Bars(quiet) as bars, orderly_stop():
        result = time_all(people, trial, bars, together=options.vs is not None)
    judged = result["candidates"]
    if options.vs:
        result["comparison"] = compare(result, settings.metric)
        judged = judged[:1]
    result["verdict"] = _overall([one["verdict"] for one in judged])
    click.echo(json.dumps(result)) if as_json else _print(result, settings)
    return 0 if result["verdict"] == "pass" else GateMissed.exit_code


def _is_recipe(target: str) -> bool:
    return not URL.match(target) and not target.endswith(".gguf") and not is_run(Path(target))


def _recipe_of(
    targets: Sequence[str], options: BenchOptions, runs: Path, offline: bool
) -> tuple[Recipe | None, Run | None]:
    """The recipe whose prompts and schema are used, and the run that is named, if one is."""
    named = [one for one in targets if not URL.match(one) and not one.endswith(".gguf")]
    if len(named) + (options.recipe is not None) > 1:
        raise InvalidInput(f"{named[-1]}: one recipe or run at a time", "Name it alone, or with GGUF files.")
    if named:
        alone = len(targets) == 1 or not _is_recipe(named[0])
        if not alone:
            return load_recipe(Path(named[0])), None
        folder = Path(named[0]) if is_run(Path(named[0])) else runs / load_recipe(Path(named[0])).name
        return load_run(folder, offline)
    return (load_recipe(options.recipe), None) if options.recipe else (None, None)


def _candidates(target: str, recipe: Recipe | None, run: Run | None, options: BenchOptions) -> list[Candidate]:
    """Whom a target stands for: a file, a server, the quants of a run; none for a recipe beside files."""
    shown = with_system(recipe.student.system if recipe else "", ())
    if URL.match(target):
        if options.model is None:
            raise InvalidInput(f"{target}: which of the server's models?", "Add --model ID.")
        asked = TeacherSettings(
            backend="openai", model=options.model, url=target.rstrip("/"), api_key_env=options.api_key_env
        )
        return [Candidate(f"{options.model} at {target}", "student", None, None, "", shown, "student", asked)]
    if target.endswith(".gguf"):
        files = [Path(target)]
    elif run is None:
        return []
    else:
        files = [run.folder("quantize") / name for name in run.summary("quantize")["files"].values()]
    for path in files:
        check_gguf(path)
    return [Candidate(path.name, "student", "", path, file_sha256(path), shown, "student") for path in files]


def _against(
    people: list[Candidate], targets: Sequence[str], recipe: Recipe | None, run: Run | None, options: BenchOptions
) -> list[Candidate]:
    """The target and what it is compared with; a run stands for the quant that its verdict names."""
    assert options.vs is not None
    if _is_recipe(options.vs) or is_run(Path(options.vs)):
        raise InvalidInput(f"--vs {options.vs}: neither a GGUF file nor a server", "Name one of the run's files.")
    if len(people) > 1 and len(targets) == 1 and recipe is not None and run is not None:
        found = document(recipe, run)
        wanted = next((one["sha256"] for one in found["candidates"] if one["name"] == found["best"]), None)
        people = [one for one in people if one.sha256 == wanted] or people
    if len(people) != 1:
        raise InvalidInput(f"--vs compares two, but there are {len(people)} to compare with it", "Name one file.")
    return [*people, *_candidates(options.vs, recipe, None, options)]


def _named_apart(people: list[Candidate]) -> list[Candidate]:
    """The candidates with the whole path as a name where two files have the same one."""
    names = [one.name for one in people]
    return [
        one if one.path is None or names.count(one.name) == 1 else replace(one, name=str(one.path)) for one in people
    ]


def _refuse_cold_servers(people: Iterable[Candidate], settings: BenchSettings) -> None:
    for one in people:
        if one.asked is not None and settings.cache == "cold":
            raise InvalidInput(f"{one.name}: a server cannot be started anew for each request", "Use --cache warm.")


def _source(
    target: str, recipe: Recipe | None, options: BenchOptions, settings: BenchSettings
) -> Iterable[Prompt] | None:
    """Where the prompts are from; None is the recipe's own."""
    if options.prompts is not None:
        return distinct(iter_prompts(options.prompts))
    if recipe is None and settings.prompt_tokens is None:
        raise InvalidInput(
            f"{target}: whose prompts shall time it?",
            "Add --recipe RECIPE or --prompts FILE, or --prompt-tokens N for made-up ones; or name a run first.",
        )
    return made_up(0) if recipe is None else None


def _overall(verdicts: Sequence[str]) -> str:
    """Of several verdicts the worst."""
    return next((one for one in ("fail", "need more") if one in verdicts), "pass")


def _print(result: dict[str, Any], settings: BenchSettings) -> None:
    for one in result["candidates"]:
        click.echo(f"{one['name']}: {_verdict(one, settings)}")
        e2e, ttft = one["latency_ms"]["e2e"], one["latency_ms"]["ttft"]
        rate = f"; {one['tokens_per_s']} tokens/s" if one["tokens_per_s"] else ""
        click.echo(
            f"  end to end p50 {milliseconds(e2e['p50'])}, p95 {milliseconds(e2e['p95'])}; "
            f"first text p50 {milliseconds(ttft['p50'])}{rate}"
        )
        told = one["drift"]
        if told["drifting"] or told["dependent"]:
            click.echo(
                f"  warning: the machine was not steady (last third {told['ratio']} x the first, autocorrelation "
                f"{told['autocorrelation']}): the verdict is less sure than it says"
            )
    found = result.get("comparison")
    if found:
        low, high = found["ci95"]
        click.echo(
            f"{found['candidate']} takes {found['ratio_of_medians']:.3f} x as long as {found['against']} "
            f"(95 % interval {low:.3f}-{high:.3f}; medians of {found['pairs']} pairs, {SHOWN[settings.metric]})"
        )


def _verdict(one: dict[str, Any], settings: BenchSettings) -> str:
    percentile, metric = f"p{settings.percentile}", settings.metric
    high = one["bounds"][metric][percentile][1]
    value = milliseconds(one["latency_ms"][metric][percentile])
    bound = f", surely at most {milliseconds(high)}" if high is not None else ""
    text = (
        f"{one['verdict']}. {percentile} {SHOWN[metric]} is {value}{bound}; "
        f"the target is {milliseconds(settings.target_ms[1])}; {one['over']} of {one['decided_at'] or one['n']} over it"
    )
    if one["verdict"] == "need more":
        text += f"; {one['needed']} more, none over it, would be a pass: --requests {one['n'] + one['needed']}"
    return text
