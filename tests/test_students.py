"""What every student promises, over every backend that is installed, on a pico model that really learns."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from pico_lessons import example
from pico_recipe import PicoModels
from required import required_or_skipped

from edgedistill.errors import EdgeDistillError, Stopped
from edgedistill.recipe import StudentSettings, TrainSettings
from edgedistill.records import Message
from edgedistill.students import BACKENDS, Estimate, Student, TrainingData, TrainStep, checkpoints, load_student
from edgedistill.students.adapter import convert_adapter
from edgedistill.students.encode import Encoder
from edgedistill.students.merge import merge_adapter

LIBRARIES = tuple(library for libraries, _ in BACKENDS.values() for library in libraries)
SETTINGS = TrainSettings(
    epochs=2, learning_rate=1e-2, batch_size=4, rank=4, alpha=8.0, dropout=0.1, checkpoint_steps=2, warmup_share=0.2
)


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    required_or_skipped(request.param, BACKENDS[request.param][0])
    return str(request.param)


def student_of(backend: str, base: Path) -> Student:
    return load_student(StudentSettings(backend=backend, model=str(base)), base)  # type: ignore[arg-type]


def data_of(encoder: Encoder, count: int = 16) -> TrainingData:
    things = ("lamp", "radio in the hall", "garage door", "tv")
    rows = [
        encoder.example(
            example(n, f"{'turn on' if n % 2 else 'stop'} the {things[n % 4]} {n}", '{"on":1}' if n % 2 else '{"on":0}')
        )
        for n in range(count + 4)
    ]
    return TrainingData(train=rows[:count], valid=rows[count:], seed=3)


class Steps(list[TrainStep]):
    """Keeps what is reported; stops the training behind a step, as a signal does."""

    def __init__(self, stop_behind: int = 0) -> None:
        self._stop_behind = stop_behind

    def __call__(self, step: TrainStep | Estimate) -> None:
        if isinstance(step, Estimate):
            return
        self.append(step)
        if step.step == self._stop_behind:
            raise Stopped("stopped as asked")


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".safetensors"}


def test_the_first_loss_is_that_of_the_completions_alone(
    backend: str, models: PicoModels, encoder: Encoder, tmp_path: Path
) -> None:
    """The untrained model's loss, once as reported and once as transformers counts it with the prompts masked out."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    data = replace(data_of(encoder, 8), valid=())
    steps = Steps()
    student_of(backend, models.student).train(data, SETTINGS.model_copy(update={"batch_size": 8}), tmp_path, steps)
    model = transformers.AutoModelForCausalLM.from_pretrained(models.student, dtype=torch.float32)
    total, count = 0.0, 0
    for row in data.train:
        labels = torch.tensor([[-100] * row.start + list(row.tokens[row.start :])])
        with torch.no_grad():
            loss = model(torch.tensor([list(row.tokens)]), labels=labels).loss
        total, count = total + float(loss) * (len(row.tokens) - row.start), count + len(row.tokens) - row.start
    assert steps[0].loss == pytest.approx(total / count, rel=1e-3)


# -- training


Trained = tuple[Path, dict[str, Any], Steps]


@pytest.fixture(scope="module")
def trained(backend: str, models: PicoModels, encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """An uninterrupted training of eight steps, to be read only; memory goes back at each of its four checkpoints."""
    out, steps = tmp_path_factory.mktemp("trained"), Steps()
    with patch("edgedistill.students.training.give_back_memory") as gave_back:
        summary = student_of(backend, models.student).train(data_of(encoder), SETTINGS, out, steps)
    assert gave_back.call_count == 4
    return out, summary, steps


def test_every_step_is_reported_and_written(trained: Trained) -> None:
    out, summary, steps = trained
    assert [step.step for step in steps] == list(range(1, 9))
    assert {step.steps for step in steps} == {8}
    assert [step.step for step in steps if step.valid_loss is not None] == [4, 8]
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["loss"] for line in lines] == [step.loss for step in steps]
    assert summary["steps"] == 8
    assert summary["loss"] == steps[-1].loss
    assert summary["valid_loss"] == steps[-1].valid_loss
    assert summary["resumed_from"] == 0
    assert 0.0 <= summary["padded_share"] < 0.5


def test_only_the_last_checkpoints_are_kept(trained: Trained) -> None:
    assert sorted(path.name for path in (trained[0] / "checkpoints").iterdir()) == ["step-0000006", "step-0000008"]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_training_lowers_the_loss(
    backend: str, models: PicoModels, encoder: Encoder, tmp_path: Path, method: str
) -> None:
    steps = Steps()
    wanted = SETTINGS.model_copy(update={"epochs": 6, "dropout": 0.0, "method": method})
    student_of(backend, models.student).train(data_of(encoder), wanted, tmp_path, steps)
    assert steps[-1].loss < 0.5 * steps[0].loss
    valid = [step.valid_loss for step in steps if step.valid_loss is not None]
    assert valid[-1] < 0.6 * steps[0].loss


