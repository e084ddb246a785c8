"""Latency is measured in a process of its own, request by request."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pico_recipe import SCHEMA, PicoModels

from edgedistill.errors import EdgeDistillError
from edgedistill.llamacpp.timing import TimedModel, TimingTask, token_counter
from edgedistill.records import Message, Prompt
from edgedistill.stages.lengths import made_up, of_length


def prompts(*texts: str) -> list[Prompt]:
    return [Prompt(f"{number:08x}", (Message("user", text),)) for number, text in enumerate(texts)]


@pytest.fixture
def task(models: PicoModels, tmp_path: Path) -> TimingTask:
    return TimingTask(
        model=models.teacher,
        sha256="0" * 64,
        preamble=(Message("system", "Be brief."),),
        schema=SCHEMA,
        prompts=prompts("light on", "", "hello world " * 400),
        max_tokens=40,
        threads=1,
        gpu_layers=0,
        scratch=tmp_path / "scratch",
    )


def asked(task: TimingTask) -> tuple[TimedModel, list[dict[str, Any]], dict[str, Any]]:
    """The model, what each prompt took, and the last record."""
    with TimedModel(task) as timed:
        requests = [timed.ask(number) for number in range(len(task.prompts))]
        return timed, requests, timed.close()


def test_every_request_is_timed_however_long(task: TimingTask) -> None:
    timed, requests, last = asked(task)
    assert timed.load["load_ms"] > 0
    assert timed.load["shared_tokens"] > 5
    assert {"llama-cpp-python", "system_info"} <= timed.load["runtime"].keys()
    assert last["peak_memory_bytes"] > 10_000_000
    for request in requests:
        assert 0 < request["ttft_ms"] <= request["e2e_ms"]
        assert 5 < request["completion_tokens"] <= 40
        # every token behind the first is a step of its own, and the end is one more at most
        steps = (request["e2e_ms"] - request["ttft_ms"]) / request["tpot_ms"]
        assert request["completion_tokens"] - 1 <= round(steps) <= request["completion_tokens"]
    assert requests[2]["prompt_tokens"] > 800


def test_a_warm_request_computes_the_whole_prompt_and_a_cold_one_loads_the_model_too(task: TimingTask) -> None:
    task = replace(task, prompts=task.prompts[:1])
    cached, warm, cold = (asked(replace(task, cache=cache)) for cache in ("cached-prefix", "warm", "cold"))
    whole = cached[0].load["shared_tokens"] + cached[1][0]["prompt_tokens"]
    assert [warm[1][0]["prompt_tokens"], cold[1][0]["prompt_tokens"]] == [whole, whole]
    assert warm[0].load["shared_tokens"] == 0
    assert cold[1][0]["ttft_ms"] > cold[0].load["load_ms"] > 0
    assert cold[2]["peak_memory_bytes"] > 10_000_000


def test_prompts_and_answers_have_the_length_that_is_stated(task: TimingTask) -> None:
    source = made_up(0)
    some = [next(source) for _ in range(6)]
    with token_counter(task.model, task.preamble) as count:
        fitted = of_length(some, 90, count)
        short = of_length(some, 60, count)
        assert all(80 <= count(prompt) <= 90 for prompt in fitted)
        assert all(50 <= count(prompt) <= 60 for prompt in short)
        with pytest.raises(EdgeDistillError, match=r"bench\.prompt_tokens is 5, but the chat template"):
            of_length(some, 5, count)
    assert len({prompt.text for prompt in fitted}) == len({prompt.text for prompt in short}) == 6
    _, requests, _ = asked(replace(task, prompts=fitted[:2], max_tokens=9, endless=True, cache="warm"))
    assert [request["completion_tokens"] for request in requests] == [9, 9]
    with token_counter(task.model, task.preamble) as count:
        assert [request["prompt_tokens"] for request in requests] == [count(prompt) for prompt in fitted[:2]]


def test_forced_tokens_are_skipped_where_that_is_asked_for_and_the_answer_stays(task: TimingTask) -> None:
    with TimedModel(task) as timed:
        plain, skipping, again = timed.ask(0), timed.ask(0, jump=True), timed.ask(0)
    assert plain["completion_tokens"] == skipping["completion_tokens"] == again["completion_tokens"] > 4
    assert skipping["steps"] < plain["steps"] == again["steps"]
    for cache in ("cached-prefix", "cold"):
        _, (by_itself, *_), _ = asked(replace(task, prompts=task.prompts[:1], skips_forced=True, cache=cache))
        assert by_itself["steps"] == skipping["steps"]


PEAK = "from edgedistill.hardware import peak_memory; print(peak_memory())"


def test_the_peak_of_a_childs_memory_is_its_own_not_that_of_who_started_it() -> None:
    large = 400 << 20
    grown = f"import subprocess, sys; held = bytes([1]) * {large}; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    alone, below = (
        int(subprocess.run([sys.executable, "-c", *code], capture_output=True, text=True, check=True).stdout)
        for code in ([PEAK], [grown, PEAK])
    )
    assert 0 < below < alone + large / 4


def test_a_child_that_fails_is_an_error_that_names_the_file(
    task: TimingTask, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + b"\0" * 60)
    many = prompts(*("x" * 1000 for _ in range(200)))
    with pytest.raises(EdgeDistillError, match=r"broken\.gguf: ") as caught:
        TimedModel(replace(task, model=tmp_path / "broken.gguf", prompts=many))
    assert "\n" not in caught.value.message
    assert "Traceback" not in capfd.readouterr().err


def test_a_prompt_that_the_model_cannot_hold_is_refused(task: TimingTask) -> None:
    with pytest.raises(EdgeDistillError, match="the longest prompt and its answer need") as caught:
        TimedModel(replace(task, max_tokens=1_000_000))
    assert caught.value.exit_code == 3


def test_a_model_that_is_left_ends_its_child(task: TimingTask) -> None:
    with TimedModel(task) as timed:
        child = timed._child
    assert child is not None
    assert child.poll() is not None
