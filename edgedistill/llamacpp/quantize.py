"""Smaller GGUFs through llama.cpp's own quantizer, each in a child process.

The quantizer is native code on files that may be damaged, and it may run into a full disk in the middle of a write: in
a child, a crash is an error that names the file. The child is `python -m edgedistill.llamacpp.quantize`.
"""

from __future__ import annotations

import ctypes
import errno
import importlib.util
import os
import sys
from pathlib import Path

from .. import run
from ..errors import EdgeDistillError, InvalidInput, MissingRequirement
from ..records import FILE_TYPES
from .child import Ended, end_with_parent, run_child, whole_file

__all__ = ["quantize"]

MARK = "error: "
"""What the child puts before llama.cpp's lines of level error."""

ERROR_LEVEL = 4
"""GGML_LOG_LEVEL_ERROR."""


def quantize(source: Path, out: Path, type_name: str, threads: int) -> None:
    """Write `source`, an F16, BF16 or F32 GGUF, as another type; `out` is whole or not there.

    Raises InvalidInput for an unknown type or where `out` is `source` itself, MissingRequirement without
    llama-cpp-python, Stopped where the disk is full, EdgeDistillError with llama.cpp's last line otherwise.
    """
    if type_name not in FILE_TYPES:
        raise InvalidInput(f"unknown quant type '{type_name}'", f"Known are {', '.join(FILE_TYPES)}.")
    if not source.is_file():
        raise InvalidInput(f"{source}: not there", "Export the student first.")
    if out.resolve() == source.resolve() or (out.exists() and out.samefile(source)):
        raise InvalidInput(f"{out}: is the source itself", "Name another file.")
    if importlib.util.find_spec("llama_cpp") is None:
        raise MissingRequirement("quantizing needs llama-cpp-python", "pip install llama-cpp-python")
    with whole_file(out) as partial:
        ended = run_child(["-m", __name__, str(source), str(partial), type_name, str(threads)])
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


def main(source: str, out: str, type_name: str, threads: str) -> int:
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
    code = llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(out), ctypes.byref(settings))
    return 1 if code else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
