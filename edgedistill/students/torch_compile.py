"""A training's layers compiled by torch.compile: on CUDA alone, where it was made for this."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from ..errors import MissingRequirement
from ..hardware import device

__all__ = ["compile_layers", "require_cuda"]


def require_cuda() -> None:
    """Raise MissingRequirement where this machine does not train on CUDA."""
    where = device(torch)
    if where != "cuda":
        raise MissingRequirement(
            f"train.compile is for CUDA, and this machine trains on its {where.upper()}", "Leave train.compile out."
        )


def compile_layers(layers: Iterable[torch.nn.Module], backend: str = "inductor") -> None:
    """Compile each layer in place when it is first called, for all lengths; names of weights stay as they are.

    Layer by layer, the same code serves all of them: compiling takes as long as for one.
    """
    for layer in layers:
        layer.compile(dynamic=True, backend=backend)
