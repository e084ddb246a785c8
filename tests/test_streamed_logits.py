"""The proof of an export does not need the whole model in memory: layer by layer it computes the same, in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pico_recipe import PicoModels
from required import required_or_skipped

ROWS = [[5], [9, 3, 7, 30, 11], [4 * place % 50 for place in range(17)]]


def test_weights_that_do_not_fit_are_read_layer_by_layer(models: PicoModels, monkeypatch: pytest.MonkeyPatch) -> None:
    required_or_skipped("torch", ("torch", "transformers", "accelerate"))
    from edgedistill.students import torch as backend
    from edgedistill.students import torch_streamed

    student = backend.load(models.student)
    whole = student.logits(models.student, ROWS)
    held = watched(monkeypatch, torch_streamed)
    monkeypatch.setattr(torch_streamed, "free_bytes", lambda: 0)
    monkeypatch.setattr(backend, "pretrained", None)  # would need them all
    streamed = student.logits(models.student, ROWS)
    monkeypatch.undo()
    assert streamed.shape == whole.shape
    assert streamed.dtype == np.float32
    assert np.abs(streamed - whole).max() < 1e-5 * np.abs(whole).max()
    values = sum(weight.numel() for weight in whole_model(models.student).parameters())
    assert sum(held.read) >= values, "every weight was read"
    assert max(held.read) < values / 2
    assert held.alive() == 0, "and none was kept"


class Held:
    """The tensors that were read, by size, and how many of them are still there."""

    def __init__(self) -> None:
        self.read: list[int] = []
        self.references: list[Any] = []

    def alive(self) -> int:
        return sum(reference() is not None for reference in self.references)


def watched(monkeypatch: pytest.MonkeyPatch, module: Any) -> Held:
    """What is read of the weights from now on."""
    import weakref

    held, given = Held(), module.torch.from_numpy

    def noted(values: Any) -> Any:
        held.read.append(values.size)
        held.references.append(weakref.ref(values))  # lives as long as any tensor on it does
        return given(values)

    monkeypatch.setattr(module.torch, "from_numpy", noted)
    return held


def whole_model(folder: Path) -> Any:
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(folder)


def test_mlx_reads_weights_when_their_turn_comes_and_computes_what_the_whole_model_does(models: PicoModels) -> None:
    required_or_skipped("mlx", ("mlx", "mlx_lm"))
    import mlx.core as mx

    from edgedistill.students import mlx as backend
    from edgedistill.students.mlx_model import loaded

    model = loaded(models.student, mx.float32)
    whole = np.stack([np.array(model(mx.array([row]))[0, -1]) for row in ROWS])
    found = backend.load(models.student).logits(models.student, ROWS)
    assert found.dtype == np.float32
    assert np.abs(found - whole).max() < 1e-4 * np.abs(whole).max()
