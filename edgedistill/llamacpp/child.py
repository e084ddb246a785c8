"""Native and foreign code out of process, and what it writes whole or not at all.

llama.cpp's quantizer and a checkout's converter work on files from outside and fill the disk: in a child, a crash is an
error that names the file, and no secret of the user's environment reaches them.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .. import run

__all__ = ["Ended", "child_environment", "end_with_parent", "run_child", "whole_file"]

SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|_KEY(_|$)|APIKEY", re.IGNORECASE)
POLL_SECONDS = 0.2
PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True, slots=True)
class Ended:
    """How a child ended: `signal` is the name of the signal that ended it, or empty; `log` what it wrote to stderr."""

    code: int
    signal: str
    log: str


@contextmanager
def whole_file(out: Path) -> Iterator[Path]:
    """The path to write to; it becomes `out` when the block ends, and is removed when the block fails.

    Raises Stopped where the disk is full or not writable.
    """
    partial = out.with_name(f"{out.name}.partial-{os.getpid()}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with partial.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(partial, out)
        run.sync_folder(out.parent)
    except OSError as error:
        raise run.no_room(out, error) from error
    finally:
        partial.unlink(missing_ok=True)


def run_child(arguments: list[str]) -> Ended:
    """Run this Python with the arguments and wait; it is killed where this process is asked to stop.

    The child does not see the terminal's Ctrl-C nor any secret of the environment, and looks for no module in the
    working folder.
    """
    environment = child_environment()
    if arguments[0] != "-m":  # a script needs its own folder on the path
        del environment["PYTHONSAFEPATH"]
    child = subprocess.Popen(
        [sys.executable, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )
    with child:
        try:
            log = _wait(child)
        except BaseException:
            child.kill()
            raise
    ended_by = signal.Signals(-child.returncode).name if child.returncode < 0 else ""
    return Ended(child.returncode, ended_by, log.decode("utf-8", errors="replace"))


def child_environment() -> dict[str, str]:
    """This process's environment without its secrets, with edgedistill to be found and no hub."""
    package = str(Path(__file__).resolve().parents[2])
    environment = {name: value for name, value in os.environ.items() if not SECRET.search(name)}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (package, environment.get("PYTHONPATH"))))
    environment.update(HF_HUB_OFFLINE="1", GGML_NO_BACKTRACE="1", PYTHONSAFEPATH="1")
    return environment


def end_with_parent() -> None:
    """In a child: be killed when the parent is, where the system offers it, instead of working on for nobody."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _wait(child: subprocess.Popen[bytes]) -> bytes:
    while True:
        try:
            return child.communicate(timeout=POLL_SECONDS)[1]
        except subprocess.TimeoutExpired:
            run.stop_if_asked()
