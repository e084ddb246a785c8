"""Adapters on an MLX model, in mlx-lm's layers and files: `mlx_lm` loads what is written here as it is."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.tuner.dora import DoRALinear
from mlx_lm.tuner.lora import LoRALinear

from ..recipe import TrainSettings
from ..run import no_room, write_whole
from .initial import lora_a

__all__ = ["Dropout", "Keys", "adapted", "recomputed", "save_tensors", "trained", "write_adapter"]

BITS = 4
GROUP = 64  # weights that share a scale; 32 where a layer's width is no multiple of it


class Keys:
    """Where dropout draws from: a key that is set at the beginning of each pass; None switches dropout off."""

    def __init__(self) -> None:
        self.now: mx.array | None = None

    def next(self) -> mx.array:
        """A key of its own for one draw."""
        assert self.now is not None
        self.now, drawn = mx.random.split(self.now)
        return drawn

    @staticmethod
    def of(*numbers: int) -> mx.array:
        """The key that some numbers stand for, such as a seed and a step: so no generator's state has to be kept."""
        name = " ".join(map(str, numbers)).encode()
        return mx.random.key(int.from_bytes(hashlib.sha256(name).digest()[:8], "big"))


class Dropout(nn.Module):  # type: ignore[misc]
    """Zeroes a share of what comes in and scales up the rest; mlx's own draws from a state that all threads share."""

    def __init__(self, share: float, keys: Keys) -> None:
        super().__init__()
        self._kept = 1.0 - share
        self._keys = keys

    def __call__(self, values: mx.array) -> mx.array:
        if self._kept == 1.0 or self._keys.now is None:
            return values
        mask = mx.random.bernoulli(self._kept, values.shape, key=self._keys.next())
        return mx.where(mask, values * (1.0 / self._kept), 0.0).astype(values.dtype)


def adapted(model: Any, settings: TrainSettings, seed: int, keys: Keys) -> None:
    """Freeze the model and put an adapter on every linear layer of attention and feed-forward."""
    model.freeze()
    if settings.method == "qlora":
        _quantize(model)
    kind = DoRALinear if settings.method == "dora" else LoRALinear
    found = []
    for name, module in _linears(model):
        layer = kind.from_base(module, r=settings.rank, scale=settings.alpha / settings.rank, dropout=0.0)
        width, rank = layer.lora_a.shape
        layer.lora_a = mx.array(lora_a(seed, name, rank, width)).T
        layer.dropout = Dropout(settings.dropout, keys)
        found.append((name, layer))
    model.update_modules(tree_unflatten(found))


def _linears(model: Any) -> list[tuple[str, Any]]:
    layers = {id(module) for layer in model.layers for _, module in layer.named_modules()}
    kinds = (nn.Linear, nn.QuantizedLinear)
    return [(name, it) for name, it in model.named_modules() if isinstance(it, kinds) and id(it) in layers]


def _quantize(model: Any) -> None:
    """Hold the layers' linear weights in 4 bits. Embedding and head stay: the adapter is merged on the 16-bit base, and
    it cannot make up for what these lost."""
    inside = {name for name, _ in _linears(model)}

    def settings(name: str, module: Any) -> bool | dict[str, Any]:
        if name not in inside or module.weight.shape[1] % 32:
            return False
        return {"group_size": GROUP if module.weight.shape[1] % GROUP == 0 else 32, "bits": BITS, "mode": "affine"}

    nn.quantize(model, class_predicate=settings)
    model.freeze()


@contextmanager
def recomputed(model: Any, keys: Keys) -> Iterator[None]:
    """Within the block, layers keep their input alone and are computed again on the way back (arXiv 1604.06174)."""
    kind = type(model.layers[0])
    plain = kind.__call__

    def twice(layer: Any, *given: Any, **more: Any) -> Any:
        def once(weights: Any, key: mx.array | None, *given: Any, **more: Any) -> Any:
            keys.now = None if key is None else mx.stop_gradient(key)  # the same draws both times
            layer.update(weights)
            return plain(layer, *given, **more)

        key = None if keys.now is None else keys.next()
        after = keys.now
        found = mx.checkpoint(once)(layer.trainable_parameters(), key, *given, **more)
        keys.now = after
        return found

    kind.__call__ = twice
    try:
        yield
    finally:
        kind.__call__ = plain


def write_adapter(folder: Path, model: Any, weights: Mapping[str, mx.array], settings: TrainSettings) -> None:
    """Write `adapters.safetensors` and `adapter_config.json` as mlx-lm does, or all weights as `model.safetensors`.

    Raises Stopped where the disk is full.
    """
    if settings.method == "full":
        save_tensors(folder / "model.safetensors", weights)
        return
    names = {name for layer in model.layers for name, module in layer.named_modules() if "lora_a" in module}
    config = {
        "fine_tune_type": "dora" if settings.method == "dora" else "lora",
        "num_layers": len(model.layers),
        "lora_parameters": {
            "rank": settings.rank,
            "scale": settings.alpha / settings.rank,
            "dropout": settings.dropout,
            "keys": sorted(names),
        },
    }
    save_tensors(folder / "adapters.safetensors", weights)
    write_whole(folder / "adapter_config.json", json.dumps(config, indent=1).encode())


def save_tensors(path: Path, tensors: Mapping[str, mx.array]) -> None:
    """Write a safetensors file whole or not at all, the same bytes for the same tensors.

    Raises Stopped where the disk is full.
    """
    partial = path.with_name(f"{path.stem}.partial-{os.getpid()}.safetensors")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        mx.save_safetensors(str(partial), {name: tensors[name] for name in sorted(tensors)}, {"format": "mlx"})
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise no_room(path, error) from error
    except RuntimeError as error:  # all that mlx has to say where it cannot write
        raise no_room(path, OSError(str(error))) from error
    finally:
        partial.unlink(missing_ok=True)


def trained(model: Any) -> dict[str, mx.array]:
    """The weights of a model that learn, by name."""
    return dict(tree_flatten(model.trainable_parameters()))
