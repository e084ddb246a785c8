"""S7: the memory that a training is said to take before its first step, against the peak that it reached.

The demo's student learns a few batches of texts of one length, drawn tokens, each way in a process of its own: both
backends, adapters (LoRA, DoRA), all weights and, in MLX, a base in 4 bits (bitsandbytes' needs CUDA). The estimate is
the one that `edgedistill train` prints; the peak is what the system counted for the process. Every way has to be
within 15 %.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from demo_rows import demo_base
from measure import finish, note

from edgedistill.recipe import StudentSettings, TrainSettings
from edgedistill.students import TrainingData, load_student
from edgedistill.students.encode import EncodedExample

BAR = 0.15
WAYS = (
    *product(("torch",), ("lora", "dora", "full")),
    *product(("mlx",), ("lora", "dora", "qlora", "full")),
)
SHAPES = ((16, 60), (16, 120), (8, 300))
"""Texts in a batch, and tokens of each."""
STEPS = 3
LEARNED = 20  # tokens of each text that carry loss
RARE = 3000  # tokens are drawn from so many


def trained(base: Path, backend: str, method: str, shape: tuple[int, int], dtype: str | None) -> dict[str, Any]:
    """The summary of a training, with the estimate and the peak in bytes."""
    if dtype is not None:
        import torch

        from edgedistill.students import torch as torch_student

        torch_student.compute_dtype = lambda _: getattr(torch, dtype)
    rows, length = shape
    drawn = np.random.default_rng(0).integers(100, RARE, (STEPS * rows, length)).tolist()
    examples = [EncodedExample(f"{n}", tuple(tokens), length - LEARNED) for n, tokens in enumerate(drawn)]
    settings = TrainSettings(method=method, epochs=1, batch_size=rows, learning_rate=1e-4)  # type: ignore[arg-type]
    student = load_student(StudentSettings(backend=backend, model=str(base)), base)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as out:
        return student.train(TrainingData(examples, (), 0), settings, Path(out), lambda moment: None)


def measured(base: Path, way: tuple[str, str], shape: tuple[int, int], dtype: str | None) -> dict[str, Any]:
    """A training in a process of its own, and how far its estimate was off."""
    command = [sys.executable, __file__, "--child", json.dumps([str(base), *way, shape, dtype])]
    found = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    row = json.loads(found.stdout.splitlines()[-1])
    estimate, peak = row["estimated_memory_bytes"], row["peak_memory_bytes"]
    one = {
        "way": " ".join(way),
        "dtype": row["dtype"],
        "rows": shape[0],
        "tokens": shape[1],
        "estimate_mb": round(estimate / 1e6),
        "peak_mb": round(peak / 1e6),
        "off": round(estimate / peak - 1, 3),
        "in_parts": row["micro_batch"] < shape[0],
    }
    what = f"{one['way']} {one['dtype']} {shape[0]} x {shape[1]}"
    note(f"{what}: {one['estimate_mb']} / {one['peak_mb']} MB, {one['off']:+.1%}")
    return one


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        base, backend, method, shape, dtype = json.loads(sys.argv[2])
        sys.stdout.write(json.dumps(trained(Path(base), backend, method, tuple(shape), dtype)) + "\n")
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", nargs="+", default=[" ".join(way) for way in WAYS], help='such as "torch lora"')
    parser.add_argument("--shapes", type=int, default=len(SHAPES), help="so many of the shapes")
    parser.add_argument("--dtype", help="what torch computes in, where that is not to be what suits this machine")
    options = parser.parse_args()
    base = demo_base()
    ways = [way for way in WAYS if " ".join(way) in options.ways]
    rows = [measured(base, way, shape, options.dtype) for way in ways for shape in SHAPES[: options.shapes]]
    worst = max(abs(row["off"]) for row in rows)
    finish(
        "S7",
        worst,
        BAR,
        worst <= BAR,
        peer="the peak that the system counted",
        unit="estimate / peak - 1, the largest",
        n=len(rows),
        measured=rows,
    )


if __name__ == "__main__":
    main()
