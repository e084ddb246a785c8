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
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import run
from ..errors import EdgeDistillError, InvalidInput, MissingRequirement
from ..records import FILE_TYPES, TENSOR_TYPES
from .child import Ended, end_with_parent, run_child, whole_file
from .importance import read_importance
from .reader import read_gguf

__all__ = ["PLAIN", "Rounding", "quantize"]

MARK = "error: "
"""What the child puts before llama.cpp's lines of level error."""

ERROR_LEVEL = 4
"""GGML_LOG_LEVEL_ERROR."""

NEED_IMPORTANCE = frozenset(
    ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS", "Q2_K_S")
)  # llama-quant.cpp: tensor_requires_imatrix


@dataclass(frozen=True)
class Rounding:
    """What decides how weights are rounded, besides the file's type."""

    importance: Path | None = None
    """An importance matrix: the errors of columns that are used more weigh more."""
    tensors: Mapping[str, str] = field(default_factory=dict)
    """Patterns of tensor names (regular expressions, found anywhere) with the type of these tensors, such as "Q6_K".
    The first that fits counts; a type whose blocks do not fit a tensor's width becomes the one that llama.cpp takes."""


PLAIN = Rounding()


def quantize(source: Path, out: Path, type_name: str, threads: int, rounding: Rounding = PLAIN) -> None:
    """Write `source`, an F16, BF16 or F32 GGUF, as another type; `out` is whole or not there.

    Raises InvalidInput for an unknown type, one that needs an importance matrix and has none, a pattern that fits no
    tensor, or where `out` is `source` itself; MissingRequirement without llama-cpp-python, Stopped where the disk is
    full, EdgeDistillError with llama.cpp's last line otherwise.
    """
    if type_name not in FILE_TYPES:
        raise InvalidInput(f"unknown quant type '{type_name}'", f"Known are {', '.join(FILE_TYPES)}.")
    if type_name in NEED_IMPORTANCE and rounding.importance is None:
        raise InvalidInput(
            f"{type_name}: so few bits are of no use without an importance matrix",
            "Let one be computed: calibration_tokens in [quantize], or --calibration FILE.",
        )
    if not source.is_file():
        raise InvalidInput(f"{source}: not there", "Export the student first.")
    if out.resolve() == source.resolve() or (out.exists() and out.samefile(source)):
        raise InvalidInput(f"{out}: is the source itself", "Name another file.")
    if importlib.util.find_spec("llama_cpp") is None:
        raise MissingRequirement("quantizing needs llama-cpp-python", "pip install llama-cpp-python")
    if rounding.tensors:
        _require_tensors(source, rounding.tensors)
    how = {"importance": rounding.importance and str(rounding.importance), "tensors": dict(rounding.tensors)}
    with whole_file(out) as partial:
        ended = run_child(["-m", __name__, str(source), str(partial), type_name, str(threads), json.dumps(how)])
        if ended.code != 0:
            raise _failure(source, out, ended)


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


def _require_tensors(source: Path, tensors: Mapping[str, str]) -> None:
    names = read_gguf(source).tensors
    for pattern, kind in tensors.items():
        if kind not in TENSOR_TYPES:
            raise InvalidInput(f"unknown tensor type '{kind}' for '{pattern}'", f"Known are {', '.join(TENSOR_TYPES)}.")
        try:
            is_found = any(map(re.compile(pattern).search, names))
        except re.error as error:
            raise InvalidInput(
                f"'{pattern}': no regular expression ({error})", "Write one, such as ffn_down."
            ) from error
        if not is_found:
            raise InvalidInput(f"{source}: no tensor's name has '{pattern}' in it", f"One is {next(iter(names))}.")


def main(source: str, out: str, type_name: str, threads: str, rounding: str) -> int:
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
    settings.nthread = int(threads)
    settings.ftype = FILE_TYPES[type_name]
    how = json.loads(rounding)
    kept = _apply(llama_cpp, settings, how["importance"], how["tensors"])
    code = llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(out), ctypes.byref(settings))
    del kept
    return 1 if code else 0


def _apply(lib: Any, settings: Any, importance: str | None, tensors: dict[str, str]) -> list[Any]:
    """Point the settings to what `Rounding` holds; what is returned must live as long as they do."""
    kept: list[Any] = []
    if tensors:
        overrides = [(pattern.encode(), TENSOR_TYPES[kind]) for pattern, kind in tensors.items()]
        array = (lib.llama_model_tensor_override * (len(overrides) + 1))(*overrides, (None, 0))
        settings.tt_overrides = array
        kept.append(array)
    if importance:
        means = {name: one.mean().ravel() for name, one in read_importance(Path(importance)).items()}
        pointer = ctypes.POINTER(ctypes.c_float)
        entries = [(name.encode(), row.ctypes.data_as(pointer), row.size) for name, row in means.items()]
        data = (lib.llama_model_imatrix_data * (len(entries) + 1))(*entries, (None, None, 0))
        settings.imatrix = data
        kept += [means, data]
    return kept


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
