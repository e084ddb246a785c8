"""Q4: KL of the chosen Q4-class recipe against stock Q4_K_M, in at most 1.05 x its size.

Stock is what llama.cpp makes without an importance matrix. Ours has one, and bits moved (`[quantize] growth = 1.05`).
Both are measured on the same text, which is none of what ours was weighed on. The models of the catalogue are 4-bit
files themselves, and a 4-bit rounding of such weights loses less than one of others would. So by default each weight of
the 16-bit model is first moved by a random part of a rounding step, as training would move it; --rounded leaves that
out.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from kl_texts import CHUNK, f16_of, long_text, text_of_tokens
from measure import finish, note

from edgedistill.contract import QuantizeSettings
from edgedistill.llamacpp.comparison import ScoredText, divergence_between, in_chunks
from edgedistill.llamacpp.model import LlamaModel
from edgedistill.llamacpp.quantize import Mixture, quantize
from edgedistill.llamacpp.reader import read_gguf
from edgedistill.run import cores
from edgedistill.stages.quantizing import QuantizingTask, make

LESS, LARGER = 0.80, 1.05
MODELS = ("smollm2-135m-instruct", "qwen2.5-coder-0.5b-instruct")
BLOCK, STEPS = 32, 15  # of the files that the weights come from: so many numbers share a scale of so many steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), help="names of the catalogue, or paths")
    parser.add_argument("--tokens", type=int, default=20_000, help="that are measured on; fewer for a quick look")
    parser.add_argument("--weigh", type=int, default=8192, help="tokens that ours is weighed on")
    parser.add_argument("--rounded", action="store_true", help="take the weights as the 4-bit files have them")
    options = parser.parse_args()
    found = {}
    for name in options.models:
        with tempfile.TemporaryDirectory() as folder:
            found[name] = measure(name, Path(folder), options)
        note(f"{name}: {found[name]}")
    less, larger = (max(one[key] for one in found.values()) for key in ("kl", "size"))
    finish(
        "Q4",
        {"kl": less, "size": larger},
        {"kl": LESS, "size": LARGER},
        less <= LESS and larger <= LARGER,
        peer="llama.cpp's Q4_K_M without an importance matrix",
        unit="x its KL from 16 bits; x its size",
        n=len(found),
        tokens=options.tokens,
        weighed_on=options.weigh,
        rounded=options.rounded,
        models=found,
    )


def measure(name: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Both recipes of one model."""
    source = f16_of(name, folder)
    if not options.rounded:
        unround(source)
    learnt = chunks(source, long_text(0), options.weigh)
    measured = chunks(source, long_text(1), options.tokens)
    stock, weighed = folder / "stock.gguf", folder / "weighed.gguf"
    quantize(source, stock, "Q4_K_M", cores())
    settings = QuantizeSettings(types=("Q4_K_M",), growth=LARGER)
    task = QuantizingTask(source, folder / "ours", settings, learnt, "text")
    made = make(task, lambda what, done, total: note(f"{what} {done}/{total}"))["Q4_K_M"]
    quantize(source, weighed, "Q4_K_M", cores(), Mixture(folder / "imatrix.gguf"))
    paths = [stock, weighed, made.path]
    found = divergence_between(source, paths, measured, cores(), lambda *_: None)
    sizes = [path.stat().st_size for path in paths]
    return {
        "kl": round(found[2].mean / found[0].mean, 4),
        "size": round(sizes[2] / sizes[0], 4),
        "kl_with_imatrix_alone": round(found[1].mean / found[0].mean, 4),
        "stock": {**found[0].summary(), "bytes": sizes[0]},
        "ours": {**found[2].summary(), "bytes": sizes[2], "tensor_types": made.tensor_types},
    }


def chunks(model: Path, text: str, tokens: int, special: bool = False) -> list[ScoredText]:
    """The beginning of a text in chunks, the second half of each scored; `special` parses special tokens."""
    cut = text_of_tokens(model, text, tokens)
    with LlamaModel(model, vocab_only=True) as loaded:
        return in_chunks(loaded.tokenize(cut, special=special, add_bos=loaded.adds_bos), CHUNK, CHUNK // 2)


def unround(path: Path) -> None:
    """Move each number of a 16-bit GGUF's matrices by a uniformly random part of its block's 4-bit step."""
    numbers = np.random.default_rng(0)
    for tensor in read_gguf(path).tensors.values():
        if len(tensor.shape) < 2 or tensor.kind != "F16":
            continue
        values = np.memmap(path, np.float16, "r+", offset=tensor.offset, shape=(tensor.size // 2 // BLOCK, BLOCK))
        for start in range(0, len(values), 1 << 15):
            block = values[start : start + (1 << 15)].astype(np.float32)
            step = (block.max(axis=1) - block.min(axis=1)) / STEPS
            block += step[:, None] * (numbers.random(block.shape, np.float32) - np.float32(0.5))
            values[start : start + len(block)] = block
        values.flush()


if __name__ == "__main__":
    main()
