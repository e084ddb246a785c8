"""B3: seconds to a verdict for a model that clearly passes, the whole command: load, warm-up, requests, verdict.

MLPerf Inference asks a single stream for 600 seconds at least.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from measure import finish, note, teacher_gguf

from edgedistill.run import cores

SECONDS, PEER_SECONDS = 60.0, 600.0
RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "home-commands"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct", help="in the catalogue, or a GGUF file")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--percentiles", nargs="+", default=["90", "95"])
    parser.add_argument("--target", default="100-500")
    parser.add_argument("--threads", type=int, default=cores())
    options = parser.parse_args()
    path = Path(options.model) if options.model.endswith(".gguf") else teacher_gguf(options.model)
    found: dict[str, list[dict[str, Any]]] = {percentile: [] for percentile in options.percentiles}
    for _ in range(options.rounds):
        for percentile in options.percentiles:
            one = _verdict(path, percentile, options.target, options.threads)
            note(f"p{percentile}: {one}")
            found[percentile].append(one)
    slowest = {f"p{key}": max(one["seconds"] for one in rounds) for key, rounds in found.items()}
    passed = all(one["verdict"] == "pass" for rounds in found.values() for one in rounds)
    finish(
        "B3",
        slowest,
        SECONDS,
        passed and max(slowest.values()) <= SECONDS,
        peer="MLPerf Inference, single stream: at least 600 s",
        peer_seconds=PEER_SECONDS,
        unit="s, the slowest round",
        n=options.rounds,
        verdicts=found,
        file=path.name,
        target_ms=options.target,
        threads=options.threads,
    )


def _verdict(path: Path, percentile: str, target: str, threads: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "edgedistill.cli", "bench", str(path), "--recipe", str(RECIPE)]
    flags = ["--target", target, "--percentile", percentile, "--threads", str(threads), "--json", "-q"]
    started = time.perf_counter()
    ended = subprocess.run([*command, *flags], stdout=subprocess.PIPE, text=True, check=False)
    seconds = time.perf_counter() - started
    if ended.returncode not in (0, 4):
        raise SystemExit(f"bench ended with {ended.returncode}")
    one = json.loads(ended.stdout)["candidates"][0]
    kept = ("verdict", "decided_at", "over", "needed")
    high = one["bounds"]["e2e"][f"p{percentile}"][1]
    return {"seconds": round(seconds, 1), **{key: one[key] for key in kept}, "at_most_ms": high}


if __name__ == "__main__":
    main()
