"""What a judge is given besides the answers: where its verdicts are kept, and who is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..run import Progress
from ..store import Store

__all__ = ["Desk"]


@dataclass(frozen=True)
class Desk:
    """A store for the verdicts, so that a stopped evaluation goes on; a folder whose loss costs only time."""

    store: Store
    offline: bool
    scratch: Path
    progress: Progress
