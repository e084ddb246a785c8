"""What a row of the table of architectures is made of, and the tensors that follow from it for one model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["CHECKOUT", "EMBEDDING", "OUTPUT", "Architecture", "Key", "Part", "Pattern", "Place"]

EMBEDDING, OUTPUT = "token_embd", "output"
CHECKOUT = "Use llama.cpp's own converter: --llama-cpp PATH, the folder of a llama.cpp checkout."
"""The way out of what our own writer does not know."""


@dataclass(frozen=True, slots=True)
class Key:
    """One setting: its key in GGUF (behind the architecture's prefix) and in config.json.

    `by_layer` is a list with one count a layer, 0 where the layer is no attention. An `optional` setting is left out
    where config.json says null, or nothing.
    """

    gguf: str
    config: str
    kind: Literal["uint32", "float32", "by_layer"] = "uint32"
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Part:
    """One kind of tensor: its names without `.weight`, and its shape in the words of `_sizes`, rows first.

    `turned_by` is the setting that counts its heads, for what rotary embeddings turn. `plus` is added on the way into
    GGUF. Only layers of the type `layers` have it, where there are several. A `convolution` lies as (rows, 1, columns)
    on the Hugging Face side, and as float32 in GGUF.
    """

    gguf: str
    hugging_face: str
    shape: tuple[str, ...]
    bias: Literal["none", "may", "must"] = "none"
    turned_by: str = ""
    plus: float = 0.0
    layers: str = ""
    convolution: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """One tensor of one model: its full names, its shape, and whether a model without it is incomplete.

    `heads` is not 0 where the rows lie in halves on the Hugging Face side and pairwise, head by head, in GGUF.
    """

    gguf: str
    hugging_face: str
    shape: tuple[int, ...]
    heads: int
    required: bool
    plus: float = 0.0
    convolution: bool = False

    @property
    def source_shape(self) -> tuple[int, ...]:
        """The shape on the Hugging Face side."""
        return (self.shape[0], 1, self.shape[1]) if self.convolution else self.shape

    @property
    def stored(self) -> Literal["F16", "F32"]:
        """The type in an F16 GGUF."""
        return "F32" if self.convolution or len(self.shape) < 2 else "F16"


@dataclass(frozen=True, slots=True)
class Pattern:
    """A setting with one value a layer that llama.cpp has built in: `last` at every `period`-th layer, else `first`."""

    config: str
    first: Any
    last: Any
    period: int

    def of(self, layers: int) -> list[Any]:
        """The values of all layers.

        >>> Pattern("no_rope_layers", 1, 0, 4).of(5)
        [1, 1, 1, 0, 1]
        """
        return [self.last if number % self.period == 0 else self.first for number in range(1, layers + 1)]


@dataclass(frozen=True, slots=True)
class Architecture:
    """One row of the table. `permuted` says whether GGUF stores the rows of q and k pairwise."""

    hugging_face: str
    model_type: str
    gguf: str
    keys: tuple[Key, ...]
    whole: tuple[Part, ...]
    """Tensors that a model has once, the embedding first."""
    blocks: tuple[Part, ...]
    """Tensors that every layer has, or every layer of a type."""
    permuted: bool
    rope_types: frozenset[str] = frozenset({"default", "linear"})
    fixed: tuple[tuple[str, Any], ...] = ()
    """Settings of config.json that have this value wherever they are given: llama.cpp computes nothing else."""
    same: tuple[tuple[str, str], ...] = ()
    """Pairs of settings that must be equal, for the same reason."""
    patterns: tuple[Pattern, ...] = ()
    defaults: tuple[tuple[str, Any], ...] = ()
    """What a config.json that lacks a setting means, where that is not the common thing."""
    renamed: tuple[tuple[str, str], ...] = ()
    """Names that older files have for a setting, and its name today."""
    imported: tuple[tuple[str, Any], ...] = ()
    """What the config.json of a model that comes from a GGUF says besides."""
    ignores_window: bool = False
    """Whether llama.cpp attends to all tokens even where config.json has a `sliding_window`."""

    def places(self, config: dict[str, Any]) -> Iterator[Place]:
        """Every tensor that a model with these settings can have, the embedding first; no head where it is tied."""
        for part in self.whole:
            if not (part.gguf == OUTPUT and config.get("tie_word_embeddings")):
                yield from self._places(part, "", "", config)
        for block in range(config["num_hidden_layers"]):
            for part in self.blocks:
                if not part.layers or config["layer_types"][block] == part.layers:
                    yield from self._places(part, f"blk.{block}.", f"model.layers.{block}.", config)

    def _places(self, part: Part, gguf: str, hugging_face: str, config: dict[str, Any]) -> Iterator[Place]:
        shape = tuple(_sizes(config)[word] for word in part.shape)
        heads = config[part.turned_by] if part.turned_by and self.permuted else 0
        names = gguf + part.gguf, hugging_face + part.hugging_face
        weight = f"{names[0]}.weight", f"{names[1]}.weight"
        yield Place(*weight, shape, heads, True, part.plus, part.convolution)
        if part.bias != "none":
            yield Place(f"{names[0]}.bias", f"{names[1]}.bias", shape[:1], heads, part.bias == "must")


def _sizes(config: dict[str, Any]) -> dict[str, int]:
    head, inner = config["head_dim"], config["intermediate_size"]
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    return {
        "vocabulary": config["vocab_size"],
        "hidden": config["hidden_size"],
        "three hidden": 3 * config["hidden_size"],
        "inner": inner,
        "gate and inner": 2 * inner,
        "head": head,
        "queries": queries,
        "keys": keys,
        "queries, keys, values": queries + 2 * keys,
        "taps": config.get("conv_L_cache", 0),
    }
