"""Q3: KL and top-1 agreement of five quants on 50,000 tokens, against llama-perplexity --kl-divergence.

Ours: all models go over the same tokens in one pass, their logits reduced where they lie. The peer's way: the 16-bit
model's log-probabilities go to a base file, then each quant is run against it. Both score the second half of every
chunk of 512 tokens. Time is that of the processes from beginning to end; disk is what each leaves besides the models.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from kl_texts import CHUNK, base_file, compared_by_perplexity, f16_of, long_text, text_of_tokens
from measure import finish, note, pairs

from edgedistill.llamacpp.quantize import quantize
from edgedistill.run import cores

SLOWER, DISK, APART = 1.0, 0.01, 1e-3
QUANTS = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M")
OURS = """
import json, sys
from pathlib import Path
from edgedistill.llamacpp.comparison import divergence_between, in_chunks
from edgedistill.llamacpp.model import LlamaModel
source, text, threads, out, *quants = sys.argv[1:]
with LlamaModel(Path(source), vocab_only=True) as model:
    tokens = model.tokenize(Path(text).read_text(encoding="utf-8"), special=False, add_bos=model.adds_bos)
# the first scored token is the one behind the half, as llama-perplexity takes it
texts = in_chunks(tokens, 512, 257)
found = divergence_between(Path(source), [Path(one) for one in quants], texts, int(threads), lambda *_: None)
Path(out).write_text(json.dumps([one.summary() for one in found]), encoding="utf-8")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qwen2.5-coder-0.5b-instruct", help="a name of the catalogue, or a path")
    parser.add_argument("--tokens", type=int, default=50_000, help="fewer for a quick look")
    parser.add_argument("--pairs", type=int, default=1, help="measured pairs, after one that is not counted")
    parser.add_argument("--no-warm-up", action="store_true", help="count the first round too, and make no other")
    parser.add_argument("--threads", type=int, default=cores())
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(options, Path(folder))


def measure(options: argparse.Namespace, folder: Path) -> None:
    source = f16_of(options.model, folder)
    quants = []
    for name in QUANTS:
        quants.append(folder / f"{name}.gguf")
        quantize(source, quants[-1], name, options.threads)
        note(f"made {name}")
    text = folder / "text.txt"
    text.write_text(text_of_tokens(source, long_text(0, 1), options.tokens), encoding="utf-8")
    told: dict[str, Any] = {}
    disk = {"ours": 0, "peers": 0}

    def ours() -> float:
        started, out = time.perf_counter(), folder / "ours.json"
        command = [sys.executable, "-c", OURS, str(source), str(text), str(options.threads), str(out)]
        subprocess.run([*command, *map(str, quants)], check=True)
        told["ours"], disk["ours"] = json.loads(out.read_text(encoding="utf-8")), out.stat().st_size
        return time.perf_counter() - started

    def peers() -> float:
        started, base = time.perf_counter(), folder / "base.kld"
        base_file(source, text, base, options.threads)
        seconds = time.perf_counter() - started
        told["peers"] = []
        for quant in quants:
            figures, taken = compared_by_perplexity(quant, base, options.threads)
            told["peers"].append(figures)
            seconds += taken
        disk["peers"] = base.stat().st_size
        base.unlink()
        return seconds

    mine, theirs = ([ours()], [peers()]) if options.no_warm_up else pairs(ours, peers, options.pairs)
    slower = sorted(one / other for one, other in zip(mine, theirs, strict=True))[len(mine) // 2]
    apart = max(abs(one["mean"] - other["mean"]) for one, other in zip(told["ours"], told["peers"], strict=True))
    share = disk["ours"] / disk["peers"]
    finish(
        "Q3",
        {"time": round(slower, 3), "disk": round(share, 6), "mean_apart": apart},
        {"time": SLOWER, "disk": DISK, "mean_apart": APART},
        slower <= SLOWER and share <= DISK and apart <= APART,
        peer="llama-perplexity --kl-divergence with a base file",
        unit="x the peer's time; share of its disk; nats between means",
        n=len(mine),
        tokens=options.tokens // CHUNK * CHUNK,
        quants=QUANTS,
        seconds={"ours": mine, "peers": theirs},
        disk=disk,
        told=told,
        model=options.model,
        threads=options.threads,
    )


if __name__ == "__main__":
    main()
