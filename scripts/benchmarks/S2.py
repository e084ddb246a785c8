"""S2: time of the soft loss with its gradient, under a frozen head, against Liger's and TRL's; and that it is right.

Float32 on the CPU, all in one process, in turns. Liger's is its pure torch loss without torch.compile; of its chunk
sizes the one that is faster in the first round, which is not counted, stays. TRL's head is frozen; Liger's always gets
a gradient, as there is no way to ask for none. Value and gradient of ours are compared with the dense definition in
float64 on the first rows. See soft_losses.py for who gets which inputs.

The peers: `pip install --target DIR/site-packages --no-deps trl liger-kernel datasets pyarrow pandas python-dateutil
six dill multiprocess xxhash`, then `--peers DIR/site-packages`. dill, in datasets, goes by the folder's name.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import torch
from measure import finish, median_interval, note
from soft_losses import (
    LIGER_CHUNKS,
    VOCABULARY,
    WIDTH,
    Kind,
    Loss,
    Problem,
    dense,
    losses,
    problem,
    targets,
    with_targets,
)

from edgedistill.run import cores

FASTER, NEAR = 1.3, 1e-5


def first(given: Problem, count: int) -> Problem:
    """The problem's first rows."""
    return replace(
        given,
        hidden=given.hidden.detach()[:count].clone().requires_grad_(),
        teacher_hidden=given.teacher_hidden[:count],
        kept=None if given.kept is None else given.kept.part(0, count),
    )


def errors(given: Problem, ours: Loss, kind: Kind) -> dict[str, float]:
    """How far value and gradient are from the dense definition in float64, relative to its largest."""
    value, slope = ours(given)
    exact = replace(given, hidden=given.hidden.detach().double().requires_grad_(), head=given.head.double())
    mean = dense(exact, kind).mean()
    (expected,) = torch.autograd.grad(mean, exact.hidden)
    return {
        "value": abs(float(value) / float(mean.detach()) - 1),
        "gradient": float((slope.double() - expected).abs().max() / expected.abs().max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, required=True, help="the folder with trl, liger-kernel and datasets")
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--checked", type=int, default=128, help="rows that are compared with the dense definition")
    parser.add_argument("--vocabulary", type=int, default=VOCABULARY)
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--divergence", choices=("jsd", "forward_kl"), default="jsd")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(cores())
    made = losses(options.peers, options.divergence)
    given = problem(options.rows, options.vocabulary, options.width)
    given = with_targets(given, targets(given))
    off = errors(first(given, options.checked), made["ours"], options.divergence)
    note(f"off by {off}")

    def seconds(side: str) -> float:
        started = time.perf_counter()
        made[side](given)
        return time.perf_counter() - started

    warm = {side: seconds(side) for side in made if side != "dense"}
    note(f"the first round: {warm}")
    liger = min((f"liger_{chunk}" for chunk in LIGER_CHUNKS), key=warm.__getitem__)
    sides = ("ours", liger, "trl")
    times: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(options.rounds):
        for side in sides[number % 3 :] + sides[: number % 3]:
            times[side].append(seconds(side))
        note(f"round {number + 1}: " + ", ".join(f"{side} {times[side][-1]:.2f} s" for side in sides))
    ratios = {side: median_interval(times[side], times["ours"]) for side in sides[1:]}
    value = {side.partition("_")[0]: ratio[0] for side, ratio in ratios.items()}
    finish(
        "S2",
        {**value, "error": max(off.values())},
        {**dict.fromkeys(value, FASTER), "error": NEAR},
        min(value.values()) >= FASTER and max(off.values()) <= NEAR,
        peer="Liger's LigerFusedLinearJSDLoss (not compiled), TRL's ChunkedDivergenceFunction",
        unit="x faster; relative error",
        n=options.rows,
        intervals={side: ratio[1:] for side, ratio in ratios.items()},
        seconds={side: [round(one, 3) for one in all_of] for side, all_of in times.items()},
        errors=off,
        first_round={side: round(one, 3) for side, one in warm.items()},
        sizes={"vocabulary": options.vocabulary, "width": options.width, "divergence": options.divergence},
    )


if __name__ == "__main__":
    main()
