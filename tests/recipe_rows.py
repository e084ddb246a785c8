"""Fixtures of the tests on a recipe's own data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgedistill.recipe import Recipe, load_recipe
from edgedistill.records import Prompt, read_prompts, read_rows

__all__ = ["pairs_of", "recipe_fixture", "rows_fixture"]


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
