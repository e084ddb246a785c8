"""What a config.json says of rotary positions, under the names that programs older than transformers 5 look for."""

from __future__ import annotations

from typing import Any

__all__ = ["named_as_before"]


def named_as_before(config: dict[str, Any]) -> dict[str, Any]:
    """The keys to add to a config so that it says under the old names what it has in `rope_parameters`.

    transformers 5 writes all of it there; mlx-lm looks for the old names in most architectures, and takes a default
    where they are missing. A key that the config has is left as it is. Where full and sliding attention turn
    differently (Gemma 3), the first is the model's and the second has only its base.

    >>> named_as_before({"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}})
    {'rope_theta': 500000.0}
    """
    inner = config.get("text_config")
    if isinstance(inner, dict):
        more = named_as_before(inner)
        return {"text_config": {**inner, **more}} if more else {}
    stated = _table(config.get("rope_parameters"))
    found = {}
    if "full_attention" in stated:
        local = _table(stated.get("sliding_attention"))
        stated = _table(stated["full_attention"])
        found["rope_local_base_freq"] = local.get("rope_theta")
    found |= {key: stated.get(key) for key in ("rope_theta", "partial_rotary_factor")}
    kind = stated.get("rope_type", "default")
    if kind != "default":
        found["rope_scaling"] = {**stated, "type": kind}  # the name of old
    return {key: value for key, value in found.items() if value is not None and config.get(key) is None}


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
