"""T2: decode-only tokens per second at each number of slots, against llama-batched-bench; and the layout chosen."""

from __future__ import annotations

import argparse

import llama_tools
from measure import finish, median_interval, note, teacher_gguf

from edgedistill.llamacpp.layout import Layout, Work, fastest, measured_rates
from edgedistill.llamacpp.model import LlamaModel
from edgedistill.run import cores

COUNTS = (1, 4, 8, 16, 32)
SHARED, WRITTEN = 180, 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--split", action="store_true", help="cells of each sequence's own, instead of shared ones")
    options = parser.parse_args()
    path = teacher_gguf()
    flags = () if options.split else ("-kvu",)
    mine: dict[int, list[float]] = {count: [] for count in COUNTS}
    theirs: dict[int, list[float]] = {count: [] for count in COUNTS}
    # a step in the middle of llama-batched-bench's: SHARED tokens, and half of WRITTEN per sequence
    work = Work(SHARED, 0, WRITTEN, False)
    with LlamaModel(path) as model:
        for number in range(options.rounds + 1):
            for count in COUNTS:
                rate = measured_rates(model, work, cores(), options.split, (count,))[count]
                flash = ("-fa", "on" if options.split else "off")
                peer = llama_tools.batched_bench(path, cores(), count, (SHARED, WRITTEN), *flags, *flash)
                note(f"round {number}, {count} slots: {rate:.2f} and {peer:.2f} tokens/s")
                if number:  # the first one warms up
                    mine[count].append(rate)
                    theirs[count].append(peer)
    ratios = {count: median_interval(mine[count], theirs[count]) for count in COUNTS}
    middle = {count: sorted(mine[count])[len(mine[count]) // 2] for count in COUNTS}
    chosen = fastest({Layout(count, options.split): rate for count, rate in middle.items()})
    beaten = any(middle[count] > middle[chosen.slots] for count in COUNTS if count < chosen.slots)
    worst = min(ratio[0] for ratio in ratios.values())
    finish(
        "T2",
        {str(count): ratio[0] for count, ratio in ratios.items()},
        0.95,
        worst >= 0.95 and not beaten,
        peer="llama-batched-bench -pps " + " ".join(flags),
        unit="x tokens/s",
        n=options.rounds,
        tokens_per_second={str(count): round(rate, 1) for count, rate in middle.items()},
        chosen=chosen.slots,
        smaller_is_faster=beaten,
    )


if __name__ == "__main__":
    main()
