"""A command of the recipe that scores answers: one process an answer, without network, secrets or much time.

It is handed `{"messages", "answer", "expected", "tags"}` as JSON on standard input, and prints a score from 0 to 1,
`true` or `false`. It may run what a model wrote; `confined.py` says what it cannot do then.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from shutil import which

from ..errors import InvalidInput, MissingRequirement
from ..recipe import EvaluateSettings, Recipe
from ..records import Prompt
from ..run import cores, stop_if_asked

__all__ = ["Checked", "checked", "confinement", "end_session", "found_program", "run_confined", "scorer_command"]

KEPT = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "SYSTEMROOT")
LONGEST_COMPLAINT = 300
OUTPUT_BYTES = 1 << 16
PROBE = """
import socket, sys
found = 1 if any(name != "lo" for _, name in socket.if_nameindex()) else 0
try:
    open(sys.argv[1] + "/file", "w").close()
    found += 2
except OSError:
    pass
print(found / 4)
"""


@dataclass(frozen=True, slots=True)
class Checked:
    """What a command said to one answer: its score, or None with what went wrong."""

    score: float | None
    complaint: str = ""


def scorer_command(recipe: Recipe) -> list[str]:
    """The command's arguments; each that names a file beside the recipe is that file.

    Raises InvalidInput where there is no such program, MissingRequirement where the system has no POSIX limits.
    """
    if sys.platform == "win32":
        raise MissingRequirement("evaluate.command needs POSIX limits", "Score on Linux or macOS.")
    named = recipe.evaluate.command
    if not named:
        raise InvalidInput("evaluate.command is empty", 'Name a command: command = ["check.py"].')
    program, *arguments = (_beside(recipe, one) for one in named)
    return [found_program(program, named[0], "evaluate.command"), *arguments]


def checked(
    recipe: Recipe, prompts: Sequence[Prompt], answers: Mapping[str, Mapping[str, str]]
) -> dict[str, list[float | None]]:
    """The command's score of each candidate's answers, by name, one a prompt; where it gave none, 0.

    Raises InvalidInput where it never gave one: then it is the command that does not work.
    """
    command = scorer_command(recipe)
    questions = {name: [_question(one, given[one.id]) for one in prompts] for name, given in answers.items()}
    verdicts: dict[str, Checked] = dict.fromkeys(
        (text for asked in questions.values() for text in asked), Checked(None)
    )
    with ThreadPoolExecutor(cores()) as pool:
        try:
            found = pool.map(lambda text: run_confined(command, recipe.evaluate, text), verdicts)
            for text, verdict in zip(tuple(verdicts), found, strict=True):
                verdicts[text] = verdict
                stop_if_asked()
        finally:
            pool.shutdown(cancel_futures=True)
    if verdicts and all(one.score is None for one in verdicts.values()):
        complaint = next(iter(verdicts.values())).complaint
        raise InvalidInput(
            f"evaluate.command gave no score to any of {len(verdicts)} answers: {complaint}",
            "Try it by hand on one line of JSON with messages, answer, expected and tags.",
        )
    return {name: [verdicts[text].score or 0.0 for text in asked] for name, asked in questions.items()}


def run_confined(command: Sequence[str], settings: EvaluateSettings, question: str) -> Checked:
    """What the command says to a question, in a folder of its own that is gone afterwards; see `confined.py`."""
    with tempfile.TemporaryDirectory(prefix="edgedistill-scorer-", ignore_cleanup_errors=True) as scratch:
        launcher = [sys.executable, "-I", "-S", str(Path(__file__).with_name("confined.py"))]
        limits = [str(settings.command_seconds), str(settings.command_memory_mb << 20), scratch]
        with (Path(scratch) / "stderr").open("w+b") as log, (Path(scratch) / "stdout").open("w+b") as out:
            child = subprocess.Popen(
                [*launcher, *limits, *command],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=log,
                cwd=scratch,
                env=_environment(scratch),
                start_new_session=True,
            )
            with child:
                try:
                    child.communicate(question.encode(), settings.command_seconds + 1)
                except subprocess.TimeoutExpired:
                    return Checked(None, f"it took longer than {settings.command_seconds:g} s")
                finally:
                    end_session(child)
            for file in (out, log):
                file.seek(0)
            printed = out.read(OUTPUT_BYTES).decode("utf-8", errors="replace").strip()
            complaint = log.read(OUTPUT_BYTES).decode("utf-8", errors="replace").strip()
    score = _score(printed)
    if child.returncode == 0 and score is not None:
        return Checked(score)
    said = f"; it says: {' '.join(complaint.split())[-LONGEST_COMPLAINT:]}" if complaint else ""
    return Checked(None, f"it ended with {child.returncode} and printed {printed[:60]!r}{said}")


def confinement(settings: EvaluateSettings) -> str:
    """What this system keeps from a command, found out by a command that tries."""
    with tempfile.TemporaryDirectory() as outside:
        probe = [sys.executable, "-I", "-S", "-c", PROBE, outside]
        found = run_confined(probe, settings.model_copy(update={"command_seconds": 10.0}), "")
    if found.score is None:
        return f"warning: it cannot be confined ({found.complaint})"
    is_open = [
        what for bit, what in ((1, "reaches the network"), (2, "may write anywhere")) if int(4 * found.score) & bit
    ]
    return f"warning: here it {' and '.join(is_open)}" if is_open else "no network, no writing"


def _question(prompt: Prompt, answer: str) -> str:
    turns = [message.as_dict() for message in prompt.messages]
    return json.dumps({"messages": turns, "answer": answer, "expected": prompt.expected, "tags": list(prompt.tags)})


def _beside(recipe: Recipe, argument: str) -> str:
    places = (folder / argument for folder in recipe.folders)
    return next((str(place.resolve()) for place in places if place.is_file()), argument)


def _environment(scratch: str) -> dict[str, str]:
    """Nothing of the user's environment but where programs are and in which language they speak."""
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    return {**kept, "HOME": scratch, "TMPDIR": scratch, "PYTHONDONTWRITEBYTECODE": "1"}


def found_program(program: str, said: str, setting: str) -> str:
    """The path of a program: of a file, or of a name that PATH knows.

    Raises InvalidInput that names the setting, and what is said there, where there is none.
    """
    found = program if Path(program).is_file() else which(program)
    if found is None or not os.access(found, os.X_OK):
        raise InvalidInput(
            f"{setting}: '{said}' is no program", "Name one of PATH, or an executable file of the recipe."
        )
    return found


def end_session(child: subprocess.Popen[bytes]) -> None:
    """Kill the child, which leads a session, and all of it that is left."""
    if not hasattr(os, "killpg"):
        child.kill()
        return
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return  # all have ended; of one that nobody has waited for, macOS says it may not be killed


def _score(text: str) -> float | None:
    """A score as printed; None for anything else.

    >>> _score("0.25"), _score("true"), _score("False"), _score("7"), _score("nan"), _score("fine")
    (0.25, 1.0, 0.0, None, None, None)
    """
    if text.lower() in ("true", "false"):
        return float(text.lower() == "true")
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and 0 <= value <= 1 else None
