"""Adapters in PEFT's form and in mlx-lm's: read, and turned from one into the other bit by bit.

Both hold, for a matrix W of shape (outputs, inputs), the factors of an update scale * B A (LoRA, arXiv 2106.09685) and,
for DoRA (arXiv 2402.09353), the lengths of the rows of the result. PEFT keeps A as (rank, inputs) and B as (outputs,
rank), mlx-lm both transposed; PEFT states alpha = scale * rank, mlx-lm the scale.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidInput
from ..llamacpp.weights import SIZES, Tensor, read_rows
from ..models.safetensors_header import read_safetensors_header
from ..records import digest, read_json
from ..run import whole_file, whole_folder, write_whole

__all__ = ["CONFIG", "FORMS", "Adapter", "Form", "LowRank", "convert_adapter", "low_rank", "read_adapter"]

Form = Literal["peft", "mlx"]
FORMS: tuple[Form, ...] = ("peft", "mlx")

CONFIG = "adapter_config.json"
KEPT = "adapter_config.kept.json"
"""The config in the other form that an adapter was converted from: it says more than this form can."""

WEIGHTS = {"peft": "adapter_model.safetensors", "mlx": "adapters.safetensors"}
PREFIX = {"peft": "base_model.model.", "mlx": ""}
# what is behind a module's name: A, B and the rows' lengths
PARTS = {
    "peft": (".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"),
    "mlx": (".lora_a", ".lora_b", ".m"),
}
METADATA = {"peft": {"format": "pt"}, "mlx": {"format": "mlx"}}

# settings of PEFT that change nothing of what a finished adapter computes; `init_lora_weights` only with these values
IDLE = {"peft_type", "peft_version", "task_type", "auto_mapping", "base_model_name_or_path", "revision"}
IDLE |= {"inference_mode", "init_lora_weights", "loftq_config", "eva_config", "megatron_core", "qalora_group_size"}
READ = {"r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora"}
READ |= {"target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"}
BEGINNINGS = (None, True, False, "gaussian", "orthogonal", "eva")
UNSET: tuple[Any, ...] = (None, False, "none", {}, [])

LAYER = re.compile(r"(?:.*\.)?layers\.(\d+)\.(.+)")
OTHER_HINT = "Only LoRA and DoRA of linear layers are known: merge it with the library that trained it."


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter on disk: what it says of itself, and where its tensors lie."""

    folder: Path
    form: Form
    rank: int
    scale: float
    dropout: float
    is_dora: bool
    modules: dict[str, tuple[Tensor, ...]]
    """By the module's name in the model: A, B and, for DoRA, the rows' lengths, as the form has them."""

    @property
    def key(self) -> str:
        """A digest of all that both forms can say of an adapter."""
        # alpha = scale * rank and back may lose the scale's last bit
        return digest(self.rank, f"{self.scale:.9g}", self.dropout, self.is_dora, sorted(self.modules))

    def shape(self, module: str) -> tuple[int, int]:
        """Outputs and inputs of the matrix that a module's update is for."""
        a, b = (tensor.shape for tensor in self.modules[module][:2])
        return (b[0], a[1]) if self.form == "peft" else (b[1], a[0])


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """What an adapter makes of a matrix W: W + scale * b @ a; with `lengths`, its rows brought to these lengths."""

    a: NDArray[np.float32]
    """(rank, inputs)"""
    b: NDArray[np.float32]
    """(outputs, rank)"""
    lengths: NDArray[np.float32] | None
    """(outputs,)"""
    scale: float


@dataclass(frozen=True, slots=True)
class _Stated:
    """What a config says of an adapter."""

    rank: int
    scale: float
    dropout: float
    is_dora: bool


def read_adapter(folder: Path) -> Adapter:
    """The adapter in a folder, of either form, with every tensor in its place.

    Raises InvalidInput where the folder holds none, or one that is more or other than LoRA or DoRA of linear layers;
    Unsafe where the weights' header does not hold.
    """
    if not (folder / CONFIG).is_file():
        raise InvalidInput(f"{folder}: no {CONFIG}", "Name the folder of an adapter.")
    config = read_json(folder / CONFIG)
    form = _form_of(folder, config)
    stated = _peft_stated(folder, config) if form == "peft" else _mlx_stated(folder, config)
    path = folder / WEIGHTS[form]
    if not path.is_file():
        raise InvalidInput(f"{folder}: no {WEIGHTS[form]}", "Use a folder with the adapter's safetensors.")
    modules: dict[str, dict[str, Tensor]] = {}
    for tensor in _tensors(path):
        part = next((part for part in PARTS[form] if tensor.name.endswith(part)), None)
        if part is None or not tensor.name.startswith(PREFIX[form]) or tensor.dtype not in SIZES:
            raise InvalidInput(f"{path}: {tensor.name!r} ({tensor.dtype}) is no part of a LoRA or DoRA", OTHER_HINT)
        modules.setdefault(tensor.name.removesuffix(part).removeprefix(PREFIX[form]), {})[part] = tensor
    if not modules:
        raise InvalidInput(f"{path}: no tensors", "Train the adapter again.")
    parts = PARTS[form][: 3 if stated.is_dora else 2]
    found = {module: _placed(path, module, tensors, parts) for module, tensors in sorted(modules.items())}
    adapter = Adapter(folder, form, stated.rank, stated.scale, stated.dropout, stated.is_dora, found)
    for module in found:
        _check_shapes(adapter, module)
    return adapter


