"""What was trained and its base become one model: as PEFT and mlx-lm merge, without either of them."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import fill
from pico import edited, pico_hf_folder, write_weights
from pico_adapters import LINEAR, factors, mlx_adapter, peft_adapter

from edgedistill.errors import EdgeDistillError, InvalidInput, Stopped
from edgedistill.llamacpp import weights
from edgedistill.models import check_folder
from edgedistill.students import folder as folders
from edgedistill.students.merge import merge_adapter

BASES = {"llama, tied": ("llama", True), "qwen2, untied": ("qwen2", False)}
ADAPTERS = {"peft": peft_adapter, "mlx": mlx_adapter}


@pytest.fixture(params=BASES)
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    architecture, tied = BASES[request.param]
    return pico_hf_folder(tmp_path / "base", architecture, tied, dtype="F32")


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return pico_hf_folder(tmp_path / "plain")


def tensors(folder: Path) -> dict[str, Any]:
    """All tensors of a folder, as float32."""
    return {
        name: weights.read_rows(tensor, 0, tensor.shape[0]) for name, tensor in weights.find_tensors(folder).items()
    }


def merged_by_peft(base: Path, adapter: Path) -> dict[str, Any]:
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    model = pytest.importorskip("transformers").AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(model, str(adapter)).merge_and_unload().half()
    found = {name: weight.detach().float().numpy() for name, weight in model.named_parameters()}
    return found


def merged_by_mlx(base: Path, adapter: Path) -> dict[str, Any]:
    mx, nn = pytest.importorskip("mlx.core"), pytest.importorskip("mlx.utils")
    model, _ = pytest.importorskip("mlx_lm.utils").load(str(base), adapter_path=str(adapter))
    fused = [(name, module.fuse()) for name, module in model.named_modules() if hasattr(module, "fuse")]
    model.update_modules(nn.tree_unflatten(fused))
    return {
        name: np.array(value.astype(mx.float16).astype(mx.float32))
        for name, value in nn.tree_flatten(model.parameters())
    }


MERGED_BY = {"peft": merged_by_peft, "mlx": merged_by_mlx}


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("form", ADAPTERS)
def test_a_merge_equals_the_librarys_own_to_the_last_bit_of_16(
    base: Path, tmp_path: Path, form: str, dora: bool
) -> None:
    adapter = ADAPTERS[form](tmp_path / "adapter", factors(base, dora=dora))
    merge_adapter(base, adapter, tmp_path / "out")
    found, expected = tensors(tmp_path / "out"), MERGED_BY[form](base, adapter)
    assert found.keys() == expected.keys()
    differing = 0
    for name, values in expected.items():
        spacing = np.spacing(np.abs(values).astype(np.float16)).astype(np.float32)
        assert (np.abs(found[name] - values) <= spacing).all(), name
        differing += int((found[name] != values).sum())
    # the order in which a product is summed is free: here and there a value lies on the edge between two others
    assert differing <= 1e-3 * sum(values.size for values in expected.values())
    before = tensors(base)
    for name, values in found.items():
        assert np.array_equal(values, before[name].astype(np.float16)) != name.endswith(
            tuple(f"{place}.weight" for place in LINEAR)
        ), name


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_a_base_of_16_bits_is_read_as_it_is(tmp_path: Path, dtype: str) -> None:
    base = pico_hf_folder(tmp_path / "base", dtype="F16")
    if dtype == "BF16":
        torch, safetensors = pytest.importorskip("torch"), pytest.importorskip("safetensors.torch")
        rounded = {name: torch.from_numpy(values).bfloat16() for name, values in tensors(base).items()}
        safetensors.save_file(rounded, base / "model.safetensors", metadata={"format": "pt"})
    adapter = peft_adapter(tmp_path / "adapter", factors(base, places=("q_proj",)))
    merge_adapter(base, adapter, tmp_path / "out")
    found, expected = tensors(tmp_path / "out"), merged_by_peft(base, adapter)
    for name, values in expected.items():
        assert np.allclose(found[name], values, rtol=1e-3, atol=1e-7), name
    assert weights.find_tensors(tmp_path / "out")["model.norm.weight"].dtype == "F16"


def test_the_folder_is_an_ordinary_one(base: Path, tmp_path: Path) -> None:
    edited(base, "config.json", lambda config: config.update(torch_dtype="bfloat16", quantization_config={}))
    merge_adapter(base, peft_adapter(tmp_path / "adapter", factors(base)), tmp_path / "out")
    config = check_folder(tmp_path / "out")
    before = json.loads((base / "config.json").read_text(encoding="utf-8"))
    before.pop("quantization_config")
    assert config == {**before, "dtype": "float16", "torch_dtype": "float16"}
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (base / name).read_bytes()
    assert not list(tmp_path.glob("*.partial-*"))


def test_a_head_that_is_the_embedding_is_written_once(tmp_path: Path) -> None:
    base = pico_hf_folder(tmp_path / "base", tied=False)
    edited(base, "config.json", lambda config: config.update(tie_word_embeddings=True))
    merge_adapter(base, peft_adapter(tmp_path / "adapter", factors(base)), tmp_path / "out")
    assert "lm_head.weight" in tensors(base)
    assert "lm_head.weight" not in tensors(tmp_path / "out")


def test_a_head_of_its_own_may_have_an_adapter_a_shared_one_may_not(tmp_path: Path) -> None:
    untied, tied = (pico_hf_folder(tmp_path / str(tied), tied=tied, dtype="F32") for tied in (False, True))
    adapter = peft_adapter(tmp_path / "adapter", factors(untied, places=("lm_head",)))
    merge_adapter(untied, adapter, tmp_path / "out")
    assert np.allclose(
        tensors(tmp_path / "out")["lm_head.weight"], merged_by_peft(untied, adapter)["lm_head.weight"], atol=1e-4
    )
    with pytest.raises(EdgeDistillError, match=r"'lm_head' of shape .* is not in "):
        merge_adapter(tied, adapter, tmp_path / "other")


def test_large_models_are_written_in_parts_as_transformers_names_them(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = peft_adapter(tmp_path / "adapter", factors(base))
    merge_adapter(base, adapter, tmp_path / "one")
    monkeypatch.setattr(folders, "LARGEST_SHARD", 60_000)
    merge_adapter(base, adapter, tmp_path / "many")
    files = sorted((tmp_path / "many").glob("*.safetensors"))
    assert [file.name for file in files] == [
        f"model-{number:05}-of-{len(files):05}.safetensors" for number in range(1, len(files) + 1)
    ]
    assert len(files) > 3
    one, many = tensors(tmp_path / "one"), tensors(tmp_path / "many")
    assert one.keys() == many.keys()
    assert all(np.array_equal(values, many[name]) for name, values in one.items())
    check_folder(tmp_path / "many")
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "many", dtype=torch.float32)
    model.save_pretrained(tmp_path / "theirs", max_shard_size=100_000)
    for folder in ("many", "theirs"):
        index = json.loads((tmp_path / folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
        assert index["weight_map"].keys() == one.keys()
        assert index["metadata"].keys() == {"total_parameters", "total_size"}
    assert index["metadata"]["total_parameters"] == sum(values.size for values in one.values())


def test_all_weights_take_the_place_of_the_bases(base: Path, tmp_path: Path) -> None:
    trained = Path(shutil.copytree(base, tmp_path / "trained"))
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    write_weights(trained, config, seed=9, dtype="F32")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    shutil.copyfile(trained / "model.safetensors", adapter / "model.safetensors")
    merge_adapter(base, adapter, tmp_path / "out")
    found = tensors(tmp_path / "out")
    for name, values in tensors(trained).items():
        assert np.array_equal(found[name], values.astype(np.float16)), name


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    base, other = pico_hf_folder(tmp_path / "base"), pico_hf_folder(tmp_path / "other", size=128)
    with pytest.raises(EdgeDistillError, match="not the weights of") as caught:
        merge_adapter(base, other, tmp_path / "out")
    assert "--from train" in caught.value.hint
    for name, adapter in (("p", peft_adapter), ("m", mlx_adapter)):
        with pytest.raises(EdgeDistillError, match=r"of shape .* is not in "):
            merge_adapter(base, adapter(tmp_path / name, factors(other)), tmp_path / "out")
    with pytest.raises(InvalidInput, match="adapter_config"):
        merge_adapter(base, tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [math.nan, math.inf, 65506.0, -65506.0])
@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight"])
def test_what_does_not_fit_16_bits_leaves_nothing(tmp_path: Path, name: str, value: float) -> None:
    base = pico_hf_folder(tmp_path / "base", dtype="F32")
    adapter = peft_adapter(tmp_path / "adapter", factors(base, places=("q_proj",)))
    damaged = tensors(base)
    damaged[name].reshape(-1)[-1] = value
    safetensors = pytest.importorskip("safetensors.numpy")
    safetensors.save_file(damaged, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EdgeDistillError, match="not finite, or too large for 16 bits") as caught:
        merge_adapter(base, adapter, tmp_path / "out")
    assert caught.value.hint == "Lower train.learning_rate."
    assert not list(tmp_path.glob("out*"))


def test_dora_of_a_row_of_zeros_is_refused(tmp_path: Path) -> None:
    base = pico_hf_folder(tmp_path / "base", dtype="F32")
    found = factors(base, dora=True, places=("q_proj",))
    for _, b, _lengths in found.values():
        b[:] = 0
    zeroed = tensors(base)
    zeroed["model.layers.0.self_attn.q_proj.weight"][3] = 0
    safetensors = pytest.importorskip("safetensors.numpy")
    safetensors.save_file(zeroed, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EdgeDistillError, match="not finite"):
        merge_adapter(base, peft_adapter(tmp_path / "adapter", found), tmp_path / "out")


def test_a_folder_that_is_there_is_left_alone(plain: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(InvalidInput, match="is there already"):
        merge_adapter(plain, peft_adapter(tmp_path / "adapter", factors(plain)), tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_full_disk_stops_the_merge_and_leaves_nothing(
    plain: Path, tmp_path: Path, small_disk: Callable[[int], Path]
) -> None:
    adapter = peft_adapter(tmp_path / "adapter", factors(plain))
    disk = small_disk(1 << 20)
    filler = fill(disk)
    with filler.open("r+b") as file:
        file.truncate(filler.stat().st_size - (100 << 10))
    with pytest.raises(Stopped, match="MB free"):
        merge_adapter(plain, adapter, disk / "out")
    assert [path.name for path in disk.iterdir()] == [filler.name]


def test_a_request_to_stop_is_heard_between_two_tensors(
    plain: Path, tmp_path: Path, ask_to_stop: Callable[[], None]
) -> None:
    ask_to_stop()
    with pytest.raises(Stopped):
        merge_adapter(plain, peft_adapter(tmp_path / "adapter", factors(plain)), tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


ALONE = """
import sys
for name in ("torch", "transformers", "peft", "safetensors", "mlx", "mlx_lm"):
    sys.modules[name] = None
from pathlib import Path
from edgedistill.students.merge import merge_adapter
merge_adapter(*map(Path, sys.argv[1:]))
"""


def test_numpy_alone_merges(plain: Path, tmp_path: Path) -> None:
    adapter = mlx_adapter(tmp_path / "adapter", factors(plain, dora=True))
    command = [sys.executable, "-c", ALONE, plain, adapter, tmp_path / "out"]
    subprocess.run([str(part) for part in command], check=True)
    assert (tmp_path / "out" / "model.safetensors").is_file()
