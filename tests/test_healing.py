"""Healing: a quant comes nearer to its 16-bit self, in its own types and size, or stays as it was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Finished
from hypothesis import given, settings
from hypothesis import strategies as st
from pico import pico_hf_folder, silent
from required import required_or_skipped
from test_students import Steps
from tiny_models import TINY, tiny_folder

from edgedistill import students
from edgedistill.chat import with_system
from edgedistill.errors import MissingRequirement, Stopped
from edgedistill.llamacpp.comparison import ScoredText, divergence_between
from edgedistill.llamacpp.quantize import quantize
from edgedistill.llamacpp.reader import read_gguf
from edgedistill.llamacpp.vectors import write_vectors
from edgedistill.llamacpp.writer import GgufMetadata, write_gguf
from edgedistill.pipeline import load_run
from edgedistill.recipe import Recipe, TrainSettings, load_recipe
from edgedistill.records import Example, json_lines, messages_of, read_rows
from edgedistill.run import Run, write_whole
from edgedistill.stages.export import F16_NAME
from edgedistill.stages.healing import heal_quants, require_healing
from edgedistill.stages.quantize import quantize as quantize_stage
from edgedistill.students import TrainingData, load_healer
from edgedistill.students.encode import EncodedExample, Encoder

SETTINGS = TrainSettings(method="full", epochs=4, learning_rate=3e-2, batch_size=8, checkpoint_steps=2)


@pytest.fixture(scope="module", autouse=True)
def installed() -> None:
    required_or_skipped("torch", students.BACKENDS["torch"][0])
    required_or_skipped("llamacpp", ("llama_cpp",))


def examples(count: int, seed: int = 0) -> list[EncodedExample]:
    source = np.random.default_rng(seed)
    return [
        EncodedExample(str(n), tuple(source.integers(3, 290, int(source.integers(8, 24))).tolist()), 4)
        for n in range(count)
    ]


def scored(rows: Sequence[EncodedExample]) -> list[ScoredText]:
    return [ScoredText(row.tokens, row.start) for row in rows]


def quantized(folder: Path, name: str) -> tuple[Path, Path]:
    """The F16 GGUF of a Hugging Face folder, and a quant of it."""
    f16, quant = folder.with_suffix(".gguf"), folder.with_name(f"{folder.name}-{name}.gguf")
    write_gguf(folder, f16, GgufMetadata(name="Tiny"), silent)
    quantize(f16, quant, name, 1)
    return f16, quant


@pytest.fixture(scope="module")
def pico(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A folder whose rows fill blocks of 256, its GGUF, and what two to three bits leave of it."""
    folder = pico_hf_folder(tmp_path_factory.mktemp("heal") / "pico", size=256)
    return folder, *quantized(folder, "Q2_K")