def low_rank(adapter: Adapter, module: str) -> LowRank:
    """The factors for one module, in float32."""
    values = [read_rows(tensor, 0, tensor.shape[0]) for tensor in adapter.modules[module]]
    a, b = values[:2] if adapter.form == "peft" else (values[0].T, values[1].T)
    return LowRank(a, b, values[2] if adapter.is_dora else None, adapter.scale)


def convert_adapter(source: Path, out: Path, to: Form) -> Adapter:
    """The adapter of `source` in the other form, written to `out` whole or not at all; its tensors keep every bit.

    What the other form's config cannot say is kept beside it, and comes back when the adapter is converted back.
    Raises what `read_adapter` raises; InvalidInput too where `source` has that form already or `out` exists.
    """
    adapter = read_adapter(source)
    if adapter.form == to:
        raise InvalidInput(f"{source}: is in the form '{to}' already", "Use it as it is.")
    if out.exists():
        raise InvalidInput(f"{out}: is there already", "Remove it, or name another folder.")
    config = (source / CONFIG).read_bytes().decode()
    with whole_folder(out) as folder:
        with whole_file(folder / WEIGHTS[to]) as file:
            _write_tensors(file, adapter, to)
        kept = {"form": adapter.form, "key": adapter.key, "config": config}
        write_whole(folder / KEPT, json.dumps(kept, indent=2, ensure_ascii=False).encode())
        write_whole(folder / CONFIG, _config(adapter, json.loads(config), to).encode())
    return read_adapter(out)


# -- reading


def _form_of(folder: Path, config: dict[str, Any]) -> Form:
    """Whose the config is."""
    if "peft_type" in config:
        if config["peft_type"] != "LORA":
            raise InvalidInput(f"{folder}: peft_type is {config['peft_type']!r}, not 'LORA'", OTHER_HINT)
        return "peft"
    # mlx-lm takes an adapter that does not say so for a LoRA
    if config.get("fine_tune_type", "lora") not in ("lora", "dora"):
        raise InvalidInput(f"{folder}: fine_tune_type is {config['fine_tune_type']!r}: no adapter", OTHER_HINT)
    return "mlx"


def _peft_stated(folder: Path, config: dict[str, Any]) -> _Stated:
    for key, value in config.items():
        if key not in IDLE | READ and value not in UNSET:
            raise InvalidInput(f"{folder / CONFIG}: '{key}' is set, which changes what is computed", OTHER_HINT)
    if config.get("init_lora_weights") not in BEGINNINGS:
        how = config["init_lora_weights"]
        raise InvalidInput(f"{folder / CONFIG}: init_lora_weights is {how!r}, which changes the base", OTHER_HINT)
    rank, alpha = _rank(folder, config.get("r")), _number(folder, "lora_alpha", config.get("lora_alpha"))
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    dropout = _number(folder, "lora_dropout", config.get("lora_dropout") or 0.0)
    return _Stated(rank, scale, dropout, bool(config.get("use_dora")))


def _mlx_stated(folder: Path, config: dict[str, Any]) -> _Stated:
    how = config.get("lora_parameters")
    if not isinstance(how, dict):
        raise InvalidInput(
            f"{folder / CONFIG}: neither peft_type nor lora_parameters", "Name the folder of an adapter."
        )
    rank, scale = _rank(folder, how.get("rank")), _number(folder, "scale", how.get("scale"))
    dropout = _number(folder, "dropout", how.get("dropout") or 0.0)
    return _Stated(rank, scale, dropout, config.get("fine_tune_type") == "dora")


def _rank(folder: Path, value: Any) -> int:
    if type(value) is not int or not 1 <= value < 2**31:
        raise InvalidInput(f"{folder / CONFIG}: the rank is {value!r}, not a count", "Mend the config.")
    return value


def _number(folder: Path, key: str, value: Any) -> float:
    is_number = type(value) is float or (type(value) is int and abs(value) < 2**53)
    if not is_number or not math.isfinite(value):
        raise InvalidInput(f"{folder / CONFIG}: {key} is {value!r}, not a number", "Mend the config.")
    return float(value)


def _tensors(path: Path) -> Iterable[Tensor]:
    """The tensors of one file, whose header is held against the file first."""
    read_safetensors_header(path)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    for name, entry in header.items():
        if name != "__metadata__":
            yield Tensor(name, entry["dtype"], tuple(entry["shape"]), path, 8 + length + entry["data_offsets"][0])


def _placed(path: Path, module: str, tensors: dict[str, Tensor], parts: tuple[str, ...]) -> tuple[Tensor, ...]:
    """The parts of one module in their order; each is there, and no other."""
    if sorted(tensors) != sorted(parts):
        names = " and ".join(part.removeprefix(".") for part in tensors)
        raise InvalidInput(f"{path}: {module!r} has {names} alone", "Use the config.json that belongs to the weights.")
    return tuple(tensors[part] for part in parts)


