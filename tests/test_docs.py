"""The documents: what the README says is there, and what is there is in the README."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import click
import pytest

import edgedistill
from edgedistill import errors
from edgedistill.cli import cli
from edgedistill.contract import QUANT_TYPES
from edgedistill.models.catalogue import CATALOGUE
from edgedistill.recipe import TABLES, Recipe, load_recipe
from edgedistill.records import ROW_KEYS, read_prompts
from edgedistill.stages import STAGES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = ["README.md", "CHANGELOG.md", *(str(path.relative_to(ROOT)) for path in ROOT.glob("recipes/*/README.md"))]
RECIPES = sorted(path.parent for path in ROOT.glob("recipes/*/recipe.toml"))
OTHERS_OPTIONS = {"--help", "--install", "--no-cache-dir"}  # Click's own, xcode-select's, pip's
BESIDE_ERRORS = {0, 2, 130}  # done, Click's usage error, a second Ctrl-C


def section(heading: str) -> str:
    """The text under a heading of the README, until the next one of any level."""
    found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#+ |\Z)", README, re.MULTILINE | re.DOTALL)
    assert found, f"the README has no heading '{heading}'"
    return found[1]


def cells(text: str) -> list[list[str]]:
    """The rows of the tables in a text, without their heads."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    rulers = [number for number, row in enumerate(rows) if set("".join(row)) <= set("-:")]
    heads = {number - 1 for number in rulers} | set(rulers)
    return [row for number, row in enumerate(rows) if number not in heads]


def blocks(language: str) -> list[str]:
    """The code blocks of the README in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def tree() -> list[str]:
    """The paths in the README's tree."""
    found: list[str] = []
    folders: list[str] = []
    for line in blocks("text")[-1].splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        folders = [*folders[:depth], name]
        found.append("".join(folders))
    return found


def keys_of(table: str | None) -> dict[str, str]:
    """Every key of a recipe's table, or of the top level, with its default as the README writes it."""
    model: Any = Recipe.model_fields[table].annotation if table else Recipe
    fields = {key: info for key, info in model.model_fields.items() if table or key not in TABLES}
    return {key: "required" if info.is_required() else default(info.default) for key, info in fields.items()}


def default(value: Any) -> str:
    """A default as TOML writes it.

    >>> default(None), default(True), default(("a", 1.0))
    ('none', '`true`', '`["a", 1.0]`')
    """
    return "none" if value is None else f"`{json.dumps(value, ensure_ascii=False)}`"


@pytest.mark.parametrize("command", sorted(cli.commands))
def test_every_command_is_in_a_table_of_commands(command: str) -> None:
    rows = [row[0] for row in cells(section("Commands"))]
    assert any(re.match(rf"`edgedistill {command}[ `]", cell) for cell in rows)


def test_no_command_is_described_that_is_not_there() -> None:
    named = set(re.findall(r"\bedgedistill ([a-z]+)\b", "".join([*blocks("sh"), *re.findall(r"`[^`\n]+`", README)])))
    assert named
    assert named <= set(cli.commands)


def test_every_option_in_the_readme_belongs_to_a_command() -> None:
    nested = [inner for one in cli.commands.values() if isinstance(one, click.Group) for inner in one.commands.values()]
    commands = [*cli.commands.values(), *nested]
    known = {option for command in commands for parameter in command.params for option in parameter.opts}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README)) - OTHERS_OPTIONS
    assert named
    assert named <= known


@pytest.mark.parametrize("table", [None, *TABLES])
def test_every_key_of_a_recipe_is_described_with_its_real_default(table: str | None) -> None:
    rows = cells(section(f"`[{table}]`" if table else "Top level"))
    assert {row[0].strip("`"): row[1] for row in rows} == keys_of(table)
    assert all(row[2] for row in rows)


def test_every_quant_type_is_named() -> None:
    assert all(re.search(rf"\b{name}\b", section("`[quantize]`")) for name in QUANT_TYPES)


def test_every_key_of_a_data_row_is_described() -> None:
    assert {row[0].strip("`") for row in cells(section("Data rows"))} == ROW_KEYS


def test_the_data_row_in_the_readme_is_one(tmp_path: Path) -> None:
    (block,) = blocks("json")
    path = tmp_path / "rows.jsonl"
    path.write_text(block, encoding="utf-8")
    assert len(read_prompts(path)) == 1


def test_every_exit_code_is_listed() -> None:
    classes = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    codes = {kind.exit_code for kind in classes if issubclass(kind, errors.EdgeDistillError)}
    assert {int(row[0]) for row in cells(section("Exit codes"))} == codes | BESIDE_ERRORS


def test_every_model_of_the_catalogue_is_listed_with_its_size_and_licence() -> None:
    text = section("Without any hub")
    for entry in CATALOGUE:
        row = next(row for row in cells(text) if row[0] == f"`{entry.name}`")
        assert row[1].endswith(f"{entry.gguf.size_bytes // 10**6:,} MB")
        assert row[2] == entry.licence


def test_every_recipe_is_in_the_table_with_its_models() -> None:
    rows = {row[0]: row for row in cells(section("Recipes"))}
    assert RECIPES
    assert set(rows) == {f"[{folder.name}](recipes/{folder.name}/README.md)" for folder in RECIPES}
    for folder in RECIPES:
        recipe = load_recipe(folder)
        row = rows[f"[{folder.name}](recipes/{folder.name}/README.md)"]
        assert row[2:] == [recipe.teacher.model, recipe.student.model]


@pytest.mark.parametrize("folder", RECIPES, ids=lambda folder: folder.name)
def test_a_recipe_states_how_many_rows_its_files_have(folder: Path) -> None:
    rows = cells((folder / "README.md").read_text(encoding="utf-8"))
    stated = {found[1]: row[1] for row in rows if (found := re.fullmatch(r"\[(.+\.jsonl)\]\(.+\)", row[0]))}
    counted = {path.name: str(len(path.read_bytes().splitlines())) for path in folder.glob("*.jsonl")}
    assert stated == counted


@pytest.mark.parametrize("path", tree())
def test_what_the_tree_shows_is_there(path: str) -> None:
    assert (ROOT / path).is_dir() if path.endswith("/") else (ROOT / path).is_file()


def test_the_tree_shows_every_module_and_room() -> None:
    package = ROOT / "edgedistill"
    modules = {f"edgedistill/{path.name}" for path in package.glob("*.py") if path.name != "__init__.py"}
    rooms = {f"edgedistill/{path.parent.name}/" for path in package.glob("*/__init__.py")}
    stages = {f"edgedistill/stages/{stage.name}.py" for stage in STAGES}
    assert modules | rooms | stages <= set(tree())


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_to_files_and_headings_hold(document: str) -> None:
    path = ROOT / document
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        file, _, heading = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), link
        assert not heading or heading in anchors(target), link


def anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_every_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z]+)\b", "".join([*blocks("sh"), *re.findall(r"`[^`\n]+`", README)])))
    assert {"setup", "demo", "test"} <= named
    assert named <= targets


def test_the_python_example_uses_names_that_exist() -> None:
    (block,) = blocks("python")
    imported = [
        name.name
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.ImportFrom) and node.module == "edgedistill"
        for name in node.names
    ]
    assert imported
    assert all(callable(getattr(edgedistill, name)) for name in imported)


def test_the_changelog_begins_with_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (\S+)", text, re.MULTILINE)[0] == edgedistill.__version__


def test_the_licence_is_the_one_that_the_package_states() -> None:
    known = ROOT / "edgedistill" / "models" / "texts" / "apache-2.0.txt"
    assert (ROOT / "LICENSE").read_bytes() == known.read_bytes()
