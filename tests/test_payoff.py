"""payoff: arithmetic that can be done by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from fabricated_run import fabricated_run

from edgedistill.commands.payoff import show_payoff
from edgedistill.errors import EdgeDistillError, InvalidInput
from edgedistill.report.payoff import Measured, Prices, measured, payoff
from edgedistill.report.summary import document

RUN = Measured("student Q8_0", 500.0, 100.0, 900.0, 50.0, 2.0, "A CPU, 2 cores")
PRICES = Prices(100_000, api_price_in=1.0, api_price_out=4.0, hardware_cost=240.0, power_watts=72.0, kwh_price=0.5)


def test_the_break_even_is_what_one_works_out_by_hand() -> None:
    found = payoff(RUN, PRICES)
    # (900 + 100) tokens at 1 and 50 at 4 a million
    assert found["api"]["cost_per_request"] == pytest.approx(0.0012)
    assert found["api"]["cost_per_month"] == pytest.approx(120.0)
    # 0.5 s at 72 W are 36 J, or 1e-5 kWh
    assert found["own"]["cost_per_request"] == pytest.approx(5e-6)
    assert found["own"]["cost_per_month"] == pytest.approx(0.5)
    # 2 h at 72 W are 0.144 kWh
    assert found["one_off"] == {"hardware": 240.0, "training": pytest.approx(0.072), "total": pytest.approx(240.072)}
    # 240.072 at 0.001195 a request
    assert found["break_even"] == {"requests": 200_898, "months": pytest.approx(240.072 / 119.5)}
    # without the shared prompt: 100 at 1 and 50 at 4 a million
    assert found["break_even_if_shared_prompt_is_free"]["months"] == pytest.approx(240.072 / 29.5)


def test_it_never_pays_where_the_own_device_is_not_cheaper() -> None:
    found = payoff(RUN, replace(PRICES, api_price_in=0.0, api_price_out=0.01))
    assert found["break_even"] is None
    assert payoff(RUN, Prices(1000, 0.0, 0.0))["break_even"] is None


def test_without_cost_it_pays_at_once() -> None:
    found = payoff(RUN, Prices(1000, api_price_in=1.0, api_price_out=4.0))
    assert found["break_even"] == {"requests": 0, "months": 0.0}
    assert any("Power costs nothing" in line for line in found["assumptions"])


@pytest.mark.parametrize(("requests", "devices"), [(5_259_600, 1), (5_259_601, 2), (60_000_000, 12)])
def test_a_load_beyond_one_device_buys_more_of_them(requests: int, devices: int) -> None:
    found = payoff(RUN, replace(PRICES, requests_per_month=requests))  # 5,259,600 half seconds are a month
    assert found["devices"]["needed"] == devices
    assert found["devices"]["one_is_enough"] == (devices == 1)
    assert found["one_off"]["hardware"] == 240.0 * devices


@pytest.mark.parametrize(
    "changes",
    [
        {"requests_per_month": 0},
        {"api_price_in": -1.0},
        {"api_price_out": float("nan")},
        {"power_watts": 0.0},
        {"kwh_price": 0.0},
    ],
)
def test_impossible_prices_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(InvalidInput):
        payoff(RUN, replace(PRICES, **changes))


def test_tokens_and_times_come_from_the_run(tmp_path: Path) -> None:
    found = measured(document(*fabricated_run(tmp_path)))
    assert found == Measured("student Q4_K_M", 180.0, 20.0, 980, 25.0, 1.0, "A CPU, 2 cores")


def test_a_run_that_was_not_timed_is_refused(tmp_path: Path) -> None:
    recipe, run = fabricated_run(tmp_path)
    (run.folder("bench") / "bench.json").unlink()
    with pytest.raises(EdgeDistillError, match="not been timed"):
        measured(document(recipe, run))


def test_every_assumption_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, run = fabricated_run(tmp_path)
    show_payoff(run.path, True, **vars(PRICES))
    found = json.loads(capsys.readouterr().out)
    show_payoff(run.path, False, **vars(PRICES))
    text = capsys.readouterr().out
    assert len(found["assumptions"]) == 8
    for line in found["assumptions"]:
        assert line in text
    assert "break-even  after" in text
    show_payoff(run.path, False, requests_per_month=1000, api_price_in=0.0, api_price_out=0.0)
    assert "never" in capsys.readouterr().out
