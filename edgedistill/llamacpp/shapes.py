"""The tensors of a model that need not be there yet, and the types that llama.cpp's quantizer would give them."""

from __future__ import annotations

import ctypes
import math
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import EdgeDistillError, InvalidInput
from ..records import FILE_TYPES, read_json
from . import architectures
from .blocks import quantized_rows
from .model import load_llama_cpp
from .reader import read_gguf

__all__ = ["Shape", "mixture", "shape_of_config", "shape_of_folder", "shape_of_gguf", "types_of_gguf", "write_shaped"]

ALIGNMENT = 32
LINE = re.compile(r"\[ *\d+/ *\d+\] (\S+) .*?type = +(\w+),.*?(?:\((\w+)\))?\s*$", re.MULTILINE)
ROW = 1024
VALUES = 256 * ROW  # of a tile that fills tensors


@dataclass(frozen=True)
class Shape:
    """What decides a model's speed: its matrices, and how much attention reads and keeps a token."""

    name: str
    architecture: str
    keys: Mapping[str, int | float | str]
    """The file's settings without the vocabulary, by GGUF key."""
    tensors: Mapping[str, tuple[int, ...]]
    """Rows first."""

    @property
    def layers(self) -> int:
        return self._key("block_count")

    @property
    def attention(self) -> int:
        """Numbers of all query heads of one layer."""
        return self._key("attention.head_count") * self._head("key")

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values that one token takes, of 16-bit cells."""
        heads = self._key("attention.head_count_kv", self._key("attention.head_count"))
        return 2 * self.layers * heads * (self._head("key") + self._head("value"))

    @property
    def parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.tensors.values())

    def rows(self, tensor: str, prompt: int) -> int:
        """Rows that a tensor is multiplied with in a pass over so many tokens, of which the last one's logits are read.

        Of the last layer, what stands behind attention is computed for that one alone. 0 for the table of embeddings
        that is only looked up, and for vectors.
        """
        if len(self.tensors[tensor]) < 2:
            return 0
        if tensor == "token_embd.weight":
            return 0 if "output.weight" in self.tensors else 1
        return 1 if tensor == "output.weight" or tensor.startswith(f"blk.{self.layers - 1}.ffn") else prompt

    def _head(self, which: str) -> int:
        return self._key(
            f"attention.{which}_length", self._key("embedding_length") // self._key("attention.head_count")
        )

    def _key(self, key: str, default: int | None = None) -> int:
        value = self.keys.get(f"{self.architecture}.{key}", default)
        if type(value) is not int or value < 1:
            raise InvalidInput(f"{self.name}: {key} is {value!r}", "Its speed cannot be predicted; measure it: bench.")
        return value


def shape_of_config(name: str, config: Mapping[str, Any]) -> Shape:
    """The shape of the model that a config.json describes.

    Raises InvalidInput where its architecture is not in the writer's table, GateMissed for a setting that has no form
    in GGUF.
    """
    row = architectures.from_hugging_face(str((config.get("architectures") or ["none"])[0]))
    plain = architectures.plain_config(name, row, dict(config))
    keys = {f"{row.gguf}.{key.gguf}": plain[key.config] for key in row.keys if key.config in plain}
    tensors = {place.gguf: place.shape for place in row.places(plain) if place.required}
    return Shape(name, row.gguf, keys, tensors)


def shape_of_folder(folder: Path) -> Shape:
    """The shape of the model in a Hugging Face folder."""
    return shape_of_config(folder.name, read_json(folder / "config.json"))


def shape_of_gguf(path: Path) -> Shape:
    """The shape of the model in a GGUF file, whatever its types.

    Raises InvalidInput where the header does not hold, or the model is a mixture of experts.
    """
    found = read_gguf(path)
    name = str(found.metadata.get("general.architecture"))
    if any(len(tensor.shape) > 2 for tensor in found.tensors.values()):
        raise InvalidInput(f"{path}: a mixture of experts", "Its speed cannot be predicted; measure it: bench.")
    keys = {
        key: value
        for key, value in found.metadata.items()
        if key.startswith(f"{name}.") and isinstance(value, (int, float, str))
    }
    return Shape(path.name, name, keys, {one.name: one.shape for one in found.tensors.values()})


def types_of_gguf(path: Path) -> dict[str, str]:
    """The type of each tensor of a GGUF file."""
    return {tensor.name: tensor.kind for tensor in read_gguf(path).tensors.values()}


def mixture(shape: Shape, quant: str) -> dict[str, str]:
    """The type of each tensor once llama.cpp has quantized the model so: told by its quantizer, on no weights.

    Raises InvalidInput for an unknown quant type, EdgeDistillError where llama.cpp does not know the model.
    """
    if quant not in FILE_TYPES:
        raise InvalidInput(f"unknown quant type '{quant}'", f"Known are {', '.join(FILE_TYPES)}.")
    plain = {name: "F16" if len(dims) > 1 else "F32" for name, dims in shape.tensors.items()}
    if quant == "F16":
        return plain
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "empty.gguf"
        write_shaped(path, shape, plain, filled=False)
        log = _dry_run(path, FILE_TYPES[quant])
    found = {name: (after or before).upper() for name, before, after in LINE.findall(log)}
    if found.keys() != plain.keys():
        raise EdgeDistillError(f"{shape.name}: llama.cpp's quantizer does not take such a model", "Measure it: bench.")
    return found


def _dry_run(path: Path, file_type: int) -> str:
    """What llama.cpp's quantizer says while it writes nothing."""
    lib = load_llama_cpp()
    lines: list[bytes] = []
    callback = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
    before, data = callback(0), ctypes.c_void_p(0)
    lib.llama_log_get(ctypes.byref(before), ctypes.byref(data))

    def note(level: int, text: bytes, _: Any) -> None:
        lines.append(text)

    told = callback(note)
    settings = lib.llama_model_quantize_default_params()
    settings.ftype, settings.dry_run, settings.nthread = file_type, True, 1
    lib.llama_log_set(told, data)
    try:
        lib.llama_model_quantize(os.fsencode(path), os.fsencode(path.with_suffix(".out")), ctypes.byref(settings))
    finally:
        lib.llama_log_set(before, data)
    return b"".join(lines).decode("utf-8", errors="replace")


