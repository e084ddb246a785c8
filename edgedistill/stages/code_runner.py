"""Runs Python code against its tests: a script for the sandbox, of the standard library alone.

Reads `{"code", "tests", "pass"}` as JSON and prints what "pass" holds where every statement of the tests ran to its
end, else the statement that did not, and why. What the code itself prints is shown to nobody; if it ends the process
early, nothing is printed, which is no pass.
"""

from __future__ import annotations

import ast
import io
import json
import sys
from typing import Any

LONGEST = 400  # characters of what is said
SHOWN = 120  # characters of a value


def shown(value: object) -> str:
    """
    >>> shown([1, 2]), len(shown([1] * 100))
    ('[1, 2]', 123)
    """
    text = repr(value)
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."


def fault(code: str, tests: str) -> str | None:
    """What is wrong with the code, in a line or two; None where it passes all tests.

    >>> fault("def double(x): return 2 * x", "assert double(2) == 4")
    >>> print(fault("def double(x): return x + 2", "assert double(2) == 4\\nassert double(3) == 6"))
    assert double(3) == 6
    AssertionError: double(3) is 5
    >>> fault("def double(x) return x", "")
    "SyntaxError: expected ':' (line 1)"
    """
    names: dict[str, Any] = {"__name__": "answer"}
    try:
        exec(compile(code, "<answer>", "exec", dont_inherit=True), names)
    except SyntaxError as error:
        return f"SyntaxError: {error.msg} (line {error.lineno})"
    except BaseException as error:  # noqa: BLE001 -- whatever the code does, it is what is to be told
        return f"the code itself ends with {_said(error)}"
    for statement in ast.parse(tests).body:
        try:
            exec(compile(ast.Module([statement], []), "<tests>", "exec", dont_inherit=True), names)
        except BaseException as error:  # noqa: BLE001 -- as above
            return f"{ast.unparse(statement)}\n{_said(error)}{_instead(statement, error, names)}"
    return None


def _said(error: BaseException) -> str:
    words = str(error)
    return f"{type(error).__name__}: {words}" if words else f"{type(error).__name__}"


def _instead(statement: ast.stmt, error: BaseException, names: dict[str, Any]) -> str:
    """Of an assertion that two things are equal: what the first of them is."""
    test = statement.test if isinstance(statement, ast.Assert) else None
    if not isinstance(error, AssertionError) or str(error) or not isinstance(test, ast.Compare):
        return ""
    try:
        value = eval(compile(ast.Expression(test.left), "<tests>", "eval", dont_inherit=True), names)
    except BaseException:  # noqa: BLE001 -- it may say something else the second time
        return ""
    return f": {ast.unparse(test.left)} is {shown(value)}"


def main() -> None:
    asked = json.load(sys.stdin)
    out, sys.stdout, sys.stderr, sys.stdin = sys.stdout, io.StringIO(), io.StringIO(), io.StringIO()
    sys.setrecursionlimit(2000)
    found = fault(asked["code"], asked["tests"])
    out.write(asked["pass"] if found is None else found[:LONGEST])
    out.flush()


if __name__ == "__main__":
    main()
