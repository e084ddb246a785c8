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
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from shutil import which

from ..errors import InvalidInput, MissingRequirement
from ..recipe import Recipe
from ..records import Prompt
from ..run import on_each_core

__all__ = [
    "Confined",
    "Said",
    "checked",
    "confinement",
    "own_command",
    "readable",
    "run_confined",
    "score_confined",
    "scorer_command",
]

KEPT = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "SYSTEMROOT")
LONGEST_COMPLAINT = 300
OUTPUT_BYTES = 1 << 16
PROBE = """
import os, socket, sys
found = ["network"] if any(name != "lo" for _, name in socket.if_nameindex()) else []
for what, path, mode in (("write", "file", "w"), ("read", "mine", "r")):
    try:
        open(os.path.join(sys.argv[1], path), mode).close()
        found.append(what)
    except OSError:
        pass
print("found:", *found)
"""
OPEN = {"network": "reaches the network", "write": "may write anywhere", "read": "may read your files"}
# what a program needs of the system to start at all; nothing of it tells about the user
SYSTEM = (
    *("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d"),
    *(
        "/etc/alternatives",
        "/etc/localtime",
        "/etc/ssl/certs",
        "/etc/ssl/openssl.cnf",
        "/nix/store",
        "/System",
        "/Library",
    ),
)
INSTALLED = ("bin", "sbin", "lib", "lib64", "libexec", "pyvenv.cfg")
"""What an installation has in its folder."""


@dataclass(frozen=True, slots=True)
class Confined:
    """A command, and what it is given: seconds, bytes of memory, and folders that it may read."""

    command: Sequence[str]
    seconds: float
    memory: int
    folders: tuple[Path, ...] = ()
    runs_in: Path | None = None
    """One of these; left out, it runs in the folder that is gone afterwards."""


@dataclass(frozen=True, slots=True)
class Said:
    """What a command printed, or None with what went wrong."""

    text: str | None
    complaint: str = ""


@dataclass(frozen=True, slots=True)
class Checked:
    """What a command said to one answer: its score, or None with what went wrong."""

    score: float | None
    complaint: str = ""


def scorer_command(recipe: Recipe) -> list[str]:
    """The command's arguments; each that names a file beside the recipe is that file.

    Raises InvalidInput where there is no such program, MissingRequirement where the system has no POSIX limits.
    """
    return own_command("evaluate.command", recipe.evaluate.command, recipe.folders, '["check.py"]')


def own_command(setting: str, named: Sequence[str] | None, folders: Sequence[Path], example: str) -> list[str]:
    """The arguments of a command of the recipe's own; each that names a file of the folders is that file.

    Raises InvalidInput, with an `example`, where it names none or no program, MissingRequirement where the system has
    no POSIX limits.
    """
    if sys.platform == "win32":
        raise MissingRequirement(f"{setting} needs POSIX limits", "Use Linux or macOS.")
    if not named:
        raise InvalidInput(f"{setting} is empty", f"Name a command: {setting.partition('.')[2]} = {example}.")
    program, *arguments = (_beside(folders, one) for one in named)
    return [_found_program(program, named[0], setting), *arguments]


def checked(
    recipe: Recipe, prompts: Sequence[Prompt], answers: Mapping[str, Mapping[str, str]]
) -> dict[str, list[float | None]]:
    """The command's score of each candidate's answers, by name, one a prompt; where it gave none, 0.

    Raises InvalidInput where it never gave one: then it is the command that does not work.
    """
    settings = recipe.evaluate
    memory = settings.command_memory_mb << 20
    confined = Confined(scorer_command(recipe), settings.command_seconds, memory, recipe.folders)
    questions = {name: [_question(one, given[one.id]) for one in prompts] for name, given in answers.items()}
    texts = list(dict.fromkeys(text for asked in questions.values() for text in asked))
    verdicts = dict(zip(texts, on_each_core(lambda text: score_confined(confined, text), texts), strict=True))
    if verdicts and all(one.score is None for one in verdicts.values()):
        complaint = next(iter(verdicts.values())).complaint
        raise InvalidInput(
            f"evaluate.command gave no score to any of {len(verdicts)} answers: {complaint}",
            "Try it by hand on one line of JSON with messages, answer, expected and tags.",
        )
    return {name: [verdicts[text].score or 0.0 for text in asked] for name, asked in questions.items()}


def score_confined(confined: Confined, question: str) -> Checked:
    """The score from 0 to 1 that a command gives to a question."""
    said = run_confined(confined, question)
    if said.text is None:
        return Checked(None, said.complaint)
    score = _score(said.text)
    return Checked(score, "" if score is not None else f"it printed {said.text[:60]!r}, which is no score")


