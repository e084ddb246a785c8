"""`edgedistill tune`: the fastest settings for a model on this machine, found and kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ..errors import InvalidInput
from ..llamacpp.calibration import BUSY
from ..llamacpp.tuning import Case, tune
from ..recipe import load_recipe
from ..run import cores, orderly_stop
from ..stages.answering import kept_tunings, recipe_subject
from .answer import subject_of
from .progress import Bars

__all__ = ["tune_target"]


def tune_target(target: Path, recipe: Path | None, as_json: bool, quiet: bool) -> None:
    """Measure, keep and print what is fastest; a recipe says what a GGUF file is asked."""
    if recipe is not None and target.is_dir():
        raise InvalidInput(f"{target}: brings its own prompts", "Leave --recipe out, or name the .gguf file.")
    subject = subject_of(target) if recipe is None else recipe_subject(load_recipe(recipe), target)
    case = Case(subject.preamble, subject.schema, subject.max_tokens, subject.prompts)
    with Bars(quiet) as bars, orderly_stop():
        found = tune(subject.model, case, kept_tunings(), bars)
    if as_json:
        click.echo(json.dumps(found))
        return
    for line in _lines(found):
        click.echo(line)


def _lines(found: dict[str, Any]) -> list[str]:
    best, measured = found["settings"], found["measured"]
    request = measured["request_ms"]
    lines = [
        f"threads: {best['threads']} for a step {_times(measured['step_ms'])}, "
        f"{best['prompt_threads']} for the prompt {_times(measured['prompt_ms'])}",
        f"keys and values: {best['kv_type']}, flash attention {best['flash_attention']} {_times(request)}",
        f"micro-batch: {best['micro_batch']} rows {_times(measured['micro_batch_prompt_ms'])}".rstrip(),
    ]
    if found["changed_answers"]:
        lines.append(
            f"not taken, as answers changed or there are none to compare: {', '.join(found['changed_answers'])}"
        )
    if found["busy"] > BUSY:
        lines.append(f"warning: others took {found['busy']:.0%} of the machine meanwhile; tune again when it is quiet")
    lines.append(_guessing(found["speculation"], measured["step_ms_by_rows"]))
    if best["threads"] != cores():
        lines.append(
            f"edgedistill answer runs so from now on; to promise a latency with {best['threads']} threads, and to have "
            f"the packaged server run with them, set bench.threads = {best['threads']} in the recipe"
        )
    return lines


def _times(measured: dict[Any, float]) -> str:
    """Milliseconds by setting.

    >>> _times({1: 10.25, 2: 6.0}), _times({})
    ('(1: 10.2 ms, 2: 6.0 ms)', '')
    """
    return f"({', '.join(f'{option}: {value:.1f} ms' for option, value in measured.items())})" if measured else ""


def _guessing(found: dict[str, Any], curve: dict[int, float]) -> str:
    """Whether guessing tokens ahead pays, with the figures that say so."""
    needed = {drafted: share for drafted, share in found["needed_acceptance"].items() if share is not None}
    how = f"{found['drafted']} tokens" if found["on"] else "off"
    text = f"guessing ahead: {how}; a step of n rows takes {_times(curve)}"
    if not needed:
        return f"{text}, so that not even guesses that always hold give {found['worth_from']} x"
    drafted = min(needed, key=lambda one: needed[one])
    text += f"; {drafted} guessed tokens must hold in {needed[drafted]:.0%} of cases to give {found['worth_from']} x"
    if found["promised"] is None:
        return f"{text}; {found['why']}"
    return (
        f"{text}; here they hold in {found['acceptance']:.0%}, which promises {found['promised']:.2f} x, {found['why']}"
    )
