"""`edgedistill fit`: what a model will take on this machine, or on another one by its profile, before it is trained."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from ..errors import InvalidInput, MissingRequirement
from ..llamacpp.calibration import BUSY, Profile, calibrate, read_profile, write_profile
from ..llamacpp.shapes import Shape, mixture, types_of_gguf
from ..models import Identity, identify
from ..recipe import load_recipe
from ..report.wording import megabytes
from ..run import orderly_stop
from ..stages.fitting import (
    QUANTS,
    Ask,
    ask_of_recipe,
    catalogue_types,
    fit,
    kept_profiles,
    shape_of_identity,
    types_asked,
    what_would_do,
)
from ..stages.grammar_cost import choosing_ns
from .progress import Bars
from .target import target_ms

__all__ = ["FitOptions", "fit_target"]

PROMPT, OUTPUT, TARGET = 64, 32, 500.0  # of a model that no recipe belongs to


@dataclass(frozen=True)
class FitOptions:
    """What the command line says of the machine and the request; None where it says nothing."""

    device: Path | None
    save: Path | None
    prompt_tokens: int | None
    output_tokens: int | None
    target: str | None
    quants: tuple[str, ...]


def fit_target(target: str, options: FitOptions, as_json: bool, quiet: bool, offline: bool) -> None:
    """Print what each quant will take, and what would meet the target where none does."""
    identity, ask, quants = _asked(target, options, offline)
    shape = shape_of_identity(identity)
    if shape is None:
        raise MissingRequirement(f"{target}: not on this machine", f"Fetch it first: edgedistill fetch {target}")
    types = {quant: mixture(shape, quant) for quant in quants}
    if identity.format == "gguf" and identity.path is not None and target.endswith(".gguf"):
        types = {"as it is": types_of_gguf(identity.path), **types}
    profile = _profile(options, shape, types, quiet)
    if options.device is None and _is_recipe(Path(target)):
        profile = replace(profile, choosing=choosing_ns(load_recipe(Path(target)), identity))
    found = fit(shape, types, profile, ask)
    if as_json:
        click.echo(json.dumps(found))
        return
    for line in _lines(found):
        click.echo(line)


def _asked(target: str, options: FitOptions, offline: bool) -> tuple[Identity, Ask, Sequence[str]]:
    """The model, the request and the quants."""
    if _is_recipe(Path(target)):
        recipe = load_recipe(Path(target))
        identity = identify(recipe.reference("student"), ("hf", "gguf"), offline)
        ask, quants = ask_of_recipe(recipe, identity), types_asked(recipe)
    else:
        identity = identify(target, ("hf", "gguf"), offline)
        ask, quants = Ask(PROMPT, OUTPUT, TARGET), QUANTS
    ask = replace(ask, prompt=options.prompt_tokens or ask.prompt, output=options.output_tokens or ask.output)
    if options.target is not None:
        ask = replace(ask, limit_ms=target_ms(options.target)[1])
    return identity, ask, options.quants or quants


def _is_recipe(path: Path) -> bool:
    return path.suffix == ".toml" or (path / "recipe.toml").is_file()


def _profile(options: FitOptions, shape: Shape, types: dict[str, dict[str, str]], quiet: bool) -> Profile:
    """The profile of the other machine, or of this one with all types that are asked about."""
    if options.device is not None:
        if options.save is not None:
            raise InvalidInput("--device and --save", "Save a profile on the machine that it is of.")
        return read_profile(options.device)
    quants = [quant for quant in types if quant != "as it is"]
    wanted = {kind for one in types.values() for kind in one.values()} | catalogue_types(quants)
    with Bars(quiet) as bars, orderly_stop():
        profile = calibrate(wanted, kept_profiles(), bars)
    if options.save is not None:
        write_profile(profile, options.save)
    return profile


def _lines(found: dict[str, Any]) -> list[str]:
    ask, machine = found["request"], found["machine"]
    shared = f" behind {ask['shared']} kept ones" if ask["shared"] else ""
    lines = [
        f"{found['model']}, {found['parameters'] / 1e6:,.0f} M weights; {machine['cpu']}, {machine['threads']} threads",
        f"a prompt of {ask['prompt']} tokens{shared}, {ask['output']} out, within {ask['limit_ms']:g} ms:",
    ]
    width = max(len(row["quant"]) for row in found["quants"])
    lines += [f"  {row['quant']:{width}}  {_row(row)}" for row in found["quants"]]
    if found["choosing_ms"]:
        lines.append(f"  with {found['choosing_ms']:.2f} ms a token for holding answers to the schema")
    if machine["busy"] > BUSY:
        lines.append(f"  warning: others took {machine['busy']:.0%} of the machine while it was measured")
    if all(row["meets"] == "no" for row in found["quants"]):
        lines.append(f"  {what_would_do(found)}")
    return lines


def _row(row: dict[str, Any]) -> str:
    size, memory = megabytes(row["size_bytes"]), megabytes(row["memory_bytes"])
    return (
        f"{size}, {memory} in memory; first text {row['ttft_ms']:.0f} ms, {row['tpot_ms']:.1f} ms a token, "
        f"end to end {row['e2e_ms']:.0f} ms: {MEETS[row['meets']]}"
    )


MEETS = {"yes": "in time", "close": "too close to say", "no": "too slow"}
