"""The command line as tests call it, and what it answers."""

from __future__ import annotations

import json
from typing import Any

from click.testing import CliRunner, Result
from conftest import Finished

from edgedistill.cli import cli


def edgedistill(*arguments: object) -> Result:
    """Call the command in this process, with models of this machine alone."""
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def run(finished: Finished, *arguments: object, command: str = "run") -> Result:
    return edgedistill(command, finished.recipe, "--runs", finished.runs, "--offline", "-q", *arguments)


def refused(result: Result, code: int) -> tuple[str, str]:
    """Message and hint of a command that failed: one line each on stderr, nothing on stdout, no traceback."""
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    message, hint = result.stderr.splitlines()
    assert message.startswith("error: ")
    assert hint.startswith("hint: ")
    return message, hint


def document(result: Result) -> dict[str, Any]:
    """The one JSON document on stdout."""
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    found: dict[str, Any] = json.loads(result.stdout)
    return found
