"""Layers and feed-forward channels are taken out of a model: which ones, and what is left."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deep_models import LAYERS, ROWS, deep, loaded, logits, tensors
from hypothesis import given
from hypothesis import strategies as st
from pico import edited, written

from edgedistill.errors import InvalidInput, MissingRequirement, Stopped
from edgedistill.llamacpp import weights
from edgedistill.llamacpp.probe import kl_divergence, next_token_logits
from edgedistill.models import check_folder
from edgedistill.students import prune as pruning
from edgedistill.students.prune import (
    feed_forward_activity,
    kept_layers,
    kept_width,
    most_active,
    prune,
)


@pytest.fixture(params=[("llama", True), ("qwen2", False)], ids=["llama, tied", "qwen2, untied"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return deep(tmp_path / "base", *request.param)


# -- which layers


@given(st.integers(2, 130), st.data())
def test_kept_layers_are_spread_evenly_with_the_first_and_the_last(layers: int, data: st.DataObject) -> None:
    keep = data.draw(st.integers(2, layers))
    kept = kept_layers(layers, keep)
    gaps = [after - before for before, after in pairwise(kept)]
    assert len(kept) == keep
    assert (kept[0], kept[-1]) == (0, layers - 1)
    assert max(gaps) - min(gaps) <= 1
    assert min(gaps) >= 1


def test_more_layers_than_there_are_or_one_alone_are_refused() -> None:
    with pytest.raises(InvalidInput, match=r"student\.keep_layers is 31, the model has 30 layers"):
        kept_layers(30, 31)
    with pytest.raises(InvalidInput, match="the first and the last layer stay"):
        kept_layers(30, 1)
    assert kept_layers(1, 1) == (0,)


@given(st.integers(1, 20000), st.floats(0.01, 1.0))
def test_a_width_stays_one_that_can_be_quantized(width: int, share: float) -> None:
    kept = kept_width(width, share)
    unit = next(unit for unit in (256, 32, 1) if width % unit == 0)
    assert kept % unit == 0
    assert 1 <= kept <= width
    assert abs(kept - share * width) <= max(unit / 2, unit - share * width)


# -- what is left


@pytest.mark.parametrize("keep", [2, 3, LAYERS])
def test_the_kept_layers_are_as_they_were(base: Path, tmp_path: Path, keep: int) -> None:
    layers = kept_layers(LAYERS, keep)
    prune(base, tmp_path / "out", layers)
    before, after = tensors(base), tensors(tmp_path / "out")
    expected = {name: values for name, values in before.items() if ".layers." not in name}
    for place, layer in enumerate(layers):
        expected |= {
            name.replace(f".{layer}.", f".{place}.", 1): values
            for name, values in before.items()
            if name.startswith(f"model.layers.{layer}.")
        }
    assert after.keys() == expected.keys()
    assert all(np.array_equal(values, after[name]) for name, values in expected.items())
    config = check_folder(tmp_path / "out")
    assert config["num_hidden_layers"] == keep
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (base / name).read_bytes()


def test_it_computes_as_the_model_without_these_layers(base: Path, tmp_path: Path) -> None:
    model = loaded(base)
    layers = kept_layers(LAYERS, 3)
    model.model.layers = type(model.model.layers)([model.model.layers[layer] for layer in layers])
    for place, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = place
    model.config.num_hidden_layers = 3
    prune(base, tmp_path / "out", layers)
    assert np.array_equal(logits(loaded(tmp_path / "out")), logits(model))


def test_it_becomes_a_gguf_that_answers_alike(base: Path, tmp_path: Path) -> None:
    channels = np.sort(np.random.default_rng(0).permuted(np.tile(np.arange(128), (3, 1)), axis=1)[:, :64], axis=1)
    prune(base, tmp_path / "out", kept_layers(LAYERS, 3), channels)
    gguf = written(tmp_path / "out")
    assert gguf.metadata[f"{gguf.metadata['general.architecture']}.block_count"] == 3
    assert gguf.metadata[f"{gguf.metadata['general.architecture']}.feed_forward_length"] == 64
    theirs = next_token_logits(gguf.path, ROWS, threads=1)
    assert kl_divergence(logits(loaded(tmp_path / "out")), theirs).max() < 1e-4


def test_channels_are_taken_out_of_each_layer_as_its_own_list_says(base: Path, tmp_path: Path) -> None:
    layers = kept_layers(LAYERS, 3)
    channels = np.sort(np.random.default_rng(1).permuted(np.tile(np.arange(128), (3, 1)), axis=1)[:, :32], axis=1)
    prune(base, tmp_path / "out", layers, channels)
    prune(base, tmp_path / "wide", layers)
    before, after = tensors(tmp_path / "wide"), tensors(tmp_path / "out")
    for place in range(3):
        for name in ("gate_proj", "up_proj"):
            whole = before[f"model.layers.{place}.mlp.{name}.weight"]
            assert np.array_equal(after[f"model.layers.{place}.mlp.{name}.weight"], whole[channels[place]])
        whole = before[f"model.layers.{place}.mlp.down_proj.weight"]
        assert np.array_equal(after[f"model.layers.{place}.mlp.down_proj.weight"], whole[:, channels[place]])
    assert check_folder(tmp_path / "out")["intermediate_size"] == 32
    model = loaded(tmp_path / "wide")
    for place, layer in enumerate(model.model.layers):
        gone = np.setdiff1d(np.arange(128), channels[place])
        layer.mlp.down_proj.weight.data[:, gone] = 0
    assert np.allclose(logits(loaded(tmp_path / "out")), logits(model), atol=1e-5)


def test_biases_of_the_feed_forward_layers_are_cut_too(tmp_path: Path) -> None:
    base = deep(tmp_path / "base")
    edited(base, "config.json", lambda config: config.update(mlp_bias=True))
    found = tensors(base)
    numbers = np.random.default_rng(2)
    for layer in range(LAYERS):
        for name, size in (("gate_proj", 128), ("up_proj", 128), ("down_proj", 64)):
            found[f"model.layers.{layer}.mlp.{name}.bias"] = numbers.standard_normal(size, dtype=np.float32)
    shapes = {name: values.shape for name, values in found.items()}
    weights.write_safetensors(base / "model.safetensors", shapes, "F16", lambda name: [found[name]])
    prune(base, tmp_path / "out", (0, 4), np.tile(np.arange(96), (2, 1)))
    after = tensors(tmp_path / "out")
    assert after["model.layers.1.mlp.up_proj.bias"].shape == (96,)
    assert after["model.layers.1.mlp.down_proj.bias"].shape == (64,)
    assert np.isfinite(logits(loaded(tmp_path / "out"))).all()


def test_what_the_config_says_of_each_layer_is_cut_with_them(tmp_path: Path) -> None:
    base = deep(tmp_path / "base", "qwen2")
    kinds = ["full_attention", "full_attention", "full_attention", "sliding_attention", "sliding_attention"]
    edited(base, "config.json", lambda config: config.update(layer_types=kinds, max_window_layers=3))
    prune(base, tmp_path / "out", (0, 3, 4))
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert config["layer_types"] == ["full_attention", "sliding_attention", "sliding_attention"]
    assert config["max_window_layers"] == 1


def test_the_type_of_the_weights_holds_their_values(tmp_path: Path) -> None:
    torch, safetensors = pytest.importorskip("torch"), pytest.importorskip("safetensors.torch")
    base = deep(tmp_path / "base")
    before = tensors(base)

    def outcome(name: str, kind: Any, largest: float) -> tuple[str, dict[str, Any]]:
        before["model.norm.weight"][0] = largest
        stored = {name: torch.from_numpy(values.copy()).to(kind) for name, values in before.items()}
        safetensors.save_file(stored, base / "model.safetensors", metadata={"format": "pt"})
        prune(base, tmp_path / name, (0, 4))
        return check_folder(tmp_path / name)["torch_dtype"], tensors(tmp_path / name)

    assert outcome("half", torch.float16, 1.0)[0] == "float16"
    assert outcome("brain", torch.bfloat16, 1.0)[0] == "float16"
    kind, found = outcome("far", torch.bfloat16, 2.0**17)
    assert (kind, found["model.norm.weight"][0]) == ("float32", 2.0**17)
    kind, found = outcome("single", torch.float32, math.pi)
    assert (kind, found["model.norm.weight"][0]) == ("float32", np.float32(math.pi))
    with pytest.raises(InvalidInput, match=r"'model\.norm\.weight' is not finite"):
        outcome("nan", torch.float32, math.nan)
    assert not (tmp_path / "nan").exists()


def test_what_cannot_be_pruned_is_refused(tmp_path: Path, ask_to_stop: Callable[[], None]) -> None:
    base = deep(tmp_path / "base")
    with pytest.raises(InvalidInput, match="is there already"):
        prune(base, base, (0, 4))
    with pytest.raises(InvalidInput, match=r"5 layers, config\.json says 6"):
        prune(edited(base, "config.json", lambda config: config.update(num_hidden_layers=6)), tmp_path / "out", (0, 5))
    edited(base, "config.json", lambda config: config.update(architectures=["Gemma2ForCausalLM"]))
    with pytest.raises(InvalidInput, match="layers of 'Gemma2ForCausalLM' cannot be taken out") as caught:
        prune(base, tmp_path / "out", (0, 4))
    assert "LlamaForCausalLM" in caught.value.hint
    ask_to_stop()
    with pytest.raises(Stopped):
        prune(deep(tmp_path / "other"), tmp_path / "out", (0, 4))
    assert not list(tmp_path.glob("out*"))


# -- which channels


def test_activity_is_the_mean_over_all_tokens_and_no_padding(base: Path) -> None:
    torch = pytest.importorskip("torch")
    model = loaded(base)
    found = feed_forward_activity(base, ROWS)
    sums = np.zeros((LAYERS, 128))
    for row in ROWS:
        for layer in range(LAYERS):
            seen: list[Any] = []
            hook = model.model.layers[layer].mlp.down_proj.register_forward_pre_hook(
                lambda module, handed, seen=seen: seen.append(handed[0])
            )
            with torch.no_grad():
                model(torch.tensor([row]))
            hook.remove()
            sums[layer] += seen[0][0].abs().sum(dim=0).numpy()
    assert found.shape == (LAYERS, 128)
    assert np.allclose(found, sums / sum(map(len, ROWS)), rtol=1e-4)


def test_the_most_active_channels_stay_in_their_order() -> None:
    activity = np.array([[0.1, 0.9, 0.5, 0.5], [1.0, 0.0, 0.0, 0.0]])
    assert most_active(activity, 2).tolist() == [[1, 2], [0, 1]]


def test_the_active_half_hurts_less_than_the_idle_one(tmp_path: Path) -> None:
    base = deep(tmp_path / "base")
    found = tensors(base)
    for layer in range(LAYERS):  # half of the channels hardly move
        found[f"model.layers.{layer}.mlp.up_proj.weight"][::2] *= 1e-3
    shapes = {name: values.shape for name, values in found.items()}
    weights.write_safetensors(base / "model.safetensors", shapes, "F16", lambda name: [found[name]])
    channels = most_active(feed_forward_activity(base, ROWS), 64)
    assert (channels % 2 == 1).all()
    every = tuple(range(LAYERS))
    prune(base, tmp_path / "active", every, channels)
    prune(base, tmp_path / "idle", every, channels - 1)
    whole = logits(loaded(base))
    active, idle = (kl_divergence(whole, logits(loaded(tmp_path / name))).mean() for name in ("active", "idle"))
    assert active < 0.1 * idle


def test_without_torch_the_statistics_say_what_to_install(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning, "find_spec", lambda name: None)
    with pytest.raises(MissingRequirement, match=r"student\.keep_feed_forward below 1 needs torch"):
        feed_forward_activity(base, ROWS)
