"""What is MLX's own: its adapters load in mlx-lm as they are, shapes are few, and a kill costs no bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import fill
from hypothesis import given
from hypothesis import strategies as st
from pico import edited, pico_hf_folder
from required import required_or_skipped
from test_student_contract import examples, soft_lesson

from edgedistill.errors import InvalidInput, Stopped
from edgedistill.recipe import StudentSettings, TrainSettings
from edgedistill.students import BACKENDS, Student, TrainingData, TrainStep, load_student
from edgedistill.students.initial import lora_a
from edgedistill.students.lessons import hard_lesson
from edgedistill.students.merge import merge_adapter

SETTINGS = TrainSettings(epochs=2, learning_rate=1e-3, batch_size=4, rank=4, alpha=8.0, checkpoint_steps=2)


@pytest.fixture(autouse=True)
def mlx_is_here() -> None:
    required_or_skipped("mlx", BACKENDS["mlx"][0])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pico_hf_folder(tmp_path_factory.mktemp("mlx") / "base", "qwen2", tied=False)


def student(base: Path) -> Student:
    return load_student(StudentSettings(backend="mlx", model=str(base)), base)


def nothing(moment: Any) -> None:
    """A report that nobody reads."""


def data(count: int = 12) -> TrainingData:
    return TrainingData(examples(count), examples(3, seed=1), 3, soft_lesson)


def session(base: Path, **changes: Any) -> Any:
    import mlx.core as mx

    from edgedistill.students.mlx_model import loaded
    from edgedistill.students.mlx_session import MlxSession

    return MlxSession(loaded(base, mx.float32), SETTINGS.model_copy(update=changes), 3)


# -- its files


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_mlx_lm_loads_the_adapter_as_it_is(base: Path, tmp_path: Path, method: str) -> None:
    import mlx.core as mx
    from mlx_lm.utils import load

    wanted = SETTINGS.model_copy(update={"method": method, "learning_rate": 1e-2})
    student(base).train(data(), wanted, tmp_path, nothing)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["fine_tune_type"] == method
    assert config["num_layers"] == 2
    assert config["lora_parameters"]["scale"] == SETTINGS.alpha / SETTINGS.rank
    assert len(config["lora_parameters"]["keys"]) == 7
    model = load(str(base), adapter_path=str(tmp_path / "adapter"))[0]
    model.set_dtype(mx.float32)
    rows = [list(row.tokens) for row in examples(3)]
    both = np.stack([np.array(model(mx.array([row]))[0, -1]) for row in rows])
    merge_adapter(base, tmp_path / "adapter", tmp_path / "merged")
    merged = student(base).logits(tmp_path / "merged", rows)
    assert merged.dtype == np.float32
    assert np.abs(merged - both).max() < 2e-3 * np.abs(both).max()
    assert np.abs(merged - student(base).logits(base, rows)).max() > 0.01


def test_the_first_weights_are_those_of_seed_and_name(base: Path) -> None:
    import mlx.core as mx

    weights = session(base)._weights
    name = "model.layers.1.self_attn.q_proj"
    assert np.array_equal(np.array(weights[f"{name}.lora_a"]).T, lora_a(3, name, 4, 64))
    assert not any(mx.any(weight).item() for key, weight in weights.items() if key.endswith("lora_b"))
    assert len(weights) == 2 * 7 * 2


def test_first_weights_differ_by_seed_and_name_and_fill_their_range() -> None:
    one = lora_a(0, "a", 16, 64)
    assert one.shape == (16, 64)
    assert one.dtype == np.float32
    assert np.array_equal(one, lora_a(0, "a", 16, 64))
    assert not np.array_equal(one, lora_a(1, "a", 16, 64))
    assert not np.array_equal(one, lora_a(0, "b", 16, 64))
    assert 0.99 / 8 < np.abs(one).max() <= 1 / 8
    assert abs(one.mean()) < 0.01


def test_a_full_disk_stops_and_leaves_no_half_checkpoint(
    base: Path, small_disk: Callable[[int], Path], tmp_path: Path
) -> None:
    disk = small_disk(1 << 20)
    fill(disk)
    from edgedistill.students.mlx_adapter import save_tensors

    with pytest.raises(Stopped, match=r"weights\.safetensors: .* MB free"):
        save_tensors(disk / "weights.safetensors", session(base)._weights)
    assert not list(disk.glob("*.safetensors"))


# -- a base in 4 bits


def test_a_base_in_4_bits_learns_and_is_merged_on_16(base: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    steps: list[TrainStep] = []
    wanted = SETTINGS.model_copy(update={"method": "qlora", "epochs": 8, "learning_rate": 1e-2})
    student(base).train(data(), wanted, tmp_path, lambda m: steps.append(m) if isinstance(m, TrainStep) else None)
    assert steps[-1].loss < 0.8 * steps[0].loss
    merge_adapter(base, tmp_path / "adapter", tmp_path / "merged")
    before, after = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "merged"))
    adapter = load_file(tmp_path / "adapter" / "adapters.safetensors")
    name = "model.layers.0.mlp.down_proj"
    learned = 2.0 * (adapter[f"{name}.lora_a"] @ adapter[f"{name}.lora_b"]).T
    weight = before[f"{name}.weight"].astype(np.float32) + learned
    assert np.allclose(after[f"{name}.weight"].astype(np.float32), weight, rtol=1e-3, atol=1e-4)
    assert np.array_equal(after["model.embed_tokens.weight"], before["model.embed_tokens.weight"])


def test_only_the_layers_weights_are_in_4_bits(base: Path) -> None:
    import mlx.nn as nn

    modules = dict(session(base, method="qlora")._model.named_modules())
    packed = [name for name, module in modules.items() if isinstance(module, nn.QuantizedLinear)]
    assert len(packed) == 14
    assert not isinstance(modules["lm_head"], nn.QuantizedLinear)
    assert not isinstance(modules["model.embed_tokens"], nn.QuantizedEmbedding)


# -- few shapes, little padding


@given(st.integers(1, 100_000), st.sampled_from([8, 32]))
def test_lengths_are_rounded_up_a_little_to_few(length: int, shapes: int) -> None:
    from edgedistill.students.mlx_session import rounded_up

    found = rounded_up(length, shapes)
    assert length <= found <= length * (1 + 1 / shapes)
    assert rounded_up(found, shapes) == found
    octave = range(1 << (length.bit_length() - 1), 1 << length.bit_length())
    if len(octave) <= 1 << 12:
        assert len({rounded_up(one, shapes) for one in octave}) <= shapes + 1


@given(st.integers(0, 1000), st.integers(10, 1000), st.floats(0.05, 0.6))
def test_rounding_up_adds_less_than_two_percent(seed: int, typical: int, spread: float) -> None:
    from edgedistill.students.mlx_session import rounded_up

    source = np.random.default_rng(seed)
    longest = np.maximum(2, typical * np.exp(spread * source.standard_normal(100))).astype(int).tolist()
    assert sum(map(rounded_up, longest)) <= 1.02 * sum(longest)


@pytest.mark.compiled
def test_a_second_epoch_compiles_nothing_new(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgedistill.students.mlx_session import MlxSession

    traced: list[tuple[int, ...]] = []
    plain = MlxSession._traced_gradient

    def watched(self: Any, weights: Any, arrays: Any, share: Any) -> Any:
        traced.append(arrays["tokens"].shape)
        return plain(self, weights, arrays, share)

    monkeypatch.setattr(MlxSession, "_traced_gradient", watched)
    learning, rows = session(base), [hard_lesson(row) for row in examples(12)]
    for _ in range(2):
        for start in range(0, 12, 4):
            learning.step(rows[start : start + 4], 1e-3)
    assert len(traced) <= 3


def test_the_padded_share_counts_what_was_computed(base: Path, tmp_path: Path) -> None:
    summary = student(base).train(data(), SETTINGS, tmp_path, nothing)
    assert 0.0 < summary["padded_share"] < 0.5
    assert summary["dtype"] == "float32"
    assert summary["trained_parameters"] == session(base).size
    assert summary["micro_batch"] == 4


# -- dropout


@pytest.mark.compiled
@pytest.mark.parametrize("recomputed", ["on", "off"])
def test_the_gradient_under_dropout_is_that_of_the_loss_under_the_same_dropout(base: Path, recomputed: str) -> None:
    """Against the difference of two losses along the gradient."""
    import mlx.core as mx

    from edgedistill.students.mlx_adapter import Keys

    learning = session(base, dropout=0.3, gradient_checkpointing=recomputed)
    weights = {name: weight + 0.05 for name, weight in learning._weights.items()}
    (arrays,) = learning._arrays([hard_lesson(row) for row in examples(4)])
    arrays["key"] = Keys.of(1)
    one = mx.array(1.0)
    _, gradient = learning._gradient(weights, arrays, one)
    square = sum(mx.square(part).sum().item() for part in gradient.values())
    step = 0.002 / square**0.5
    ends = [
        learning._gradient({name: w + sign * step * gradient[name] for name, w in weights.items()}, arrays, one)[0]
        for sign in (1, -1)
    ]
    assert (ends[0] - ends[1]).item() / (2 * step) == pytest.approx(square, rel=0.02)


# -- texts in one sequence


def test_a_layer_that_looks_back_a_little_does_so_within_its_text() -> None:
    import mlx.core as mx

    from edgedistill.students.mlx_model import Beside

    visible = np.zeros((7, 7), bool)
    visible[:4, :4], visible[4:, 4:] = np.tri(4, dtype=bool), np.tri(3, dtype=bool)
    beside = Beside(mx.array(visible))
    assert np.array_equal(np.array(beside.make_mask(7)), visible)
    places = np.arange(7)
    near = visible & (places[:, None] - places[None] < 2)
    assert np.array_equal(np.array(beside.make_mask(7, window_size=2)), near)


def test_a_layer_that_looks_back_a_little_sees_the_end_of_the_opening_alone() -> None:
    import mlx.core as mx

    from edgedistill.students.mlx_model import Opening

    opening = Opening()
    opening.update_and_fetch(mx.zeros((1, 2, 3, 4)), mx.zeros((1, 2, 3, 4)))
    keys, _ = opening.update_and_fetch(mx.ones((5, 2, 4, 4)), mx.ones((5, 2, 4, 4)))
    assert keys.shape == (5, 2, 7, 4)
    assert opening.offset == 3
    assert opening.make_mask(4) == "causal"
    places = np.arange(7)
    sees = (places[None] <= places[3:, None]) & (places[None] > places[3:, None] - 2)
    assert np.array_equal(np.array(opening.make_mask(4, window_size=2)), sees)


def test_only_relative_positions_go_into_one_sequence(base: Path, tmp_path: Path) -> None:
    import mlx.core as mx

    from edgedistill.students.mlx_model import loaded, takes_layouts

    assert takes_layouts(loaded(base, mx.float32))
    scaling = {"rope_type": "dynamic", "factor": 2.0}
    dynamic = pico_hf_folder(tmp_path / "dynamic")
    edited(dynamic, "config.json", lambda config: config.update(rope_scaling=scaling))
    assert not takes_layouts(loaded(dynamic, mx.float32))


# -- what it cannot train


def test_rotations_are_read_under_both_of_their_names(tmp_path: Path) -> None:
    rows = [list(row.tokens) for row in examples(2)]
    logits = []
    for number, (old, new) in enumerate(((500.0, None), (None, 500.0), (10000.0, None))):

        def state(config: dict[str, Any], old: float | None = old, new: float | None = new) -> None:
            del config["rope_theta"]
            config.update({"rope_theta": old} if old else {"rope_parameters": {"rope_theta": new}})

        folder = edited(pico_hf_folder(tmp_path / str(number)), "config.json", state)
        logits.append(student(folder).logits(folder, rows))
    assert np.array_equal(logits[0], logits[1])
    assert not np.allclose(logits[0], logits[2])


def test_an_architecture_that_mlx_lm_does_not_know_is_refused(tmp_path: Path) -> None:
    folder = pico_hf_folder(tmp_path / "base")
    edited(folder, "config.json", lambda config: config.update(model_type="unheard_of"))
    with pytest.raises(InvalidInput, match="unheard_of") as caught:
        student(folder).train(data(), SETTINGS, tmp_path / "out", nothing)
    assert "backend = 'torch'" in caught.value.hint
    assert "\n" not in caught.value.message


def test_a_head_that_does_more_than_a_product_is_refused(tmp_path: Path) -> None:
    """Granite divides its logits; it has the tensors of a llama."""
    folder = pico_hf_folder(tmp_path / "base")
    more = {"logits_scaling": 8.0, "attention_multiplier": 0.25, "embedding_multiplier": 1.0}
    more |= {"residual_multiplier": 1.0, "attention_bias": False, "mlp_bias": False, "attention_dropout": 0.0}
    edited(folder, "config.json", lambda config: config.update(model_type="granite", **more))
    with pytest.raises(InvalidInput, match="'granite' has no plain output head"):
        student(folder).train(data(), SETTINGS, tmp_path / "out", nothing)


# -- a kill

CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from test_students_mlx import SETTINGS, data, student
student(Path(sys.argv[1])).train(data(), SETTINGS, Path(sys.argv[2]), lambda moment: print(moment, flush=True))
"""


def test_a_killed_training_ends_in_the_same_bits(base: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    student(base).train(data(), SETTINGS, whole, nothing)
    command = [sys.executable, "-c", CHILD, str(base), str(cut), str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if line.startswith(b"TrainStep(step=4"):
                child.send_signal(signal.SIGKILL)
                break
        child.wait(60)
    assert child.returncode == -signal.SIGKILL
    assert not (cut / "adapter").exists()
    summary = student(base).train(data(), SETTINGS, cut, nothing)
    assert summary["resumed_from"] in {2, 4}
    name = "adapter/adapters.safetensors"
    assert (cut / name).read_bytes() == (whole / name).read_bytes()
