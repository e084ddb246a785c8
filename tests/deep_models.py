"""Pico models of five layers, and what they compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pico import pico_hf_folder, reconfigured

from edgedistill.llamacpp import weights

LAYERS = 5
ROWS = [[1, 9, 30, 200, 41, 2, 77], [1, 5], [4, 4, 250, 11, 90, 91, 92, 93, 94, 95, 96]]


def deep(path: Path, architecture: str = "llama", tied: bool = True) -> Path:
    """A pico folder of five layers."""
    return reconfigured(
        pico_hf_folder(path, architecture, tied), lambda config: config.update(num_hidden_layers=LAYERS)
    )


def tensors(folder: Path) -> dict[str, Any]:
    return {
        name: weights.read_rows(tensor, 0, tensor.shape[0]) for name, tensor in weights.find_tensors(folder).items()
    }


def loaded(folder: Path) -> Any:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def logits(model: Any) -> NDArray[np.float32]:
    """Next-token logits behind each of the rows."""
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        return np.stack([model(torch.tensor([row])).logits[0, -1].numpy() for row in ROWS])
