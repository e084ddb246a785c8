"""What each architecture is called on both sides: Hugging Face's names and GGUF's, in one literal table.

A new architecture is one more row of `ARCHITECTURES`; the writer and the importer read nothing else. The names are
those of llama.cpp's own converter and of the GGUF specification.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import GateMissed, InvalidInput

__all__ = ["ARCHITECTURES", "Architecture", "Key", "Part", "Place", "from_gguf", "from_hugging_face", "plain_config"]


@dataclass(frozen=True, slots=True)
class Key:
    """One setting: its key in GGUF (behind the architecture's prefix) and in config.json."""

    gguf: str
    config: str
    kind: Literal["uint32", "float32"] = "uint32"


@dataclass(frozen=True, slots=True)
class Part:
    """One kind of tensor: its names without `.weight`, and its shape in the words of `_sizes`, rows first.

    `turned_by` is the setting that counts its heads, for what rotary embeddings turn.
    """

    gguf: str
    hugging_face: str
    shape: tuple[str, ...]
    bias: Literal["none", "may", "must"] = "none"
    turned_by: str = ""


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
    """Tensors that every layer has."""
    permuted: bool
    rope_types: frozenset[str] = frozenset({"default", "linear"})
    fixed: tuple[tuple[str, Any], ...] = ()
    """Settings of config.json that have this value wherever they are given: llama.cpp computes nothing else."""

    def places(self, config: dict[str, Any]) -> Iterator[Place]:
        """Every tensor that a model with these settings can have, the embedding first; no head where it is tied."""
        for part in self.whole:
            if not (part.gguf == OUTPUT and config.get("tie_word_embeddings")):
                yield from self._places(part, "", "", config)
        for block in range(config["num_hidden_layers"]):
            for part in self.blocks:
                yield from self._places(part, f"blk.{block}.", f"model.layers.{block}.", config)

    def _places(self, part: Part, gguf: str, hugging_face: str, config: dict[str, Any]) -> Iterator[Place]:
        shape = tuple(_sizes(config)[word] for word in part.shape)
        heads = config[part.turned_by] if part.turned_by and self.permuted else 0
        names = gguf + part.gguf, hugging_face + part.hugging_face
        yield Place(f"{names[0]}.weight", f"{names[1]}.weight", shape, heads, True)
        if part.bias != "none":
            yield Place(f"{names[0]}.bias", f"{names[1]}.bias", shape[:1], heads, part.bias == "must")


def _sizes(config: dict[str, Any]) -> dict[str, int]:
    return {
        "vocabulary": config["vocab_size"],
        "hidden": config["hidden_size"],
        "inner": config["intermediate_size"],
        "queries": config["num_attention_heads"] * config["head_dim"],
        "keys": config["num_key_value_heads"] * config["head_dim"],
    }


EMBEDDING, OUTPUT, ROPE_FREQUENCIES = "token_embd", "output", "rope_freqs"
MOST_BLOCKS = 512
"""llama.cpp's LLAMA_MAX_LAYERS."""

DENSE_KEYS = (
    Key("block_count", "num_hidden_layers"),
    Key("context_length", "max_position_embeddings"),
    Key("embedding_length", "hidden_size"),
    Key("feed_forward_length", "intermediate_size"),
    Key("attention.head_count", "num_attention_heads"),
    Key("attention.head_count_kv", "num_key_value_heads"),
    Key("rope.freq_base", "rope_theta", "float32"),
    Key("attention.layer_norm_rms_epsilon", "rms_norm_eps", "float32"),
    Key("attention.key_length", "head_dim"),
    Key("attention.value_length", "head_dim"),
)
DENSE = (
    Part(EMBEDDING, "model.embed_tokens", ("vocabulary", "hidden")),
    Part("output_norm", "model.norm", ("hidden",)),
    Part(OUTPUT, "lm_head", ("vocabulary", "hidden")),
)

ARCHITECTURES = (
    Architecture(
        hugging_face="LlamaForCausalLM",
        model_type="llama",
        gguf="llama",
        keys=(*DENSE_KEYS, Key("vocab_size", "vocab_size"), Key("rope.dimension_count", "head_dim")),
        whole=DENSE,
        blocks=(
            Part("attn_norm", "input_layernorm", ("hidden",)),
            Part("attn_q", "self_attn.q_proj", ("queries", "hidden"), "may", turned_by="num_attention_heads"),
            Part("attn_k", "self_attn.k_proj", ("keys", "hidden"), "may", turned_by="num_key_value_heads"),
            Part("attn_v", "self_attn.v_proj", ("keys", "hidden"), "may"),
            Part("attn_output", "self_attn.o_proj", ("hidden", "queries"), "may"),
            Part("ffn_norm", "post_attention_layernorm", ("hidden",)),
            Part("ffn_gate", "mlp.gate_proj", ("inner", "hidden"), "may"),
            Part("ffn_up", "mlp.up_proj", ("inner", "hidden"), "may"),
            Part("ffn_down", "mlp.down_proj", ("hidden", "inner"), "may"),
        ),
        permuted=True,
        rope_types=frozenset({"default", "linear", "llama3"}),
        fixed=(("hidden_act", "silu"),),
    ),
    Architecture(
        hugging_face="Qwen2ForCausalLM",
        model_type="qwen2",
        gguf="qwen2",
        keys=DENSE_KEYS,
        whole=DENSE,
        blocks=(
            Part("attn_norm", "input_layernorm", ("hidden",)),
            Part("attn_q", "self_attn.q_proj", ("queries", "hidden"), "must", turned_by="num_attention_heads"),
            Part("attn_k", "self_attn.k_proj", ("keys", "hidden"), "must", turned_by="num_key_value_heads"),
            Part("attn_v", "self_attn.v_proj", ("keys", "hidden"), "must"),
            Part("attn_output", "self_attn.o_proj", ("hidden", "queries")),
            Part("ffn_norm", "post_attention_layernorm", ("hidden",)),
            Part("ffn_gate", "mlp.gate_proj", ("inner", "hidden")),
            Part("ffn_up", "mlp.up_proj", ("inner", "hidden")),
            Part("ffn_down", "mlp.down_proj", ("hidden", "inner")),
        ),
        permuted=False,
        fixed=(("hidden_act", "silu"), ("use_sliding_window", False)),
    ),
)


def from_hugging_face(name: str) -> Architecture:
    """The row of an entry of `architectures` in config.json.

    Raises InvalidInput, with the way out, where it is not in the table.
    """
    for row in ARCHITECTURES:
        if row.hugging_face == name:
            return row
    raise InvalidInput(
        f"no GGUF writer for '{name}'; there is one for {', '.join(row.hugging_face for row in ARCHITECTURES)}",
        "Use llama.cpp's own converter: --llama-cpp PATH, the folder of a llama.cpp checkout.",
    )


def from_gguf(name: str) -> Architecture:
    """The row of a GGUF's `general.architecture`.

    Raises InvalidInput where it is not in the table.
    """
    for row in ARCHITECTURES:
        if row.gguf == name:
            return row
    raise InvalidInput(
        f"no importer for GGUF architecture '{name}'; there is one for {', '.join(row.gguf for row in ARCHITECTURES)}",
        "Use the model's Hugging Face folder instead.",
    )


def plain_config(where: str, row: Architecture, config: dict[str, Any]) -> dict[str, Any]:
    """The settings of config.json under one set of names, whatever version of transformers wrote them.

    `rope_theta`, `head_dim` and `num_key_value_heads` are always there; `rope` holds what scales the positions, with
    its `rope_type`. Raises GateMissed for a setting that llama.cpp would silently compute in another way, InvalidInput
    where one is missing or makes no sense; both name `where` the settings are from.
    """
    plain = {**config}
    for key, value in row.fixed:
        if plain.get(key, value) != value:
            raise GateMissed(
                f"{where}: {key} is {plain[key]!r}; llama.cpp computes {row.gguf} with {value!r} only",
                "Choose another student model.",
            )
    plain["rope"] = rope = _rope(where, row, plain)
    plain["rope_theta"] = rope.get("rope_theta", plain.get("rope_theta", 10000.0))
    _check(where, plain, "num_attention_heads", "hidden_size")
    if not plain.get("head_dim"):
        plain["head_dim"] = plain["hidden_size"] // plain["num_attention_heads"]
    if not plain.get("num_key_value_heads"):
        plain["num_key_value_heads"] = plain["num_attention_heads"]
    _check(where, plain, "vocab_size", *(key.config for key in row.keys if key.kind == "uint32"))
    _check_numbers(where, plain, *(key.config for key in row.keys if key.kind == "float32"))
    if plain["num_hidden_layers"] > MOST_BLOCKS or plain["head_dim"] % 2:
        raise InvalidInput(f"{where}: more than {MOST_BLOCKS} layers, or heads of an odd size", "Use another model.")
    return plain


def _rope(where: str, row: Architecture, config: dict[str, Any]) -> dict[str, Any]:
    rope: dict[str, Any] = {}
    for key in ("rope_scaling", "rope_parameters"):
        if isinstance(config.get(key), dict):
            rope.update(config[key])
    rope["rope_type"] = str(rope.get("rope_type", rope.pop("type", "default"))).lower()
    if rope["rope_type"] not in row.rope_types:
        raise GateMissed(
            f"{where}: rope type '{rope['rope_type']}' has no GGUF form for {row.gguf}",
            f"Known are {', '.join(sorted(row.rope_types))}.",
        )
    if rope["rope_type"] != "default":
        _check_numbers(where, rope, "factor")
    if rope["rope_type"] == "llama3":
        _check_numbers(where, rope, "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        if rope["high_freq_factor"] <= rope["low_freq_factor"]:
            raise InvalidInput(f"{where}: high_freq_factor is not above low_freq_factor", "Fetch the model again.")
    return rope


def _check(where: str, config: dict[str, Any], *names: str) -> None:
    for name in names:
        if type(config.get(name)) is not int or not 1 <= config[name] < 2**31:
            raise InvalidInput(f"{where}: '{name}' is {config.get(name)!r}, not a count", "Fetch the model again.")


def _check_numbers(where: str, config: dict[str, Any], *names: str) -> None:
    for name in names:
        value = config.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise InvalidInput(f"{where}: '{name}' is {value!r}, not a number above 0", "Fetch the model again.")
