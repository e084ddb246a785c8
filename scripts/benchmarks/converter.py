"""llama.cpp's own converter, from the source that its tools were built from."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
from llama_tools import tool, tools_folder

from edgedistill.llamacpp import reader

__all__ = ["convert", "converter_command", "source", "tensor_differences"]

# The converter knows a pre-tokenizer by a hash of a real vocabulary's ids; of a made-up one it is told the name.
NAMED = """
import runpy, sys
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/gguf-py"]
sys.dont_write_bytecode = True
from conversion import base
if sys.argv[2]:
    base.TextModel.get_vocab_base_pre = lambda self, tokenizer: sys.argv_pre
sys.argv_pre = sys.argv[2]
sys.argv = [sys.argv[1] + "/convert_hf_to_gguf.py", *sys.argv[3:]]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def source() -> Path:
    """The folder of llama.cpp's source."""
    tool("llama-bench")  # builds them, and so unpacks the source, where they are not there
    cache = (tools_folder() / "build" / "CMakeCache.txt").read_text(encoding="utf-8")
    found = re.search(r"^CMAKE_HOME_DIRECTORY:INTERNAL=(.*)$", cache, re.MULTILINE)
    assert found
    return Path(found[1])


def converter_command(folder: Path, out: Path, pre: str = "") -> list[str]:
    """The command that writes the F16 GGUF of a Hugging Face folder; `pre` names its pre-tokenizer."""
    to = [str(folder), "--outtype", "f16", "--outfile", str(out)]
    return [sys.executable, "-c", NAMED, str(source()), pre, *to]


def convert(folder: Path, out: Path, pre: str = "") -> str:
    """Run it; returns "", or the last line of its log where it failed."""
    ended = subprocess.run(converter_command(folder, out, pre), capture_output=True, text=True)
    lines = ended.stderr.strip().splitlines() or ["it said nothing"]
    return "" if ended.returncode == 0 and out.is_file() else lines[-1]


def tensor_differences(ours: reader.GgufFile, theirs: reader.GgufFile) -> list[str]:
    """Every tensor that differs in name, type, shape or any bit."""
    unlike = [f"tensor {name} is on one side only" for name in ours.tensors.keys() ^ theirs.tensors.keys()]
    for name in ours.tensors.keys() & theirs.tensors.keys():
        one, other = ours.tensors[name], theirs.tensors[name]
        if (one.kind, one.shape) != (other.kind, other.shape):
            unlike.append(f"tensor {name}: {one.kind} {one.shape} and {other.kind} {other.shape}")
            continue
        data = [
            np.fromfile(file.path, np.uint8, tensor.size, offset=tensor.offset)
            for file, tensor in ((ours, one), (theirs, other))
        ]
        if not np.array_equal(data[0], data[1]):
            unlike.append(f"tensor {name}: {np.count_nonzero(data[0] != data[1])} of {one.size} bytes differ")
    return sorted(unlike)