def write_shaped(path: Path, shape: Shape, types: Mapping[str, str], filled: bool = True) -> None:
    """Write a GGUF of this shape without a vocabulary, its weights noise; not `filled`, a file of holes.

    It computes as fast as any of its shape and types, and what it says means nothing.
    """
    from gguf import GGUFWriter
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    writer = GGUFWriter(path, shape.architecture)
    for key, value in shape.keys.items():
        adds: dict[type, Callable[[str, Any], None]] = {
            bool: writer.add_bool,
            int: writer.add_uint32,
            float: writer.add_float32,
            str: writer.add_string,
        }
        adds[type(value)](key, value)
    writer.add_string("tokenizer.ggml.model", "none")
    if f"{shape.architecture}.vocab_size" not in shape.keys:
        writer.add_uint32(f"{shape.architecture}.vocab_size", shape.tensors["token_embd.weight"][0])
    sizes = []
    for name, dims in shape.tensors.items():
        kind = GGMLQuantizationType[types[name]]
        block, width = GGML_QUANT_SIZES[kind]
        sizes.append(math.prod(dims) // block * width)
        row = (dims[-1] // block * width,) if kind.name not in ("F32", "F16") else dims[-1:]
        writer.add_tensor_info(name, (*dims[:-1], *row), _dtype(kind.name), sizes[-1], raw_dtype=kind)
    writer.open_output_file(path)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("r+b") as file:
        file.seek(-(-file.seek(0, 2) // ALIGNMENT) * ALIGNMENT)
        tiles: dict[str, bytes] = {}
        for (name, dims), size in zip(shape.tensors.items(), sizes, strict=True):
            if filled:
                file.write(_data(tiles, types[name], size, len(dims) == 1))
            else:
                file.seek(size, 1)
            file.seek(-(-file.tell() // ALIGNMENT) * ALIGNMENT)
        file.truncate()


def _dtype(kind: str) -> Any:
    import numpy as np

    return np.dtype({"F32": np.float32, "F16": np.float16}.get(kind, np.uint8))


def _data(tiles: dict[str, bytes], kind: str, size: int, is_vector: bool) -> bytes:
    """Bytes of so many noisy weights of a type, or a vector of ones: one tile over and over."""
    import numpy as np

    if is_vector and kind == "F32":
        return np.ones(size // 4, np.float32).tobytes()
    if kind not in tiles:
        values = np.random.default_rng(0).standard_normal(VALUES, dtype=np.float32) * np.float32(0.02)
        tiles[kind] = _quantized(values, kind)
    tile = tiles[kind]
    return (tile * -(-size // len(tile)))[:size]


def _quantized(values: Any, kind: str) -> bytes:
    """The numbers in a type of llama.cpp, by ggml's own code."""
    import numpy as np

    if kind in ("F32", "F16"):
        return bytes(values.astype(_dtype(kind)).tobytes())
    importance = np.ones(ROW, np.float32)  # that the smallest types ask for
    return quantized_rows(values.reshape(-1, ROW), kind, importance).tobytes()
