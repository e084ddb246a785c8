"""S8: MLX against torch on one pico model: the same data, seed and order, 50 steps; loss curves and merged weights.

For each way to learn, both students train in float32 from the same first weights; figures are relative: the largest
difference of two losses of one step to the loss, and the length of the difference of all merged weights (which are
rounded to 16 bits) to the length of the weights. How much of it is of what was learned is reported beside it. Our torch
side is held to float32 by taking the place of `compute_dtype` where it is used.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from measure import finish, note
from numpy.typing import NDArray
from safetensors.numpy import load_file

from edgedistill.recipe import StudentSettings, TrainSettings
from edgedistill.students import BACKENDS, TrainingData, TrainStep, load_student
from edgedistill.students import torch as torch_student
from edgedistill.students.encode import EncodedExample
from edgedistill.students.lessons import Lesson, hard_lesson
from edgedistill.students.merge import merge_adapter

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))
from pico import pico_hf_folder
from pico_lessons import VOCABULARY, closed_lesson, runs_lesson, soft_lesson

BAR = 1e-4
STEPS, BATCH, EPOCHS = 50, 4, 5


@dataclass(frozen=True)
class Way:
    """A way to learn, on a base."""

    lesson: Callable[[EncodedExample], Lesson]
    settings: dict[str, Any] = field(default_factory=dict)
    architecture: str = "llama"
    tied: bool = True


WAYS = {
    "lora": Way(hard_lesson),
    "lora, qwen2, decay": Way(hard_lesson, {"weight_decay": 0.1}, "qwen2", False),
    "dora": Way(hard_lesson, {"method": "dora"}),
    "full": Way(hard_lesson, {"method": "full"}),
    "full, own head, soft": Way(soft_lesson, {"method": "full"}, "qwen2", False),
    "soft": Way(soft_lesson),
    "soft, reverse": Way(soft_lesson, {"divergence": "reverse_kl", "temperature": 2.0}),
    "soft, between": Way(soft_lesson, {"divergence": "jsd", "beta": 0.3}),
    "closed answers": Way(closed_lesson),
    "runs of tokens": Way(runs_lesson),
    "packed": Way(soft_lesson, {"packing": True}),
    "in parts": Way(soft_lesson, {"micro_batch": 3, "gradient_checkpointing": "on"}),
}


def examples() -> list[EncodedExample]:
    source = np.random.default_rng(0)
    found = []
    for number in range(STEPS * BATCH // EPOCHS):
        length = int(source.integers(12, 40))
        tokens = source.integers(3, VOCABULARY, length).tolist()
        found.append(EncodedExample(str(number), tuple(tokens), length - int(source.integers(3, 9))))
    return found


def trained(backend: str, way: Way, base: Path, folder: Path) -> tuple[NDArray[Any], dict[str, NDArray[Any]]]:
    """Losses of all steps, and the merged weights."""
    settings = TrainSettings(
        epochs=EPOCHS, learning_rate=1e-3, batch_size=BATCH, rank=4, alpha=8.0, checkpoint_steps=STEPS, **way.settings
    )
    steps: list[TrainStep] = []

    def report(moment: Any) -> None:
        if isinstance(moment, TrainStep):
            steps.append(moment)

    student = load_student(StudentSettings(backend=backend, model=str(base)), base)  # type: ignore[arg-type]
    student.train(TrainingData(examples(), (), 3, way.lesson), settings, folder, report)
    merge_adapter(base, folder / "adapter", folder / "merged")
    return np.array([step.loss for step in steps]), load_file(folder / "merged" / "model.safetensors")


def flat(weights: dict[str, NDArray[Any]], names: Sequence[str]) -> NDArray[np.float64]:
    return np.concatenate([weights[name].astype(np.float64).ravel() for name in names])


def compared(way: Way) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = pico_hf_folder(folder / "base", way.architecture, way.tied)
        (losses, weights), (others, other_weights) = (
            trained(backend, way, base, folder / backend) for backend in BACKENDS
        )
        names = sorted(weights)
        before = flat(load_file(base / "model.safetensors"), names)
    if len(losses) != STEPS:
        sys.exit(f"{len(losses)} steps instead of {STEPS}")
    one, other = flat(weights, names), flat(other_weights, names)
    apart = float(np.linalg.norm(one - other))
    return {
        "losses": float(np.abs(losses / others - 1).max()),
        "weights": apart / float(np.linalg.norm(one)),
        "of_what_was_learned": apart / float(np.linalg.norm(one - before)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=list(WAYS))
    options = parser.parse_args()
    torch_student.compute_dtype = lambda torch: torch.float32
    found = {}
    for name in options.ways:
        found[name] = compared(WAYS[name])
        note(f"{name}: losses {found[name]['losses']:.2g}, weights {found[name]['weights']:.2g}")
    worst = max(max(figures["losses"], figures["weights"]) for figures in found.values())
    finish("S8", worst, BAR, worst <= BAR, peer="torch", unit="relative", n=STEPS, ways=found)


if __name__ == "__main__":
    main()
