"""Fixtures of the tests on a recipe's own data."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from edgedistill.recipe import Recipe, load_recipe
from edgedistill.records import Prompt, read_prompts, read_rows

__all__ = ["generator", "pairs_of", "recipe_fixture", "rows_fixture"]


def recipe_fixture(folder: Path) -> Callable[[], Recipe]:
    """A fixture: the recipe of a folder."""

    @pytest.fixture(scope="module")
    def recipe() -> Recipe:
        return load_recipe(folder)

    return recipe


def rows_fixture(path: Path) -> Callable[[], list[Prompt]]:
    """A fixture: the prompts of a file."""

    @pytest.fixture(scope="module")
    def rows() -> list[Prompt]:
        return read_prompts(path)

    return rows


def pairs_of(path: Path) -> list[tuple[str, str]]:
    """What is asked and answered in each example, as it is written."""
    rows: list[Any] = [row["messages"] for _, row in read_rows(path)]
    assert all([message["role"] for message in row] == ["user", "assistant"] for row in rows)
    return [(row[0]["content"], row[1]["content"]) for row in rows]


def generator(folder: Path) -> ModuleType:
    """The script that writes a recipe's rows."""
    spec = importlib.util.spec_from_file_location(f"generate_{folder.name.replace('-', '_')}", folder / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = made  # where its dataclasses look for their module
    spec.loader.exec_module(made)
    return made
