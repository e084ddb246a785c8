"""The settings of a config.json under one set of names, whatever version of transformers wrote it."""

from __future__ import annotations

import math
from typing import Any

from ..errors import GateMissed, InvalidInput
from .places import Architecture

__all__ = ["exact_context", "plain_config"]

MOST_BLOCKS = 512
"""llama.cpp's LLAMA_MAX_LAYERS."""


def plain_config(where: str, row: Architecture, config: dict[str, Any]) -> dict[str, Any]:
    """The settings of config.json under one set of names.

    `rope_theta`, `head_dim`, `num_key_value_heads` and `tie_word_embeddings` are always there; `rope` holds what scales
    the positions, with its `rope_type`; `window` is the sliding window, or 0; `rotary_dim` is how many dimensions of a
    head turn. Raises GateMissed for a setting that llama.cpp would silently compute in another way, InvalidInput where
    one is missing or makes no sense; both name `where` the settings are from.
    """
    plain = {**config}
    for old, new in row.renamed:
        if plain.get(old) is not None:
            plain[new] = plain.pop(old)
    for key, value in row.defaults:
        if plain.get(key) is None:
            plain[key] = value
    for key, value in row.fixed:
        _require(where, row, plain, key, value)
    plain["tie_word_embeddings"] = bool(plain.get("tie_word_embeddings"))
    plain["rope"] = rope = _rope(where, row, plain)
    plain["rope_theta"] = rope.get("rope_theta", plain.get("rope_theta", 10000.0))
    _check(where, plain, "num_attention_heads", "hidden_size", "num_hidden_layers")
    _heads(where, row, plain)
    if plain.get("block_auto_adjust_ff_dim"):
        plain["intermediate_size"] = _adjusted(where, plain)
    if plain["num_hidden_layers"] > MOST_BLOCKS or plain["head_dim"] % 2:
        raise InvalidInput(f"{where}: more than {MOST_BLOCKS} layers, or heads of an odd size", "Use another model.")
    for pattern in row.patterns:
        values, layers = plain.get(pattern.config), plain["num_hidden_layers"]
        plain[pattern.config] = values[:layers] if isinstance(values, list) else values
        _require(where, row, plain, pattern.config, pattern.of(layers))
    for key, other in row.same:
        _require(where, row, plain, key, plain[other])
    plain["window"] = plain.get("sliding_window") or 0
    required = [key for key in row.keys if not key.optional and key.config != "window"]
    _check(where, plain, "vocab_size", *(key.config for key in required if key.kind != "float32"))
    _check_numbers(where, plain, *(key.config for key in required if key.kind == "float32"))
    _check_numbers(where, plain, *(key.config for key in row.keys if key.optional and plain.get(key.config)))
    return plain


def exact_context(row: Architecture, plain: dict[str, Any]) -> int:
    """Tokens up to which llama.cpp computes what transformers computes; the whole context where nothing is in the way.

    Some windows of attention are not in llama.cpp; and it chooses between the two sets of longrope's factors by the
    context that is opened, where transformers does it by the length of the text.
    """
    limits = [plain["max_position_embeddings"]]
    if row.ignores_window and plain["window"]:
        limits.append(plain["window"])
    if plain["rope"]["rope_type"] == "longrope":
        limits.append(plain["original_max_position_embeddings"])
    return int(min(limits))


def _require(where: str, row: Architecture, config: dict[str, Any], key: str, value: Any) -> None:
    if config.get(key) is not None and config[key] != value:
        raise GateMissed(
            f"{where}: {key} is {str(config[key])[:60]}; llama.cpp computes {row.gguf} with {str(value)[:60]} only",
            "Choose another student model.",
        )


def _heads(where: str, row: Architecture, plain: dict[str, Any]) -> None:
    """Fill in the size and number of heads."""
    across = plain["hidden_size"] // plain["num_attention_heads"]
    if not plain.get("head_dim"):
        plain["head_dim"] = across
    if not plain.get("num_key_value_heads"):
        plain["num_key_value_heads"] = plain["num_attention_heads"]
    _check(where, plain, "head_dim", "num_key_value_heads")
    if "attention.key_length" not in {key.gguf for key in row.keys}:
        _require(where, row, plain, "head_dim", across)
    if any(part.layers for part in row.blocks):
        _layer_types(where, row, plain)
    turning = plain["rope"].get("partial_rotary_factor", plain.get("partial_rotary_factor", 1.0))
    _check_numbers(where, {"partial_rotary_factor": turning}, "partial_rotary_factor")
    plain["rotary_dim"] = int(turning * plain["hidden_size"]) // plain["num_attention_heads"]
    if "rotary_dim" not in {key.config for key in row.keys} and turning != 1.0:
        raise GateMissed(f"{where}: partial_rotary_factor is {turning}, not 1", "Choose another student model.")


