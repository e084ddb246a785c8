"""A model computed module by module, each weight read as float32 in its turn: for one larger than the memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..llamacpp.weights import Tensor, find_tensors, read_rows, row_steps
from .torch_memory import free_bytes
from .training import ROOM

__all__ = ["float32_fits", "streamed_logits"]


def float32_fits(folder: Path) -> bool:
    """Whether a float32 copy of a Hugging Face folder's weights fits into what is free."""
    values = sum(math.prod(tensor.shape) for tensor in find_tensors(folder).values())
    return 4 * values <= free_bytes() * ROOM


class _Weights(Mapping[str, torch.Tensor]):
    """A folder's tensors by name, read anew each time; a tied head's is that of the embedding."""

    def __init__(self, folder: Path, shared: Mapping[str, str]) -> None:
        self._tensors: dict[str, Tensor] = find_tensors(folder)
        self._shared = shared

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor = self._tensors.get(name) or self._tensors[self._shared[name]]
        values = np.empty(tensor.shape, np.float32)
        for first, last in row_steps(tensor.shape):  # never a second copy of a large one, as it is stored
            values[first:last] = read_rows(tensor, first, last)
        return torch.from_numpy(values)

    def __iter__(self) -> Iterator[str]:
        return iter([*self._tensors, *self._shared])

    def __len__(self) -> int:
        return len(self._tensors) + len(self._shared)


def streamed_logits(folder: Path, rows: Sequence[Sequence[int]]) -> NDArray[np.float32]:
    """Next-token logits after each row of token ids: float32 of shape (rows, vocabulary), on the CPU.

    All rows go through the model together, so that each weight is read once. Raises KeyError with the name of a weight
    that the folder does not hold.
    """
    from accelerate import cpu_offload

    model = _without_weights(folder)
    cpu_offload(model, torch.device("cpu"), state_dict=_Weights(folder, _tied(model)))
    ends = [len(row) - 1 for row in rows]
    kept = sorted(set(ends))
    # nothing looks ahead, so that what stands behind a shorter row does not reach it
    tokens = torch.tensor([[*row, *[0] * (max(ends) + 1 - len(row))] for row in rows])
    with torch.inference_mode():
        logits = model(tokens, use_cache=False, logits_to_keep=torch.tensor(kept)).logits
    return np.stack([logits[number, kept.index(end)].float().numpy() for number, end in enumerate(ends)])


def _without_weights(folder: Path) -> Any:
    """The model in a Hugging Face folder with places for its weights; what is computed at its start is there."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model.eval()


def _tied(model: Any) -> dict[str, str]:
    """The head's name and the embedding's, where they are one tensor."""
    if not model.config.tie_word_embeddings:
        return {}
    names = {id(module): name for name, module in model.named_modules()}
    head, embedding = (names[id(module)] for module in (model.get_output_embeddings(), model.get_input_embeddings()))
    return {f"{head}.weight": f"{embedding}.weight"}
