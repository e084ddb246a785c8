"""`edgedistill answer`: a text in, the model's answer out as it comes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click

from ..errors import InvalidInput
from ..llamacpp.runtime import Reply, Runtime
from ..pipeline import load_run
from ..records import Message
from ..report.wording import visible
from ..run import is_run
from ..schema import read_schema
from ..stages.answering import (
    Subject,
    file_subject,
    is_package,
    package_subject,
    run_subject,
    runtime_of,
)

__all__ = ["answer_target", "subject_of"]


def answer_target(
    target: Path,
    text: str | None,
    *,
    lines: bool,
    schema: Path | None,
    system: str | None,
    max_tokens: int | None,
    threads: int,
    as_json: bool,
) -> None:
    """Print the answer to a text, or to each line of standard input; with `as_json` one JSON document an answer."""
    subject = subject_of(target, schema, system)
    if max_tokens is not None:
        subject = replace(subject, max_tokens=max_tokens)
    texts = _texts(text, lines)
    with runtime_of(subject, threads) as runtime:
        runtime.warm_up(subject.max_tokens)
        if subject.states is not None and not runtime.restored:
            click.echo("note: the package's saved state is not for this build; it was computed anew", err=True)
        for one in texts:
            reply = _answer(runtime, subject, one.encode(errors="replace").decode(), as_json)
            if reply.finish_reason == "length":
                click.echo(f"note: cut at {subject.max_tokens} tokens; --max-tokens allows more", err=True)


def subject_of(target: Path, schema: Path | None = None, system: str | None = None) -> Subject:
    """What a path stands for: a package, a run, or a GGUF file, whose schema and system text can be given.

    Raises InvalidInput for anything else.
    """
    if target.is_dir() and is_package(target):
        subject = package_subject(target)
    elif target.is_dir() and is_run(target):
        subject = run_subject(*load_run(target))
    elif target.is_dir() or not target.exists():
        raise InvalidInput(f"{target}: no package, run or GGUF file", "Name one, such as runs/NAME/package/NAME.")
    else:
        return file_subject(target, system, schema)
    if system is not None:
        raise InvalidInput(f"{target}: was trained with its own system text", "Leave --system out, or name the .gguf.")
    return subject if schema is None else replace(subject, schema=read_schema(schema))


def _texts(text: str | None, lines: bool) -> Iterator[str]:
    """The texts to be answered, each as soon as it is there.

    Raises InvalidInput where there is none.
    """
    if lines and text is not None:
        raise InvalidInput("a text and --lines", "Give the text, or lines on standard input.")
    if text is not None:
        return iter((text,))
    if lines:
        return (line.rstrip("\r\n") for line in sys.stdin if line.strip())
    if sys.stdin.isatty():
        raise InvalidInput("no text to answer", 'Add it: edgedistill answer MODEL "text"; or pipe it in.')
    return iter((sys.stdin.read().rstrip("\r\n"),))


def _answer(runtime: Runtime, subject: Subject, text: str, as_json: bool) -> Reply:
    messages = (Message("user", text),)
    if as_json:
        reply = runtime.answer(messages, subject.max_tokens)
        click.echo(json.dumps(_document(reply), ensure_ascii=False))
        return reply
    on_terminal = sys.stdout.isatty()

    def show(piece: str) -> None:
        click.echo(visible(piece) if on_terminal else piece, nl=False)

    reply = runtime.answer(messages, subject.max_tokens, show)
    click.echo()
    return reply


def _document(reply: Reply) -> dict[str, object]:
    found: dict[str, object] = {
        "answer": reply.text,
        "finish_reason": reply.finish_reason,
        "ttft_ms": reply.ttft_ms,
        "e2e_ms": reply.e2e_ms,
        "tokens": reply.tokens,
        "forced_tokens": reply.forced,
        "steps": reply.steps,
        "prompt_tokens": reply.prompt_tokens,
        "shared_tokens": reply.shared_tokens,
    }
    if reply.probability is not None:
        found["probability"] = round(reply.probability, 6)
    return found
