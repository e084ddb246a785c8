"""Compiled layers teach what the others do; where they cannot be, it is said before anything runs."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from pico import pico_hf_folder
from pico_lessons import END
from pico_recipe import PicoModels, write_pico_recipe
from required import required_or_skipped
from test_student_contract import EXACT, SETTINGS, data_of, examples, trained

from edgedistill.errors import InvalidInput, MissingRequirement
from edgedistill.pipeline import settings_of
from edgedistill.preflight import check
from edgedistill.recipe import StudentSettings, TrainSettings, load_recipe
from edgedistill.run import Run
from edgedistill.students import BACKENDS, Exam, TrainingData, require_student
from edgedistill.students.lessons import hard_lesson

COMPILED = TrainSettings(compile=True)


@pytest.fixture(autouse=True)
def torch_here() -> None:
    required_or_skipped("torch", BACKENDS["torch"][0])


@pytest.fixture
def as_if_on_cuda(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Layers are compiled although this is no CUDA: traced and differentiated ahead, run without generated code.

    Returns a list in which each call notes how many layers there were.
    """
    from edgedistill.students import torch_compile

    counts: list[int] = []

    def compile_layers(layers: list[object]) -> None:
        counts.append(len(layers))
        partial(torch_compile.compile_layers, backend="aot_eager")(layers)  # type: ignore[arg-type]

    monkeypatch.setattr("edgedistill.students.torch.require_cuda", lambda: None)
    monkeypatch.setattr("edgedistill.students.torch.compile_layers", compile_layers)
    monkeypatch.setattr("edgedistill.students.torch.compute_dtype", lambda torch: torch.float32)
    return counts


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", ["off", "on"])
def test_compiled_layers_teach_what_the_others_do(as_if_on_cuda: list[int], tmp_path: Path, checkpointing: str) -> None:
    base = pico_hf_folder(tmp_path / "base")
    rows = examples(2)
    exam = Exam([row.tokens[: row.start] for row in rows], END, 5, lambda answers: float(sum(map(len, answers))))
    data = data_of(hard_lesson, opening=(5, 6, 7, 8, 9, 10))
    data = TrainingData(data.train, data.valid, data.seed, data.lesson, exam)
    changes = {"epochs": 1, "gradient_checkpointing": checkpointing}
    losses, weights = trained("torch", base, tmp_path / "plain", data, **changes)
    assert as_if_on_cuda == []
    found, learned = trained("torch", base, tmp_path / "compiled", data, compile=True, **changes)
    assert as_if_on_cuda == [2]
    assert found == pytest.approx(losses, rel=EXACT)
    assert learned.keys() == weights.keys()
    for name, values in weights.items():
        np.testing.assert_allclose(learned[name], values, rtol=1e-3, atol=EXACT, err_msg=name)


def test_it_is_refused_where_there_is_no_cuda(models: PicoModels, tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    path = write_pico_recipe(tmp_path / "recipe", models, {"[train]": "[train]\ncompile = true"})
    with pytest.raises(MissingRequirement, match=r"train\.compile is for CUDA, and this machine trains on"):
        check(load_recipe(path), Run(tmp_path / "run", offline=True))
    data, folder = TrainingData(examples(4), (), 0), pico_hf_folder(tmp_path / "base")
    with pytest.raises(MissingRequirement, match=r"train\.compile") as caught:
        trained("torch", folder, tmp_path / "out", data, **{**SETTINGS.model_dump(), "compile": True})
    assert caught.value.hint == "Leave train.compile out."


def test_it_is_not_for_mlx() -> None:
    required_or_skipped("mlx", BACKENDS["mlx"][0])
    with pytest.raises(InvalidInput, match="'mlx' compiles its steps unasked"):
        require_student(StudentSettings(backend="mlx", model="any"), COMPILED)


def test_runs_from_before_there_was_such_a_key_are_not_stale(models: PicoModels, tmp_path: Path) -> None:
    plain, compiled = (
        load_recipe(write_pico_recipe(tmp_path / name, models, changes))
        for name, changes in (("plain", {}), ("compiled", {"[train]": "[train]\ncompile = true"}))
    )
    assert "compile" not in settings_of(plain, "train")
    assert settings_of(compiled, "train")["compile"] is True
