"""A GGUF from a Hugging Face folder, without torch and without compiling anything.

Matrices become F16, vectors F32, as llama.cpp's convert_hf_to_gguf.py does it; the tensors go from file to file in
pieces, so memory stays low whatever the model's size. Names and keys follow
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .. import run
from ..errors import EdgeDistillError, GateMissed, InvalidInput
from ..records import read_json
from . import architectures, vocabulary, weights
from .architectures import Architecture
from .child import run_child, whole_file
from .plain_config import exact_context

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGUFWriter
    from numpy.typing import NDArray

    from .weights import Rows

__all__ = [
    "GgufMetadata",
    "Source",
    "convert_with_checkout",
    "exact_tokens",
    "gguf_file_name",
    "model_name_parts",
    "require_writable",
    "write_gguf",
]

IGNORED = (".rotary_emb.inv_freq", ".attention.masked_bias", ".attention.bias")
"""Ends of tensor names that older checkpoints hold and no runtime needs."""

ROPE_FREQUENCIES = "rope_freqs"
LONG_FACTORS = {"rope_factors_long": "long_factor", "rope_factors_short": "short_factor"}
"""longrope's tensors, and their settings in config.json."""

F16_FILE = 1
"""`general.file_type` of a file whose matrices are F16."""


@dataclass(frozen=True, slots=True)
class Source:
    """A model or a data set that another one was made from."""

    name: str
    organization: str = ""
    version: str = ""
    repo_url: str = ""


@dataclass(frozen=True, slots=True)
class GgufMetadata:
    """What a GGUF says of its origin; an empty value is left out. `size_label` is counted where it is empty."""

    name: str
    basename: str = ""
    size_label: str = ""
    finetune: str = ""
    version: str = ""
    licence: str | None = None
    licence_link: str | None = None
    organization: str = ""
    description: str = ""
    tags: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    base_models: tuple[Source, ...] = ()
    datasets: tuple[Source, ...] = ()


@dataclass(frozen=True, slots=True)
class _Planned:
    """One tensor of the file to be: where it comes from, or its values where it is made here."""

    name: str
    shape: tuple[int, ...]
    stored: Literal["F16", "F32"] = "F32"
    heads: int = 0
    """Heads whose rows are put pairwise; 0 leaves the rows as they are."""
    plus: float = 0.0
    source: weights.Tensor | None = None
    values: Rows | None = None

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * weights.SIZES[self.stored]


def write_gguf(folder: Path, out: Path, metadata: GgufMetadata, progress: run.Progress) -> None:
    """Write the F16 GGUF of a Hugging Face folder, whole or not at all.

    The name gets "(phi-3)" behind it where the vocabulary has tokens that swallow the spaces behind them: llama.cpp
    does that by the name alone.
    Raises InvalidInput where the folder is incomplete or of an architecture that is not in the table, GateMissed where
    llama.cpp would compute or tokenize in another way or a weight does not fit F16, Stopped where the disk is full.
    """
    import numpy as np

    row, plain, planned, words = _prepared(folder)
    with whole_file(out) as partial:
        _write_header(partial, row, plain, metadata, (planned, words))
        with partial.open("ab") as file, weights.written_behind(file) as write:
            for done, tensor in enumerate(planned):
                progress("tensors", done, len(planned))
                run.stop_if_asked()
                for piece in _pieces(tensor):
                    write(piece)
                write(np.zeros(-tensor.bytes % 32, np.uint8))
    progress("tensors", len(planned), len(planned))


def require_writable(folder: Path) -> str:
    """The GGUF architecture that a Hugging Face folder would be written as, found before anything is written.

    Raises what `write_gguf` raises for a folder that cannot be.
    """
    return _prepared(folder)[0].gguf


