"""What `answer` and `tune` are asked about: a package, a run or a GGUF file, and how it is run here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..chat import with_system
from ..llamacpp.prefix import PrefixCache
from ..llamacpp.runtime import Runtime, RuntimeSettings
from ..llamacpp.tuning import tuned
from ..models import cache_root, check_gguf
from ..recipe import Recipe
from ..records import Message, Tool, read_prompts
from ..report.summary import document
from ..run import Run, cores, file_sha256
from ..schema import read_schema
from .golden import GOLDEN, read_golden, saved_states, weights_of
from .on_offer import device_rule, recipe_tools

__all__ = ["Subject", "file_subject", "kept_tunings", "package_subject", "run_subject", "runtime_of"]

PROVEN_ON = 16  # prompts of a recipe's eval set, on which settings that change answers are tried
ANSWER = 256  # tokens, of a file that no recipe belongs to


@dataclass(frozen=True)
class Subject:
    """A model with what belongs to it: what it is shown first, what its answers must be, and prompts like its own."""

    model: Path
    preamble: tuple[Message, ...]
    schema: dict[str, Any] | None
    max_tokens: int
    prompts: tuple[tuple[Message, ...], ...] = ()
    """Conversations behind the preamble."""
    states: Callable[[], Sequence[PrefixCache]] | None = None
    """Where a package brings the state of its preamble."""
    tools: tuple[Tool, ...] = ()
    """What the model is shown to be on offer."""


def package_subject(folder: Path) -> Subject:
    """What a packaged folder holds.

    Raises InvalidInput for a folder that is none, Unsafe for weights that the gate refuses.
    """
    model, golden = weights_of(folder), read_golden(folder)
    check_gguf(model)
    prompts = tuple(turns[1:] for turns in golden.conversations)
    states = saved_states(folder, model)
    return Subject(model, golden.preamble, golden.schema, golden.max_tokens, prompts, states, golden.tools)


def run_subject(recipe: Recipe, run: Run) -> Subject:
    """What a run has packaged, or else the quant that comes nearest to being accepted.

    Raises EdgeDistillError where the run has no quants yet.
    """
    packed = run.record("package")
    if packed is not None and packed["finished"]:
        return package_subject(run.folder("package") / packed["summary"]["folder"])
    files: dict[str, str] = run.summary("quantize")["files"]
    found = document(recipe, run)
    quant = next((one["quant"] for one in found["candidates"] if one["name"] == found["best"]), None)
    name = files.get(str(quant)) or next(iter(files.values()))
    return recipe_subject(recipe, run.folder("quantize") / name)


def recipe_subject(recipe: Recipe, model: Path) -> Subject:
    """A GGUF file as the student of a recipe."""
    check_gguf(model)
    rows = read_prompts(recipe.file(recipe.evaluate.file))[:PROVEN_ON]
    return Subject(
        model,
        with_system(recipe.student.system, ()),
        device_rule(recipe),
        recipe.evaluate.max_tokens,
        tuple(row.messages for row in rows),
        tools=recipe_tools(recipe) if recipe.tools.student else (),
    )


def file_subject(model: Path, system: str | None = None, schema_file: Path | None = None) -> Subject:
    """A GGUF file by itself; `system` None shows it no system message. Raises what `read_schema` raises."""
    check_gguf(model)
    schema = None if schema_file is None else read_schema(schema_file)
    return Subject(model, () if system is None else with_system(system, ()), schema, ANSWER)


def is_package(path: Path) -> bool:
    """Whether a folder is a packaged model."""
    return (path / GOLDEN).is_file()


def kept_tunings() -> Path:
    """The folder in which the best settings of this machine are kept."""
    return cache_root() / "tuned"


def runtime_of(subject: Subject, threads: int = 0) -> Runtime:
    """The model, loaded with the settings that `tune` found best here, else with every physical core.

    The state of what all prompts share comes from the package, or from the cache of an earlier start. `threads` other
    than 0 is how many compute, whatever was tuned. Raises what `Runtime` raises.
    """
    settings = tuned(subject.model, kept_tunings()) or RuntimeSettings(cores())
    if threads:
        settings = replace(settings, threads=threads, prompt_threads=threads)
    settings = replace(settings, prefixes=lambda: _states(subject))
    return Runtime(subject.model, subject.preamble, subject.schema, settings, subject.tools)


def _states(subject: Subject) -> list[PrefixCache]:
    """Where the state may be: in the package, then in the cache, where one state a model is kept."""
    brought = list(subject.states()) if subject.states is not None else []
    sha256 = brought[0].model_sha256 if brought else file_sha256(subject.model)
    return [*brought, PrefixCache(cache_root() / "prefixes" / sha256[:16], sha256, single=True)]
