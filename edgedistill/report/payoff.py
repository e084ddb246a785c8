"""When the small model has paid for itself: from what the run measured, and prices that the user gives."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ..errors import EdgeDistillError, InvalidInput

__all__ = ["Measured", "Prices", "measured", "payoff"]

SECONDS_A_MONTH = 365.25 / 12 * 86400
JOULES_A_KWH = 3.6e6


@dataclass(frozen=True)
class Measured:
    """What a run measured. Tokens and milliseconds are means and medians a request."""

    model: str
    request_ms: float
    """End to end on the small model, median."""
    prompt_tokens: float
    """Of the user's own prompt, as the teacher counts them; of the whole prompt, where it does not tell them apart."""
    shared_tokens: float
    """What the teacher is shown before every prompt, where it tells that apart."""
    completion_tokens: float
    run_hours: float
    machine: str


@dataclass(frozen=True)
class Prices:
    """What the user pays, all in one currency. API prices are for a million tokens."""

    requests_per_month: float
    api_price_in: float
    api_price_out: float
    hardware_cost: float = 0.0
    power_watts: float = 0.0
    kwh_price: float = 0.0


def measured(document: dict[str, Any]) -> Measured:
    """The measurements in a run's document: of the chosen student, or of the one that comes nearest.

    Raises EdgeDistillError where the run has not been timed.
    """
    timed = {one["name"]: one for one in document["candidates"] if one["latency_ms"]}
    student = timed.get(document["best"])
    teacher = next((one for one in timed.values() if one["kind"] == "teacher"), None)
    if student is None or teacher is None:
        raise EdgeDistillError(
            f"{document['recipe']['name']}: teacher and student have not been timed", "Run it first: edgedistill bench"
        )
    machine = document["machine"]
    return Measured(
        model=student["name"],
        request_ms=student["latency_ms"]["e2e"]["p50"],
        prompt_tokens=teacher["prompt_tokens_mean"],
        shared_tokens=teacher["shared_tokens"] or 0,
        completion_tokens=teacher["completion_tokens_mean"],
        run_hours=sum(stage["seconds"] for stage in document["stages"] if stage["finished"]) / 3600,
        machine=f"{machine.get('cpu', 'unknown processor')}, {machine.get('cores', '?')} cores",
    )


def payoff(run: Measured, prices: Prices) -> dict[str, Any]:
    """Costs a month on both sides, and when the one-off cost has come back: `break_even` in months and requests.

    Both are None where the small model is not cheaper. Raises InvalidInput for a price that is none.
    """
    _refuse_nonsense(prices)
    busy = prices.requests_per_month * run.request_ms / 1000 / SECONDS_A_MONTH
    devices = max(1, math.ceil(busy))
    own = run.request_ms / 1000 * prices.power_watts / JOULES_A_KWH * prices.kwh_price
    training = run.run_hours * prices.power_watts / 1000 * prices.kwh_price
    one_off = devices * prices.hardware_cost + training
    answer = run.completion_tokens * prices.api_price_out / 1e6
    api = (run.shared_tokens + run.prompt_tokens) * prices.api_price_in / 1e6 + answer
    api_short = run.prompt_tokens * prices.api_price_in / 1e6 + answer
    return {
        "model": run.model,
        "requests_per_month": prices.requests_per_month,
        "api": {"cost_per_request": api, "cost_per_month": api * prices.requests_per_month},
        "own": {"cost_per_request": own, "cost_per_month": own * prices.requests_per_month},
        "one_off": {"hardware": devices * prices.hardware_cost, "training": training, "total": one_off},
        "break_even": _break_even(one_off, api - own, prices.requests_per_month),
        "break_even_if_shared_prompt_is_free": _break_even(one_off, api_short - own, prices.requests_per_month),
        "devices": {"busy_share_of_one": busy, "one_is_enough": busy <= 1, "needed": devices},
        "assumptions": _assumptions(run, prices),
    }


def _refuse_nonsense(prices: Prices) -> None:
    for name, value in vars(prices).items():
        if not math.isfinite(value) or value < 0 or (name == "requests_per_month" and value == 0):
            raise InvalidInput(f"{name.replace('_', '-')}: {value:g} is not possible", "Give a number above 0.")
    if (prices.power_watts > 0) != (prices.kwh_price > 0):
        raise InvalidInput("power-watts and kwh-price go together", "Give both, or neither.")


def _break_even(one_off: float, saved: float, requests_per_month: float) -> dict[str, float | int] | None:
    """Requests and months after which `one_off` has been saved, at `saved` a request; None where nothing is saved.

    >>> _break_even(100.0, 0.01, 1000)
    {'requests': 10000, 'months': 10.0}
    >>> _break_even(100.0, -0.01, 1000) is None
    True
    """
    if saved <= 0:
        return None
    requests = math.ceil(round(one_off / saved, 6))
    return {"requests": requests, "months": one_off / saved / requests_per_month}


def _assumptions(run: Measured, prices: Prices) -> list[str]:
    power = (
        f"The device draws {prices.power_watts:g} W while it answers and while it trained; idle power is not counted. "
        f"On all month, it would cost {prices.power_watts * SECONDS_A_MONTH / JOULES_A_KWH * prices.kwh_price:.2f}."
        if prices.power_watts
        else "Power costs nothing: no power and kWh price were given."
    )
    told = (
        f"{run.shared_tokens:.0f} tokens of instructions and examples, and {run.prompt_tokens:.0f} of the request, all"
        if run.shared_tokens
        else f"{run.prompt_tokens:.0f} tokens of instructions, examples and request together,"
    )
    return [
        f"The API is asked as the teacher is: {told} at {prices.api_price_in:g} a million; "
        f"{run.completion_tokens:.0f} tokens come back at {prices.api_price_out:g} a million.",
        "The API counts tokens as the teacher's tokenizer does and gives no discount for what requests share; the "
        "other break-even takes that part as free.",
        f"The device answers as fast as where the run was timed ({run.machine}): {run.request_ms:.0f} ms a request "
        "at the median.",
        "Requests come evenly and one at a time; peaks need more devices.",
        power,
        f"The run took {run.run_hours:.2f} hours, all its stages together; work by people is not counted.",
        f"Hardware costs {prices.hardware_cost:g} a device, once, without resale or repair.",
        "Prices, load and the quality that is needed stay as they are.",
    ]
