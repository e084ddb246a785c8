"""A Hugging Face folder as an MLX model: its layers, its output head, and several texts in one sequence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models import rope_utils
from mlx_lm.models.base import create_causal_mask
from mlx_lm.models.cache import KVCache, RotatingKVCache, make_prompt_cache
from mlx_lm.utils import load_model

from ..errors import InvalidInput
from ..records import read_json
from ..rotations import named_as_before
from .mlx_head import Head

__all__ = ["Beside", "Opening", "body_of", "compute_dtype", "head_of", "loaded", "must_be_plain", "takes_layouts"]

OTHER_BACKEND = "Use [student] backend = 'torch'."
RELATIVE = (
    nn.RoPE,
    rope_utils.Llama3RoPE,
    rope_utils.SuScaledRoPE,
    rope_utils.YarnRoPE,
    rope_utils.ProportionalRoPE,
)
"""Rotations under which only the distance of two tokens counts, however long the sequence is."""


def compute_dtype() -> mx.Dtype:
    """bfloat16 on Apple's GPUs, float32 on a CPU, which has no faster arithmetic here."""
    return mx.float32 if mx.default_device() == mx.Device(mx.cpu) else mx.bfloat16


def loaded(folder: Path, dtype: mx.Dtype, lazy: bool = False) -> Any:
    """The model in a folder; none of the folder's code runs. Where it is `lazy`, weights are read when they are needed.

    Raises InvalidInput where mlx-lm does not know the architecture, or not with this config.
    """
    try:
        model, _ = load_model(folder, lazy, model_config=named_as_before(read_json(folder / "config.json")))
    except (ValueError, TypeError, KeyError, IndexError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InvalidInput(f"{folder}: mlx-lm cannot load it: {reason}", OTHER_BACKEND) from error
    model.set_dtype(dtype)
    if not lazy:
        mx.eval(model.parameters())
    return model


def body_of(model: Any) -> Any:
    """The model without its output head: token ids (B, L) to hidden states (B, L, H)."""
    return getattr(model, "language_model", model).model


def head_of(model: Any, learns: bool = False) -> Head:
    """The output head of a model, its own or the tied embedding."""
    inner = getattr(model, "language_model", model)
    return Head.of(inner.lm_head if "lm_head" in inner else inner.model.embed_tokens, learns)


def must_be_plain(folder: Path, model: Any) -> None:
    """Raise InvalidInput where a model's logits are more than its last hidden state times its head."""
    tokens = mx.array([[0, 1, 2, 3]])
    try:
        ours, whole = head_of(model).logits(body_of(model)(tokens)), model(tokens)
        largest = mx.abs(whole).max().item()
        is_plain = mx.abs(ours - whole).max().item() <= 1e-4 * largest or not largest < float("inf")
    except AttributeError:
        is_plain = False
    if not is_plain:
        raise InvalidInput(f"{folder}: '{model.model_type}' has no plain output head", OTHER_BACKEND)


def takes_layouts(model: Any) -> bool:
    """Whether texts may stand behind one another in one sequence, or share their beginning: a model of attention alone,
    with positions that are relative.

    Where they may not, as with learned positions or a recurrent state, padded texts give the same losses.
    """
    plain = all(isinstance(layer, (KVCache, RotatingKVCache)) for layer in make_prompt_cache(model))
    modules = [(name.rsplit(".", 1)[-1], module) for name, module in model.named_modules()]
    ropes = [module for name, module in modules if "rope" in name or "rotary" in name]
    tables = sum(isinstance(module, (nn.Embedding, nn.QuantizedEmbedding)) for _, module in modules)
    return plain and bool(ropes) and all(isinstance(rope, RELATIVE) for rope in ropes) and tables == 1


class Beside:
    """Stands where a layer's cache would and holds nothing: tells the model which tokens see each other.

    Positions go on from text to text instead of beginning anew: under a relative rotation that changes nothing.
    """

    offset = 0

    def __init__(self, visible: mx.array) -> None:
        self._visible = visible
        """(L, L) bool."""

    def make_mask(self, length: int, return_array: bool = False, window_size: int | None = None) -> mx.array:
        """Which token sees which, for a layer that looks back so many tokens."""
        if window_size is None:
            return self._visible
        places = mx.arange(length)
        return self._visible & (places[:, None] < places[None] + window_size)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """What came in."""
        return keys, values


class Opening:
    """Stands where a layer's cache would in two passes: what all texts begin with, and then the rest of each."""

    def __init__(self) -> None:
        self.offset = 0
        """Tokens of the beginning, once they were passed through."""
        self._kept: tuple[mx.array, mx.array] | None = None

    def make_mask(self, length: int, return_array: bool = False, window_size: int | None = None) -> Any:
        """Each token sees the beginning and its own text so far, or the last so many tokens of these."""
        if window_size is None and not return_array:
            return "causal" if length > 1 else None
        return create_causal_mask(length, self.offset, window_size=window_size)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """What came in, (B, heads, L, D), behind the beginning's."""
        if self._kept is None:
            self._kept, self.offset = (keys, values), keys.shape[2]
            return keys, values
        return self._behind(self._kept[0], keys), self._behind(self._kept[1], values)

    def _behind(self, kept: mx.array, new: mx.array) -> mx.array:
        return mx.concatenate([mx.broadcast_to(kept, (len(new), *kept.shape[1:])), new], axis=2)
