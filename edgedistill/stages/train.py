"""train: the student learns the curated answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..chat import with_system
from ..errors import InvalidInput
from ..recipe import Recipe
from ..records import Example, digest, messages_of, read_rows
from ..run import Progress, Run, file_sha256
from ..students import TrainingData, TrainStep, load_student
from ..students.encode import EncodedExample, Encoder
from ..students.packed import PackedExamples, packed
from .imported import base_folder

__all__ = ["encoded", "read_examples", "train"]

PACKING = 1  # raised where the same rows would be encoded otherwise


def train(recipe: Recipe, run: Run, out: Path, progress: Progress) -> dict[str, Any]:
    """Leave `adapter/`, `checkpoints/` and `metrics.jsonl`."""
    weights, base = base_folder(recipe, run, progress)
    encoder = Encoder(base)
    rows = run.folder("curate")
    data = TrainingData(
        train=encoded(encoder, rows / "train.jsonl", recipe, run.scratch / "tokens"),
        valid=encoded(encoder, rows / "valid.jsonl", recipe, run.scratch / "tokens"),
        seed=recipe.seed,
    )
    student = load_student(recipe.student, base)
    summary = student.train(data, recipe.train, out, _reporter(progress))
    quant = weights.quant if weights.format == "gguf" else None
    source = {"name": weights.name, "sha256": weights.sha256, "source": weights.source, "licence": weights.licence}
    return {**summary, "base": {**source, "imported_from_quant": quant}}


def encoded(encoder: Encoder, path: Path, recipe: Recipe, scratch: Path) -> PackedExamples:
    """The rows of a file as token ids, behind the student's system text, in files under `scratch`.

    Raises InvalidInput that names a row longer than `train.max_length`: a cut row would teach a cut answer.
    """
    longest = recipe.train.max_length

    def rows() -> Iterator[EncodedExample]:
        for example in read_examples(path):
            row = encoder.example(replace(example, messages=with_system(recipe.student.system, example.messages)))
            if len(row.tokens) > longest:
                raise InvalidInput(
                    f"{path}: row {row.id} has {len(row.tokens)} tokens, train.max_length is {longest}",
                    "Raise train.max_length or drop the row.",
                )
            yield row

    key = digest(PACKING, file_sha256(path), encoder.identity, recipe.student.system, longest)
    return packed(scratch / path.stem / key[:16], rows())


def read_examples(path: Path) -> Iterator[Example]:
    """The rows that curate kept, read as they are needed."""
    for number, row in read_rows(path):
        yield Example(str(row.get("_ed", {}).get("id", number)), messages_of(f"{path}:{number}", row))


def _reporter(progress: Progress) -> Callable[[TrainStep], None]:
    def report(step: TrainStep) -> None:
        progress(f"training (loss {step.loss:.3f})", step.step, step.steps)

    return report
