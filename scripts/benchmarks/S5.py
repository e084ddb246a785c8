"""S5: cells of the demo's training batches that hold no token, of all cells; the same rows in random order beside it.

The batches are those that the student's training makes, over all epochs of the recipe.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

from demo_rows import RECIPE, ROWS, demo_base, demo_rows
from measure import finish

from edgedistill.recipe import load_recipe
from edgedistill.students.batching import epoch_batches
from edgedistill.students.encode import EncodedExample
from edgedistill.students.lessons import collated, hard_lesson

BAR = 0.02


def padded(rows: Sequence[EncodedExample], epochs: Sequence[Sequence[Sequence[int]]]) -> float:
    """The share of cells without a token, as the batches are laid out for the model."""
    used, cells = 0, 0
    for batches in epochs:
        for members in batches:
            batch = collated([hard_lesson(rows[member]) for member in members])
            used += batch.used
            cells += batch.tokens.size
    return 1 - used / cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, default=ROWS, help="train.jsonl of the curate stage")
    options = parser.parse_args()
    settings, seed = load_recipe(RECIPE).train, load_recipe(RECIPE).seed
    rows = demo_rows(demo_base(), options.rows, 0)
    size = settings.batch_size
    ours = padded(rows, [epoch_batches(rows, size, seed + epoch) for epoch in range(settings.epochs)])
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    unsorted = padded(rows, [[order[start : start + size] for start in range(0, len(order), size)]])
    lengths = [len(row.tokens) for row in rows]
    finish(
        "S5",
        round(ours, 5),
        BAR,
        ours <= BAR,
        peer="the same rows in random order",
        unit="padded / all cells",
        n=len(rows),
        random_order=round(unsorted, 5),
        batch_size=size,
        tokens={"shortest": min(lengths), "mean": round(sum(lengths) / len(lengths), 1), "longest": max(lengths)},
    )


if __name__ == "__main__":
    main()