def exact_tokens(folder: Path) -> int:
    """Tokens up to which llama.cpp computes what transformers computes of a Hugging Face folder.

    Raises what `write_gguf` raises for its config.json.
    """
    config = read_json(folder / "config.json")
    row = architectures.from_hugging_face(str((config.get("architectures") or ["none"])[0]))
    return exact_context(row, architectures.plain_config(str(folder / "config.json"), row, config))


def _prepared(folder: Path) -> tuple[Architecture, dict[str, Any], list[_Planned], vocabulary.Vocabulary]:
    """All that decides a file: the row of the table, the plain config, the tensors and the vocabulary."""
    config = read_json(folder / "config.json")
    row = architectures.from_hugging_face(str((config.get("architectures") or ["none"])[0]))
    plain = architectures.plain_config(str(folder / "config.json"), row, config)
    return row, plain, _plan(folder, row, plain), vocabulary.from_folder(folder, plain["vocab_size"])


def _plan(folder: Path, row: Architecture, config: dict[str, Any]) -> list[_Planned]:
    """The tensors of the file to be, the embedding first; all that are needed are there, and none is left over."""
    found = weights.find_tensors(folder)
    if config["tie_word_embeddings"]:
        found.pop("lm_head.weight", None)
    planned = []
    for place in row.places(config):
        tensor = found.pop(place.hugging_face, None)
        if tensor is None and place.required:
            raise InvalidInput(f"{folder}: '{place.hugging_face}' is missing", "Use a complete Hugging Face folder.")
        if tensor is not None and tensor.shape != place.source_shape:
            raise InvalidInput(
                f"{tensor.file}: '{tensor.name}' has the shape {tensor.shape}, config.json says {place.source_shape}",
                "Use the config.json that belongs to the weights.",
            )
        if tensor is not None:
            planned.append(_Planned(place.gguf, place.shape, place.stored, place.heads, place.plus, tensor))
    left = [name for name in found if not name.endswith(IGNORED)]
    if left:
        raise InvalidInput(
            f"{folder}: {row.hugging_face} has no tensor '{left[0]}'", "Merge adapters into the weights first."
        )
    extra = rope_tensors(str(folder), config)
    return [*planned, *(_Planned(f"{name}.weight", values.shape, values=values) for name, values in extra.items())]


def rope_tensors(where: str, config: dict[str, Any]) -> dict[str, Rows]:
    """The tensors, (rotary dimensions / 2,) in float32, by which pairs of dimensions turn slower, by name.

    Raises InvalidInput where longrope's factors are not one for each pair.
    """
    import numpy as np

    rope = config["rope"]
    if rope["rope_type"] == "llama3":
        return {ROPE_FREQUENCIES: _llama3_factors(config)}
    if rope["rope_type"] != "longrope":
        return {}
    if len(rope["long_factor"]) != config["rotary_dim"] // 2:
        raise InvalidInput(
            f"{where}: longrope has {len(rope['long_factor'])} factors for {config['rotary_dim'] // 2} pairs",
            "Fetch the model again.",
        )
    return {name: np.array(rope[key], np.float32) for name, key in LONG_FACTORS.items()}


