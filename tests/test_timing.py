"""Latency is measured in a process of its own, request by request."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pico_recipe import SCHEMA, PicoModels

from edgedistill.errors import EdgeDistillError
from edgedistill.llamacpp.timing import TimingTask, measure, percentiles
from edgedistill.records import Message, Prompt


def prompts(*texts: str) -> list[Prompt]:
    return [Prompt(f"{number:08x}", (Message("user", text),)) for number, text in enumerate(texts)]


@pytest.fixture
def task(models: PicoModels, tmp_path: Path) -> TimingTask:
    return TimingTask(
        model=models.teacher,
        sha256="0" * 64,
        preamble=(Message("system", "Be brief."),),
        schema=SCHEMA,
        prompts=prompts("warm up", "light on", "", "hello world " * 400),
        warmup=1,
        max_tokens=40,
        threads=1,
        gpu_layers=0,
        scratch=tmp_path / "scratch",
    )


def test_every_request_behind_the_warm_up_is_timed_however_long(task: TimingTask) -> None:
    load, *requests, last = measure(task)
    assert load["load_ms"] > 0
    assert load["shared_tokens"] > 5
    assert last["peak_memory_bytes"] > 10_000_000
    assert len(requests) == 3
    for request in requests:
        assert 0 < request["ttft_ms"] <= request["e2e_ms"]
        assert 5 < request["completion_tokens"] <= 40
    assert requests[2]["prompt_tokens"] > 800


def test_a_child_that_fails_is_an_error_that_names_the_file(
    task: TimingTask, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + b"\0" * 60)
    many = prompts(*("x" * 1000 for _ in range(200)))
    with pytest.raises(EdgeDistillError, match=r"broken\.gguf: ") as caught:
        list(measure(replace(task, model=tmp_path / "broken.gguf", prompts=many)))
    assert "\n" not in caught.value.message
    assert "Traceback" not in capfd.readouterr().err


def test_a_measurement_that_is_left_ends_its_child(task: TimingTask) -> None:
    running = measure(task)
    next(running)
    running.close()  # type: ignore[attr-defined]


@given(st.lists(st.floats(0, 1e6), min_size=1))
def test_a_percentile_is_a_value_that_was_measured(values: list[float]) -> None:
    values = [round(value, 2) for value in values]
    found = percentiles(values)
    assert set(found.values()) <= set(values)
    assert found["p50"] <= found["p90"] <= found["p95"] <= found["p99"] <= max(values)
    assert sum(value <= found["p95"] for value in values) >= 0.95 * len(values)
