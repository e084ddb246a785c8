"""Files of rows, written as the rows come and whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..run import no_room, sync_folder

__all__ = ["rows_file"]

Write = Callable[[dict[str, Any]], None]


@contextmanager
def rows_file(path: Path) -> Iterator[Write]:
    """What takes the rows of a JSONL file; the file has its name once the block has ended without an error.

    Raises Stopped where the disk is full, EdgeDistillError where the file cannot be written.
    """
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        with partial.open("wb") as file:

            def write(row: dict[str, Any]) -> None:
                try:
                    file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
                except OSError as error:
                    raise no_room(path, error) from error

            yield write
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        sync_folder(path.parent)
    except OSError as error:
        raise no_room(path, error) from error
    finally:
        partial.unlink(missing_ok=True)
