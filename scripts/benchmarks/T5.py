"""T5: rows that are useful, of all rows that the slots could have computed, where answers' lengths are log-normal.

The lengths are not known to the scheduler; a row is one slot at one step. A pico model with random weights: the figure
is a count, not a time.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
from measure import finish

from edgedistill.llamacpp.answer import Answerer, AnswererSettings
from edgedistill.llamacpp.layout import Layout
from edgedistill.llamacpp.requests import Request
from edgedistill.llamacpp.sampling import Sampling

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

SLOTS, COUNT, MEDIAN, SIGMA, LONGEST = 16, 1024, 40, 0.8, 400


class Untold(Request):
    """A request that looks as long as every other one: the scheduler does not know where its answer ends."""

    @property
    def cells(self) -> int:
        return LONGEST + 8


def main() -> None:
    from pico import pico_gguf

    lengths = np.random.default_rng(0).lognormal(np.log(MEDIAN), SIGMA, COUNT).clip(1, LONGEST).astype(int)
    with tempfile.TemporaryDirectory() as folder:
        path = pico_gguf(Path(folder) / "pico.gguf", "qwen2", tied=False, seed=3)
        with Answerer(path, (), None, AnswererSettings(2)) as answerer:
            hello = answerer.model.tokenize("hello")
            requests = [Untold(str(n), 0, hello, Sampling(int(length))) for n, length in enumerate(lengths)]
            with answerer.engine(Layout(SLOTS, split=False), requests) as engine:
                written = sum(len(answer.tokens) for answer in engine.run(requests))
                useful = 1 - engine.idle_rows / engine.slot_steps
    static = sum(int(lengths[at : at + SLOTS].sum()) for at in range(0, COUNT, SLOTS)) / sum(
        SLOTS * int(lengths[at : at + SLOTS].max()) for at in range(0, COUNT, SLOTS)
    )
    finish("T5", round(useful, 4), 0.95, useful >= 0.95, peer=f"batches that wait for their longest: {static:.2f}",
           unit="useful rows / (slots x steps)", n=COUNT, tokens=written, meant=int(lengths.sum()))  # fmt: skip


if __name__ == "__main__":
    main()
