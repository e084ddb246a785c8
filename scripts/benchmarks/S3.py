"""S3: useful tokens/s of training the demo's student, against TRL's SFTTrainer with PEFT.

SmolLM2-135M, LoRA of rank 16 on all linear layers but the head, 16 examples a step, AdamW, float32 on the CPU, the same
token ids and the same loss on the completion alone for both. Useful are the tokens of the examples, prompt and answer,
without padding. Each side trains in a process of its own, in turns; the first steps, in which memory is laid out, are
not counted, and neither is what comes before or after the steps.

TRL as its documentation has it fastest here: batches grouped by length, completion-only loss, no gradient
checkpointing, its fused output head; of `sdpa` and `eager` attention the one that is faster in the first round, which
is not counted, stays. With packing: ours lays the 16 examples of a batch end to end; TRL's `bfd` fills sequences of as
many tokens as 16 examples have on average, one sequence a step. Our side is held to float32 by taking the place of
`hardware.compute_dtype` in its process; what it does by itself on this machine (bfloat16 where there are units for it)
is reported beside it.

The peers: `pip install --target DIR/site-packages --no-deps trl liger-kernel datasets pyarrow pandas python-dateutil
six dill multiprocess xxhash`, then `--peers DIR/site-packages`. dill, in datasets, goes by the folder's name.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from demo_rows import ROWS, demo_base, demo_rows
from measure import finish, median_interval
from training_rate import ALPHA, BATCH, LEARNING_RATE, RANK, Clock, our_rate, rate_of

from edgedistill import hardware
from edgedistill.recipe import StudentSettings
from edgedistill.run import cores
from edgedistill.students.encode import EncodedExample

BARS = {"padded": 1.6, "packed": 1.2}
ATTENTION = ("sdpa", "eager")
OURS = {"padded": "ours", "packed": "ours_packed"}


def theirs(way: str, attention: str) -> str:
    return f"trl_{way}_{attention}"


def ours(base: Path, rows: Sequence[EncodedExample], side: str, warm: int) -> float:
    is_own = side.endswith("own_dtype")
    if not is_own:
        hardware.compute_dtype = lambda torch: torch.float32
    rate, dtype = our_rate(StudentSettings(model=str(base)), rows, warm, "packed" in side)
    if not is_own and dtype != "float32":
        sys.exit(f"trained in {dtype}")
    return rate


def trl(base: Path, rows: Sequence[EncodedExample], side: str, warm: int) -> float:
    import torch
    from datasets import Dataset  # type: ignore[import-not-found]
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer  # type: ignore[import-not-found]

    torch.set_num_threads(cores())
    _, way, attention = side.split("_")
    clock = Clock()

    class Timed(SFTTrainer):  # type: ignore[misc]
        def training_step(self, model: Any, inputs: dict[str, Any], *more: Any, **named: Any) -> Any:
            seen = inputs.get("attention_mask")
            clock.add(int(inputs["input_ids"].numel() if seen is None else seen.sum()))
            return super().training_step(model, inputs, *more, **named)

    packing: dict[str, Any] = {"per_device_train_batch_size": BATCH, "max_length": 1024}
    if way == "packed":
        tokens = sum(len(row.tokens) for row in rows)
        packing = {"per_device_train_batch_size": 1, "packing": True, "max_length": round(BATCH * tokens / len(rows))}
    model = AutoModelForCausalLM.from_pretrained(str(base), dtype=torch.float32, attn_implementation=attention)
    columns = {
        "input_ids": [list(row.tokens) for row in rows],
        "labels": [[-100] * row.start + list(row.tokens[row.start :]) for row in rows],
    }
    with tempfile.TemporaryDirectory() as out:
        settings = SFTConfig(
            output_dir=out,
            num_train_epochs=1,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="cosine",
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            train_sampling_strategy="group_by_length",
            completion_only_loss=True,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            **packing,
        )
        trainer = Timed(
            model=model,
            args=settings,
            train_dataset=Dataset.from_dict(columns),
            processing_class=AutoTokenizer.from_pretrained(str(base)),
            peft_config=LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"),
        )
        trainer.add_callback(_step_ends(clock))
        trainer.train()
    return clock.rate(warm)


def _step_ends(clock: Clock) -> Any:
    from transformers import TrainerCallback

    class Ends(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *arguments: Any, **named: Any) -> None:
            clock.step_is_over()

    return Ends()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, required=True, help="the folder with trl, liger-kernel and datasets")
    parser.add_argument("--rows", type=Path, default=ROWS, help="train.jsonl of the curate stage")
    parser.add_argument("--steps", type=int, default=14, help="of a training, of which --warm are not counted")
    parser.add_argument("--warm", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    options = parser.parse_args()
    sys.path.append(str(options.peers))
    base = demo_base()
    rows = demo_rows(base, options.rows, options.steps * BATCH)
    if options.side:
        train = trl if options.side.startswith("trl") else ours
        sys.stdout.write(json.dumps(train(base, rows, options.side, options.warm)) + "\n")
        return
    first = {
        theirs(way, attention): rate_of(__file__, theirs(way, attention)) for way in BARS for attention in ATTENTION
    }
    best = {way: max((theirs(way, attention) for attention in ATTENTION), key=first.__getitem__) for way in BARS}
    first |= {side: rate_of(__file__, side) for side in OURS.values()}
    rates: dict[str, list[float]] = {side: [] for side in (*OURS.values(), *best.values())}
    for number in range(options.rounds):
        for way in BARS:
            for side in (OURS[way], best[way]) if number % 2 == 0 else (best[way], OURS[way]):
                rates[side].append(rate_of(__file__, side))
    own_dtype = {way: round(rate_of(__file__, f"{side}_own_dtype"), 1) for way, side in OURS.items()}
    ratios = {way: median_interval(rates[OURS[way]], rates[best[way]]) for way in BARS}
    value = {way: ratio[0] for way, ratio in ratios.items()}
    finish(
        "S3",
        value,
        BARS,
        all(value[way] >= bar for way, bar in BARS.items()),
        peer="TRL SFTTrainer + PEFT",
        unit="x useful tokens/s",
        n=len(rows),
        intervals={way: ratio[1:] for way, ratio in ratios.items()},
        tokens_per_s={side: round(float(np.median(found)), 1) for side, found in rates.items()},
        ours_in_own_dtype=own_dtype,
        first_round={side: round(found, 1) for side, found in first.items()},
        tokens=sum(len(row.tokens) for row in rows),
        batch=BATCH,
    )


if __name__ == "__main__":
    main()