def _llama3_factors(config: dict[str, Any]) -> Rows:
    """Llama 3's long context, by the rule of transformers' `_compute_llama3_parameters`."""
    import numpy as np

    rope = config["rope"]
    dimensions = np.arange(0, config["head_dim"], 2, dtype=np.float32) / np.float32(config["head_dim"])
    lengths = 2 * math.pi * np.float32(config["rope_theta"]) ** dimensions
    factor, original = rope["factor"], rope["original_max_position_embeddings"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    smooth = (original / lengths - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    factors = np.where(lengths < original / high, 1.0, np.where(lengths > original / low, factor, between))
    return factors.astype(np.float32)


def _write_header(
    partial: Path,
    row: Architecture,
    config: dict[str, Any],
    metadata: GgufMetadata,
    content: tuple[list[_Planned], vocabulary.Vocabulary],
) -> None:
    """Write all that stands before the tensors' data, padded to where the data begins."""
    import numpy as np
    from gguf import GGUFWriter, size_label

    planned, words = content
    metadata = replace(metadata, name=vocabulary.named_for(words, metadata.name))
    count = sum(math.prod(tensor.shape) for tensor in planned)
    writer = GGUFWriter(partial, row.gguf)
    writer.add_type("model")
    _add_origin(writer, metadata, metadata.size_label or size_label(count, count, 0, 0))
    _add_settings(writer, row, config)
    writer.add_file_type(F16_FILE)
    vocabulary.add_to_gguf(words, writer)
    writer.add_quantization_version(2)
    for tensor in planned:
        kind = np.dtype(np.float32 if tensor.stored == "F32" else np.float16)
        writer.add_tensor_info(tensor.name, tensor.shape, kind, tensor.bytes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with partial.open("ab") as file:
        file.write(b"\0" * (-file.tell() % 32))


def _add_origin(writer: GGUFWriter, metadata: GgufMetadata, size_label: str) -> None:
    for key in ("name", "organization", "finetune", "basename", "version", "description"):
        writer.add_string(f"general.{key}", getattr(metadata, key))
    writer.add_string("general.license", metadata.licence or "")
    writer.add_string("general.license.link", metadata.licence_link or "")
    writer.add_size_label(size_label)
    for key, sources in (("base_model", metadata.base_models), ("dataset", metadata.datasets)):
        if sources:
            writer.add_uint32(f"general.{key}.count", len(sources))
        for number, source in enumerate(sources):
            for part in ("name", "organization", "version", "repo_url"):
                writer.add_string(f"general.{key}.{number}.{part}", getattr(source, part))
    writer.add_array("general.tags", metadata.tags)
    writer.add_array("general.languages", metadata.languages)


def _add_settings(writer: GGUFWriter, row: Architecture, config: dict[str, Any]) -> None:
    for key in row.keys:
        name, value = f"{row.gguf}.{key.gguf}", config.get(key.config)
        if key.optional and value is None:
            continue
        if key.kind == "by_layer":
            writer.add_array(name, [0 if kind == "conv" else value for kind in config["layer_types"]])
        else:
            (writer.add_float32 if key.kind == "float32" else writer.add_uint32)(name, value)
    if config["rope"]["rope_type"] == "linear":
        writer.add_string(f"{row.gguf}.rope.scaling.type", "linear")
        writer.add_float32(f"{row.gguf}.rope.scaling.factor", float(config["rope"]["factor"]))


def _pieces(tensor: _Planned) -> Iterator[NDArray[np.float16] | Rows]:
    """The tensor's data in the order and type of the file.

    Raises GateMissed where a value is not finite, or is too large for F16.
    """
    import numpy as np

    if tensor.source is None:
        assert tensor.values is not None
        yield tensor.values
        return
    steps = [(0, tensor.shape[0])] if tensor.heads else weights.row_steps(tensor.shape)
    for first, last in steps:
        is_as_stored = tensor.stored == tensor.source.dtype == "F16" and not tensor.plus
        read = weights.read_stored if is_as_stored else weights.read_rows
        rows = read(tensor.source, first, last).reshape(last - first, *tensor.shape[1:])
        if tensor.heads:
            rows = pairwise(rows, tensor.heads)
        if tensor.plus:
            rows = rows + np.float32(tensor.plus)
        with np.errstate(over="ignore"):
            data = rows if tensor.stored == "F32" else rows.astype(np.float16, copy=False)
        if not weights.is_finite(data):
            raise GateMissed(
                f"{tensor.source.file}: tensor '{tensor.source.name}' holds NaN or values beyond F16's 65504",
                "The training has diverged: lower train.learning_rate and train again.",
            )
        yield data


def pairwise(rows: Rows, heads: int) -> Rows:
    """Rows of q or k, (heads * head_dim, ...), from halves to pairs: how GGUF's llama stores what RoPE turns."""
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    turned: Rows = halves.swapaxes(1, 2).reshape(rows.shape)
    return turned


NAME = re.compile(
    r"^(?P<BaseName>[A-Za-z0-9\s]*(?:(?:-(?:(?:[A-Za-z\s][A-Za-z0-9\s]*)|(?:[0-9\s]*)))*))"
    r"-(?:(?P<SizeLabel>(?:\d+x)?(?:\d+\.)?\d+[A-Za-z](?:-[A-Za-z]+(\d+\.)?\d+[A-Za-z]+)?)"
    r"(?:-(?P<FineTune>[A-Za-z0-9\s-]+))?)?-(?:(?P<Version>v\d+(?:\.\d+)*))(?:-(?P<Encoding>(?!LoRA|vocab)[\w_]+))?"
    r"(?:-(?P<Type>LoRA|vocab))?(?:-(?P<Shard>\d{5}-of-\d{5}))?\.gguf$"
)
"""The pattern of the GGUF specification, section "Validating Above Naming Convention"."""


def gguf_file_name(basename: str, size_label: str, finetune: str, version: str, encoding: str) -> str:
    """A file name by the GGUF naming convention; characters that it does not allow become dashes.

    Raises InvalidInput where the parts cannot be put into such a name.

    >>> gguf_file_name("Qwen3", "0.6B", "support", "1.0", "Q4_K_M")
    'Qwen3-0.6B-support-v1.0-Q4_K_M.gguf'
    >>> gguf_file_name("Qwen2.5", "0.5B", "home_commands", "v1", "F16")
    'Qwen2-5-0.5B-home-commands-v1-F16.gguf'
    """
    words = [re.sub(r"[^A-Za-z0-9]+", "-", part).strip("-") for part in (basename, finetune)]
    version = version if version.startswith("v") else f"v{version}"
    parts = [words[0], size_label, words[1], version, encoding]
    name = "-".join(part for part in parts if part) + ".gguf"
    found = NAME.match(name)
    if not found or not found["SizeLabel"] or not found["BaseName"]:
        raise InvalidInput(f"'{name}' does not follow the GGUF naming convention", "Give it a plain name and version.")
    return name


def model_name_parts(name: str) -> tuple[str, str, str]:
    """Organization, base name and size label in a model's name; empty where it does not say.

    >>> model_name_parts("Qwen/Qwen2.5-Coder-0.5B-Instruct")
    ('Qwen', 'Qwen2.5-Coder', '0.5B')
    >>> model_name_parts("smollm2-135m-instruct"), model_name_parts("Pico")
    (('', 'smollm2', '135M'), ('', 'Pico', ''))
    """
    organization, _, short = name.rpartition("/")
    found = re.match(r"(?P<base>.+?)[-_ ](?P<size>(?:\d+x)?\d+(?:\.\d+)?[KkMmBbTt])(?=[-_ .]|$)", short)
    return organization, (found["base"] if found else short), (found["size"].upper().replace("X", "x") if found else "")


def convert_with_checkout(llama_cpp: Path, folder: Path, out: Path) -> None:
    """Write the F16 GGUF of a Hugging Face folder with the converter of a llama.cpp checkout, in a child process.

    Raises InvalidInput where the folder is no checkout, EdgeDistillError with the converter's last line where it fails.
    """
    script = llama_cpp / "convert_hf_to_gguf.py"
    if not script.is_file():
        raise InvalidInput(f"{script}: not there", "Name the folder of a llama.cpp checkout: --llama-cpp PATH")
    with whole_file(out) as partial:
        ended = run_child([str(script), str(folder), "--outtype", "f16", "--outfile", str(partial)])
        if ended.code != 0 or not partial.is_file():
            lines = ended.log.strip().splitlines() or ["it said nothing"]
            raise EdgeDistillError(f"{script} failed on {folder} ({ended.signal or ended.code}): {lines[-1]}")
