"""Every conversation of a source as a row of our own, and every record that is none with its place and the reason."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InvalidInput
from ..records import digest
from ..run import file_sha256
from .containers import records, text_files
from .conversation import Conversation
from .formats import FORMATS, Source

__all__ = ["Found", "content", "conversations", "is_own", "named", "row"]

NAMED = 20  # records that are named one by one


@dataclass(frozen=True, slots=True)
class Found:
    """What one record is: a conversation, or a problem; neither where a log's line is no request."""

    where: str
    conversation: Conversation | None = None
    problem: str = ""


def is_own(source: Source) -> bool:
    """Whether the rows are our own, which need no reading from elsewhere."""
    return source.format == "rows"


def conversations(source: Source) -> Iterator[Found]:
    """What each record of a source is, read as it is needed. Not for our own rows.

    Raises what `records` raises.
    """
    reads = FORMATS[source.format]
    for record in records(source.path, source.container):
        if record.problem:
            yield Found(record.where, problem=record.problem)
            continue
        if isinstance(record.value, str) and source.format not in ("text", "log"):
            yield Found(record.where, problem=f"plain text, no record of the format '{source.format}'")
            continue
        try:
            yield Found(record.where, reads(record.value, source.columns))
        except InvalidInput as error:
            yield Found(record.where, problem=error.message)


def named(problems: Sequence[str], count: int) -> str:
    """Bad lines as one message: the first by name, the others as a number.

    >>> named(["a:1: no messages"], 1)
    'a:1: no messages'
    """
    more = [f"and {count - len(problems)} more"] if count > len(problems) else []
    return "\n".join([*problems, *more])


def row(found: Conversation, where: str, kind: str) -> dict[str, Any]:
    """A conversation as a row of a prompt file; what is no part of the prompt is under `_ed`."""
    own: dict[str, Any] = {"source": where, "format": kind}
    if found.system:
        own["system"] = found.system
    if found.answer:
        own["answer"] = found.answer
    made: dict[str, Any] = {"messages": found.messages}
    if found.tools:
        made["tools"] = found.tools
    if found.tags:
        made["tags"] = list(found.tags)
    return {**made, "_ed": own}


def content(path: Path) -> str:
    """A digest of a file's content, or of a folder's text files with their names."""
    if path.is_dir():
        return digest([[file.relative_to(path).as_posix(), file_sha256(file)] for file in text_files(path)])
    return file_sha256(path)