def run_confined(confined: Confined, question: str) -> Said:
    """What a command prints to a question, in a folder of its own that is gone afterwards; see `confined.py`."""
    with tempfile.TemporaryDirectory(prefix="edgedistill-scorer-", ignore_cleanup_errors=True) as scratch:
        launcher = [sys.executable, "-I", "-S", str(Path(__file__).with_name("confined.py"))]
        where = scratch if confined.runs_in is None else str(confined.runs_in.resolve())
        given = [str(confined.seconds), str(confined.memory), scratch, where, os.pathsep.join(readable(confined))]
        with (Path(scratch) / "stderr").open("w+b") as log, (Path(scratch) / "stdout").open("w+b") as out:
            child = subprocess.Popen(
                [*launcher, *given, *confined.command],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=log,
                cwd=scratch,
                env=_environment(scratch),
                start_new_session=True,
            )
            with child:
                try:
                    child.communicate(question.encode(), confined.seconds + 1)
                except subprocess.TimeoutExpired:
                    return Said(None, f"it took longer than {confined.seconds:g} s")
                finally:
                    end_session(child)
            for file in (out, log):
                file.seek(0)
            printed = out.read(OUTPUT_BYTES).decode("utf-8", errors="replace").strip()
            complaint = log.read(OUTPUT_BYTES).decode("utf-8", errors="replace").strip()
    if child.returncode == 0:
        return Said(printed)
    said = f"; it says: {' '.join(complaint.split())[-LONGEST_COMPLAINT:]}" if complaint else ""
    return Said(None, f"it ended with {child.returncode} and printed {printed[:60]!r}{said}")


def readable(confined: Confined) -> list[str]:
    """Every path that a command may read: the system's programs, its own installation, its files and its folder.

    Never the home folder as a whole, nor one that holds it.
    """
    home = Path.home().resolve()
    private = {home, *home.parents}
    path = (Path(one) for one in os.environ.get("PATH", "").split(os.pathsep) if os.path.isabs(one))
    folders = [
        *(one.parent for program in (confined.command[0], sys.executable) for one in _hops(Path(program))),
        *path,
    ]
    installed = [folder.parent / part for folder in folders for part in INSTALLED if folder.name in ("bin", "sbin")]
    named = [Path(one) for one in confined.command if os.path.isabs(one) and Path(one).is_file()]
    own = [folder.resolve() for folder in confined.folders]
    places = [*map(Path, SYSTEM), *folders, *installed, *named, *own]
    return [str(one) for one in dict.fromkeys(places) if one.exists() and one.resolve() not in private]


def _hops(program: Path) -> list[Path]:
    """A program, and all that its links lead over."""
    hops = [program]
    while hops[-1].is_symlink() and len(hops) < 40:
        hops.append(Path(os.path.normpath(hops[-1].parent / hops[-1].readlink())))
    return [*hops, program.resolve()]


@lru_cache(maxsize=1)
def confinement() -> str:
    """What this system keeps from a command, found out by a command that tries."""
    with tempfile.TemporaryDirectory() as outside:
        (Path(outside) / "mine").write_text("mine", encoding="utf-8")
        said = run_confined(Confined([sys.executable, "-I", "-S", "-c", PROBE, outside], 10.0, 1 << 30), "")
    if said.text is None or not said.text.startswith("found:"):
        return f"warning: it cannot be confined ({said.complaint or said.text})"
    is_open = [OPEN[what] for what in said.text.split()[1:]]
    return f"warning: here it {' and '.join(is_open)}" if is_open else "no network, no files but its own"


def _question(prompt: Prompt, answer: str) -> str:
    turns = [message.as_dict() for message in prompt.messages]
    return json.dumps({"messages": turns, "answer": answer, "expected": prompt.expected, "tags": list(prompt.tags)})


def _beside(folders: Sequence[Path], argument: str) -> str:
    """An argument of a command; one that names a file of a folder is that file."""
    places = (folder / argument for folder in folders)
    return next((str(place.resolve()) for place in places if place.is_file()), argument)


def _environment(scratch: str) -> dict[str, str]:
    """Nothing of the user's environment but where programs are and in which language they speak."""
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    return {**kept, "HOME": scratch, "TMPDIR": scratch, "PYTHONDONTWRITEBYTECODE": "1"}


def _found_program(program: str, said: str, setting: str) -> str:
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
