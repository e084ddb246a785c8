"""Answers that are code: taken out of their fence, and run against the tests of their row in the sandbox."""

from __future__ import annotations

import ast
import json
import re
import secrets
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..run import on_each_core
from .final_answer import thought_and_said
from .sandbox import Confined, Said, run_confined

__all__ = ["asserted", "code_in", "failure", "failures"]

FENCED = re.compile(r"^[ \t]*```[ \t]*([\w+-]*)[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)
PYTHON = ("python", "py", "python3")
RUNNER = Path(__file__).with_name("code_runner.py")


def code_in(answer: str) -> str:
    """The Python of an answer: of its fenced blocks, or all of it where there is none.

    Blocks of other languages, and what was thought before, are left out; where a block says that it is Python, so are
    those that do not say what they are. Several blocks are one program.

    >>> code_in("```python\\nx = 1\\n```\\nIt prints:\\n```\\n1\\n```")
    'x = 1\\n'
    >>> code_in("Sure:\\n```python\\nx = 1\\n```\\nThat is it."), code_in("x = 1"), code_in("```bash\\nls\\n```")
    ('x = 1\\n', 'x = 1', '')
    """
    said = thought_and_said(answer)[1]
    blocks = FENCED.findall(said)
    if not blocks:
        return said
    named = [code for language, code in blocks if language.lower() in PYTHON]
    return "\n".join(named or [code for language, code in blocks if not language])


def asserted(expected: Any) -> str | None:
    """The tests of a row's `expected`: Python statements, or a list of such texts; None where it has none.

    >>> asserted(["assert f(1) == 2", "assert f(2) == 3"]), asserted("assert f("), asserted({"a": 1}), asserted("")
    ('assert f(1) == 2\\nassert f(2) == 3', None, None, None)
    """
    texts = expected if isinstance(expected, list) else [expected]
    if not texts or not all(isinstance(text, str) for text in texts):
        return None
    tests = "\n".join(texts)
    try:
        return tests if ast.parse(tests).body else None
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def failure(answer: str, expected: Any, seconds: float, memory_mb: int) -> str | None:
    """What is wrong with an answer by the tests of its row; None where it passes them all.

    It has `seconds` and `memory_mb` MiB, and is confined as `confined.py` says.
    """
    tests = asserted(expected)
    if tests is None:
        return "the row has no tests"
    passed = secrets.token_hex(16)  # nothing that the code could print by chance
    question = json.dumps({"code": code_in(answer), "tests": tests, "pass": passed})
    confined = Confined([sys.executable, "-I", "-S", str(RUNNER)], seconds, memory_mb << 20)
    said: Said = run_confined(confined, question)
    if said.text == passed:
        return None
    return said.text or said.complaint or "the code ends the program before the tests have run"


def failures(cases: Iterable[tuple[str, Any]], seconds: float, memory_mb: int) -> dict[tuple[str, str], str | None]:
    """`failure` of answers with what their rows expect, as many at a time as there are cores.

    Equal cases are run once; the key of a case is the answer and what is expected as JSON.
    """
    different = {(answer, json.dumps(expected)): expected for answer, expected in cases}

    def verdict(case: tuple[tuple[str, str], Any]) -> str | None:
        return failure(case[0][0], case[1], seconds, memory_mb)

    return dict(zip(different, on_each_core(verdict, different.items()), strict=True))
