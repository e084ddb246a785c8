"""Backends that may be absent on a user's machine, and must not be where the tests say so."""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest

REQUIRED = os.environ.get("EDGEDISTILL_REQUIRE", "").split(",")


def required_or_skipped(backend: str, libraries: tuple[str, ...]) -> None:
    """Skip the test where a library is missing; fail it where the backend is required here."""
    missing = [library for library in libraries if find_spec(library) is None]
    if missing:
        reason = f"'{backend}' needs {missing[0]}, which is not installed"
        pytest.fail(reason) if backend in REQUIRED else pytest.skip(reason)


def must_be_imported(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Make a failure of what `importorskip` has skipped, where the tests say which backends are here: then all is."""
    if report.skipped and any(REQUIRED) and "could not import" in str(report.longrepr):
        report.outcome = "failed"
