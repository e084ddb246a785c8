"""Adapters of pico models with random weights, in both forms, written without any library that trains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedistill.llamacpp import weights

LINEAR = (
    *(f"self_attn.{name}_proj" for name in "qkvo"),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
)
Factors = dict[str, tuple[NDArray[Any], ...]]


def factors(base: Path, rank: int = 4, dora: bool = False, seed: int = 0, places: tuple[str, ...] = LINEAR) -> Factors:
    """A (rank, inputs), B (outputs, rank) and, for DoRA, the rows' lengths of each linear layer of a folder."""
    numbers = np.random.default_rng(seed)
    found = {}
    for name, tensor in sorted(weights.find_tensors(base).items()):
        if name.endswith(tuple(f"{place}.weight" for place in places)):
            outputs, inputs = tensor.shape
            parts = [numbers.standard_normal((rank, inputs)), 0.1 * numbers.standard_normal((outputs, rank))]
            if dora:
                lengths = np.linalg.norm(weights.read_rows(tensor, 0, outputs), axis=1)
                parts.append(lengths * (1 + 0.2 * numbers.standard_normal(outputs)))
            found[name.removesuffix(".weight")] = tuple(part.astype(np.float32) for part in parts)
    return found


def peft_adapter(path: Path, found: Factors, alpha: float = 12.0, dtype: str = "F32", **config: Any) -> Path:
    """A PEFT adapter of these factors. Returns `path`."""
    rank = next(iter(found.values()))[0].shape[0]
    stated = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "pico",
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted({module.rpartition(".")[2] for module in found}),
        "use_dora": len(next(iter(found.values()))) == 3,
        "bias": "none",
        "rank_pattern": {},
        "inference_mode": True,
        **config,
    }
    names = ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector")
    tensors = {
        f"base_model.model.{module}.{name}": part
        for module, parts in found.items()
        for name, part in zip(names, parts, strict=False)
    }
    return _written(path, "adapter_model.safetensors", tensors, stated, dtype)


def mlx_adapter(path: Path, found: Factors, scale: float = 3.0, dtype: str = "F32", **config: Any) -> Path:
    """An mlx-lm adapter of these factors. Returns `path`."""
    rank = next(iter(found.values()))[0].shape[0]
    keys = sorted({module.split(".", 3)[3] for module in found})
    stated = {
        "fine_tune_type": "dora" if len(next(iter(found.values()))) == 3 else "lora",
        "num_layers": len({module.split(".")[2] for module in found}),
        "lora_parameters": {"rank": rank, "scale": scale, "dropout": 0.0, "keys": keys},
        "model": "pico",
        "iters": 1000,
        **config,
    }
    tensors = {
        f"{module}.{name}": part.T
        for module, parts in found.items()
        for name, part in zip(("lora_a", "lora_b", "m"), parts, strict=False)
    }
    return _written(path, "adapters.safetensors", tensors, stated, dtype)


def _written(path: Path, name: str, tensors: dict[str, Any], config: dict[str, Any], dtype: str) -> Path:
    path.mkdir(parents=True)
    shapes = {name: tensor.shape for name, tensor in sorted(tensors.items())}
    weights.write_safetensors(path / name, shapes, dtype, lambda name: [np.ascontiguousarray(tensors[name])])
    (path / "adapter_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    return path
