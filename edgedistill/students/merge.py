"""What was trained and its base become one model: a Hugging Face folder with 16-bit weights, piece by piece.

numpy alone: it works where only mlx is installed, and holds a piece of one tensor in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import EdgeDistillError
from ..llamacpp.weights import Tensor, find_tensors, read_rows, read_stored, row_steps
from ..records import read_json
from ..run import stop_if_asked
from .adapter import Adapter, LowRank, low_rank, read_adapter
from .folder import FolderWeights, Rows, base_tensors, write_folder

__all__ = ["merge_adapter"]

LARGEST_FLOAT16 = 65504.0


def merge_adapter(base: Path, adapter: Path, out: Path) -> None:
    """Write base + adapter as a Hugging Face folder with float16 safetensors, whole or not at all.

    `adapter` is a PEFT or mlx-lm folder (LoRA: W + scale * B A; DoRA: its rows brought to the learned lengths, arXiv
    2402.09353), or holds all weights as model.safetensors. All is computed in float32 and rounded once. Raises
    EdgeDistillError where the two do not belong together or a value does not fit 16 bits, Stopped where the disk is
    full.
    """
    config = read_json(base / "config.json")
    tensors = base_tensors(base, config)
    learned, modules = None, dict[str, str]()
    if any(adapter.glob("model*.safetensors")):
        tensors = _trained(base, adapter, tensors)
    else:
        learned = read_adapter(adapter)
        modules = _adapted(base, learned, tensors)

    def pieces(name: str) -> Iterator[Rows | NDArray[np.float16]]:
        stop_if_asked()
        update = low_rank(learned, modules[name]) if learned is not None and name in modules else None
        for first, last in row_steps(tensors[name].shape):
            if update is None and tensors[name].dtype == "F16":  # nothing to compute, and checked when it is written
                yield read_stored(tensors[name], first, last)
                continue
            rows = read_rows(tensors[name], first, last)
            if update is not None:
                rows = updated(rows, update, first, last)
            largest = max(rows.max(initial=0.0), -rows.min(initial=0.0))
            if not largest <= LARGEST_FLOAT16:  # NaN is not either
                raise OverflowError(name)
            yield rows

    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    try:
        write_folder(out, base, config, FolderWeights("float16", shapes, pieces))
    except OverflowError as error:
        raise EdgeDistillError(
            f"{adapter}: weights are not finite, or too large for 16 bits", "Lower train.learning_rate."
        ) from error


def updated(rows: Rows, update: LowRank, first: int, last: int) -> Rows:
    """Rows `first` to `last` (exclusive) of a matrix with its update, float32 of the same shape."""
    found: Rows = update.b[first:last] @ update.a
    found *= np.float32(update.scale)
    found += rows
    if update.lengths is not None:
        with np.errstate(divide="ignore", invalid="ignore"):
            found *= (update.lengths[first:last] / np.linalg.norm(found, axis=1))[:, None]
    return found


def _adapted(base: Path, adapter: Adapter, tensors: dict[str, Tensor]) -> dict[str, str]:
    """The adapter's modules by the name of the matrix that each is for."""
    found = {}
    for module in adapter.modules:
        name, shape = f"{module}.weight", adapter.shape(module)
        if name not in tensors or tensors[name].shape != shape:
            raise EdgeDistillError(
                f"{adapter.folder}: {module!r} of shape {shape} is not in {base}",
                "Name the base that it was trained on.",
            )
        found[name] = module
    return found


def _trained(base: Path, folder: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The trained weights, in the order of the base's."""
    trained = find_tensors(folder)
    if "lm_head.weight" not in tensors:
        trained.pop("lm_head.weight", None)
    if {name: tensor.shape for name, tensor in trained.items()} != {name: t.shape for name, t in tensors.items()}:
        raise EdgeDistillError(f"{folder}: not the weights of {base}", "Redo with --from train.")
    return {name: trained[name] for name in tensors}
