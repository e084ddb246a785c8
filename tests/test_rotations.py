"""What a config says of rotary positions is the same under the old names and the new ones, to every program here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pico import edited, pico_hf_folder
from required import required_or_skipped
from tiny_models import LLAMA_3, TINY, tiny_folder

from edgedistill.llamacpp.architectures import from_hugging_face
from edgedistill.llamacpp.plain_config import plain_config
from edgedistill.records import read_json
from edgedistill.rotations import named_as_before
from edgedistill.students.folder import FolderWeights, write_folder

ROWS = [[3, 40, 7, 100, 22, 9, 61, 5]]
THETA = 300.0  # far from every default
GEMMA = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, {}),
        ({"rope_theta": 1e4}, {}),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, {"rope_theta": 5e5}),
        ({"rope_parameters": {"rope_theta": 5e5}, "rope_theta": 1e4}, {}),
        (
            {"rope_parameters": LLAMA_3},
            {"rope_theta": LLAMA_3["rope_theta"], "rope_scaling": {**LLAMA_3, "type": "llama3"}},
        ),
        (
            {"rope_parameters": GEMMA},
            {
                "rope_theta": 1e6,
                "rope_local_base_freq": 1e4,
                "rope_scaling": {**GEMMA["full_attention"], "type": "linear"},
            },
        ),
        (
            {"text_config": {"hidden_size": 8, "rope_parameters": {"rope_theta": 5e5}}},
            {"text_config": {"hidden_size": 8, "rope_parameters": {"rope_theta": 5e5}, "rope_theta": 5e5}},
        ),
        ({"text_config": {"rope_theta": 1e4}}, {}),
        ({"rope_parameters": "none"}, {}),
    ],
)
def test_the_old_names_are_added_and_nothing_is_changed(config: dict[str, Any], expected: dict[str, Any]) -> None:
    assert named_as_before(config) == expected
    assert named_as_before({**config, **expected}) == {}


@pytest.mark.parametrize("name", TINY)
def test_every_architecture_is_read_alike_under_both_names(name: str, tmp_path: Path) -> None:
    required_or_skipped("transformers", ("transformers", "torch"))
    from transformers import AutoConfig

    folder = tiny_folder(tmp_path / "model", TINY[name])
    before, config = AutoConfig.from_pretrained(folder), read_json(folder / "config.json")
    added = {**config, **named_as_before(config)}
    assert added.get("rope_theta") is not None
    (folder / "config.json").write_text(json.dumps(added), encoding="utf-8")
    after = AutoConfig.from_pretrained(folder)

    def told(config: Any) -> dict[str, Any]:
        return {key: value for key, value in config.rope_parameters.items() if key != "type"}

    assert told(after) == told(before)
    row = from_hugging_face(config["architectures"][0])
    plain, other = (plain_config("it", row, one) for one in (config, added))
    for key in ("rope_theta", "rope_local_base_freq", "rotary_dim", "rope_attention_factor"):
        assert plain.get(key) == other.get(key)
    assert {**plain["rope"], "type": None} == {**other["rope"], "type": None}


@pytest.mark.parametrize("who", ["teacher", "student"])
def test_mlx_computes_what_transformers_computes_whichever_names_are_used(who: str, tmp_path: Path) -> None:
    required_or_skipped("mlx", ("mlx_lm",))
    required_or_skipped("transformers", ("transformers", "torch"))
    import mlx.core as mx
    import torch
    from transformers import AutoModelForCausalLM

    def state(config: dict[str, Any]) -> None:
        del config["rope_theta"]
        config["rope_parameters"] = {"rope_type": "default", "rope_theta": THETA}

    folder = edited(pico_hf_folder(tmp_path / "new"), "config.json", state)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    expected = model(torch.tensor(ROWS)).logits.detach().numpy()
    if who == "teacher":
        from edgedistill.teachers.mlx import MlxDecoder

        loaded: Any = MlxDecoder(folder)._model
    else:
        from edgedistill.students.mlx_model import loaded as load

        loaded = load(folder, mx.float32)
    np.testing.assert_allclose(np.array(loaded(mx.array(ROWS))), expected, atol=2e-4)


def test_a_folder_that_is_written_states_the_base_for_mlx_lms_own_loader(tmp_path: Path) -> None:
    required_or_skipped("mlx", ("mlx_lm",))
    import mlx.core as mx
    from mlx_lm.utils import load_model

    from edgedistill.llamacpp.weights import read_rows, row_steps
    from edgedistill.students.folder import base_tensors

    base = pico_hf_folder(tmp_path / "base")
    config = read_json(base / "config.json")
    stated = {key: value for key, value in config.items() if key != "rope_theta"}
    stated["rope_parameters"] = {"rope_type": "default", "rope_theta": THETA}
    tensors = base_tensors(base, config)

    def pieces(name: str) -> Any:
        return (read_rows(tensors[name], *step) for step in row_steps(tensors[name].shape))

    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    logits = []
    for number, given in enumerate((stated, {**config, "rope_theta": THETA}, config)):
        out = tmp_path / str(number)
        write_folder(out, base, given, FolderWeights("float32", shapes, pieces))
        model, _ = load_model(out)
        logits.append(np.array(model(mx.array(ROWS))))
    assert np.array_equal(logits[0], logits[1])
    assert not np.allclose(logits[0], logits[2])
