"""K3: soft against hard distillation across tokenizers on the demo's commands, Qwen2.5-Coder-1.5B to SmolLM2-135M.

Same rows, same steps, same order. Measured is how many of the student's answers to eval.jsonl, written greedily and not
held to the schema, are the teacher's. "soft" is what the package does: equal tokens by their distribution, other runs
of tokens by their likelihood, as in ALM. `--ways` takes others to compare with: "pairs", equal tokens by their
distribution and the rest by its text, as the matched part of TRL's GOLD; "uld", Universal Logit Distillation (TMLR
2025, arXiv 2402.12030): beside the text, sorted probabilities, position by position.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from statistics import fmean
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from distilling import Trial, Workshop, options, share_equal
from measure import finish

from edgedistill.students.alignment import Aligned, Aligner
from edgedistill.students.chunks import Chunks
from edgedistill.students.encode import EncodedExample
from edgedistill.students.lessons import Lesson, aligned_lesson, hard_lesson
from edgedistill.students.tokens import FolderTokens, opened_tokens
from edgedistill.students.torch_head import HeadRows

STUDENT = "smollm2-135m-instruct"
WAYS = ("hard", "soft", "pairs", "uld")
ULD_WEIGHT = 1.5
"""Of the sorted probabilities beside the text's cross entropy, as in the paper's experiments."""


class Lessons:
    """What a row teaches, in each of the ways."""

    def __init__(self, shop: Workshop) -> None:
        self._shop = shop
        self._known: dict[str, Aligned] = {}
        end = shop.encoder.completion("-")[-1]
        with opened_tokens(shop.teacher.path) as teacher:
            pieces = FolderTokens(shop.base, shop.encoder).pieces
            self._aligner = Aligner(teacher.pieces, pieces, dict.fromkeys(teacher.ends, end))

    def of(self, way: str) -> Callable[[EncodedExample], Lesson]:
        """The lesson of an example."""
        ways = {"hard": hard_lesson, "soft": self._soft, "pairs": self._pairs, "uld": self._uld}
        return ways[way]

    def aligned(self, example: EncodedExample) -> Aligned:
        """The teacher's distributions for the student's tokens."""
        if example.id not in self._known:
            answer = example.tokens[example.start :]
            self._known[example.id] = self._aligner.align(self._shop.targets(example.id), answer)
        return self._known[example.id]

    def _soft(self, example: EncodedExample) -> Lesson:
        return aligned_lesson(example.id, example.tokens, example.start, self.aligned(example))

    def _pairs(self, example: EncodedExample) -> Lesson:
        none = Chunks(np.empty((0, 2), np.int32), np.empty(0, np.float32), np.empty(0, np.float32))
        return aligned_lesson(example.id, example.tokens, example.start, replace(self.aligned(example), chunks=none))

    def _uld(self, example: EncodedExample) -> Lesson:
        lesson, targets = hard_lesson(example), self._shop.targets(example.id)
        rows, counts = lesson.rows, np.diff(targets.offsets)[: len(lesson.rows)]
        logprobs = np.full((len(rows), int(counts.max())), -np.inf, np.float32)
        for row, count in enumerate(counts.tolist()):
            logprobs[row, :count] = targets.logprobs[targets.offsets[row] :][:count]
        tail = rows.tail.copy()
        tail[: len(counts)] = np.log(np.maximum(targets.tail[: len(counts)], 1e-30))
        soft = np.where(np.arange(len(rows)) < len(counts), ULD_WEIGHT, 0.0).astype(np.float32)
        ids = np.repeat(rows.token[:, None], logprobs.shape[1], axis=1)
        return replace(lesson, rows=replace(rows, soft=soft, ids=ids, logprobs=logprobs, tail=tail))


def uld_loss(hidden: Any, head: Any, rows: HeadRows, how: Any, chunk: Any = None) -> tuple[Any, Any]:
    """As `head_loss`, with the L1 distance of sorted probabilities in place of the divergence.

    What was not kept of the teacher's is compared as one mass.
    """
    logs = torch.log_softmax((hidden @ head.T).float(), dim=1)
    largest = logs.topk(rows.logprobs.shape[1], dim=1).values.exp()
    apart = (largest - rows.logprobs.exp()).abs().sum(dim=1) + (1 - largest.sum(dim=1) - rows.tail.exp()).abs()
    ce = -logs.gather(1, rows.token[:, None])[:, 0]
    return (ce * rows.ce + apart * rows.soft).sum(), torch.stack([ce, apart], dim=1).detach()


@contextmanager
def loss_of(way: str) -> Iterator[None]:
    """The block with the loss of a way that is none of the package's."""
    if way != "uld":
        yield
        return
    with patch("edgedistill.students.torch.head_loss", uld_loss):
        yield


def main() -> None:
    given = options(__doc__, rows=300, epochs=2, ways=WAYS)
    shop = Workshop(STUDENT, given)
    lessons = Lessons(shop)
    results: dict[str, list[dict[str, Any]]] = {}
    for way in given.ways:
        measured = lessons.of("uld" if way == "uld" else "soft")
        with loss_of(way):
            trials = (Trial(way, seed, lessons.of(way), measured) for seed in range(given.seeds))
            results[way] = [shop.result(trial, shop.example) for trial in trials]
    teacher = {prompt.id: shop.answer(prompt) for prompt in shop.eval}
    right = {prompt.id: prompt.expected for prompt in shop.eval}
    agreement = {way: [round(share_equal(row["answers"], teacher), 2) for row in rows] for way, rows in results.items()}
    gain = {way: round(fmean(found) - fmean(agreement["hard"]), 2) for way, found in agreement.items()}
    finish(
        "K3",
        gain["soft"],
        1.0,
        gain["soft"] >= 1.0,
        peer="hard, the same rows and steps",
        unit="points of agreement with the teacher, mean over seeds",
        n=len(shop.rows),
        steps=results["soft"][0]["steps"],
        agreement=agreement,
        gain=gain,
        exact={way: [round(share_equal(row["answers"], right), 2) for row in rows] for way, rows in results.items()},
        loss={way: [round(row["loss"], 5) for row in rows] for way, rows in results.items()},
        seconds={way: [row["seconds"] for row in rows] for way, rows in results.items()},
        teacher_exact=round(share_equal(teacher, right), 2),
        aligned_share=round(fmean(lessons.aligned(shop.example(prompt)).share for prompt in shop.rows), 4),
    )


if __name__ == "__main__":
    main()
