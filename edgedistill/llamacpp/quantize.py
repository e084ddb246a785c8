"""Smaller GGUFs through llama.cpp's own quantizer, each in a child process.

The quantizer is native code on files that may be damaged, and it may run into a full disk in the middle of a write: in
a child, a crash is an error that names the file. The child is `python -m edgedistill.llamacpp.quantize`.
"""

from __future__ import annotations

import ctypes
import errno
import importlib.util
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import run
from ..contract import NEED_IMPORTANCE
from ..errors import EdgeDistillError, InvalidInput, MissingRequirement
from ..records import FILE_TYPES
from .child import Ended, end_with_parent, run_child, whole_file
from .importance import CHUNK, as_structs, read_importance

__all__ = ["TENSOR_TYPES", "Mixture", "quantize", "require_types"]

MARK = "error: "
"""What the child puts before llama.cpp's lines of level error."""

ERROR_LEVEL = 4
"""GGML_LOG_LEVEL_ERROR."""

SLAB_BYTES = 32 * 2**20
"""Rows in hand while a tensor is quantized; llama.cpp's own limit of 8 GiB holds nearly any tensor whole in float32."""

INT_OVERRIDE = 0
"""LLAMA_KV_OVERRIDE_TYPE_INT."""

# name -> ggml_type, of what a single tensor may have
TENSOR_TYPES = {
    "F16": 1,
    "BF16": 30,
    "Q8_0": 8,
    "Q6_K": 14,
    "Q5_K": 13,
    "Q5_1": 7,
    "Q5_0": 6,
    "Q4_K": 12,
    "Q4_1": 3,
    "Q4_0": 2,
    "IQ4_NL": 20,
    "IQ4_XS": 23,
    "Q3_K": 11,
    "IQ3_S": 21,
    "IQ3_XXS": 18,
    "Q2_K": 10,
    "IQ2_S": 22,
    "IQ2_XS": 17,
    "IQ2_XXS": 16,
    "IQ1_M": 29,
    "IQ1_S": 19,
}
TENSORS_NEED_IMPORTANCE = ("IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S")


@dataclass(frozen=True)
class Mixture:
    """What one type is made with: an importance matrix, and the types of single tensors."""

    importance: Path | None = None
    """A GGUF file of llama-imatrix's form, of the same model."""
    tensor_types: Mapping[str, str] = field(default_factory=dict)
    """A regular expression found in the tensor's name, and the ggml type that it then has; the first one counts.

    llama.cpp takes another type, with larger blocks of its own rule, where the tensor's rows do not divide into blocks.
    """


def quantize(source: Path, out: Path, type_name: str, threads: int, mixture: Mixture = Mixture()) -> None:
    """Write `source`, an F16, BF16 or F32 GGUF, as another type; `out` is whole or not there.

    Raises InvalidInput for an unknown type, for one that needs an importance matrix and has none, or where `out` is
    `source` itself, MissingRequirement without llama-cpp-python, Stopped where the disk is full, EdgeDistillError with
    llama.cpp's last line otherwise.
    """
    require_types(type_name, mixture)
    if not source.is_file():
        raise InvalidInput(f"{source}: not there", "Export the student first.")
    if out.resolve() == source.resolve() or (out.exists() and out.samefile(source)):
        raise InvalidInput(f"{out}: is the source itself", "Name another file.")
    if importlib.util.find_spec("llama_cpp") is None:
        raise MissingRequirement("quantizing needs llama-cpp-python", "pip install llama-cpp-python")
    with whole_file(out) as partial:
        task = {
            "source": str(source),
            "out": str(partial),
            "type": type_name,
            "threads": threads,
            "slab_bytes": SLAB_BYTES,
            "importance": None if mixture.importance is None else str(mixture.importance),
            "tensor_types": dict(mixture.tensor_types),
        }
        ended = run_child(["-m", __name__, json.dumps(task)])
        if ended.code != 0:
            raise _failure(source, out, ended)


