"""A real browser for tests: Chromium without a window, spoken to over a pipe (the DevTools protocol, no network)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from required import REQUIRED

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)

# the browser reads from 3 and writes to 4
LAUNCHER = """
import os, sys
for given, place in zip(sys.argv[1:3], (103, 104)):
    os.dup2(int(given), place)
for place in (3, 4):
    os.dup2(100 + place, place)
    os.close(100 + place)
os.execv(sys.argv[3], sys.argv[3:])
"""


def browser_or_skip() -> str:
    """The browser's path; the test is skipped where there is none, and fails where one is required here."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        reason = f"no browser: none of {', '.join(NAMES)} is installed"
        pytest.fail(reason) if "browser" in REQUIRED else pytest.skip(reason)
    return found


class Page:
    """One page of the browser. Every event that it sends is kept in `events`."""

    def __init__(self, out: int, back: int) -> None:
        self._out, self._back = out, back
        self._rest = b""
        self._number = 0
        self._session = ""
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a command."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self._number:
            self.events.append(answer)
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def open(self, path: Path) -> None:
        """Open a file, and wait until it is shown."""
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._read())

    def value(self, script: str) -> Any:
        """What a script of the test's own finds in the page."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def show(self, width: int, colours: str, media: str = "screen") -> None:
        """Show the page so wide, in light or dark, on a screen or on paper."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        features = [{"name": "prefers-color-scheme", "value": colours}]
        self.call("Emulation.setEmulatedMedia", media=media, features=features)

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            data = os.read(self._back, 1 << 16)
            assert data, "the browser has ended"
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\0")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def browser_page(folder: Path) -> Iterator[Page]:
    """A page of a browser that runs for the block; its profile is in `folder`."""
    program = browser_or_skip()
    theirs, out = os.pipe()
    back, ours = os.pipe()
    launcher = [sys.executable, "-I", "-S", "-c", LAUNCHER, str(theirs), str(ours)]
    with subprocess.Popen(
        [*launcher, program, *FLAGS, f"--user-data-dir={folder}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=(theirs, ours),
    ) as child:
        os.close(theirs)
        os.close(ours)
        try:
            yield Page(out, back)
        finally:
            child.kill()
            os.close(out)
            os.close(back)
