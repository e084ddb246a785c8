"""Progress on standard error: a bar on a terminal, one line a stage elsewhere, nothing when quiet."""

from __future__ import annotations

import sys
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

__all__ = ["Bars"]


class Bars:
    """The callback that stages report to. Use it as a context manager."""

    def __init__(self, quiet: bool) -> None:
        console = Console(stderr=True)
        self._shown = not quiet
        self._last = ""
        self._task: TaskID | None = None
        self._bars = (
            Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=console,
            )
            if console.is_terminal and not quiet
            else None
        )

    def __enter__(self) -> Bars:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        phase = what.partition(" (")[0]
        if self._bars is not None:
            if phase != self._last or self._task is None:
                self._task = self._bars.add_task(what, total=total)
            self._bars.update(self._task, description=what, completed=done, total=total)
        elif self._shown and phase != self._last:
            sys.stderr.write(f"{phase}\n")
            sys.stderr.flush()
        self._last = phase
