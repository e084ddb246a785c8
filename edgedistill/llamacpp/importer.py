"""A Hugging Face folder from a GGUF: what a student is trained from where only the GGUF is at hand.

Quantized weights are computed back to plain numbers; that does not restore what quantizing lost. No torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import run
from ..chat import ChatTemplate
from ..errors import GateMissed, InvalidInput
from . import architectures, reader, vocabulary, weights, writer
from .architectures import Architecture, Place
from .reader import GgufFile
from .tokenizer_files import tokenizer_files

if TYPE_CHECKING:
    from .weights import Rows

__all__ = ["import_gguf", "require_importable"]

STORED = (("F16", "float16"), ("F32", "float32"))
"""All weights get one type: float16, finer than any quantized weight at half of float32's size; float32 only where a
value is beyond float16's 65504. F32 norms are rounded to float16 too, which loses nothing of bfloat16 training."""

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
"""The only figures that Llama 3 models have been published with; GGUF keeps what follows from them alone."""


def import_gguf(path: Path, out: Path, progress: run.Progress) -> None:
    """Write the folder `out` with config.json, the tokenizer and model.safetensors, whole or not at all.

    The tokenizer gives llama.cpp's token ids: a normalizer that the original had, and that llama.cpp leaves out, is
    left out here too. Raises InvalidInput where the GGUF is damaged or of an unknown architecture, pre-tokenizer or
    quantization, or where `out` exists; Stopped where the disk is full.
    """
    gguf, words, config, places = _prepared(path)
    if out.exists():
        raise InvalidInput(f"{out}: is there already", "Remove it, or name another folder.")
    with run.whole_folder(out) as folder:
        _write_weights(gguf, places, config, (folder / "model.safetensors", progress))
        for name, settings in (("config.json", config), ("generation_config.json", _generation(words.ids))):
            run.write_whole(folder / name, json.dumps(settings, indent=2, ensure_ascii=False).encode() + b"\n")
        for name, content in tokenizer_files(words, config["max_position_embeddings"]).items():
            run.write_whole(folder / name, content)


def _generation(ids: dict[str, int]) -> dict[str, Any]:
    """The generation_config.json: all tokens that end an answer, where there are several."""
    found: dict[str, Any] = {f"{role}_token_id": ids[role] for role in ("bos", "eos", "pad") if role in ids}
    ends = list(dict.fromkeys(ids[role] for role in ("eos", "eot", "eom") if role in ids))
    return found | ({"eos_token_id": ends} if len(ends) > 1 else {})


def require_importable(path: Path) -> str:
    """The architecture of a GGUF that can be imported, and whose conversations have a template.

    Raises what `import_gguf` raises for a file that cannot be, before anything is written.
    """
    gguf, words, _, _ = _prepared(path)
    ChatTemplate(words.chat_template or "")
    return str(gguf.metadata["general.architecture"])


def _prepared(path: Path) -> tuple[GgufFile, vocabulary.Vocabulary, dict[str, Any], list[Place]]:
    """All that decides a folder: the file's header, the vocabulary, the config and the tensors."""
    gguf = reader.read_gguf(path)
    row = architectures.from_gguf(str(gguf.metadata.get("general.architecture")))
    words = vocabulary.from_metadata(path, gguf.metadata)
    config = _config(gguf, row, words)
    return gguf, words, config, _places(gguf, row, config)


DERIVED = ("rope", "rope_scaling", "window", "rotary_dim", "rope_attention_factor")
"""What `plain_config` adds, and what is stated in another form."""


def _config(gguf: GgufFile, row: Architecture, words: vocabulary.Vocabulary) -> dict[str, Any]:
    """The config.json; its `torch_dtype` is set once the weights are written."""
    found = _settings(gguf, row)
    found["vocab_size"] = len(words.tokens)
    found["tie_word_embeddings"] = f"{architectures.OUTPUT}.weight" not in gguf.tensors
    scaling = _rope_scaling(gguf, row)
    plain = architectures.plain_config(str(gguf.path), row, {**found, "rope_scaling": scaling})
    config = {
        "architectures": [row.hugging_face],
        "model_type": row.model_type,
        **{key: value for key, value in plain.items() if key not in DERIVED},
        **{pattern.config: pattern.of(plain["num_hidden_layers"]) for pattern in row.patterns},
        "initializer_range": 0.02,
        **{f"{role}_token_id": words.ids.get(role) for role in ("bos", "eos", "pad")},
    }
    if any(part.bias == "may" for part in row.blocks):
        config["attention_bias"] = "blk.0.attn_q.bias" in gguf.tensors
        config["mlp_bias"] = "blk.0.ffn_up.bias" in gguf.tensors
    if scaling is not None:
        config["rope_scaling"] = scaling
    _check_rope_tensors(gguf, plain)
    return config


def _settings(gguf: GgufFile, row: Architecture) -> dict[str, Any]:
    """The metadata under the names of config.json, with what the architecture always has."""
    found: dict[str, Any] = {}
    for key in row.keys:
        value = gguf.metadata.get(f"{row.gguf}.{key.gguf}")
        if value is None:
            continue
        if key.kind == "by_layer":
            counts = [count for count in value if type(count) is int] if isinstance(value, list) else []
            found["layer_types"] = ["full_attention" if count else "conv" for count in counts]
            value = max(counts, default=0)
        found.setdefault(key.config, _rounded(value) if isinstance(value, float) else value)
    found.update(row.fixed)
    found.update(row.imported)
    found.update((key, found.get(other)) for key, other in row.same)
    if "window" in found:
        found["sliding_window"] = found.pop("window") or None
    dimensions, heads, width = (found.get(key) for key in ("rotary_dim", "num_attention_heads", "hidden_size"))
    if type(dimensions) is int and type(heads) is int and type(width) is int and width:
        found["partial_rotary_factor"] = dimensions * heads / width
    return found


