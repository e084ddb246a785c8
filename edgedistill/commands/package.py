"""`edgedistill package`: the stage, and the check of a packaged folder on the device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ..errors import InvalidInput
from ..stages.package import verify as verify_folder
from .run import run_stage

__all__ = ["package_or_verify"]


def package_or_verify(recipe: Path | None, verify: Path | None, as_json: bool, quiet: bool, **where: Any) -> None:
    """Pack the chosen quant of a recipe, or check a packaged folder."""
    if (recipe is None) == (verify is None):
        raise InvalidInput("package takes a recipe, or --verify FOLDER", "Name one of the two.")
    if recipe is not None:
        run_stage(recipe, "package", as_json, quiet, **where)
        return
    assert verify is not None
    found = verify_folder(verify)
    click.echo(json.dumps(found) if as_json else f"{verify}: sums hold, golden answers are the same")
