"""Memory that was freed goes back to the system, where the C library would keep it."""

from __future__ import annotations

import platform

import psutil
import pytest

from edgedistill.hardware import give_back_memory

BLOCK, COUNT = 60_000, 4000  # bytes: below what glibc asks the system for piece by piece


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone keeps what was freed in this way")
def test_memory_between_what_is_held_goes_back_to_the_system() -> None:
    process = psutil.Process()
    blocks = [bytearray(BLOCK) for _ in range(COUNT)]
    kept = blocks[::100]
    full = process.memory_info().rss
    del blocks
    give_back_memory()
    assert full - process.memory_info().rss > 0.8 * BLOCK * COUNT
    assert all(len(block) == BLOCK for block in kept)


def test_it_may_be_called_anywhere() -> None:
    give_back_memory()
