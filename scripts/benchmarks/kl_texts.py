"""What the benchmarks of quantizing share: a 16-bit model, a long text, and llama.cpp's tools on both."""

from __future__ import annotations

import re
import subprocess
import tempfile
import time
from pathlib import Path

from llama_tools import tool

from edgedistill.llamacpp.importer import import_gguf
from edgedistill.llamacpp.model import LlamaModel
from edgedistill.llamacpp.writer import GgufMetadata, write_gguf
from edgedistill.models import fetch

__all__ = [
    "base_file",
    "compared_by_perplexity",
    "f16_of",
    "imatrix_by_tool",
    "long_text",
    "quantized_by_tool",
    "text_of_tokens",
]

ROOT = Path(__file__).resolve().parents[2]
CHUNK = 512
TRIES = 6
MOST_CHARACTERS = 12  # of a token, on the average
KLD = {
    "mean": re.compile(r"^Mean +KLD: +([-\d.]+)", re.MULTILINE),
    "p999": re.compile(r"^99\.9% +KLD: +([-\d.]+)", re.MULTILINE),
    "top1": re.compile(r"^Same top p: +([\d.]+)", re.MULTILINE),
}


def f16_of(name: str, out: Path) -> Path:
    """The model of a name, or of a path to a GGUF, as a GGUF in 16 bits in the folder."""
    found = fetch(name, ("hf", "gguf"), False, lambda what, done, total: None)
    folder = found.path
    if found.format == "gguf":
        folder = out / "base"
        import_gguf(found.path, folder, lambda what, done, total: None)
    path = out / "model-f16.gguf"
    write_gguf(folder, path, GgufMetadata(name="model"), lambda what, done, total: None)
    return path


def long_text(part: int, parts: int = 2) -> str:
    """English text and code that is on every machine of the project: each part holds others of its own files."""
    paths = [path for end in ("md", "py", "toml", "jsonl") for path in sorted(ROOT.rglob(f"*.{end}"))]
    own = [path for path in paths if not any(one.startswith(".") for one in path.relative_to(ROOT).parts)]
    return "\n\n".join(path.read_text(encoding="utf-8") for path in own[part::parts])


def text_of_tokens(model: Path, text: str, tokens: int) -> str:
    """The beginning of a text, of so many of the model's tokens."""
    with LlamaModel(model, vocab_only=True) as loaded:
        ids = loaded.tokenize(text[: tokens * MOST_CHARACTERS], special=False)
        if len(ids) < tokens:
            raise SystemExit(f"the text has {len(ids)} tokens, {tokens} are wanted")
        return b"".join(map(loaded.piece, ids[:tokens])).decode("utf-8", errors="ignore")


def base_file(model: Path, text: Path, out: Path, threads: int) -> None:
    """llama-perplexity's file of the model's log-probabilities on the text."""
    _run(["llama-perplexity", "-m", str(model), "-f", str(text), "--kl-divergence-base", str(out)], threads)


def compared_by_perplexity(model: Path, base: Path, threads: int) -> tuple[dict[str, float], float]:
    """What llama-perplexity --kl-divergence says of a model against a base file, and the seconds that it took.

    Its log is written by a thread that its end cuts off now and then: then it is run again, and the time is the last
    one's.
    """
    command = ["llama-perplexity", "-m", str(model), "--kl-divergence", "--kl-divergence-base", str(base)]
    for _ in range(TRIES):
        started = time.perf_counter()
        said = _run(command, threads)
        seconds = time.perf_counter() - started
        found = {name: pattern.findall(said) for name, pattern in KLD.items()}
        if all(found.values()):
            return {name: float(one[-1]) / (100 if name == "top1" else 1) for name, one in found.items()}, seconds
    raise SystemExit(f"llama-perplexity tells no divergence in {TRIES} runs: {said[-1000:]}")


def imatrix_by_tool(model: Path, text: Path, out: Path, threads: int) -> None:
    """llama-imatrix on the text, in a process of its own, special tokens parsed."""
    _run(["llama-imatrix", "-m", str(model), "-f", str(text), "-o", str(out), "--parse-special", "--no-ppl"], threads)


def quantized_by_tool(model: Path, imatrix: Path, out: Path, kind: str, threads: int) -> None:
    """llama-quantize with an importance matrix."""
    _done(["llama-quantize", "--imatrix", str(imatrix), str(model), str(out), kind, str(threads)])


def _run(command: list[str], threads: int) -> str:
    return _done([*command, "-c", str(CHUNK), "-t", str(threads), "-tb", str(threads)])


def _done(command: list[str]) -> str:
    with tempfile.TemporaryFile() as log:  # a pipe misses the end of the log more often
        done = subprocess.run([tool(command[0]), *command[1:]], stdout=log, stderr=log, check=False)
        log.seek(0)
        said = log.read().decode(errors="replace")
    if done.returncode:
        raise SystemExit(f"{command[0]} failed: {said[-2000:]}")
    return said
