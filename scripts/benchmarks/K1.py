"""K1: soft against hard distillation on the demo's commands, Qwen2.5-Coder-1.5B to 0.5B, which share a tokenizer.

Same rows, same steps, same order. Measured are the mean KL(teacher || student) per token on commands held out, over
what is kept of the teacher's distributions, and the answers to eval.jsonl: equal to the right one, to the teacher's.
`--ways hard soft mixed` measures too what half of each loss comes to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from statistics import fmean
from typing import Any

from distilling import Trial, Workshop, options, share_equal
from measure import finish

from edgedistill.records import Prompt
from edgedistill.students.encode import EncodedExample
from edgedistill.students.lessons import Lesson, hard_lesson, text_lesson

STUDENT = "qwen2.5-coder-0.5b-instruct"


def main() -> None:
    given = options(__doc__, rows=200, epochs=1, ways=("hard", "soft", "mixed"))
    shop = Workshop(STUDENT, given)

    def example(prompt: Prompt) -> EncodedExample:
        """In the very tokens that the teacher wrote, and the one that ends them."""
        found = shop.example(prompt)
        written, end = shop.targets(prompt.id).tokens.tolist(), found.tokens[-1]
        ended = written if written[-1] == end else [*written, end]
        return replace(found, tokens=(*found.tokens[: found.start], *ended))

    def learned(ce_weight: float) -> Callable[[EncodedExample], Lesson]:
        def lesson(example: EncodedExample) -> Lesson:
            targets = shop.targets(example.id)
            return text_lesson(example.id, example.tokens, example.start, targets, ce_weight=ce_weight)

        return lesson

    def scored(example: EncodedExample) -> Lesson:
        """Without an end that the teacher did not score: nothing but the divergence is measured."""
        targets = shop.targets(example.id)
        tokens = example.tokens[: example.start + len(targets.tokens)]
        return text_lesson(example.id, tokens, example.start, targets, ce_weight=0.0)

    ways = {"hard": hard_lesson, "soft": learned(0.0), "mixed": learned(0.5)}
    results: dict[str, list[dict[str, Any]]] = {way: [] for way in given.ways}
    for seed, way in product(range(given.seeds), given.ways):  # a stopped measurement has all ways of some seeds
        results[way].append(shop.result(Trial(way, seed, ways[way], scored), example))
    right = {prompt.id: prompt.expected for prompt in shop.eval}
    teacher = {prompt.id: shop.answer(prompt) for prompt in shop.eval}
    kl = {way: [round(row["loss"], 5) for row in rows] for way, rows in results.items()}
    exact = {way: [round(share_equal(row["answers"], right), 2) for row in rows] for way, rows in results.items()}
    agreement = {way: [round(share_equal(row["answers"], teacher), 2) for row in rows] for way, rows in results.items()}
    lower = sum(soft < hard for soft, hard in zip(kl["soft"], kl["hard"], strict=True))
    finish(
        "K1",
        lower,
        given.seeds,
        lower == given.seeds and fmean(exact["soft"]) >= fmean(exact["hard"]),
        peer="hard, the same rows and steps",
        unit="seeds with the lower held-out KL",
        n=len(shop.rows),
        learning_rate=shop.recipe.train.learning_rate,
        steps=results["soft"][0]["steps"],
        kl=kl,
        exact=exact,
        agreement=agreement,
        teacher_exact=round(share_equal(teacher, right), 2),
    )


if __name__ == "__main__":
    main()
