"""Arguments and flags that several commands have. Nothing heavy is imported here: `--help` reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import rich_click as click

__all__ = [
    "json_option",
    "llama_cpp_option",
    "offline_option",
    "recipe_argument",
    "run_argument",
    "run_options",
    "track_option",
]


def recipe_argument(function: Any) -> Any:
    return click.argument("recipe", type=click.Path(path_type=Path))(function)


def run_argument(function: Any) -> Any:
    return click.argument("run", type=click.Path(path_type=Path))(function)


def run_options(function: Any) -> Any:
    """The flags of every command that runs stages."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print one JSON document on standard output."),
        click.option("-q", "--quiet", is_flag=True, help="No progress bars, no notes."),
        click.option("--offline", is_flag=True, help="Use only models that are on this machine; open no connection."),
        click.option(
            "--runs", type=click.Path(path_type=Path), default="runs", show_default=True, help="Folder of the runs."
        ),
    ):
        function = option(function)
    return function


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document on standard output.")
offline_option = click.option("--offline", is_flag=True, help="Use only models on this machine; open no connection.")
llama_cpp_option = click.option(
    "--llama-cpp",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="For export: a llama.cpp checkout whose converter is used where the architecture is not in our table.",
)


track_option = click.option(
    "--track",
    type=click.Choice(["trackio", "wandb", "tensorboard"]),
    help="Show the training's curves in this tool too; metrics.jsonl is written anyway.",
)
