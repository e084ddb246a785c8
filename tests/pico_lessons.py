"""Examples for the pico models, and lessons of each kind drawn from an example's number."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edgedistill.records import Example, Message
from edgedistill.students.chunks import Chunks
from edgedistill.students.encode import EncodedExample
from edgedistill.students.lessons import Lesson, answers_lesson, hard_lesson

VOCABULARY, END = 290, 2
"""Ids below the first are in a pico model; the second ends an answer."""


def example(number: int, question: str, answer: str) -> Example:
    turns = (Message("system", ""), Message("user", question), Message("assistant", answer))
    return Example(f"row{number}", turns)


def soft_lesson(example: EncodedExample) -> Lesson:
    """Random distributions of up to eight tokens and a tail, beside the text."""
    source, plain = np.random.default_rng(int(example.id)), hard_lesson(example)
    count, kept = len(plain.rows), int(source.integers(2, 9))
    ids = np.stack([source.choice(VOCABULARY, kept, replace=False) for _ in range(count)]).astype(np.int32)
    logs = np.log(source.dirichlet(np.ones(kept + 1), count)).astype(np.float32)
    weights = np.full((2, count), [[0.3], [0.7]], np.float32)
    rows = replace(plain.rows, ce=weights[0], soft=weights[1], ids=ids, logprobs=logs[:, :-1], tail=logs[:, -1])
    return replace(plain, rows=rows)


def closed_lesson(example: EncodedExample) -> Lesson:
    """Four answers that branch off behind the prompt."""
    source = np.random.default_rng(int(example.id))
    shares = source.dirichlet(np.ones(4)).tolist()
    answers = {(*source.integers(3, VOCABULARY, 3).tolist(), END): share for share in shares}
    return answers_lesson(example.id, example.tokens[: example.start], answers)


def runs_lesson(example: EncodedExample) -> Lesson:
    """The first two rows, and the next one, by the probability that a teacher gives to their text."""
    plain = hard_lesson(example)
    ce = plain.rows.ce.copy()
    ce[:3] = 0.25
    logprob, weight = np.log(np.array([0.4, 0.7], np.float32)), np.array([0.75, 0.75], np.float32)
    runs = Chunks(np.array([[0, 2], [2, 3]], np.int32), logprob, weight)
    return replace(plain, rows=replace(plain.rows, ce=ce), chunks=runs)
