"""Students made from a model by taking parts of it out: whole layers, and channels of the feed-forward layers.

What is left answers badly until it has been trained; a soft loss heals it best (Minitron, arXiv 2407.14679; that most
layers matter little alone is ShortGPT's finding, arXiv 2403.03853). numpy alone, piece by piece, but for the statistics
that say which channels matter: these need a forward pass.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidInput, MissingRequirement
from ..llamacpp.weights import Tensor, read_rows, row_steps
from ..records import read_json
from ..run import cores, stop_if_asked
from .folder import FolderWeights, Rows, base_tensors, write_folder

__all__ = [
    "feed_forward_activity",
    "kept_layers",
    "kept_width",
    "most_active",
    "prune",
    "require_layers_alike",
    "require_statistics",
]

ALIKE = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
"""Architectures whose layers differ in nothing but what `layer_types` says of each."""

LAYER = re.compile(r"(model\.layers\.)(\d+)(\..+)")
CHANNELS = {".mlp.gate_proj.weight": 0, ".mlp.gate_proj.bias": 0, ".mlp.up_proj.weight": 0, ".mlp.up_proj.bias": 0}
CHANNELS |= {".mlp.down_proj.weight": 1}  # the axis of each tensor on which the channels lie
UNITS = (256, 32)
"""llama.cpp quantizes rows in blocks of so many values; a width that was a multiple of one stays one."""

BATCH = 8  # texts in a forward pass


@dataclass(frozen=True, slots=True)
class _Source:
    """Where a tensor of the pruned model comes from."""

    tensor: Tensor
    channels: NDArray[np.intp] | None = None
    """The places that stay on `axis`."""
    axis: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        if self.channels is None:
            return self.tensor.shape
        before, after = self.tensor.shape[: self.axis], self.tensor.shape[self.axis + 1 :]
        return (*before, len(self.channels), *after)


def kept_layers(layers: int, keep: int) -> tuple[int, ...]:
    """The numbers of the layers that stay, evenly spread, the first and the last among them.

    Raises InvalidInput where so many cannot be kept.

    >>> kept_layers(30, 15)
    (0, 2, 4, 6, 8, 10, 12, 15, 17, 19, 21, 23, 25, 27, 29)
    """
    if keep > layers:
        raise InvalidInput(f"student.keep_layers is {keep}, the model has {layers} layers", "Keep fewer.")
    if keep < min(2, layers):
        raise InvalidInput(f"student.keep_layers is {keep}: the first and the last layer stay", "Keep 2 or more.")
    gaps = max(1, keep - 1)
    return tuple((2 * number * (layers - 1) + gaps) // (2 * gaps) for number in range(keep))


def kept_width(width: int, share: float) -> int:
    """How many channels are about this share of a feed-forward layer, in whole blocks where the width is of these.

    >>> kept_width(1536, 0.5), kept_width(4864, 0.6), kept_width(100, 0.5)
    (768, 2816, 50)
    """
    unit = next((unit for unit in UNITS if width % unit == 0), 1)
    return max(1, round(width * share / unit)) * unit


def require_layers_alike(where: str, config: dict[str, Any]) -> int:
    """The number of layers of a model of which any may be taken out.

    Raises InvalidInput where its layers depend on their number in a way that is not known here.
    """
    name = (config.get("architectures") or ["none"])[0]
    layers = config.get("num_hidden_layers")
    if name not in ALIKE or type(layers) is not int:
        raise InvalidInput(f"{where}: layers of '{name}' cannot be taken out", f"Known are {', '.join(ALIKE)}.")
    return layers


def prune(base: Path, out: Path, layers: Sequence[int], channels: NDArray[np.intp] | None = None) -> None:
    """Write a Hugging Face folder with these layers of the base alone, whole or not at all.

    `channels`, rising numbers of shape (layers, width), are those of each kept feed-forward layer that stay. Weights
    keep their values: as float32 where the base is, else as float16. Raises InvalidInput where the base is incomplete
    or of an architecture whose layers cannot be taken out, or where `out` exists; Stopped where the disk is full.
    """
    config = read_json(base / "config.json")
    sources = _sources(base, config, layers, channels)

    def pieces(name: str) -> Iterator[Rows]:
        stop_if_asked()
        source = sources[name]
        for first, last in row_steps(source.tensor.shape):
            rows = read_rows(source.tensor, first, last)
            if source.channels is None:
                yield rows
            elif source.axis == 1:
                yield rows[:, source.channels]
            else:
                yield rows[source.channels[(source.channels >= first) & (source.channels < last)] - first]

    config = _cut(config, layers, None if channels is None else channels.shape[1])
    shapes = {name: source.shape for name, source in sources.items()}
    is_double = any(source.tensor.dtype == "F32" for source in sources.values())
    try:
        try:
            write_folder(out, base, config, FolderWeights("float32" if is_double else "float16", shapes, pieces))
        except OverflowError:  # bfloat16 reaches further than float16
            write_folder(out, base, config, FolderWeights("float32", shapes, pieces))
    except OverflowError as error:
        raise InvalidInput(f"{base}: tensor '{error}' is not finite", "Fetch the model again.") from error


def _sources(
    base: Path, config: dict[str, Any], layers: Sequence[int], channels: NDArray[np.intp] | None
) -> dict[str, _Source]:
    """Every tensor of the pruned model by its new name; the kept layers are counted from 0 again."""
    count = require_layers_alike(str(base / "config.json"), config)
    places = {layer: place for place, layer in enumerate(layers)}
    found, seen = dict[str, _Source](), set[int]()
    for name, tensor in base_tensors(base, config).items():
        parts = LAYER.fullmatch(name)
        if parts is None:
            found[name] = _Source(tensor)
            continue
        layer = int(parts[2])
        seen.add(layer)
        if layer in places:
            axis = CHANNELS.get(parts[3])
            chosen = None if channels is None or axis is None else channels[places[layer]]
            found[f"{parts[1]}{places[layer]}{parts[3]}"] = _Source(tensor, chosen, axis or 0)
    if seen != set(range(count)) or not places.keys() <= seen:
        raise InvalidInput(f"{base}: {len(seen)} layers, config.json says {count}", "Use a complete model.")
    return found


def _cut(config: dict[str, Any], layers: Sequence[int], width: int | None) -> dict[str, Any]:
    """The config of the pruned model."""
    found = {**config, "num_hidden_layers": len(layers)}
    if isinstance(config.get("layer_types"), list):
        found["layer_types"] = [config["layer_types"][layer] for layer in layers]
    if type(config.get("max_window_layers")) is int:
        found["max_window_layers"] = sum(layer < config["max_window_layers"] for layer in layers)
    return found if width is None else {**found, "intermediate_size": width}


def most_active(activity: NDArray[np.float64], width: int) -> NDArray[np.intp]:
    """The `width` most active channels of each layer, rising: shape (layers, width), of an activity (layers, inner).

    Of channels equally active the first ones stay.
    """
    order = np.argsort(-activity, axis=1, kind="stable")
    return np.sort(order[:, :width], axis=1)


def require_statistics() -> None:
    """Raise MissingRequirement where there is nothing to measure the feed-forward layers with."""
    if any(find_spec(library) is None for library in ("torch", "transformers")):
        raise MissingRequirement(
            "student.keep_feed_forward below 1 needs torch", "pip install 'edgedistill[torch]', or leave it at 1."
        )


def feed_forward_activity(folder: Path, rows: Iterable[Sequence[int]]) -> NDArray[np.float64]:
    """How active each feed-forward channel is on texts, given as token ids: shape (layers, inner), float64.

    The mean over all tokens of |act(gate) * up|, which is what the channel hands to the layer's output (the mean of
    activations is Minitron's measure, arXiv 2407.14679, section 2.2). Raises what `require_statistics` raises.
    """
    require_statistics()
    import torch

    from ..hardware import device
    from .torch import pretrained

    torch.set_num_threads(cores())
    # in float32 wherever it runs: two machines should come to the same choice
    model = pretrained(folder, torch.float32).to(device(torch)).eval()
    layers = model.model.layers
    sums = torch.zeros(len(layers), model.config.intermediate_size, dtype=torch.float64)
    is_text = torch.empty(0)

    def listen(number: int) -> Any:
        def add(module: Any, handed: tuple[Any, ...]) -> None:
            sums[number] += handed[0][is_text].abs().sum(dim=0).cpu()

        return add

    for number, layer in enumerate(layers):
        layer.mlp.down_proj.register_forward_pre_hook(listen(number))
    tokens = 0
    for batch in _batches(rows):
        stop_if_asked()
        longest = max(map(len, batch))
        # padding behind a text changes nothing before it, and is not counted
        ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in batch], device=device(torch))
        is_text = torch.arange(longest)[None] < torch.tensor([len(row) for row in batch])[:, None]
        is_text = is_text.to(device(torch))
        with torch.no_grad():
            model.model(input_ids=ids, use_cache=False)
        tokens += sum(map(len, batch))
    found: NDArray[np.float64] = (sums / max(1, tokens)).numpy()
    return found


def _batches(rows: Iterable[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
    """Texts of like length together."""
    ordered = sorted(rows, key=len)
    for start in range(0, len(ordered), BATCH):
        yield ordered[start : start + BATCH]
