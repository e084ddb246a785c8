"""Healing: a quantized student learns to say again what its 16-bit self says, by what of it is not quantized.

No quantized weight changes. Learned are its norms and biases, as Norm Tweaking does it (arXiv 2309.02784): a norm
scales all inputs of the matrices behind it, and the file keeps it in float32. So what was learned is what the file
says, to the bit, and the file stays one of the same types and size.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.utils import parametrize

from ..hardware import compute_dtype, device
from ..llamacpp.architectures import Place, from_hugging_face, plain_config
from ..llamacpp.importer import in_halves
from ..llamacpp.reader import GgufFile, dequantized_rows, read_gguf
from ..llamacpp.writer import pairwise
from ..recipe import TrainSettings
from ..records import read_json
from ..run import cores
from . import Report, TrainingData
from .torch import SHORT, TorchSession, pretrained
from .training import run_training

__all__ = ["QuantizedStudent"]

Values = NDArray[np.float32]


class QuantizedStudent:
    """A student's Hugging Face folder, and a quantized GGUF that was made from it."""

    def __init__(self, folder: Path, quant: Path) -> None:
        self._folder, self._quant = folder, quant

    def heal(
        self, data: TrainingData, settings: TrainSettings, out: Path, report: Report
    ) -> tuple[dict[str, Any], dict[str, Values]]:
        """Train, resuming from the newest whole checkpoint under `out`; return a summary, and what is new in the GGUF.

        That is, by tensor, the vectors that `llamacpp.vectors.write_vectors` takes. Raises EdgeDistillError where a
        loss is not finite.
        """
        torch.set_num_threads(cores())
        torch.manual_seed(data.seed)
        models = [pretrained(self._folder, compute_dtype(torch)).to(device(torch)) for _ in range(2)]
        if device(torch) == "cpu" and max(len(example.tokens) for example in data.train) <= SHORT:
            for model in models:
                model.set_attn_implementation("eager")
        teacher, student = models
        learned = _quantized(student.float(), self._folder, read_gguf(self._quant))
        session = TorchSession(student, settings, data.seed, teacher.eval())
        summary = run_training(session, data, settings, out, report)
        with torch.no_grad():
            return {**summary, "trained_parameters": session.size}, {one.place.gguf: one.new() for one in learned}


@dataclass(frozen=True, slots=True)
class _Learned:
    """A tensor that learns, and what makes the weights of it."""

    place: Place
    values: _Vector
    offset: torch.nn.Parameter

    def new(self) -> Values:
        """Its numbers as the GGUF lays them out."""
        found: Values = self.values(self.offset).cpu().numpy()
        laid_out = pairwise(found, self.place.heads) if self.place.heads else found
        vector: Values = laid_out + np.float32(self.place.plus)
        return vector


class _Vector(torch.nn.Module):  # type: ignore[misc]
    """A norm or a bias from how far each number is moved, relative to their mean size."""

    vector: torch.Tensor

    def __init__(self, vector: Values) -> None:
        super().__init__()
        self.register_buffer("vector", torch.from_numpy(vector))
        self._size = float(np.abs(vector).mean()) or 1.0

    def forward(self, offset: torch.Tensor) -> torch.Tensor:
        return self.vector + self._size * offset

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(self.vector)


def _quantized(model: Any, folder: Path, gguf: GgufFile) -> list[_Learned]:
    """Give the model the GGUF's weights, and return those that learn: all others are frozen."""
    config = read_json(folder / "config.json")
    row = from_hugging_face(config["architectures"][0])
    places = row.places(plain_config(str(folder / "config.json"), row, config))
    model.requires_grad_(False)
    modules = dict(model.named_modules())
    learned = []
    for place in places:
        if place.gguf not in gguf.tensors:
            continue
        name, _, kind = place.hugging_face.rpartition(".")
        values = _values(gguf, place)
        getattr(modules[name], kind).data.copy_(torch.from_numpy(values))
        if gguf.tensors[place.gguf].kind == "F32" and values.ndim == 1:
            maker = _Vector(values)
            parametrize.register_parametrization(modules[name], kind, maker.to(model.device), unsafe=True)
            offset = getattr(modules[name].parametrizations, kind).original
            learned.append(_Learned(place, maker, offset.requires_grad_(True)))
    return learned


def _values(gguf: GgufFile, place: Place) -> Values:
    """A tensor's numbers as the Hugging Face side has them."""
    tensor = gguf.tensors[place.gguf]
    rows = dequantized_rows(gguf.path, tensor, 0, tensor.shape[0]).reshape(tensor.shape)
    rows = in_halves(rows, place.heads) if place.heads else rows
    return np.ascontiguousarray(rows - np.float32(place.plus)).reshape(place.source_shape)
