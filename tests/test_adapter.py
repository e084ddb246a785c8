"""Adapters in PEFT's form and in mlx-lm's: there and back without a bit changed, and read by both libraries."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pico import edited, pico_hf_folder
from pico_adapters import LINEAR, Factors, factors, mlx_adapter, peft_adapter
from pico_recipe import PicoModels

import edgedistill
from edgedistill.cli import cli
from edgedistill.errors import EdgeDistillError, InvalidInput, Stopped, Unsafe
from edgedistill.recipe import StudentSettings, TrainSettings
from edgedistill.students import TrainingData, load_student
from edgedistill.students.adapter import WEIGHTS, Form, convert_adapter, low_rank, read_adapter
from edgedistill.students.encode import EncodedExample

MAKERS: dict[Form, Callable[..., Path]] = {"peft": peft_adapter, "mlx": mlx_adapter}
OTHER: dict[Form, Form] = {"peft": "mlx", "mlx": "peft"}
ROW = [1, 9, 30, 200, 41, 2, 77]
CONFIG = "adapter_config.json"


@pytest.fixture(params=[False, True], ids=["lora", "dora"])
def dora(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pico_hf_folder(tmp_path_factory.mktemp("base") / "base", dtype="F32")


def raw(folder: Path, form: Form) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Type, shape and bytes of each tensor of an adapter, by name."""
    data = (folder / WEIGHTS[form]).read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    return {
        name: (entry["dtype"], tuple(entry["shape"]), data[8 + length :][slice(*entry["data_offsets"])])
        for name, entry in header.items()
        if name != "__metadata__"
    }


def there_and_back(source: Path, form: Form, folder: Path) -> Path:
    convert_adapter(source, folder / "there", OTHER[form])
    convert_adapter(folder / "there", folder / "back", form)
    return folder / "back"


# -- the same bits


@pytest.mark.parametrize("form", MAKERS)
def test_a_round_trip_changes_no_byte_of_weights_and_config(base: Path, tmp_path: Path, form: Form, dora: bool) -> None:
    source = MAKERS[form](tmp_path / "source", factors(base, dora=dora))
    back = there_and_back(source, form, tmp_path)
    assert raw(back, form) == raw(source, form)
    assert (back / CONFIG).read_bytes() == (source / CONFIG).read_bytes()
    if form == "peft":
        assert (back / WEIGHTS[form]).read_bytes() == (source / WEIGHTS[form]).read_bytes()


@pytest.mark.parametrize("form", MAKERS)
def test_a_second_round_trip_is_the_first_one_again(base: Path, tmp_path: Path, form: Form) -> None:
    source = MAKERS[form](tmp_path / "source", factors(base))
    there_and_back(source, form, tmp_path)
    convert_adapter(tmp_path / "back", tmp_path / "again", OTHER[form])
    for path in (tmp_path / "there").iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name


BITS = st.integers(0, 2**32 - 1)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=12)
@given(
    form=st.sampled_from(["peft", "mlx"]),
    kind=st.sampled_from(["F32", "F16", "BF16"]),
    shape=st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 7)),
    scale=st.floats(1e-3, 1e3),
    seed=BITS,
)
def test_any_bits_of_any_type_come_back(
    tmp_path_factory: pytest.TempPathFactory,
    form: Form,
    kind: str,
    shape: tuple[int, int, int],
    scale: float,
    seed: int,
) -> None:
    """Not even a NaN's payload is lost, nor the last bit of the scale."""
    folder = tmp_path_factory.mktemp("bits")
    rank, inputs, outputs = shape
    found: Factors = {
        f"model.layers.{layer}.self_attn.q_proj": (np.zeros((rank, inputs)), np.zeros((outputs, rank)))
        for layer in range(2)
    }
    stated = {"alpha": scale} if form == "peft" else {"scale": scale}
    source = MAKERS[form](folder / "source", found, dtype="F32" if kind == "F32" else "F16", **stated)
    path = source / WEIGHTS[form]
    data = bytearray(path.read_bytes().replace(b'"F16"', f'"{kind}"'.encode()))
    if kind == "BF16":  # its name is one letter longer: the header is too
        length = int.from_bytes(data[:8], "little")
        longer = length + data.count(b'"BF16"')
        data[8 + longer : 8 + longer] = b" " * (-longer % 8)
        data[:8] = (longer + -longer % 8).to_bytes(8, "little")
    start = 8 + int.from_bytes(data[:8], "little")
    data[start:] = np.random.default_rng(seed).bytes(len(data) - start)
    path.write_bytes(data)
    back = there_and_back(source, form, folder)
    assert raw(back, form) == raw(source, form)
    assert (back / CONFIG).read_bytes() == (source / CONFIG).read_bytes()
    assert read_adapter(folder / "there").scale == pytest.approx(read_adapter(source).scale, rel=1e-15)


