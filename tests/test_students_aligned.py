"""What a teacher with another tokenizer tells becomes rows and runs of rows, in every backend the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pico import pico_hf_folder
from required import required_or_skipped

from edgedistill.recipe import StudentSettings, TrainSettings
from edgedistill.students import TrainingData, load_student
from edgedistill.students.alignment import Aligned
from edgedistill.students.chunks import Chunks
from edgedistill.students.encode import EncodedExample
from edgedistill.students.lessons import Lesson, aligned_lesson, collated
from edgedistill.targets import Targets

ANSWER = (40, 41, 42, 43, 44, 2)
PROMPT = (1, 30, 31, 32)
ALIGNED = Aligned(
    rows=np.array([0, 4], np.int32),
    targets=Targets(
        "top_k",
        np.array([40, 44], np.int32),
        np.array([0, 2, 3]),
        np.array([50, 40, 44], np.int32),
        np.log(np.array([0.5, 0.25, 0.875], np.float32)),
        np.array([0.25, 0.125], np.float32),
    ),
    chunks=Chunks(np.array([[1, 3]], np.int32), np.log(np.array([0.5], np.float32)), np.ones(1, np.float32)),
    share=0.4,
)


def lesson(identity: str = "a", ce_weight: float = 0.25) -> Lesson:
    return aligned_lesson(identity, (*PROMPT, *ANSWER), len(PROMPT), ALIGNED, ce_weight)


def test_each_row_learns_by_distribution_by_its_run_or_by_its_text() -> None:
    found = lesson()
    assert found.rows.ce.tolist() == [0.25, 0.25, 0.25, 1.0, 0.25, 1.0]
    assert found.rows.soft.tolist() == [0.75, 0.0, 0.0, 0.0, 0.75, 0.0]
    assert found.rows.ids[0].tolist() == [50, 40]
    assert np.exp(found.rows.tail[[0, 4]]) == pytest.approx([0.25, 0.125])
    assert found.rows.ids[4].tolist() == [44, 44]
    assert found.chunks is not None
    assert found.chunks.weight.tolist() == [0.75]
    assert found.weight == len(ANSWER)


def test_runs_side_by_side_keep_their_rows() -> None:
    batch = collated([lesson("a"), lesson("b")])
    assert batch.chunks is not None
    assert batch.chunks.bounds.tolist() == [[1, 3], [7, 9]]
    assert batch.rows.token[batch.chunks.rows].tolist() == [41, 42, 41, 42]


def test_another_text_is_refused() -> None:
    with pytest.raises(ValueError, match="another text"):
        aligned_lesson("a", (*PROMPT, 3, *ANSWER), len(PROMPT), ALIGNED)


def curve(backend: Any, base: Path, out: Path) -> list[float]:
    settings = TrainSettings(loss="soft", epochs=4, batch_size=2, learning_rate=1e-2, rank=4, alpha=8.0, max_length=64)
    examples = [EncodedExample(name, (*PROMPT, *ANSWER), len(PROMPT)) for name in "abcd"]
    losses = []
    data = TrainingData(examples, examples[:2], 5, lambda example: lesson(example.id, 0.0))
    student = load_student(StudentSettings(backend=backend, model=str(base)), base)
    student.train(data, settings, out, lambda moment: losses.append(getattr(moment, "loss", None)))
    return [loss for loss in losses if loss is not None]


def test_both_backends_learn_runs_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    required_or_skipped("torch", ("torch", "transformers", "peft"))
    required_or_skipped("mlx", ("mlx", "mlx_lm"))
    monkeypatch.setattr("edgedistill.students.torch.compute_dtype", lambda torch: torch.float32)
    base = pico_hf_folder(tmp_path / "base")
    one, other = (curve(backend, base, tmp_path / backend) for backend in ("torch", "mlx"))
    assert one[-1] < 0.7 * one[0]
    assert other == pytest.approx(one, rel=1e-4)