def _rounded(value: float) -> float:
    """The decimal number that a float32 was written from: 1e-05, not 9.999999747378752e-06."""
    return float(f"{value:.7g}")


def _rope_scaling(gguf: GgufFile, row: Architecture) -> dict[str, Any] | None:
    """What scales the positions, as config.json's `rope_scaling`."""
    kind = gguf.metadata.get(f"{row.gguf}.rope.scaling.type", "none")
    if kind != "none":
        return {"rope_type": kind, "factor": gguf.metadata.get(f"{row.gguf}.rope.scaling.factor")}
    factors = {key: _rope_tensor(gguf, name) for name, key in writer.LONG_FACTORS.items()}
    if any(values is not None for values in factors.values()):
        long = {key: [_rounded(float(one)) for one in values] for key, values in factors.items() if values is not None}
        return {"rope_type": "longrope", **long}
    frequencies = _rope_tensor(gguf, writer.ROPE_FREQUENCIES)
    return None if frequencies is None else {**LLAMA3_ROPE, "factor": float(frequencies.max())}


def _rope_tensor(gguf: GgufFile, name: str) -> Rows | None:
    tensor = gguf.tensors.get(f"{name}.weight")
    return None if tensor is None else reader.dequantized_rows(gguf.path, tensor, 0, 1)


def _check_rope_tensors(gguf: GgufFile, config: dict[str, Any]) -> None:
    """Raise GateMissed where the GGUF's rope does not follow from the settings that were found for it."""
    import numpy as np

    for name, expected in writer.rope_tensors(str(gguf.path), config).items():
        found = _rope_tensor(gguf, name)
        if found is None or found.shape != expected.shape or not np.allclose(found, expected, rtol=1e-4):
            raise GateMissed(
                f"{gguf.path}: {name} does not follow from figures that models are published with",
                "Use the model's Hugging Face folder instead.",
            )
    scale = gguf.metadata.get(f"{gguf.metadata['general.architecture']}.rope.scaling.attn_factor")
    if scale is not None and not np.isclose(scale, config.get("rope_attention_factor", 1.0), rtol=1e-4):
        raise GateMissed(f"{gguf.path}: attention is scaled by {scale}", "Use the model's Hugging Face folder instead.")


def _places(gguf: GgufFile, row: Architecture, config: dict[str, Any]) -> list[Place]:
    """The tensors that are there, each where and as it should be; none is missing, none is left over."""
    left = dict(gguf.tensors)
    for name in (writer.ROPE_FREQUENCIES, *writer.LONG_FACTORS):
        left.pop(f"{name}.weight", None)
    places = []
    for place in row.places(config):
        tensor = left.pop(place.gguf, None)
        if tensor is None and place.required:
            raise InvalidInput(f"{gguf.path}: tensor '{place.gguf}' is missing", "Fetch the file again.")
        if tensor is not None and tensor.shape != place.shape:
            raise InvalidInput(
                f"{gguf.path}: '{place.gguf}' has the shape {tensor.shape}, the metadata says {place.shape}",
                "Fetch the file again.",
            )
        if tensor is not None:
            places.append(place)
    if left:
        raise InvalidInput(f"{gguf.path}: {row.gguf} has no tensor '{next(iter(left))}'", "Use the original model.")
    return places


def _write_weights(gguf: GgufFile, places: list[Place], config: dict[str, Any], to: tuple[Path, run.Progress]) -> None:
    """Write the safetensors file in the first type that holds every value, and note the type in the config."""
    path, progress = to
    numbered = {place.hugging_face: (number, place) for number, place in enumerate(places)}
    shapes = {place.hugging_face: place.source_shape for place in places}

    def pieces(name: str) -> Iterator[Rows]:
        number, place = numbered[name]
        progress("tensors", number, len(places))
        run.stop_if_asked()
        yield from _pieces(gguf, place)

    for stored, config["torch_dtype"] in STORED:
        try:
            weights.write_safetensors(path, shapes, stored, pieces)
        except OverflowError as error:
            if stored == STORED[-1][0]:
                raise InvalidInput(f"{gguf.path}: tensor '{error}' holds NaN", "Fetch the file again.") from error
        else:
            progress("tensors", len(places), len(places))
            return


def _pieces(gguf: GgufFile, place: Place) -> Iterator[Rows]:
    tensor = gguf.tensors[place.gguf]
    if place.heads:
        yield in_halves(reader.dequantized_rows(gguf.path, tensor, 0, tensor.shape[0]), place.heads)
        return
    for first, last in weights.row_steps(tensor.shape):
        rows = reader.dequantized_rows(gguf.path, tensor, first, last)
        if place.plus:
            rows -= place.plus
        yield rows.reshape(last - first, *place.source_shape[1:])


def in_halves(rows: Rows, heads: int) -> Rows:
    """Rows of q or k, (heads * head_dim, ...), from pairs to halves: the other way round than `writer.pairwise`."""
    pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    turned: Rows = pairs.swapaxes(1, 2).reshape(rows.shape)
    return turned
