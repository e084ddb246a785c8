"""Files of rows, written as the rows come and whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..run import whole_file

__all__ = ["Write", "rows_file"]

Write = Callable[[dict[str, Any]], None]


@contextmanager
def rows_file(path: Path) -> Iterator[Write]:
    """What takes the rows of a JSONL file; the file has its name once the block has ended without an error.

    Raises Stopped where the disk is full, EdgeDistillError where the file cannot be written.
    """
    with whole_file(path) as file:

        def write(row: dict[str, Any]) -> None:
            file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")

        yield write