@pytest.mark.parametrize("stop_behind", range(1, 8))
def test_a_stopped_training_ends_in_the_same_bits(
    backend: str, models: PicoModels, encoder: Encoder, trained: Trained, tmp_path: Path, stop_behind: int
) -> None:
    student = student_of(backend, models.student)
    with pytest.raises(Stopped):
        student.train(data_of(encoder), SETTINGS, tmp_path, Steps(stop_behind))
    assert not (tmp_path / "adapter").exists()
    steps = Steps()
    summary = student.train(data_of(encoder), SETTINGS, tmp_path, steps)
    last = (stop_behind - 1) // 2 * 2  # the report comes before the checkpoint of its step
    assert summary["resumed_from"] == last
    assert [step.step for step in steps] == list(range(last + 1, 9))
    assert content(tmp_path / "adapter") == content(trained[0] / "adapter")
    losses = [
        json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert losses == [step.loss for step in trained[2]]


def test_a_full_training_resumes_in_the_same_bits_too(
    backend: str, models: PicoModels, encoder: Encoder, tmp_path: Path
) -> None:
    student, wanted = student_of(backend, models.student), SETTINGS.model_copy(update={"method": "full"})
    student.train(data_of(encoder), wanted, tmp_path / "whole", Steps())
    with pytest.raises(Stopped):
        student.train(data_of(encoder), wanted, tmp_path / "cut", Steps(5))
    assert student.train(data_of(encoder), wanted, tmp_path / "cut", Steps())["resumed_from"] == 4
    assert content(tmp_path / "cut" / "adapter") == content(tmp_path / "whole" / "adapter")


def test_a_request_to_stop_is_heard_between_two_steps(
    backend: str,
    models: PicoModels,
    encoder: Encoder,
    trained: Trained,
    tmp_path: Path,
    ask_to_stop: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps = Steps()

    def report(step: TrainStep | Estimate) -> None:
        steps(step)
        if len(steps) == 3:
            ask_to_stop()

    student = student_of(backend, models.student)
    with pytest.raises(Stopped):
        student.train(data_of(encoder), SETTINGS, tmp_path, report)
    assert len(steps) == 3
    monkeypatch.undo()
    assert student.train(data_of(encoder), SETTINGS, tmp_path, Steps())["resumed_from"] == 3, "no step is lost"
    assert content(tmp_path / "adapter") == content(trained[0] / "adapter")


def damaged_checkpoints(folder: Path) -> Iterator[Path]:
    """Copies of a checkpoint folder, each with one fault in its newest step."""
    newest = "step-0000008"
    for number, name in enumerate(["weights.safetensors", "optimizer.safetensors", "state.json", "MANIFEST.sha256"]):
        copy = Path(shutil.copytree(folder, folder.parent / f"flipped{number}"))
        data = bytearray((copy / newest / name).read_bytes())
        data[len(data) // 2] ^= 1
        (copy / newest / name).write_bytes(data)
        yield copy
        copy = Path(shutil.copytree(folder, folder.parent / f"gone{number}"))
        (copy / newest / name).unlink()
        yield copy
    copy = Path(shutil.copytree(folder, folder.parent / "partial"))
    (copy / newest).rename(copy / f"{newest}.partial-1")
    yield copy
    copy = Path(shutil.copytree(folder, folder.parent / "empty"))
    (copy / newest / "MANIFEST.sha256").write_bytes(b"")
    yield copy


def test_a_damaged_checkpoint_is_passed_over(trained: Trained, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(trained[0] / "checkpoints", tmp_path / "checkpoints"))
    found = checkpoints.newest(folder)
    assert found is not None
    assert (found[0].name, found[1]["step"]) == ("step-0000008", 8)
    for copy in damaged_checkpoints(folder):
        found = checkpoints.newest(copy)
        assert found is not None, copy.name
        assert (found[0].name, found[1]["step"]) == ("step-0000006", 6), copy.name


def test_a_training_with_a_flipped_byte_goes_on_from_the_one_before(
    backend: str, models: PicoModels, encoder: Encoder, trained: Trained, tmp_path: Path
) -> None:
    shutil.copytree(trained[0] / "checkpoints", tmp_path / "checkpoints")
    weights = tmp_path / "checkpoints" / "step-0000008" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    summary = student_of(backend, models.student).train(data_of(encoder), SETTINGS, tmp_path, Steps())
    assert summary["resumed_from"] == 6
    assert content(tmp_path / "adapter") == content(trained[0] / "adapter")


# -- what diverges


def test_a_loss_that_is_not_finite_stops_with_the_rows_named(
    backend: str, models: PicoModels, encoder: Encoder, tmp_path: Path
) -> None:
    wanted = SETTINGS.model_copy(update={"learning_rate": 1e30, "method": "full", "warmup_share": 0.0, "epochs": 4})
    with pytest.raises(EdgeDistillError, match=r"step \d+: .*rows row\d+, row\d+") as caught:
        student_of(backend, models.student).train(data_of(encoder), wanted, tmp_path, Steps())
    assert "learning_rate" in caught.value.hint
    assert "\n" not in caught.value.message
    assert not (tmp_path / "adapter").exists()


def poisoned(base: Path, out: Path, name: str, value: float) -> Path:
    """A copy of a model folder with one weight replaced."""
    safetensors = pytest.importorskip("safetensors.numpy")
    shutil.copytree(base, out)
    tensors = safetensors.load_file(out / "model.safetensors")
    tensors[name].reshape(-1)[0] = value
    safetensors.save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


def test_gradients_that_are_not_finite_stop_with_the_rows_named_too(
    backend: str, models: PicoModels, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss is finite, its gradient is not: as where a value overflows on the way back."""
    module = import_module(f"edgedistill.students.{ {'torch': 'torch', 'mlx': 'mlx_session'}[backend] }")
    whole = module.head_loss

    def overflowing(hidden: Any, *rest: Any) -> Any:
        # as large a slope as it takes: x - stop_gradient(x) is 0, its slope is not
        total, each = whole(hidden, *rest)
        still = hidden.detach() if backend == "torch" else import_module("mlx.core").stop_gradient(hidden)
        return total + ((hidden - still) * 3e38 * 10).sum(), each

    monkeypatch.setattr(module, "head_loss", overflowing)
    with pytest.raises(EdgeDistillError, match=r"step 1: .*rows row\d+, row\d+"):
        student_of(backend, models.student).train(data_of(encoder), SETTINGS, tmp_path, Steps())


def test_a_poisoned_base_stops_at_the_first_step(
    backend: str, models: PicoModels, encoder: Encoder, tmp_path: Path
) -> None:
    base = poisoned(models.student, tmp_path / "base", "model.layers.1.mlp.down_proj.weight", math.nan)
    with pytest.raises(EdgeDistillError, match="step 1: the loss is nan; rows row"):
        student_of(backend, base).train(data_of(encoder), SETTINGS, tmp_path, Steps())


@pytest.mark.parametrize(
    "name", ["model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight", "model.norm.weight"]
)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_not_merged(
    backend: str, models: PicoModels, trained: Trained, tmp_path: Path, name: str, value: float
) -> None:
    base = poisoned(models.student, tmp_path / "base", name, value)
    with pytest.raises(EdgeDistillError, match="not finite"):
        merge_adapter(base, trained[0] / "adapter", tmp_path / "out")


# -- merging


def ids(encoder: Encoder) -> list[list[int]]:
    return [
        encoder.prompt([Message("system", ""), Message("user", text)]) for text in ("light on", "", "hall", "🚀 go")
    ]


def test_a_merged_folder_computes_as_base_and_adapter_do(
    backend: str, models: PicoModels, encoder: Encoder, trained: Trained, tmp_path: Path
) -> None:
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    student = student_of(backend, models.student)
    merge_adapter(models.student, trained[0] / "adapter", tmp_path / "out")
    base = transformers.AutoModelForCausalLM.from_pretrained(models.student, dtype=torch.float32)
    adapter = trained[0] / "adapter"
    if backend == "mlx":
        convert_adapter(adapter, tmp_path / "converted", "peft")
        adapter = tmp_path / "converted"
    both = peft.PeftModel.from_pretrained(base, str(adapter)).eval()
    rows = ids(encoder)
    with torch.no_grad():
        expected = np.stack([both(torch.tensor([row])).logits[0, -1].numpy() for row in rows])
    found = student.logits(tmp_path / "out", rows)
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    assert float(np.abs(found - expected).max()) < 1e-3 * float(np.abs(expected).max())
    untrained = student.logits(models.student, rows)
    assert float(np.abs(found - untrained).max()) > 0.1


def test_a_merged_folder_is_an_ordinary_one(backend: str, models: PicoModels, trained: Trained, tmp_path: Path) -> None:
    from edgedistill.models import check_folder

    merge_adapter(models.student, trained[0] / "adapter", tmp_path / "out")
    config = check_folder(tmp_path / "out")
    assert config["architectures"] == ["LlamaForCausalLM"]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (models.student / name).read_bytes()
    assert "quantization_config" not in config
    assert not [path.name for path in (tmp_path / "out").iterdir() if path.name.startswith("adapter")]


def test_a_full_training_merges_to_what_was_trained(
    backend: str, models: PicoModels, encoder: Encoder, tmp_path: Path
) -> None:
    student = student_of(backend, models.student)
    wanted = SETTINGS.model_copy(update={"method": "full", "epochs": 3})
    summary = student.train(data_of(encoder), wanted, tmp_path, Steps())
    assert summary["trained_parameters"] > 100_000 / 2
    merge_adapter(models.student, tmp_path / "adapter", tmp_path / "out")
    safetensors = pytest.importorskip("safetensors.numpy")
    trained_tensors = safetensors.load_file(tmp_path / "adapter" / "model.safetensors")
    merged = safetensors.load_file(tmp_path / "out" / "model.safetensors")
    assert merged.keys() == trained_tensors.keys()
    for name, values in trained_tensors.items():
        assert np.allclose(merged[name].astype(np.float32), values, atol=2e-3), name


def test_a_backend_is_a_module_of_its_name() -> None:
    for name in BACKENDS:
        assert (Path(checkpoints.__file__).parent / f"{name}.py").is_file()
