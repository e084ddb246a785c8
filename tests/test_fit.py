"""fit: a model's speed from its shape and the machine's profile, before there is a model."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from pico import pico_gguf, silent
from pico_recipe import PicoModels

from edgedistill.cli import cli
from edgedistill.errors import GateMissed, InvalidInput
from edgedistill.llamacpp import calibration
from edgedistill.llamacpp.calibration import Profile, calibrate, load_profile, profile_path, read_profile, write_profile
from edgedistill.llamacpp.context import Context, ContextSettings
from edgedistill.llamacpp.model import LlamaModel
from edgedistill.llamacpp.prediction import forecast, longest_answer, longest_prompt
from edgedistill.llamacpp.quantize import quantize
from edgedistill.llamacpp.shapes import (
    mixture,
    shape_of_config,
    shape_of_folder,
    shape_of_gguf,
    types_of_gguf,
    write_shaped,
)
from edgedistill.models import identify
from edgedistill.models.catalogue import CATALOGUE
from edgedistill.recipe import load_recipe
from edgedistill.run import Run, cores
from edgedistill.stages.fitting import CONFIGS, kept_profiles, require_fit
from edgedistill.stages.grammar_cost import choosing_ns

KINDS = ("F16", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "Q5_0", "Q5_1")


def profile(scale: float = 1.0, busy: float = 0.0) -> Profile:
    """A machine of usual speed: 0.1 ns a weight for one row, 0.01 for each more."""
    costs = {rows: scale * (0.1 + 0.01 * rows) for rows in (1, 16, 256)}
    rest = {1: scale * 2e4, 256: scale * 2e6}
    return Profile("cpu", 2, "0", 8 << 30, busy, dict.fromkeys(KINDS, costs), rest, {1: 0.02, 256: 0.02})


def test_the_quantizer_tells_each_tensors_type_without_weights(tmp_path: Path) -> None:
    source = pico_gguf(tmp_path / "pico.gguf", size=256)
    shape = shape_of_gguf(source)
    assert shape == replace(shape_of_folder(tmp_path / "pico-hf"), name=shape.name, keys=shape.keys)
    quantize(source, tmp_path / "q.gguf", "Q4_K_M", threads=1)
    assert mixture(shape, "Q4_K_M") == types_of_gguf(tmp_path / "q.gguf")
    assert mixture(shape, "F16") == types_of_gguf(source)
    narrow = shape_of_gguf(pico_gguf(tmp_path / "narrow.gguf"))  # whose rows no K-quant takes
    assert set(mixture(narrow, "Q4_K_M").values()) == {"Q5_0", "Q8_0", "F32"}
    with pytest.raises(InvalidInput, match="unknown quant type 'Q9'"):
        mixture(shape, "Q9")


def test_a_machine_is_calibrated_once_a_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "PASSES", (1, 4))
    monkeypatch.setattr(calibration, "DEPTH", 64)
    monkeypatch.setattr(calibration, "WIDE", (256, 256, 2))
    found = calibrate(["Q8_0", "F32"], tmp_path, silent)
    assert set(found.weights) == {"Q8_0"}
    assert found.layer[1] > 0
    quiet = replace(found, busy=0.0)
    write_profile(quiet, profile_path(tmp_path, cores()))
    both = calibrate(["Q8_0", "Q4_K"], tmp_path, silent)
    assert both.weights["Q8_0"] == found.weights["Q8_0"]
    assert load_profile(tmp_path) == both


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 400), st.integers(0, 500), st.sampled_from(list(CONFIGS)))
def test_more_tokens_take_longer_and_the_limits_hold(prompt: int, output: int, shared: int, name: str) -> None:
    shape = shape_of_config(name, CONFIGS[name])
    types = {tensor: "Q8_0" if len(dims) > 1 else "F32" for tensor, dims in shape.tensors.items()}
    here = profile()
    told = forecast(shape, types, here, prompt, output, shared)
    assert told.ttft_ms <= told.e2e_ms
    assert forecast(shape, types, here, prompt + 64, output, shared).ttft_ms > told.ttft_ms
    assert forecast(shape, types, here, prompt, output + 1, shared).e2e_ms > told.e2e_ms
    assert forecast(shape, types, profile(2.0), prompt, output, shared).e2e_ms > 1.5 * told.e2e_ms
    limit = told.e2e_ms * 1.001
    assert longest_answer(shape, types, here, prompt, limit, shared) >= 0.9 * output - 1
    assert longest_prompt(shape, types, here, output, limit, shared) >= prompt


def test_choosing_a_token_is_paid_at_every_token() -> None:
    shape = shape_of_config("smollm2-135m-instruct", CONFIGS["smollm2-135m-instruct"])
    types = {tensor: "Q8_0" if len(dims) > 1 else "F32" for tensor, dims in shape.tensors.items()}
    free, held = (forecast(shape, types, replace(profile(), choosing=ns), 40, 20) for ns in (0.0, 1e6))
    assert (held.ttft_ms - free.ttft_ms, held.tpot_ms - free.tpot_ms) == (pytest.approx(1), pytest.approx(1))
    assert held.e2e_ms - free.e2e_ms == pytest.approx(20)


def test_what_the_schema_takes_is_measured_on_the_right_answers(pico_recipe: Path, models: PicoModels) -> None:
    recipe = load_recipe(pico_recipe)
    student, other = (identify(str(path), ("hf", "gguf"), True) for path in (models.student, models.teacher))
    assert choosing_ns(recipe, student) > 0
    assert choosing_ns(recipe, other) > 0
    free = recipe.model_copy(update={"schema_file": None})
    assert choosing_ns(free, student) == 0
    evaluation = recipe.file(recipe.evaluate.file)
    evaluation.write_text('{"messages": [{"role": "user", "content": "x"}], "expected": "no object"}\n')
    assert choosing_ns(recipe, student) == 0


def test_every_model_of_the_catalogue_has_a_shape_or_no_way_to_become_a_student() -> None:
    assert set(CONFIGS) <= {entry.name for entry in CATALOGUE}
    sizes = {name: shape_of_config(name, config).parameters for name, config in CONFIGS.items()}
    assert sizes["smollm2-135m-instruct"] == 134_515_008
    assert sizes["qwen2.5-coder-0.5b-instruct"] == pytest.approx(494e6, rel=0.01)
    assert sizes["qwen2.5-coder-1.5b-instruct"] == pytest.approx(1544e6, rel=0.01)


def broken(edit: Callable[[dict[str, Any]], Any]) -> str:
    data = {**vars(profile()), "weights": {"Q8_0": {"1": 0.1, "2": 0.2}}}
    edit(data)
    return json.dumps(data)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        broken(lambda data: data.pop("layer")),
        broken(lambda data: data.update(layer={"1": -1, "2": 1})),
        broken(lambda data: data.update(layer={"2": 1, "3": 1})),
        broken(lambda data: data["weights"].update(Q8_0={"1": float("nan"), "2": 1})),
        broken(lambda data: data["weights"].update(Q8_0=[1])),
    ],
)
def test_a_file_that_is_no_profile_is_one_clear_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "profile.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InvalidInput, match="no profile") as caught:
        read_profile(path)
    assert "\n" not in caught.value.message


def test_the_command_asks_another_machine_by_its_profile(models: PicoModels, tmp_path: Path) -> None:
    device = tmp_path / "device.json"
    write_profile(profile(), device)
    command = ["fit", "smollm2-135m-instruct", "--offline", "--device", str(device)]
    done = CliRunner().invoke(cli, [*command, "--json", "--target", "100-500"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [row["quant"] for row in found["quants"]] == ["Q8_0", "Q5_K_M", "Q4_K_M"]
    assert found["machine"]["cpu"] == "cpu"
    slow = CliRunner().invoke(cli, [*command, "--target", "100"])
    assert "too slow" in slow.stdout
    assert "this one can write" in slow.stdout
    own = CliRunner().invoke(cli, ["fit", str(models.teacher), "--device", str(device), "--quant", "Q8_0", "--json"])
    assert [row["quant"] for row in json.loads(own.stdout)["quants"]] == ["as it is", "Q8_0"]
    unknown = CliRunner().invoke(cli, [*command, "--quant", "Q2_K"])
    assert unknown.exit_code == 3
    assert "does not know" in unknown.stderr


def test_a_student_that_cannot_answer_in_time_is_refused_only_by_a_quiet_profile(pico_recipe: Path) -> None:
    recipe, run = load_recipe(pico_recipe), Run(pico_recipe / "runs")
    assert require_fit(recipe, run).startswith("not predicted: edgedistill fit")
    place = profile_path(kept_profiles(), cores())
    try:
        write_profile(profile(), place)
        assert "the target is 60000 ms" in require_fit(recipe, run)
        write_profile(profile(5e4, busy=0.9), place)
        assert "this machine was busy" in require_fit(recipe, run)
        write_profile(profile(5e4), place)
        with pytest.raises(GateMissed, match="student cannot answer in 60000 ms here") as caught:
            require_fit(recipe, run)
        assert "this one can write" in caught.value.hint
    finally:
        place.unlink()


def test_a_shaped_file_loads_and_computes(tmp_path: Path) -> None:
    shape = shape_of_gguf(pico_gguf(tmp_path / "pico.gguf", size=256))
    for quant in ("Q4_K_M", "Q2_K"):
        path = tmp_path / f"{quant}.gguf"
        write_shaped(path, shape, mixture(shape, quant))
        assert shape_of_gguf(path).tensors == shape.tensors
        assert types_of_gguf(path) == mixture(shape, quant)
        with LlamaModel(path) as model, closing(Context(model, ContextSettings(256, 1, 1))) as context:
            context.batch.add([1, 2, 3], 0, 0, 1)
            context.decode()
            assert np.isfinite(context.logits(2)).all()
