"""L4: tokens/s of the codec for soft targets, against DistillKit's LogprobCompressor on the same arrays, same k."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import engine_work
import numpy as np
from measure import finish, median_interval, note, pairs, teacher_gguf

from edgedistill.llamacpp.layout import Layout
from edgedistill.llamacpp.sampling import Sampling
from edgedistill.targets import CaptureSettings, Targets, decode, encode

BAR = 20.0
LENGTHS = (256, 1024)  # tokens of a completion
SECONDS = 0.3  # that one figure takes at least


def distributions(path: Path, k: int, count: int) -> tuple[Targets, int]:
    """The k most probable tokens at so many positions of free text at temperature 1; and the vocabulary's size."""
    keep = CaptureSettings("top_k", 1.0, k, 1)
    with engine_work.answerer(path) as answerer:
        sampling = Sampling(96, temperature=1.0, capture=keep)
        requests = [answerer.request(prompt, sampling) for prompt in engine_work.prompts(answerer, count // 24)]
        found: list[Targets] = []
        with answerer.engine(Layout(16, split=False), requests) as engine:
            for answer in engine.run(requests):
                found.append(decode(answer.targets or b""))
                if sum(len(one.tokens) for one in found) >= count:
                    break
        vocabulary = answerer.model.vocab_size
    joined = Targets(
        profile="top_k",
        tokens=np.concatenate([one.tokens for one in found])[:count],
        offsets=np.arange(count + 1) * k,
        ids=np.concatenate([one.ids for one in found])[: count * k],
        logprobs=np.concatenate([one.logprobs for one in found])[: count * k],
        tail=np.concatenate([one.tail for one in found])[:count],
    )
    if len(joined.ids) != count * k:
        sys.exit(f"only {len(joined.ids) // k} positions of {count}, or fewer than {k} tokens at one")
    return joined, vocabulary


def first(targets: Targets, count: int, k: int) -> Targets:
    """The first positions of targets that have k entries each."""
    return replace(
        targets,
        tokens=targets.tokens[:count],
        offsets=targets.offsets[: count + 1],
        ids=targets.ids[: count * k].copy(),
        logprobs=targets.logprobs[: count * k].copy(),
        tail=targets.tail[:count],
    )


def distillkit(checkout: Path | None, k: int, vocabulary: int) -> Any:
    """DistillKit's compressor in its small setting."""
    if checkout is None or not (checkout / "distillkit" / "compression").is_dir():
        sys.exit("L4 needs a checkout of arcee-ai/DistillKit: clone it, then give its folder with --distillkit PATH")
    sys.path.insert(0, str(checkout))
    from distillkit.compression import DistributionQuantizationConfig, LogprobCompressor  # type: ignore

    return LogprobCompressor(
        DistributionQuantizationConfig(
            d=vocabulary,
            k=k,
            exact_k=1,
            exact_dtype="bfloat16",
            polynomial_terms=[0, 1, "sqrt"],
            term_dtype="float32",
            residual_bins=[],
            delta_encoding=False,
        )
    )


def rate(call: Callable[[], object], tokens: int) -> Callable[[], float]:
    """Measures tokens/s of a call that handles so many."""

    def measured() -> float:
        times = []
        until = time.perf_counter() + SECONDS
        while time.perf_counter() < until:
            started = time.perf_counter()
            call()
            times.append(time.perf_counter() - started)
        return tokens / float(np.median(times))

    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--distillkit", type=Path, help="a checkout of arcee-ai/DistillKit")
    parser.add_argument("--model", type=Path, help="the GGUF file whose distributions are coded")
    parser.add_argument("--k", type=int, default=50)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1, help="of torch; the codec here has one")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(options.threads)
    distillkit(options.distillkit, options.k, 2)  # refuse before the long part
    targets, vocabulary = distributions(options.model or teacher_gguf(), options.k, max(LENGTHS))
    peer = distillkit(options.distillkit, options.k, vocabulary)
    value: dict[str, float] = {}
    details: dict[str, Any] = {}
    for length in LENGTHS:
        mine = first(targets, length, options.k)
        ids = torch.from_numpy(mine.ids.astype(np.int64)).reshape(1, length, options.k)
        logprobs = torch.from_numpy(mine.logprobs).reshape(1, length, options.k)
        blob, row = encode(mine, vocabulary), peer.compress_from_sparse(ids, logprobs)
        sides: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
            "encode": (
                lambda mine=mine: encode(mine, vocabulary),  # type: ignore[misc]
                lambda ids=ids, logprobs=logprobs: peer.compress_from_sparse(ids, logprobs),  # type: ignore[misc]
            ),
            "decode": (lambda blob=blob: decode(blob), lambda row=row: peer.decompress_to_sparse(row)),  # type: ignore
        }
        for name, (ours, theirs) in sides.items():
            note(f"{name}, {length} tokens")
            rates, others = pairs(rate(ours, length), rate(theirs, length), options.pairs)
            ratio, low, high = median_interval(rates, others)
            value[f"{name}_{length}"] = ratio
            details[f"{name}_{length}"] = {
                "interval": [low, high], "ours": round(np.median(rates)), "peer": round(np.median(others))
            }  # fmt: skip
        sizes = sum(column.numel() for column in row.values())
        details[f"bytes_a_token_{length}"] = [round(len(blob) / length, 1), round(sizes / length, 1)]
    finish("L4", value, BAR, all(ratio >= BAR for ratio in value.values()), peer="DistillKit's LogprobCompressor",
           unit="x tokens/s", n=max(LENGTHS), k=options.k, threads=options.threads, details=details)  # fmt: skip


if __name__ == "__main__":
    main()