def require_types(type_name: str, mixture: Mixture) -> None:
    """Raise InvalidInput where the types are not known, or one needs an importance matrix and has none."""
    if type_name not in FILE_TYPES:
        raise InvalidInput(f"unknown quant type '{type_name}'", f"Known are {', '.join(FILE_TYPES)}.")
    for pattern, kind in mixture.tensor_types.items():
        if kind not in TENSOR_TYPES:
            raise InvalidInput(f"'{pattern}': unknown tensor type '{kind}'", f"Known are {', '.join(TENSOR_TYPES)}.")
    if mixture.importance is not None:
        return
    poor = [type_name] * (type_name in NEED_IMPORTANCE) + [
        kind for kind in mixture.tensor_types.values() if kind in TENSORS_NEED_IMPORTANCE
    ]
    if poor:
        raise InvalidInput(f"{poor[0]} needs an importance matrix", "Give texts of the task, or take a larger type.")


def _failure(source: Path, out: Path, ended: Ended) -> EdgeDistillError:
    """The error for a child that failed; llama.cpp's log is kept beside where the file would be."""
    lines = [line.strip() for line in ended.log.splitlines() if line.startswith(MARK) or "GGML_ASSERT" in line]
    last = f": {lines[-1].removeprefix(MARK)}" if lines else ""
    # The quantizer's only write error: the C++ stream's, without the system's own words.
    if "iostream error" in last:
        return run.no_room(out, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    log = out.with_name(f"{out.name}.log")
    run.write_whole(log, ended.log.encode())
    what = f"ended llama.cpp's quantizer with {ended.signal}" if ended.signal else "llama.cpp could not quantize it"
    memory = "Likely the memory ran out. " if ended.signal == "SIGKILL" else ""
    return EdgeDistillError(f"{source}: {what}{last}", f"{memory}llama.cpp's log: {log}")


def main(task: Mapping[str, Any]) -> int:
    """Quantize in this process; llama.cpp's log goes to stderr. Returns the exit code."""
    import llama_cpp

    end_with_parent()

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
    def log(level: int, text: bytes, _data: ctypes.c_void_p) -> None:
        sys.stderr.write(("\n" + MARK if level == ERROR_LEVEL else "") + text.decode("utf-8", errors="replace"))
        sys.stderr.flush()

    llama_cpp.llama_log_set(log, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.nthread = int(task["threads"])
    settings.ftype = FILE_TYPES[task["type"]]
    settings.max_buf_size = int(task["slab_bytes"])
    kept = [_with_importance(llama_cpp, settings, task["importance"])]
    kept.append(_with_tensor_types(llama_cpp, settings, task["tensor_types"]))
    code = llama_cpp.llama_model_quantize(os.fsencode(task["source"]), os.fsencode(task["out"]), ctypes.byref(settings))
    del kept
    return 1 if code else 0


def _with_importance(lib: Any, settings: Any, path: str | None) -> Any:
    """Hand the importance matrix over; what is returned must live as long as the settings."""
    if path is None:
        return None
    importance = read_importance(Path(path))
    rows, kept = as_structs(lib, importance)
    settings.imatrix = ctypes.cast(rows, type(settings.imatrix))
    # what llama-quantize notes: https://github.com/ggml-org/llama.cpp/blob/master/tools/quantize/quantize.cpp
    notes = (lib.llama_model_kv_override * 3)()
    for note, key, value in zip(
        notes, ("entries_count", "chunks_count"), (len(importance.sums), -(-importance.rows // CHUNK)), strict=False
    ):
        note.tag, note.key = INT_OVERRIDE, f"quantize.imatrix.{key}".encode()
        note.value.val_i64 = value
    settings.kv_overrides = ctypes.cast(notes, type(settings.kv_overrides))
    return rows, kept, notes


def _with_tensor_types(lib: Any, settings: Any, tensor_types: Mapping[str, str]) -> Any:
    """Hand the single tensors' types over; what is returned must live as long as the settings."""
    if not tensor_types:
        return None
    rows = (lib.llama_model_tensor_override * (len(tensor_types) + 1))()
    for row, (pattern, kind) in zip(rows, tensor_types.items(), strict=False):
        row.pattern, row.type = pattern.encode(), TENSOR_TYPES[kind]
    settings.tt_overrides = ctypes.cast(rows, type(settings.tt_overrides))
    return rows


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