def _layer_types(where: str, row: Architecture, plain: dict[str, Any]) -> None:
    """The type of each layer, of those that the row knows."""
    layers = plain["num_hidden_layers"]
    if plain.get("layer_types") is None and isinstance(plain.get("full_attn_idxs"), list):
        attention = plain["full_attn_idxs"]
        plain["layer_types"] = ["full_attention" if number in attention else "conv" for number in range(layers)]
    types, known = plain.get("layer_types"), {part.layers for part in row.blocks if part.layers}
    if not isinstance(types, list) or len(types) != layers or not all(kind in known for kind in types):
        raise InvalidInput(
            f"{where}: 'layer_types' is not one of {', '.join(sorted(known))} for each layer", "Fetch the model again."
        )


def _adjusted(where: str, plain: dict[str, Any]) -> int:
    """The width of LFM2's feed-forward layers, as transformers' Lfm2MLP computes it."""
    _check(where, plain, "intermediate_size", "block_multiple_of")
    _check_numbers(where, plain, "block_ffn_dim_multiplier")
    width = int(plain["block_ffn_dim_multiplier"] * int(2 * plain["intermediate_size"] / 3))
    return -(-width // int(plain["block_multiple_of"])) * int(plain["block_multiple_of"])


def _rope(where: str, row: Architecture, config: dict[str, Any]) -> dict[str, Any]:
    rope: dict[str, Any] = {}
    for key in ("rope_scaling", "rope_parameters"):
        if isinstance(config.get(key), dict):
            rope.update(config[key])
    if isinstance(rope.get("full_attention"), dict):  # Gemma 3: one set for each type of layer
        local = rope.get("sliding_attention")
        local = local if isinstance(local, dict) else {}
        if local.get("rope_type", "default") != "default":
            raise GateMissed(f"{where}: the local layers' rope is scaled", "Choose another student model.")
        config["rope_local_base_freq"] = local.get("rope_theta", config.get("rope_local_base_freq"))
        rope = {**rope["full_attention"]}
    named = str(rope.get("rope_type", rope.pop("type", "default"))).lower()
    rope["rope_type"] = "longrope" if named == "su" else named
    if rope["rope_type"] not in row.rope_types:
        raise GateMissed(
            f"{where}: rope type '{rope['rope_type']}' has no GGUF form for {row.gguf}",
            f"Known are {', '.join(sorted(row.rope_types))}.",
        )
    if rope["rope_type"] in ("linear", "llama3"):
        _check_numbers(where, rope, "factor")
    if rope["rope_type"] == "llama3":
        _check_numbers(where, rope, "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        if rope["high_freq_factor"] <= rope["low_freq_factor"]:
            raise InvalidInput(f"{where}: high_freq_factor is not above low_freq_factor", "Fetch the model again.")
    if rope["rope_type"] == "longrope":
        _long(where, config, rope)
    return rope


def _long(where: str, config: dict[str, Any], rope: dict[str, Any]) -> None:
    """Check longrope's factors, and note how much it scales attention: transformers' `_compute_longrope_parameters`."""
    original: Any = config.get("original_max_position_embeddings")  # transformers takes it over one in the scaling
    _check(where, config, "original_max_position_embeddings", "max_position_embeddings")
    for name in ("long_factor", "short_factor"):
        factors = rope.get(name)
        if not isinstance(factors, list) or not factors:
            raise InvalidInput(f"{where}: longrope without {name}", "Fetch the model again.")
        numbered = {f"{name} {place}": factor for place, factor in enumerate(factors)}
        _check_numbers(where, numbered, *numbered)
    if len(rope["long_factor"]) != len(rope["short_factor"]):
        raise InvalidInput(f"{where}: longrope's factors are not of one length", "Fetch the model again.")
    factor = rope.get("factor") or config["max_position_embeddings"] / original
    scale = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1.0 and original > 1 else 1.0
    config["rope_attention_factor"] = rope.get("attention_factor") or scale


def _check(where: str, config: dict[str, Any], *names: str) -> None:
    for name in names:
        if type(config.get(name)) is not int or not 1 <= config[name] < 2**31:
            raise InvalidInput(f"{where}: '{name}' is {config.get(name)!r}, not a count", "Fetch the model again.")


def _check_numbers(where: str, config: dict[str, Any], *names: str) -> None:
    for name in names:
        value = config.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise InvalidInput(f"{where}: '{name}' is {value!r}, not a number above 0", "Fetch the model again.")