@pytest.mark.parametrize("form", MAKERS)
def test_both_forms_mean_the_same(base: Path, tmp_path: Path, form: Form, dora: bool) -> None:
    found = factors(base, dora=dora)
    for adapter in (
        read_adapter(MAKERS[form](tmp_path / "source", found)),
        convert_adapter(tmp_path / "source", tmp_path / "out", OTHER[form]),
    ):
        assert (adapter.rank, adapter.scale, adapter.is_dora) == (4, 3.0, dora)
        assert adapter.modules.keys() == found.keys()
        for module, parts in found.items():
            update = low_rank(adapter, module)
            for mine, part in zip((update.a, update.b, update.lengths), parts, strict=False):
                assert mine is not None
                assert np.array_equal(mine, part)


# -- read by the libraries themselves


def peft_logits(base: Path, adapter: Path) -> Any:
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    model = pytest.importorskip("transformers").AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        return peft.PeftModel.from_pretrained(model, str(adapter)).eval()(torch.tensor([ROW])).logits[0].numpy()


def mlx_logits(base: Path, adapter: Path) -> Any:
    mx = pytest.importorskip("mlx.core")
    model, _ = pytest.importorskip("mlx_lm.utils").load(str(base), adapter_path=str(adapter))
    return np.array(model(mx.array([ROW]))[0])


LOGITS = {"peft": peft_logits, "mlx": mlx_logits}


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
@pytest.mark.parametrize("form", MAKERS)
def test_both_libraries_compute_the_same_from_it(tmp_path: Path, architecture: str, form: Form, dora: bool) -> None:
    base = pico_hf_folder(tmp_path / "base", architecture, tied=False, dtype="F32")
    source = MAKERS[form](tmp_path / "source", factors(base, dora=dora))
    back = there_and_back(source, form, tmp_path)
    before = LOGITS[form](base, source)
    assert np.array_equal(LOGITS[form](base, back), before)
    across = LOGITS[OTHER[form]](base, tmp_path / "there")
    assert np.abs(across - before).max() < 1e-4 * np.abs(before).max()
    untrained = peft_logits(base, peft_adapter(tmp_path / "none", factors(base), alpha=0.0))
    assert np.abs(before - untrained).max() > 0.1


@pytest.mark.parametrize(
    "places",
    [("layers.1.self_attn.q_proj",), ("layers.0.self_attn.q_proj",), ("0.mlp.up_proj", "1.self_attn.v_proj")],
    ids=["the last layer", "the first layer", "different ones"],
)
@pytest.mark.parametrize("form", MAKERS)
def test_an_adapter_of_some_layers_stays_one_of_these(
    base: Path, tmp_path: Path, form: Form, places: tuple[str, ...]
) -> None:
    found = factors(base, places=places)
    if form == "mlx":
        keys = {"lora_parameters": {"rank": 4, "scale": 3.0, "dropout": 0.0, "keys": sorted(found)}, "num_layers": -1}
        source = mlx_adapter(tmp_path / "source", found, **keys)
    else:
        layers = sorted({int(module.split(".")[2]) for module in found})
        stated = {"target_modules": sorted(found)} if len(layers) > 1 else {"layers_to_transform": layers}
        source = peft_adapter(tmp_path / "source", found, **stated)
    convert_adapter(source, tmp_path / "out", OTHER[form])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Found missing adapter keys")
        before, across = LOGITS[form](base, source), LOGITS[OTHER[form]](base, tmp_path / "out")
    assert np.abs(across - before).max() < 1e-4 * np.abs(before).max()


