"""Q6: the importance matrix as a by-product of the KL pass, against a separate run of llama-imatrix on the same text.

Added wall: a pass of the 16-bit model and a quant over the text, with and without looking on, in turns. Quality: Q4_K_M
of the same model by either way, ours and llama-imatrix with llama-quantize, on the same text, compared with 16 bits on
another one. The matrices differ by the last token of each chunk, which our pass has no need of, and in the last layer
by the tokens that are not scored; our quantizer takes the matrix sharpened. `kl_interval` is the bootstrap interval of
the ratio over the chunks, to see by it what a ratio near 1 means; `with their matrix` is our quantizer with theirs.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from kl_texts import CHUNK, f16_of, imatrix_by_tool, long_text, quantized_by_tool, text_of_tokens
from measure import finish, median_interval, pairs
from numpy.typing import NDArray
from Q4 import chunks, unround

from edgedistill.llamacpp.comparison import Comparison, Side, compare, divergence_between
from edgedistill.llamacpp.importance import ImportanceCollector, write_importance
from edgedistill.llamacpp.quantize import Mixture, quantize
from edgedistill.run import cores

ADDED, WORSE = 0.10, 1.0
DRAWS = 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qwen2.5-coder-0.5b-instruct", help="a name of the catalogue, or a path")
    parser.add_argument("--tokens", type=int, default=16_384, help="that are weighed on; fewer for a quick look")
    parser.add_argument("--measured", type=int, default=16_384, help="tokens that the quants are compared on")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--type", default="Q4_K_M")
    parser.add_argument("--threads", type=int, default=cores())
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(options, Path(folder))


def measure(options: argparse.Namespace, folder: Path) -> None:
    source, threads = f16_of(options.model, folder), options.threads
    unround(source)
    plain = folder / "plain.gguf"
    quantize(source, plain, options.type, threads)
    texts = chunks(source, long_text(0), options.tokens, special=True)
    others = chunks(source, long_text(1), options.measured)
    collector = ImportanceCollector()

    def timed(watch: object) -> float:
        started = time.perf_counter()
        sides = [Side(source, texts, watch), Side(plain, texts)]
        compare(sides, Comparison([(0, 1)]), threads, lambda *_: None)
        return time.perf_counter() - started

    looking, alone = pairs(lambda: timed(collector.callback), lambda: timed(None), options.pairs)
    ratio, low, high = median_interval(looking, alone)
    written = text_of_tokens(source, long_text(0), options.tokens)
    (folder / "text.txt").write_text(written, encoding="utf-8")
    write_importance(collector.importance, folder / "ours.gguf", "text")
    started = time.perf_counter()
    imatrix_by_tool(source, folder / "text.txt", folder / "theirs.gguf", threads)
    separate = time.perf_counter() - started
    ours_file, theirs_file, crossed = (folder / f"{name}-quant.gguf" for name in ("ours", "theirs", "crossed"))
    quantize(source, ours_file, options.type, threads, Mixture(folder / "ours.gguf"))
    quantize(source, crossed, options.type, threads, Mixture(folder / "theirs.gguf"))
    quantized_by_tool(source, folder / "theirs.gguf", theirs_file, options.type, threads)
    found = divergence_between(source, [ours_file, theirs_file, crossed, plain], others, threads, lambda *_: None)
    ours, theirs, by_both, without = (one.mean for one in found)
    kl_low, kl_high = _interval(found[0].kl, found[1].kl)
    finish(
        "Q6",
        {"added": round(ratio - 1, 4), "kl": round(ours / theirs, 4)},
        {"added": ADDED, "kl": WORSE},
        ratio - 1 <= ADDED and ours <= theirs * WORSE,
        peer="llama-imatrix on the same text, in a process of its own, and llama-quantize",
        unit="share of the pass's wall; x the KL of the peer's quant",
        n=len(looking),
        interval=[round(low - 1, 4), round(high - 1, 4)],
        seconds={"with": looking, "without": alone, "llama-imatrix": separate},
        kl_interval=[round(kl_low, 4), round(kl_high, 4)],
        kl={"ours": ours, "llama-imatrix": theirs, "with their matrix": by_both, "no matrix": without},
        model=options.model,
        type=options.type,
        tokens=options.tokens,
        threads=threads,
    )


def _interval(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> tuple[float, float]:
    """The 95 % bootstrap interval of the ratio of two mean divergences, chunks drawn as a whole."""
    chunked = np.stack([ours, theirs]).reshape(2, -1, CHUNK // 2)
    sums = np.nansum(chunked, axis=2)
    drawn = np.random.default_rng(0).integers(sums.shape[1], size=(DRAWS, sums.shape[1]))
    totals = sums[:, drawn].sum(axis=2)
    low, high = np.quantile(totals[0] / totals[1], [0.025, 0.975])
    return float(low), float(high)


if __name__ == "__main__":
    main()
