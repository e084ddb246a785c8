"""The house holds: imports point one way, heavy libraries stay in their rooms, files stay small."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "edgedistill"
FILES = sorted(PACKAGE.rglob("*.py"))

# from the bottom up; rooms on one line stand side by side
FLOORS = (
    {"errors"},
    {"bits", "messages", "sensitive"},
    {"records", "targets", "explain", "hardware", "rotations"},
    {"tables"},
    {"learning", "contract", "prompting", "vetting"},
    {"recipe"},
    {"run"},
    {"store", "chat", "similarity", "schema", "scrub", "sources"},
    {"results"},
    {"models", "llamacpp", "curation"},
    {"teachers", "students", "report"},
    {"synthesis"},
    {"stages"},
    {"preflight"},
    {"pipeline"},
    {"commands"},
    {"cli"},
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}

# library -> the only rooms that may import it
LIBRARIES = {
    "llama_cpp": {"llamacpp"},
    "gguf": {"llamacpp"},
    "llguidance": {"llamacpp", "teachers"},
    "huggingface_hub": {"models"},
    "license_expression": {"models"},
    "torch": {"students", "teachers"},
    "transformers": {"students", "teachers"},
    "mlx": {"students", "teachers"},
    "mlx_lm": {"students", "teachers"},
    "httpx2": {"models", "teachers"},
    "accelerate": {"students"},
    "peft": {"students"},
    "tokenizers": {"students", "teachers"},
    "safetensors": {"students"},
    "jinja2": {"report"},
    "matplotlib": {"report"},
    "minijinja": {"chat"},
    "py3langid": {"curation"},
    "rensa": {"similarity"},
    "pyarrow": {"sources"},
    "sqlite3": {"results", "store"},
    "pydantic": {"contract", "learning", "prompting", "recipe", "tables", "vetting"},
    "tomli": {"recipe"},
    "filelock": {"run", "models"},
    "rich": {"cli", "commands"},
    "rich_click": {"cli", "commands"},
    "click": {"cli", "commands"},
}
FORBIDDEN_NAMES = {"utils", "helpers", "common", "core", "base", "manager", "misc"}


def room_of(path: Path) -> str:
    """The top-level module or folder that a file belongs to; "" for the package's own __init__."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return "" if parts == ("__init__",) else parts[0]


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of every module that a file imports, at its top or anywhere inside."""
    package = ("edgedistill", *path.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            stem = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{stem}.{name.name}") for name in node.names)


def test_every_room_has_its_floor() -> None:
    assert {room_of(path) for path in FILES} - {"", "__main__"} == set(FLOOR)


def test_imports_point_one_way_and_rooms_side_by_side_do_not_know_each_other() -> None:
    wrong = []
    for path in FILES:
        mine = room_of(path)
        for line, name in imported(path):
            parts = name.split(".")
            if not mine or mine == "__main__" or parts[0] != "edgedistill" or len(parts) < 2 or parts[1] == mine:
                continue
            if parts[1] in FLOOR and FLOOR[parts[1]] >= FLOOR[mine]:
                wrong.append(f"{path.relative_to(PACKAGE)}:{line} imports {name}")
    assert not wrong


def test_each_library_stays_in_its_room() -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)}:{line} imports {name}"
        for path in FILES
        for line, name in imported(path)
        if room_of(path) not in LIBRARIES.get(name.split(".")[0], {room_of(path)})
    ]
    assert not wrong


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_is_small_named_for_its_idea_and_prints_nothing(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    assert not FORBIDDEN_NAMES & set(path.relative_to(PACKAGE).with_suffix("").parts)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print", f"line {node.lineno}"
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert (node.end_lineno or 0) - node.lineno < 50, f"{node.name} is longer than 50 lines"
