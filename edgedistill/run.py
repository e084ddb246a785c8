"""A run: the folder one recipe fills, one sub-folder a stage.

Each sub-folder holds a `stage.json`. It is written when the stage begins, with the key of everything the stage depends
on, and again, last of all, when it ends, with the checksums of the files it left. A path that exists proves nothing.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol, TypeVar

from .errors import EdgeDistillError, Stopped

__all__ = [
    "Progress",
    "Run",
    "file_sha256",
    "free_space",
    "on_each_core",
    "open_run",
    "stop_if_asked",
    "sweep",
    "whole_file",
    "write_whole",
]

Work = TypeVar("Work")
Done = TypeVar("Done")
State = Literal["missing", "partial", "done", "stale"]
STAGE_FILE = "stage.json"
RECORDED = (
    "edgedistill",
    "llama-cpp-python",
    "torch",
    "transformers",
    "peft",
    "mlx",
    "mlx-lm",
    "gguf",
    "llguidance",
    "numpy",
)


class Progress(Protocol):
    """What a stage tells whoever watches: `what` is at `done` of `total`."""

    def __call__(self, what: str, done: int, total: int) -> None: ...


def write_whole(path: Path, data: bytes) -> None:
    """Write whole or not at all, in a folder that is made where it is not there. Raises what `whole_file` raises."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise no_room(path, error) from error
    with whole_file(path) as file:
        file.write(data)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write to that has its name once the block has ended without an error: a reader never sees half of it.

    Raises EdgeDistillError that names the file where the disk is full or not writable.
    """
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        sync_folder(path.parent)
    except OSError as error:
        raise no_room(path, error) from error
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to write into that has its name once the block has ended without an error; nothing may have it before.

    Raises EdgeDistillError that names the folder where the disk is full or not writable.
    """
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        yield partial
        os.rename(partial, path)
        sync_folder(path.parent)
    except OSError as error:
        raise no_room(path, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def no_room(path: Path, error: OSError) -> EdgeDistillError:
    """The error a user sees when a file could not be written: resumable where the disk is full."""
    reason = error.strerror or str(error)
    if error.errno not in (None, errno.ENOSPC, errno.EDQUOT):
        return EdgeDistillError(f"{path}: {reason}", "Check the folder's rights, or name another one.")
    free = free_space(path.parent) // 2**20
    return Stopped(f"{path}: {reason} ({free} MB free)", "Make room, then run the same command again.")


def sync_folder(folder: Path) -> None:
    """Make a rename inside the folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_sha256(path: Path) -> str:
    """The sha256 of a file's content, in hex."""
    with path.open("rb") as file:
        return _hash(file)


def _hash(file: Any) -> str:
    hasher = hashlib.sha256()
    while block := file.read(1 << 20):
        hasher.update(block)
    return hasher.hexdigest()


def free_space(folder: Path) -> int:
    """Free bytes on the disk that holds the folder, or its first parent that exists."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


class Run:
    """One run folder, held by this process alone while it writes."""

    def __init__(
        self, folder: Path, offline: bool = False, llama_cpp: Path | None = None, track: str | None = None
    ) -> None:
        self.path = folder
        self.offline = offline
        """Whether models may only come from this machine."""
        self.llama_cpp = llama_cpp
        """A llama.cpp checkout that converts an architecture which our own writer does not know."""
        self.track = track
        """The tool that shows the training's curves beside `metrics.jsonl`, if any."""

    @property
    def scratch(self) -> Path:
        """A folder whose loss costs time, nothing else."""
        return self.path / ".cache"

    def folder(self, stage: str) -> Path:
        return self.path / stage

    def record(self, stage: str) -> dict[str, Any] | None:
        """The stage's `stage.json`, or None where there is none that holds."""
        try:
            record = json.loads((self.folder(stage) / STAGE_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return record if isinstance(record, dict) and {"key", "finished", "files"} <= record.keys() else None

    def state(self, stage: str, key: str) -> State:
        """Where the stage stands for this key; "done" only if its files still have their checksums."""
        record = self.record(stage)
        if record is None:
            return "missing"
        if record["key"] != key:
            return "stale"
        return "done" if record["finished"] and not self.damaged(stage, record) else "partial"

    def damaged(self, stage: str, record: dict[str, Any]) -> list[str]:
        """Files of a finished stage that are gone or have changed."""
        folder = self.folder(stage)
        return [
            name
            for name, sha in record["files"].items()
            if not (folder / name).is_file() or file_sha256(folder / name) != sha
        ]

    def begin(self, stage: str, key: str, afresh: bool) -> Path:
        """The stage's folder, with its key written; emptied first if `afresh`."""
        folder = self.folder(stage)
        before = self.record(stage) or {}
        started = before["started_at"] if before.get("key") == key and not afresh else _now()
        try:
            if afresh and folder.exists():
                # renamed first: a kill while it is emptied must not leave half of it under its own name
                gone = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
                os.replace(folder, gone)
                shutil.rmtree(gone)
            folder.mkdir(parents=True, exist_ok=True)
            sweep(folder)
        except OSError as error:
            raise no_room(folder, error) from error
        self._write(stage, {"key": key, "finished": False, "files": {}, "started_at": started})
        return folder

    def forget(self, stage: str) -> None:
        """Take a stage's record away: what it left no longer counts as the result of anything."""
        (self.folder(stage) / STAGE_FILE).unlink(missing_ok=True)

    def finish(self, stage: str, key: str, summary: dict[str, Any], seconds: float) -> None:
        """Mark the stage as done, with the checksums of what it left."""
        folder = self.folder(stage)
        kept = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != STAGE_FILE)
        files = {
            path.relative_to(folder).as_posix(): file_sha256(path)
            for path in kept
            if "checkpoints" not in path.relative_to(folder).parts
        }
        record = self.record(stage) or {}
        self._write(
            stage,
            {
                "key": key,
                "finished": True,
                "summary": summary,
                "seconds": round(seconds, 2),
                "files": files,
                "versions": versions(),
                "machine": machine(),
                "started_at": record.get("started_at"),
                "finished_at": _now(),
            },
        )

    def _write(self, stage: str, record: dict[str, Any]) -> None:
        write_whole(self.folder(stage) / STAGE_FILE, json.dumps(record, indent=1).encode())

    def summary(self, stage: str) -> dict[str, Any]:
        """What the stage returned, or EdgeDistillError where it has not finished."""
        record = self.record(stage)
        if record is None or not record["finished"]:
            raise EdgeDistillError(f"'{stage}' has not finished", f"Run it first: edgedistill {stage} RECIPE")
        summary: dict[str, Any] = record["summary"]
        return summary

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run folder; a second holder is refused at once and told who has it."""
        from filelock import FileLock, Timeout

        holder = self.path / ".lock.holder"
        lock = FileLock(self.path / ".lock", timeout=0)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout as error:
            try:
                who = holder.read_text(encoding="utf-8")
            except OSError:  # it has ended just now
                who = "another process"
            raise Stopped(f"{self.path} is in use by {who}", "Wait for it, or stop it.") from error
        except OSError as error:
            raise no_room(self.path, error) from error
        try:
            write_whole(holder, f"process {os.getpid()} on {socket.gethostname()}: {' '.join(sys.argv)}".encode())
            yield
        finally:
            holder.unlink(missing_ok=True)
            lock.release()


def open_run(folder: Path) -> Run:
    """The run in a folder that exists.

    Raises EdgeDistillError where there is none.
    """
    if not is_run(folder):
        raise EdgeDistillError(f"{folder}: not a run folder", "Make one with: edgedistill run RECIPE")
    return Run(folder)


def is_run(folder: Path) -> bool:
    """Whether a folder is a run, not a recipe: a run keeps its recipe in a folder of its own."""
    return (folder / "recipe" / "this" / "recipe.toml").is_file()


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that a result depends on."""
    found = {"python": platform.python_version()}
    for name in RECORDED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """What this machine is, for the record beside every figure."""
    import psutil

    return {
        "system": platform.system(),
        "arch": platform.machine(),
        "cpu": cpu_name(),
        "cores": psutil.cpu_count(logical=False) or os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
    }


def cores() -> int:
    """Physical cores that this process may use."""
    import psutil

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, psutil.cpu_count(logical=False) or allowed))


