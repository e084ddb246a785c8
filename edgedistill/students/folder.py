"""A Hugging Face folder written piece by piece: without torch, and with little in memory whatever the model's size."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidInput
from ..llamacpp.weights import SIZES, Tensor, find_tensors, write_safetensors
from ..llamacpp.writer import IGNORED
from ..rotations import named_as_before
from ..run import whole_folder, write_whole

__all__ = ["FolderWeights", "Rows", "base_tensors", "write_folder"]

Rows = NDArray[np.float32]

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)
LARGEST_SHARD = 4 * 10**9  # bytes
STORED = {"float16": "F16", "float32": "F32"}


@dataclass(frozen=True, slots=True)
class FolderWeights:
    """All tensors of a model, made when they are written."""

    dtype: Literal["float16", "float32"]
    shapes: dict[str, tuple[int, ...]]
    """In the order of the files."""
    pieces: Callable[[str], Iterable[Rows | NDArray[np.float16]]]
    """A tensor's rows in order, as float32 or float16 arrays of any number of rows."""

    def bytes_of(self, name: str) -> int:
        return math.prod(self.shapes[name]) * SIZES[STORED[self.dtype]]


def base_tensors(folder: Path, config: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of a Hugging Face folder that its model has, by name: no head where the embedding is the head."""
    found = {name: tensor for name, tensor in find_tensors(folder).items() if not name.endswith(IGNORED)}
    if config.get("tie_word_embeddings"):
        found.pop("lm_head.weight", None)
    return found


def write_folder(out: Path, base: Path, config: dict[str, Any], weights: FolderWeights) -> None:
    """Write a Hugging Face folder with the config, the weights and the base's tokenizer, whole or not at all.

    Files are named as transformers names them, of at most 4 GB each. Raises InvalidInput where `out` exists,
    OverflowError with the tensor's name where a value does not fit the type, Stopped where the disk is full.
    """
    if out.exists():
        raise InvalidInput(f"{out}: is there already", "Remove it, or name another folder.")
    both = {"dtype": weights.dtype, "torch_dtype": weights.dtype}  # the new name and the old one
    config = {**config, **named_as_before(config), **both}
    config.pop("quantization_config", None)
    with whole_folder(out) as folder:
        _write_weights(folder, weights)
        write_whole(folder / "config.json", _json(config))
        for name in TOKENIZER_FILES:
            if (base / name).is_file():
                shutil.copyfile(base / name, folder / name)


def _write_weights(folder: Path, weights: FolderWeights) -> None:
    shards = list(_shards(weights))
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_safetensors(folder / file, shard, STORED[weights.dtype], weights.pieces)
        places.update(dict.fromkeys(shard, file))
    if len(shards) > 1:
        values = sum(math.prod(shape) for shape in weights.shapes.values())
        size = sum(weights.bytes_of(name) for name in weights.shapes)
        index = {
            "metadata": {"total_parameters": values, "total_size": size},
            "weight_map": dict(sorted(places.items())),
        }
        write_whole(folder / "model.safetensors.index.json", _json(index))


def _shards(weights: FolderWeights) -> Iterator[dict[str, tuple[int, ...]]]:
    """The tensors of each file: as many as fit, in order; one that is larger has a file of its own."""
    shard: dict[str, tuple[int, ...]] = {}
    size = 0
    for name, shape in weights.shapes.items():
        more = weights.bytes_of(name)
        if shard and size + more > LARGEST_SHARD:
            yield shard
            shard, size = {}, 0
        shard[name] = shape
        size += more
    yield shard


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"