def test_peft_weighs_by_the_roots_of_ranks_where_it_says_so(base: Path, tmp_path: Path) -> None:
    source = peft_adapter(tmp_path / "source", factors(base), alpha=6.0, use_rslora=True)
    assert convert_adapter(source, tmp_path / "out", "mlx").scale == 3.0
    before, across = peft_logits(base, source), mlx_logits(base, tmp_path / "out")
    assert np.abs(across - before).max() < 1e-4 * np.abs(before).max()


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_what_a_student_learned_is_converted(models: PicoModels, tmp_path: Path, method: str) -> None:
    pytest.importorskip("peft")
    rows = [EncodedExample(f"row{number}", (1, 9, 30 + number, 2), 2) for number in range(4)]
    student = load_student(StudentSettings(model=str(models.student)), models.student)
    how = TrainSettings(method=method, epochs=2, batch_size=2, rank=4, learning_rate=1e-2)  # type: ignore[arg-type]
    student.train(TrainingData(rows, (), 0), how, tmp_path, lambda step: None)
    back = there_and_back(tmp_path / "adapter", "peft", tmp_path)
    for name in (CONFIG, WEIGHTS["peft"]):
        assert (back / name).read_bytes() == (tmp_path / "adapter" / name).read_bytes()
    assert read_adapter(tmp_path / "there").is_dora == (method == "dora")


# -- what is kept


@pytest.mark.parametrize("form", MAKERS)
def test_a_config_that_no_longer_fits_the_weights_does_not_come_back(base: Path, tmp_path: Path, form: Form) -> None:
    """An adapter that was trained on in the meantime, with another scale."""
    source = MAKERS[form](tmp_path / "source", factors(base))
    convert_adapter(source, tmp_path / "there", OTHER[form])

    def weigh(config: dict[str, Any]) -> None:
        if "r" in config:
            config["lora_alpha"] = 20.0
        else:
            config["lora_parameters"]["scale"] = 5.0

    edited(tmp_path / "there", CONFIG, weigh)
    assert convert_adapter(tmp_path / "there", tmp_path / "back", form).scale == 5.0


