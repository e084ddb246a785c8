"""`edgedistill quantize`: the stage of a recipe, or any 16-bit GGUF file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ..contract import QuantizeSettings
from ..errors import InvalidInput
from ..models import check_gguf
from ..run import orderly_stop
from ..stages.any_gguf import quantize_gguf, texts_of
from .progress import Bars
from .run import run_stage

__all__ = ["quantize_target"]

OPTIONS = ("types", "text", "prompts", "growth", "out")


def quantize_target(target: Path, **flags: Any) -> None:
    """Run the stage, or write the sizes of a file and print what each has lost."""
    options = {name: flags.pop(name) for name in OPTIONS}
    if target.suffix != ".gguf":
        given = [f"--{name}" for name, value in options.items() if value is not None]
        if given:
            raise InvalidInput(f"{given[0]} is for a .gguf file; a recipe says it itself", "Leave it out.")
        run_stage(target, "quantize", **flags)
        return
    check_gguf(target)
    settings = _settings(options)
    with Bars(flags["quiet"]) as bars, orderly_stop():
        texts = texts_of(target, options["text"], options["prompts"])
        found = quantize_gguf(target, options["out"] or target.parent, settings, texts, bars)
    if flags["as_json"]:
        click.echo(json.dumps(found, ensure_ascii=False))
        return
    for name, path in found["files"].items():
        click.echo(f"{name}: {path}, {_figures(found['quality'][name])}")
    for name in set(found["quality"]) - set(found["files"]):
        click.echo(f"{name}: not kept, {_figures(found['quality'][name])}")


def _settings(options: dict[str, Any]) -> QuantizeSettings:
    """What the options ask for, held to the rules of a recipe; without texts there is no importance matrix."""
    has_texts = options["text"] is not None or options["prompts"] is not None
    wanted: dict[str, Any] = {"imatrix": has_texts}
    if options["types"] is not None:
        names = tuple(name.strip() for name in options["types"].split(","))
        wanted["types"] = "auto" if names == ("auto",) else names
    if options["growth"] is not None:
        wanted["growth"] = options["growth"]
    if not has_texts and (wanted.get("types") == "auto" or wanted.get("growth", 1.0) > 1):
        raise InvalidInput("--types auto and --growth measure on texts", "Add --text FILE or --prompts FILE.")
    return QuantizeSettings.of_options(**wanted)


def _figures(one: dict[str, Any]) -> str:
    lost = one.get("f16_quant")
    size = f"{one['bytes'] / 1e6:,.0f} MB"
    if lost is None:
        return f"{size}; add --text or --prompts to know what it lost"
    speed = f", {one['token_ms']:.1f} ms a token" if "token_ms" in one else ""
    return f"{size}{speed}, KL {lost['mean']:.4f} nats (99 % {lost['p99']:.3f}), same token {lost['top1']:.1%}"
