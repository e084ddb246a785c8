"""payoff: when the small model has paid for itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ..recipe import load_recipe
from ..report.payoff import Prices, measured, payoff
from ..report.summary import document
from ..report.wording import percent
from ..run import open_run

__all__ = ["show_payoff"]


def show_payoff(run_folder: Path, as_json: bool, **prices: float) -> None:
    """Print costs, break-even and every assumption of a run at `Prices(**prices)`, as text or as JSON.

    Raises EdgeDistillError where the folder is no run or was not timed, InvalidInput for impossible prices.
    """
    run = open_run(run_folder)
    found = payoff(measured(document(load_recipe(run.path / "recipe.toml"), run)), Prices(**prices))
    click.echo(json.dumps(found, indent=1) if as_json else "\n".join(_lines(found)))


def _lines(found: dict[str, Any]) -> list[str]:
    devices, one_off = found["devices"], found["one_off"]
    load = f"{percent(devices['busy_share_of_one'])} of one device's time"
    return [
        f"{found['model']}, {found['requests_per_month']:,.0f} requests a month",
        "",
        f"API         {_cost(found['api'])}",
        f"own device  {_cost(found['own'])}",
        f"one-off     {one_off['total']:>12,.2f}"
        f"  (hardware {one_off['hardware']:,.2f}, training {one_off['training']:,.2f})",
        "",
        f"break-even  {_when(found['break_even'])}",
        f"            {_when(found['break_even_if_shared_prompt_is_free'])}, if the API's shared prompt were free",
        f"load        {load}: " + ("one is enough" if devices["one_is_enough"] else f"{devices['needed']} are needed"),
        "",
        "Assumptions:",
        *(f"- {line}" for line in found["assumptions"]),
    ]


def _cost(side: dict[str, float]) -> str:
    return f"{side['cost_per_month']:>12,.2f} a month  ({side['cost_per_request']:.3g} a request)"


def _when(break_even: dict[str, float] | None) -> str:
    if break_even is None:
        return "never: the own device is not cheaper"
    return f"after {break_even['months']:,.1f} months, {break_even['requests']:,} requests"