def on_each_core(work: Callable[[Work], Done], items: Iterable[Work]) -> Generator[Done, None, None]:
    """What `work` makes of each item, in their order; as many threads as there are cores.

    Raises Stopped between two items where that was asked for; those that were not begun are then left.
    """
    with ThreadPoolExecutor(cores()) as pool:
        try:
            for one in pool.map(work, items):
                yield one
                stop_if_asked()
        finally:
            pool.shutdown(cancel_futures=True)


def cpu_name() -> str:
    """The processor's name, as the system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def sweep(folder: Path) -> None:
    """Remove half-written files that a killed process left."""
    for leftover in list(folder.rglob("*.partial-*")):
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink(missing_ok=True)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


_asked_to_stop = False


def stop_if_asked() -> None:
    """Raise Stopped after the first Ctrl-C or SIGTERM. Stages call it where they can stop and resume."""
    if _asked_to_stop:
        raise Stopped("stopped as asked; what was done is kept", "Run the same command again to go on.")


@contextmanager
def orderly_stop() -> Iterator[None]:
    """First SIGINT or SIGTERM: stop at the next safe point. Second: leave at once with 130."""
    global _asked_to_stop

    def handle(signum: int, frame: object) -> None:
        global _asked_to_stop
        if _asked_to_stop:
            os._exit(130)
        _asked_to_stop = True

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        _asked_to_stop = False
        for number, old in before.items():
            signal.signal(number, old)