@pytest.mark.parametrize(
    ("edit", "word"),
    [
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'"),
        ({"modules_to_save": ["lm_head"]}, "'modules_to_save'"),
        ({"rank_pattern": {"q_proj": 8}}, "'rank_pattern'"),
        ({"bias": "all"}, "'bias'"),
        ({"fan_in_fan_out": True}, "'fan_in_fan_out'"),
        ({"something_new": 1}, "'something_new'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"r": 8}, "not those of rank 8"),
        ({"r": 0}, "the rank is 0"),
        ({"r": 10**400}, "the rank is 1000"),
        ({"lora_alpha": 10**400}, "lora_alpha is 1000"),
        ({"r": "4"}, "the rank is '4'"),
        ({"lora_alpha": None}, "lora_alpha is None"),
        ({"use_dora": True}, "has lora_A.weight and lora_B.weight alone"),
    ],
)
def test_a_peft_adapter_that_is_more_than_a_lora_is_refused_in_one_line(
    base: Path, tmp_path: Path, edit: dict[str, Any], word: str
) -> None:
    source = peft_adapter(tmp_path / "source", factors(base), **edit)
    refused(source, tmp_path / "out", "mlx", word)


@pytest.mark.parametrize(
    ("edit", "word"),
    [
        ({"fine_tune_type": "full"}, "fine_tune_type is 'full'"),
        ({"fine_tune_type": "dora"}, "has lora_a and lora_b alone"),
        ({"lora_parameters": None}, "neither peft_type nor lora_parameters"),
        ({"lora_parameters": {"rank": 4, "alpha": 16, "dropout": 0.0}}, "scale is None"),
        ({"lora_parameters": {"rank": 4, "scale": float("nan"), "dropout": 0.0}}, "scale is nan"),
        ({"lora_parameters": {"rank": 5, "scale": 2.0, "dropout": 0.0}}, "not those of rank 5"),
    ],
)
def test_an_mlx_adapter_that_is_more_than_a_lora_is_refused_in_one_line(
    base: Path, tmp_path: Path, edit: dict[str, Any], word: str
) -> None:
    refused(mlx_adapter(tmp_path / "source", factors(base), **edit), tmp_path / "out", "peft", word)


def refused(source: Path, out: Path, to: Form, word: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        convert_adapter(source, out, to)
    assert word in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint
    assert not out.exists()


def test_an_adapter_of_an_embedding_or_of_experts_is_refused(tmp_path: Path) -> None:
    embedding: Factors = {"model.layers.0.embed_tokens": (np.zeros((4, 8)), np.zeros((64, 4)))}
    refused(mlx_adapter(tmp_path / "one", embedding), tmp_path / "out", "peft", "adapter of the embedding")
    experts: Factors = {"model.layers.0.mlp.up_proj": (np.zeros((4, 8, 2)), np.zeros((64, 4, 2)))}
    refused(mlx_adapter(tmp_path / "two", experts), tmp_path / "out", "peft", "has the shapes")
    other: Factors = {"model.layers.0.mlp.up_proj": (np.zeros((4, 8)), np.zeros((64, 4)))}
    source = peft_adapter(tmp_path / "three", other)
    path = source / WEIGHTS["peft"]
    path.write_bytes(path.read_bytes().replace(b"lora_A.weight", b"lora_C.weight"))
    refused(source, tmp_path / "out", "mlx", "is no part of a LoRA or DoRA")


def test_folders_that_are_no_adapter_are_refused(base: Path, tmp_path: Path) -> None:
    refused(base, tmp_path / "out", "mlx", "no adapter_config.json")
    source = peft_adapter(tmp_path / "source", factors(base))
    refused(source, tmp_path / "out", "peft", "is in the form 'peft' already")
    with pytest.raises(InvalidInput, match="is there already"):
        convert_adapter(source, base, "mlx")
    (source / WEIGHTS["peft"]).rename(source / "adapter_model.bin")
    refused(source, tmp_path / "out", "mlx", "no adapter_model.safetensors")
    (source / CONFIG).write_text("{", encoding="utf-8")
    refused(source, tmp_path / "out", "mlx", "not JSON")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(form=st.sampled_from(["peft", "mlx"]), data=st.data())
def test_a_damaged_adapter_is_refused_or_converted(
    base: Path, tmp_path_factory: pytest.TempPathFactory, form: Form, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    source = MAKERS[form](folder / "source", factors(base, places=LINEAR[:1]))
    path = source / data.draw(st.sampled_from([CONFIG, WEIGHTS[form]]))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, min(len(content), 900) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        convert_adapter(source, folder / "out", OTHER[form])
    except (InvalidInput, Unsafe) as error:
        said = error.message
    else:
        return
    assert "\n" not in said
    assert not (folder / "out").exists()


def test_a_full_disk_stops_the_conversion_and_leaves_nothing(
    base: Path, tmp_path: Path, small_disk: Callable[[int], Path]
) -> None:
    source = peft_adapter(tmp_path / "source", factors(base, rank=32))
    disk = small_disk(64 << 10)
    with pytest.raises(Stopped, match="MB free"):
        convert_adapter(source, disk / "out", "mlx")
    assert not list(disk.iterdir())


# -- the command


def test_the_command_does_what_the_function_does(base: Path, tmp_path: Path) -> None:
    source = peft_adapter(tmp_path / "source", factors(base))
    done = CliRunner().invoke(cli, ["adapter", "convert", str(source), str(tmp_path / "out"), "--to", "mlx", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {
        "folder": str(tmp_path / "out"),
        "form": "mlx",
        "kind": "lora",
        "rank": 4,
        "scale": 3.0,
        "modules": 14,
    }
    edgedistill.convert_adapter(source, tmp_path / "same", "mlx")
    for path in (tmp_path / "out").iterdir():
        assert (tmp_path / "same" / path.name).read_bytes() == path.read_bytes()
    shutil.rmtree(tmp_path / "out")
    done = CliRunner().invoke(cli, ["adapter", "convert", str(source), str(tmp_path / "out"), "--to", "mlx"])
    assert done.stdout == f"{tmp_path / 'out'}: lora of rank 4 on 14 layers, in the form of mlx\n"


def test_the_command_refuses_in_one_line(base: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["adapter", "convert", str(base), str(tmp_path / "out"), "--to", "mlx"])
    assert done.exit_code == InvalidInput.exit_code
    assert done.stderr.splitlines()[0] == f"error: {base}: no adapter_config.json"
    assert CliRunner().invoke(cli, ["adapter", "convert", str(base), str(tmp_path / "out")]).exit_code == 2
    assert issubclass(Unsafe, EdgeDistillError)
