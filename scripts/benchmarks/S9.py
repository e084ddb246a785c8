"""S9: useful tokens/s of training the demo's student with MLX, against `mlx_lm.lora`.

SmolLM2-135M, LoRA of rank 16 on all linear layers of attention and feed-forward, 16 examples a step, AdamW, float32,
the same token ids and the same loss on the completion alone for both (mlx-lm's `--mask-prompt`; by the functions that
its command calls, so that the ids can be given). Useful are the tokens of the examples, prompt and answer, without
padding. Each side trains in a process of its own, in turns; the first steps, in which most shapes are compiled, are not
counted, and neither is what comes before or after the steps.

The Linux wheel of mlx brings a reference BLAS of 2 to 5 GFLOP/s, so both sides have OpenBLAS preloaded there (Debian:
libopenblas0-pthread; `--blas` names another one).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from demo_rows import ROWS, demo_base, demo_rows
from measure import finish, median_interval
from training_rate import ALPHA, BATCH, LEARNING_RATE, RANK, Clock, our_rate, rate_of

from edgedistill.recipe import StudentSettings
from edgedistill.students.encode import EncodedExample

BAR = 1.25
SIDES = ("ours", "mlx_lm")
BLAS = Path("/usr/lib/x86_64-linux-gnu/openblas-pthread/libblas.so.3")


def ours(base: Path, rows: Sequence[EncodedExample], warm: int) -> float:
    rate, dtype = our_rate(StudentSettings(backend="mlx", model=str(base)), rows, warm)
    if dtype != "float32":
        sys.exit(f"trained in {dtype}")
    return rate


def mlx_lm(base: Path, rows: Sequence[EncodedExample], warm: int) -> float:
    import mlx.core as mx
    from mlx.optimizers import AdamW
    from mlx_lm.tuner.callbacks import TrainingCallback
    from mlx_lm.tuner.trainer import TrainingArgs, iterate_batches, train
    from mlx_lm.tuner.utils import linear_to_lora_layers
    from mlx_lm.utils import load_model

    mx.random.seed(0)
    model, _ = load_model(base)
    model.set_dtype(mx.float32)
    model.freeze()
    linear_to_lora_layers(model, len(model.layers), {"rank": RANK, "scale": ALPHA / RANK, "dropout": 0.0})
    clock = Clock()

    class Ends(TrainingCallback):  # type: ignore[misc]
        def on_train_loss_report(self, info: dict[str, Any]) -> None:
            clock.step_is_over()

    def counted(*given: Any, **named: Any) -> Iterator[Any]:
        for batch, bounds in iterate_batches(*given, **named):
            clock.add(int(bounds[:, 1].sum().item()))
            yield batch, bounds

    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(io.StringIO()):
        train(
            model,
            AdamW(LEARNING_RATE),
            [(list(row.tokens), row.start) for row in rows],
            args=TrainingArgs(
                batch_size=BATCH,
                iters=len(rows) // BATCH,
                steps_per_report=1,
                steps_per_save=len(rows),
                adapter_file=str(Path(out) / "adapters.safetensors"),
            ),
            iterate_batches=counted,
            training_callback=Ends(),
        )
    return clock.rate(warm)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, default=ROWS, help="train.jsonl of the curate stage")
    parser.add_argument("--steps", type=int, default=26, help="of a training, of which --warm are not counted")
    parser.add_argument("--warm", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--blas", type=Path, default=BLAS, help="the BLAS to preload on Linux")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    base = demo_base()
    rows = demo_rows(base, options.rows, options.steps * BATCH)
    if options.side:
        found = {"ours": ours, "mlx_lm": mlx_lm}[options.side](base, rows, options.warm)
        sys.stdout.write(json.dumps(found) + "\n")
        return
    blas = options.blas if sys.platform == "linux" else None
    if blas is not None and not blas.is_file():
        sys.exit(f"{blas} is not there: install libopenblas0-pthread, or name a BLAS with --blas")
    preloaded = {} if blas is None else {"LD_PRELOAD": str(blas)}
    rates: dict[str, list[float]] = {side: [] for side in SIDES}
    for number in range(options.rounds):
        for side in SIDES if number % 2 == 0 else reversed(SIDES):
            rates[side].append(rate_of(__file__, side, preloaded))
    value, low, high = median_interval(rates["ours"], rates["mlx_lm"])
    finish(
        "S9",
        value,
        BAR,
        value >= BAR,
        peer="mlx_lm.lora",
        unit="x useful tokens/s",
        n=options.rounds,
        interval=(low, high),
        tokens_per_s={side: sorted(found)[len(found) // 2] for side, found in rates.items()},
        blas=None if blas is None else blas.name,
    )


if __name__ == "__main__":
    main()
