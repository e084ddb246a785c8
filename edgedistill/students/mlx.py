"""A student trained by MLX: on Apple's GPUs, and on the CPU of a Linux machine.

The loop is this package's own: optimizer moments and position are in each checkpoint, and a killed training goes on
from its newest whole one; on the CPU it ends in the same bits. Adapters are mlx-lm's own, in its files.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from ..recipe import TrainSettings
from . import Report, TrainingData
from .mlx_memory import peak_bytes
from .mlx_model import body_of, compute_dtype, head_of, loaded, must_be_plain
from .mlx_session import MlxSession
from .training import run_training

__all__ = ["MlxStudent", "load"]


def load(base: Path) -> MlxStudent:
    """A student on a Hugging Face folder."""
    return MlxStudent(base)


class MlxStudent:
    """One base model on disk; weights are in memory only inside a method."""

    def __init__(self, base: Path) -> None:
        self._base = base

    def train(self, data: TrainingData, settings: TrainSettings, out: Path, report: Report) -> dict[str, Any]:
        """Write `adapter/` and `metrics.jsonl`; return steps, final losses and rates.

        Raises InvalidInput where mlx-lm does not know the architecture, EdgeDistillError that names the batch where the
        loss is not finite.
        """
        model = loaded(self._base, compute_dtype())
        must_be_plain(self._base, model)
        session = MlxSession(model, settings, data.seed)
        summary = run_training(session, data, settings, out, report)
        return {
            **summary,
            "padded_share": round(session.padded_share, 4),
            "trained_parameters": session.size,
            "dtype": str(compute_dtype()).removeprefix("mlx.core."),
            "peak_memory_bytes": peak_bytes(),
        }

    def logits(self, folder: Path, rows: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Next-token logits after each row of token ids: float32 of shape (rows, vocabulary).

        Each weight is read and made float32 when its turn comes, and dropped behind it: they need not fit together.
        """
        model = loaded(folder, mx.float32, lazy=True)
        ends = [len(row) - 1 for row in rows]
        # nothing looks ahead, so that what stands behind a shorter row does not reach it
        tokens = mx.array([[*row, *[0] * (max(ends) + 1 - len(row))] for row in rows])
        found = head_of(model).logits(body_of(model)(tokens)[mx.arange(len(rows)), mx.array(ends)])
        del model  # a weight that only the computation holds is freed once it has been used
        return np.array(found)
