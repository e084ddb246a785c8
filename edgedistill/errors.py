"""The errors a user sees, and the exit codes they end in.

A message says what failed, with the value; a hint says the next command. Every other exception keeps its traceback.
"""

from __future__ import annotations

__all__ = [
    "EdgeDistillError",
    "GateMissed",
    "InvalidInput",
    "MissingRequirement",
    "Stopped",
    "Unsafe",
]


class EdgeDistillError(Exception):
    """Something failed that the user can mend. Exit code 1."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class InvalidInput(EdgeDistillError):
    """The recipe or the data is not valid. Exit code 3."""

    exit_code = 3


class GateMissed(EdgeDistillError):
    """A gate (quality, latency, licence, parity) was not passed. Exit code 4."""

    exit_code = 4


class Unsafe(EdgeDistillError):
    """Refused for safety: a hash mismatch, a file format that can run code. Exit code 5."""

    exit_code = 5


class MissingRequirement(EdgeDistillError):
    """Hardware or a library that is needed is not there. Exit code 6."""

    exit_code = 6


class Stopped(EdgeDistillError):
    """Stopped in a state that the same command resumes from (`EX_TEMPFAIL`). Exit code 75."""

    exit_code = 75