def test_a_healed_quant_is_nearer_to_its_16_bit_self_and_of_the_same_types(
    pico: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    folder, f16, quant = pico
    rows = examples(16)
    data = TrainingData(rows, rows, seed=1)
    summary, changed = load_healer(folder, quant).heal(data, SETTINGS, tmp_path / "work", Steps())
    healed = tmp_path / "healed.gguf"
    write_vectors(quant, healed, changed)
    before, after = divergence_between(f16, [quant, healed], scored(rows), 1, silent)
    assert after.mean < 0.8 * before.mean
    assert summary["valid_loss"] == pytest.approx(after.mean, rel=0.1)  # llama.cpp rounds activations besides
    old, new = read_gguf(quant), read_gguf(healed)
    assert (old.metadata, old.tensors) == (new.metadata, new.tensors)
    assert healed.stat().st_size == quant.stat().st_size
    assert {name for name, one in old.tensors.items() if len(one.shape) == 1} == set(changed)


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma3", "phi3"])
def test_every_layout_is_healed(name: str, tmp_path: Path) -> None:
    """Rows that lie in pairs, biases, norms with one added, matrices in one piece."""
    folder = tiny_folder(tmp_path / name.replace(" ", "-"), TINY[name])
    f16, quant = quantized(folder, "Q4_0")
    rows = examples(16)
    summary, changed = load_healer(folder, quant).heal(
        TrainingData(rows, rows, seed=1), SETTINGS, tmp_path / "work", Steps()
    )
    write_vectors(quant, tmp_path / "healed.gguf", changed)
    before, after = divergence_between(f16, [quant, tmp_path / "healed.gguf"], scored(rows), 1, silent)
    assert after.mean < 0.9 * before.mean
    assert summary["valid_loss"] == pytest.approx(after.mean, rel=0.15)


def test_a_healing_that_is_stopped_goes_on_and_ends_in_the_same_bits(
    pico: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    folder, _, quant = pico
    rows = examples(16)
    data = TrainingData(rows, rows[:4], seed=1)
    _, whole = load_healer(folder, quant).heal(data, SETTINGS, tmp_path / "whole", Steps())
    with pytest.raises(Stopped):
        load_healer(folder, quant).heal(data, SETTINGS, tmp_path / "work", Steps(stop_behind=5))
    summary, resumed = load_healer(folder, quant).heal(data, SETTINGS, tmp_path / "work", Steps())
    assert summary["resumed_from"] == 4
    assert whole.keys() == resumed.keys()
    assert all(np.array_equal(whole[name], resumed[name]) for name in whole)


# -- the stage's part


def run_of(folder: Path, pico: tuple[Path, Path, Path], pico_recipe: Path) -> tuple[Recipe, Run, Path]:
    """A run up to its export, with a quant that is to be healed."""
    student, f16, quant = pico
    recipe, run = load_recipe(pico_recipe), Run(folder)
    questions = ("lamp on", "lamp off", "radio on", "close the gate", "what time is it", "stop", "tv off", "hello")
    turns = [
        [{"role": "user", "content": text}, {"role": "assistant", "content": f'{{"on":{n % 2}}}'}]
        for n, text in enumerate(questions)
    ]
    write_whole(run.folder("curate") / "train.jsonl", json_lines({"messages": one} for one in turns))
    shutil.copytree(student, run.folder("export") / "student")
    shutil.copyfile(f16, run.folder("export") / F16_NAME)
    run.folder("quantize").mkdir()
    return recipe, run, Path(shutil.copyfile(quant, run.folder("quantize") / "pico-Q2_K.gguf"))


def learned(run: Run) -> list[ScoredText]:
    """The curated rows as the student sees them."""
    encoder, path = Encoder(run.folder("export") / "student"), run.folder("curate") / "train.jsonl"
    turns = [with_system("", messages_of(str(number), row)) for number, row in read_rows(path)]
    return scored([encoder.example(Example("", one)) for one in turns])


def healing(recipe: Recipe, **changes: Any) -> Recipe:
    settings = recipe.quantize.model_copy(update={"heal": True, "heal_steps": 12, **changes})
    return recipe.model_copy(update={"quantize": settings})


def test_a_quant_is_replaced_where_healing_measures_better(
    pico: tuple[Path, Path, Path], pico_recipe: Path, tmp_path: Path
) -> None:
    recipe, run, quant = run_of(tmp_path / "run", pico, pico_recipe)
    texts = learned(run)
    found = heal_quants(healing(recipe, heal_learning_rate=2e-2), run, {"one": quant}, texts, silent)["one"]
    assert found["kept"] is True
    assert found["after"]["mean"] < found["before"]["mean"]
    (now,) = divergence_between(run.folder("export") / F16_NAME, [quant], texts, 1, silent)
    assert now.mean == pytest.approx(found["after"]["mean"], rel=1e-6)
    assert [path.name for path in quant.parent.iterdir()] == [quant.name]


def test_a_quant_stays_where_healing_measures_no_better(
    pico: tuple[Path, Path, Path], pico_recipe: Path, tmp_path: Path
) -> None:
    recipe, run, quant = run_of(tmp_path / "run", pico, pico_recipe)
    before = quant.read_bytes()
    found = heal_quants(healing(recipe, heal_learning_rate=3.0), run, {"one": quant}, learned(run), silent)["one"]
    assert found["kept"] is False
    assert found["after"]["mean"] >= found["before"]["mean"]
    assert quant.read_bytes() == before


def test_a_stop_in_the_middle_leaves_the_quant_as_it_was(
    pico: tuple[Path, Path, Path], pico_recipe: Path, tmp_path: Path
) -> None:
    recipe, run, quant = run_of(tmp_path / "run", pico, pico_recipe)
    before = quant.read_bytes()

    def stop(what: str, done: int, total: int) -> None:
        if what.startswith("healing") and done == 3:
            raise Stopped("stopped as asked")

    with pytest.raises(Stopped):
        heal_quants(healing(recipe), run, {"one": quant}, learned(run), stop)
    assert quant.read_bytes() == before
    assert [path.name for path in quant.parent.iterdir()] == [quant.name]


def test_the_stage_heals_what_has_lost_more_than_an_export_may(finished: Finished, tmp_path: Path) -> None:
    recipe, run = load_run(finished.copied(tmp_path).run)
    wanted = healing(recipe, types=("Q8_0", "Q4_0"), heal_learning_rate=1e-2)
    quantize_stage(wanted, run, run.folder("quantize"), silent)
    quality = json.loads((run.folder("quantize") / "quality.json").read_bytes())
    assert quality["Q8_0"]["f16_quant"]["mean"] < recipe.export.max_kl
    assert "healed" not in quality["Q8_0"]
    found = quality["Q4_0"]["healed"]
    assert found["before"]["mean"] > recipe.export.max_kl
    assert found["steps"] == 10  # two whole passes over its rows are nearest to 12
    measured = found["after" if found["kept"] else "before"]["mean"]
    assert quality["Q4_0"]["f16_quant"]["mean"] == pytest.approx(measured, rel=1e-3)
    assert not (run.scratch / "heal").exists()


def test_check_says_what_healing_needs(pico_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, run = load_recipe(pico_recipe), Run(tmp_path)
    assert require_healing(recipe, run) == "off"
    assert require_healing(healing(recipe), run).startswith("12 steps")
    monkeypatch.setattr(import_module("edgedistill.students"), "find_spec", lambda name: None)
    assert require_healing(recipe, run) == "off"
    with pytest.raises(MissingRequirement, match="healing needs torch"):
        require_healing(healing(recipe), run)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 12), st.integers(1, 7), st.integers(0, 2**31))
def test_the_loss_and_its_gradient_are_those_of_whole_distributions(rows: int, chunk: int, seed: int) -> None:
    import torch

    from edgedistill.students.torch_kl import Taught, whole_kl

    numbers = torch.Generator().manual_seed(seed)
    hidden, taught = (torch.randn(rows, 6, generator=numbers) for _ in range(2))
    head, other = (torch.randn(40, 6, generator=numbers) for _ in range(2))
    weight = torch.rand(rows, generator=numbers)
    ours, dense = (hidden.clone().requires_grad_() for _ in range(2))
    found = whole_kl(ours, head, Taught(taught, other, weight), chunk)
    log_p, log_q = torch.log_softmax(taught @ other.t(), 1), torch.log_softmax(dense @ head.t(), 1)
    expected = ((log_p.exp() * (log_p - log_q)).sum(1) * weight).sum()
    (2 * found).backward()
    (2 * expected).backward()
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert torch.allclose(ours.grad, dense.grad, rtol=1e-3, atol=1e-5)