def _check_shapes(adapter: Adapter, module: str) -> None:
    """Raise InvalidInput unless the factors are two matrices of the stated rank, of a linear layer."""
    shapes = [tensor.shape for tensor in adapter.modules[module]]
    rows = shapes if adapter.form == "peft" else [shape[::-1] for shape in shapes]
    is_matrix = len(rows[0]) == len(rows[1]) == 2 and rows[0][0] == rows[1][1] == adapter.rank
    if not is_matrix or (adapter.is_dora and rows[2] != rows[1][:1]):
        raise InvalidInput(
            f"{adapter.folder}: {module!r} has the shapes {', '.join(map(str, shapes))}, not those of rank "
            f"{adapter.rank}",
            OTHER_HINT,
        )
    # mlx-lm's adapter of an embedding has the same names, and multiplies the other way round
    if adapter.form == "mlx" and "emb" in module.rpartition(".")[2]:
        raise InvalidInput(f"{adapter.folder}: {module!r} is an adapter of the embedding", OTHER_HINT)


# -- writing


def _write_tensors(file: BinaryIO, adapter: Adapter, to: Form) -> None:
    """Write the tensors in the other form, in the order and with the header that safetensors' own writer gives."""
    planned = sorted(
        (f"{PREFIX[to]}{module}{part}", tensor)
        for module, tensors in adapter.modules.items()
        for part, tensor in zip(PARTS[to], tensors, strict=False)
    )
    planned.sort(key=lambda pair: -SIZES[pair[1].dtype])  # stays sorted by name within a size
    header: dict[str, Any] = {"__metadata__": METADATA[to]}
    offset = 0
    for name, tensor in planned:
        end = offset + math.prod(tensor.shape) * SIZES[tensor.dtype]
        header[name] = {"dtype": tensor.dtype, "shape": tensor.shape[::-1], "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for _, tensor in planned:
        file.write(np.ascontiguousarray(_bits(tensor).T).tobytes())


def _bits(tensor: Tensor) -> NDArray[Any]:
    """The tensor's values as whole numbers of their size: no conversion can change a bit of these."""
    kind = f"<u{SIZES[tensor.dtype]}"
    return np.fromfile(tensor.file, kind, math.prod(tensor.shape), offset=tensor.offset).reshape(tensor.shape)


def _config(adapter: Adapter, config: dict[str, Any], to: Form) -> str:
    """The config in the other form: the one that was kept when it was converted before, if it still fits."""
    kept = read_json(adapter.folder / KEPT, required=False)
    if kept.get("form") == to and kept.get("key") == adapter.key and isinstance(kept.get("config"), str):
        found: str = kept["config"]
        return found
    return json.dumps(_mlx_config(adapter, config) if to == "mlx" else _peft_config(adapter, config), indent=2)


def _mlx_config(adapter: Adapter, config: dict[str, Any]) -> dict[str, Any]:
    """mlx-lm's config. It counts layers from the last one: where not all have an adapter, the keys are full names."""
    targets = config.get("target_modules")
    is_partial = (
        not isinstance(targets, list)
        or _names_layers(targets)
        or any(config.get(key) not in (None, [], "") for key in ("layers_to_transform", "exclude_modules"))
    )
    keys, layers = _places(adapter, is_partial)
    model = config.get("base_model_name_or_path")
    return {
        "fine_tune_type": "dora" if adapter.is_dora else "lora",
        "num_layers": layers,
        "lora_parameters": {"rank": adapter.rank, "scale": adapter.scale, "dropout": adapter.dropout, "keys": keys},
        **({"model": model} if isinstance(model, str) else {}),
    }


def _peft_config(adapter: Adapter, config: dict[str, Any]) -> dict[str, Any]:
    alpha = adapter.scale * adapter.rank
    model, keys = config.get("model"), config["lora_parameters"].get("keys")
    targets, _ = _places(adapter, isinstance(keys, list) and _names_layers(keys))
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": model if isinstance(model, str) else None,
        "inference_mode": True,
        "r": adapter.rank,
        "lora_alpha": int(alpha) if alpha.is_integer() else alpha,
        "lora_dropout": adapter.dropout,
        "use_dora": adapter.is_dora,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "target_modules": targets,
    }


def _names_layers(names: Iterable[Any]) -> bool:
    """Whether names of modules say in which layers these are."""
    return any("layers." in str(name) for name in names)


def _places(adapter: Adapter, is_partial: bool) -> tuple[list[str], int]:
    """The adapted modules' names inside a layer, and how many layers, where these are all from 0 on and alike.

    Otherwise, and where the adapter may be of some layers only, the full names, and -1.
    """
    layers: dict[int, list[str]] = {}
    for module in adapter.modules:  # in order
        found = LAYER.fullmatch(module)
        if is_partial or not found:
            return sorted(adapter.modules), -1
        layers.setdefault(int(found[1]), []).append(found[2])
    if sorted(layers) != list(range(len(layers))) or any(names != layers[0] for names in layers.values()):
        return sorted(adapter.modules), -1
    return layers[0], len(layers)
