"""llama.cpp's own tools, built from the source that llama-cpp-python ships, so that both run the same kernels."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from importlib import metadata
from pathlib import Path
from typing import Any

from measure import note

__all__ = ["batched_bench", "llama_bench", "tool"]

TARGETS = (
    "llama-bench",
    "llama-batched-bench",
    "llama-server",
    "llama-perplexity",
    "llama-imatrix",
    "llama-quantize",
)


def tools_folder() -> Path:
    """Where the tools are, or will be built: $LLAMA_TOOLS, or a folder in the cache."""
    version = metadata.version("llama-cpp-python")
    given = os.environ.get("LLAMA_TOOLS")
    return Path(given) if given else Path.home() / ".cache" / "edgedistill" / f"llama-tools-{version}"


def tool(name: str) -> str:
    """The path of one of the tools; the first call builds them, which takes some ten minutes."""
    folder = tools_folder()
    path = folder / "build" / "bin" / name
    if not path.is_file():
        build(folder)
    return str(path)


def build(folder: Path) -> None:
    """Fetch llama-cpp-python's source and build llama.cpp's tools with this machine's instructions."""
    version = metadata.version("llama-cpp-python")
    folder.mkdir(parents=True, exist_ok=True)
    note(f"building llama.cpp's tools in {folder}")
    fetched = ["pip", "download", "--no-deps", "--no-binary", "llama-cpp-python", "-d", str(folder)]
    subprocess.run([sys.executable, "-m", *fetched, f"llama-cpp-python=={version}"], check=True, stdout=sys.stderr)
    (archive,) = folder.glob("llama_cpp_python-*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    source = next(folder.glob("llama_cpp_python-*/vendor/llama.cpp"))
    options = ("-DGGML_NATIVE=ON", "-DLLAMA_CURL=OFF", "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF")
    release = ("-DCMAKE_BUILD_TYPE=Release", "-DLLAMA_BUILD_UI=OFF", "-DLLAMA_USE_PREBUILT_UI=OFF", *options)
    cmake = shutil.which("cmake") or "cmake"
    subprocess.run(
        [cmake, "-S", str(source), "-B", str(folder / "build"), *release], check=True, stdout=subprocess.DEVNULL
    )
    jobs = str(os.cpu_count() or 1)
    subprocess.run(
        [cmake, "--build", str(folder / "build"), "-j", jobs, "--target", *TARGETS], check=True, stdout=sys.stderr
    )


def llama_bench(
    model: Path, threads: int, prompt: int = 512, generate: int = 0, repeats: int = 2, *flags: str
) -> float:
    """Tokens per second by llama-bench: of a prompt, or, with `generate` and no prompt, of writing."""
    command = [tool("llama-bench"), "-m", str(model), "-t", str(threads), "-p", str(prompt), "-n", str(generate)]
    rows = json.loads(_output([*command, "-r", str(repeats), "-o", "json", *flags]))
    return float(rows[0]["avg_ts"])


def batched_bench(model: Path, threads: int, sequences: int, shape: tuple[int, int], *flags: str) -> float:
    """Tokens per second of writing by llama-batched-bench; `shape` is tokens of the shared prompt and written ones."""
    prompt, written = shape
    cells = (prompt + written + 256) * (sequences + 1)
    command = [tool("llama-batched-bench"), "-m", str(model), "-t", str(threads), "-c", str(cells), "-pps", *flags]
    sizes = ["-npp", str(prompt), "-ntg", str(written), "-npl", str(sequences), "--output-format", "jsonl"]
    lines = [line for line in _output([*command, *sizes]).splitlines() if line.startswith("{")]
    row: dict[str, Any] = json.loads(lines[-1])
    return float(row["speed_tg"])


def _output(command: list[str]) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
