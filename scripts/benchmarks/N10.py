"""N10: forty hostile programs run as the verifier of an answer, see `hostile.py`.

Not one may show a secret of the home folder or of the environment, write outside its folder, reach a socket, hurt or
outlive the process that started it, or take longer than its limit; and an honest verifier must work after each.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from hostile import ATTACKS
from measure import finish, note

from edgedistill.stages.sandbox import Confined, confinement, run_confined

SECONDS = 2.0
MARGIN = 3.0  # seconds that starting and clearing up may take on a busy machine
MEMORY = 512 << 20
MOST_DISK = 256 << 20


@contextmanager
def surroundings() -> Iterator[dict[str, Any]]:
    """What the programs are after: a secret at home and in the environment, a folder, sockets, a process."""
    token, mark = secrets.token_hex(16), f"n10-{secrets.token_hex(4)}"
    home = Path.home() / f".edgedistill-{mark}"
    outside = Path(tempfile.mkdtemp(prefix="n10-"))
    scratch = outside.with_name(f"{outside.name}-scratch")
    scratch.mkdir()
    tempfile.tempdir = str(scratch)
    home.write_text(token, encoding="utf-8")
    os.environ["N10_SECRET"] = token
    listeners = [socket.create_server(("127.0.0.1", 0))]
    for place in (str(outside / "socket"), f"\0{mark}"):
        listeners.append(socket.socket(socket.AF_UNIX))
        listeners[-1].bind(place)
        listeners[-1].listen()
    victim = subprocess.Popen(["sleep", "600"])
    try:
        yield {
            "home": home,
            "outside": outside,
            "port": listeners[0].getsockname()[1],
            "unix": outside / "socket",
            "abstract": mark,
            "victim": victim.pid,
            "parent": os.getpid(),
            "mark": mark,
            "token": token,
            "listeners": listeners,
            "process": victim,
            "scratch": scratch,
        }
    finally:
        victim.kill()
        victim.wait()
        for one in listeners:
            one.close()
        home.unlink(missing_ok=True)
        for folder in (outside, scratch):
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def watched(folder: Path) -> Iterator[list[int]]:
    """The bytes in a folder, looked at ten times a second."""
    sizes, done = [0], threading.Event()

    def look() -> None:
        while not done.wait(0.1):
            found = 0
            for path in folder.rglob("*"):
                with suppress(OSError):
                    found += path.stat().st_size
            sizes.append(found)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield sizes
    finally:
        done.set()
        thread.join()


def harm(around: dict[str, Any], printed: str) -> list[str]:
    """What a program did that it must not."""
    found = ["a secret"] if around["token"] in printed or "escaped" in printed else []
    if {path.name for path in around["outside"].iterdir()} != {"socket"}:
        found.append("a file outside")
    for one in around["listeners"]:
        one.settimeout(0)
        try:
            one.accept()
            found.append("a connection")
        except BlockingIOError:
            pass
    if around["process"].poll() is not None:
        found.append("a killed process")
    marked = (one for one in psutil.process_iter(["cmdline"]) if around["mark"] in " ".join(one.info["cmdline"] or ()))
    return [*found, *(f"a process left, {one.pid}" for one in marked)]


def attack(name: str, around: dict[str, Any]) -> tuple[list[str], float, str]:
    """One program: what harm it did, its seconds, what came of it."""
    source = ATTACKS[name].format(**around)
    command = [sys.executable, "-I", "-S", "-c", source, around["mark"]]
    asked = "x" * (8 << 20) if name == "stdin never read" else "{}"
    started = time.monotonic()
    with watched(around["scratch"]) as sizes:
        said = run_confined(Confined(command, SECONDS, MEMORY), asked)
    seconds = time.monotonic() - started
    time.sleep(0.2)  # for what would outlive it to be seen
    found = harm(around, f"{said.text} {said.complaint}")
    if max(sizes) > MOST_DISK or any(around["scratch"].iterdir()):
        found.append(f"{max(sizes) >> 20} MB on the disk")
    if seconds > SECONDS + MARGIN:
        found.append(f"{seconds:.1f} s")
    honest = run_confined(Confined([sys.executable, "-I", "-S", "-c", "print(input())"], 10.0, MEMORY), "1")
    if honest.text != "1":
        found.append(f"an honest verifier fails: {honest.complaint}")
    return found, seconds, " ".join((said.text or said.complaint).split())[:100]


def main() -> None:
    assert len(ATTACKS) == 40
    note(confinement())
    escapes, slowest = {}, 0.0
    with surroundings() as around:
        for name in ATTACKS:
            found, seconds, said = attack(name, around)
            slowest = max(slowest, seconds)
            note(f"{name}: {', '.join(found) or 'held'} in {seconds:.1f} s; {said}")
            if found:
                escapes[name] = found
    finish(
        "N10",
        {"escapes": len(escapes), "slowest_s": round(slowest, 2)},
        {"escapes": 0, "slowest_s": SECONDS + MARGIN},
        not escapes,
        peer=None,
        unit="programs that did harm or took longer than their limit",
        n=len(ATTACKS),
        confinement=confinement(),
        found=escapes,
    )


if __name__ == "__main__":
    main()
