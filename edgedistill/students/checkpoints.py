"""Training state that survives a kill: a checkpoint is a folder that is whole or not there.

`step-N/` holds trainable weights and optimizer state as safetensors, the step, the metrics so far and the random state,
and `MANIFEST.sha256` over all of them. It is written beside its place and renamed; resuming takes the newest one whose
manifest verifies.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..run import file_sha256, no_room, sync_folder, write_whole

__all__ = ["newest", "save"]

MANIFEST = "MANIFEST.sha256"
KEPT = 2


def save(folder: Path, step: int, state: dict[str, Any], write_tensors: Callable[[Path], None]) -> None:
    """Write `folder/step-N` whole, then remove all but the last two.

    Raises Stopped where the disk is full; older checkpoints stay.
    """
    final = folder / f"step-{step:07d}"
    partial = folder / f"{final.name}.partial-{os.getpid()}"
    partial.mkdir(parents=True, exist_ok=True)
    try:
        write_tensors(partial)
        (partial / "state.json").write_text(json.dumps({"step": step, **state}), encoding="utf-8")
        for path in sorted(partial.iterdir()):
            with path.open("rb") as file:
                os.fsync(file.fileno())
        sums = "".join(f"{file_sha256(path)}  {path.name}\n" for path in sorted(partial.iterdir()))
        write_whole(partial / MANIFEST, sums.encode())
        if final.exists():
            shutil.rmtree(final)
        os.replace(partial, final)
        sync_folder(folder)
    except OSError as error:
        raise no_room(final, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    for old in _steps(folder)[:-KEPT]:
        shutil.rmtree(old)


def newest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest whole checkpoint and its state, or None."""
    for path in reversed(_steps(folder)):
        if _is_whole(path):
            state: dict[str, Any] = json.loads((path / "state.json").read_text(encoding="utf-8"))
            return path, state
    return None


def _steps(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if ".partial-" not in path.name)


def _is_whole(path: Path) -> bool:
    manifest = path / MANIFEST
    if not manifest.is_file():
        return False
    lines = manifest.read_text(encoding="utf-8", errors="replace").splitlines()
    found = sorted(f"{file_sha256(file)}  {file.name}" for file in path.iterdir() if file.name != MANIFEST)
    return bool(found) and sorted(lines) == found
