"""Progress is on standard error: a bar that says the newest figures on a terminal, one line a phase elsewhere."""

from __future__ import annotations

import pytest

from edgedistill.commands.progress import Bars


def report(quiet: bool) -> None:
    with Bars(quiet) as bars:
        bars("teaching", 0, 1000)
        bars("teaching (98 tok/s)", 10, 1000)
        bars("teaching (123 tok/s, 2 failed)", 500, 1000)
        bars("curating", 1, 1)


def test_a_terminal_shows_rows_rate_failures_and_the_time_that_is_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.setenv("TERM", "xterm-256color")
    report(quiet=False)
    out, err = capsys.readouterr()
    assert out == ""
    assert "teaching (123 tok/s, 2 failed)" in err
    assert "500/1000" in err
    assert err.rindex("teaching (123 tok/s, 2 failed)") > err.rfind("teaching (98 tok/s)")


def test_elsewhere_a_phase_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    report(quiet=False)
    assert capsys.readouterr() == ("", "teaching\ncurating\n")


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    report(quiet=True)
    assert capsys.readouterr() == ("", "")
