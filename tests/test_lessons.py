"""A lesson's rows add up to the loss that they stand for, whatever the student says, and in whatever shape they go."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgedistill.students.divergence import Divergence, divergence
from edgedistill.students.encode import EncodedExample
from edgedistill.students.lessons import (
    NO_TAIL,
    Batch,
    Lesson,
    Rows,
    answers_lesson,
    collated,
    cooled,
    hard_lesson,
    paths,
    text_lesson,
)
from edgedistill.targets import Targets

Answers = dict[tuple[int, ...], float]

VOCABULARY = 7
END = 0
SEED = st.integers(0, 10_000)
WORDS = st.lists(st.integers(1, VOCABULARY - 1), max_size=4).map(tuple)
PROMPT = st.lists(st.integers(1, VOCABULARY - 1), min_size=1, max_size=5)


@st.composite
def closed_sets(draw: st.DrawFn, least: int = 1, ends: bool = True) -> Answers:
    """Answers with probabilities above 0; each with an end token, or else some a part of others."""
    texts = draw(st.lists(WORDS if ends else WORDS.filter(len), min_size=least, max_size=8, unique=True))
    weight = st.sampled_from((1e-6, 0.02, 0.3, 1.0, 5.0))
    weights = draw(st.lists(weight, min_size=len(texts), max_size=len(texts)))
    answers = [(*text, END) if ends else text for text in texts]
    return {answer: weight / sum(weights) for answer, weight in zip(answers, weights, strict=True)}


class Student:
    """Any distribution behind any path of tokens, always the same behind the same one."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def __call__(self, path: Sequence[int]) -> NDArray[np.float64]:
        logits = 3 * np.random.default_rng([self._seed, len(path), *path]).standard_normal(VOCABULARY)
        return np.asarray(logits - np.log(np.exp(logits).sum()))

    def log_share(self, prompt: Sequence[int], answer: Sequence[int]) -> float:
        """The log of the probability of a whole answer behind a prompt."""
        return sum(float(self([*prompt, *answer[:place]])[token]) for place, token in enumerate(answer))

    def at_rows(self, lesson: Lesson) -> NDArray[np.float64]:
        """(R, V) What it says at each loss row, by the path that leads there."""
        return np.stack([self(path_to(lesson, at)) for at in lesson.rows.at.tolist()])


def path_to(lesson: Lesson, place: int) -> list[int]:
    path = []
    while place != -1:
        path.append(int(lesson.tokens[place]))
        place = int(lesson.parents[place])
    return path[::-1]


def cross_entropy(rows: Rows, logs: NDArray[np.float64]) -> float:
    """The rows' weights times their cross entropies: with the token, and with the kept distribution."""
    total = 0.0
    for row, log_q in enumerate(logs):
        real = rows.logprobs[row] > -np.inf
        shares, ids = np.exp(rows.logprobs[row, real].astype(np.float64)), rows.ids[row, real]
        outside = 1 - np.exp(log_q[ids]).sum()
        tail = 0.0 if rows.tail[row] == NO_TAIL else math.exp(rows.tail[row]) * math.log(outside)
        total -= rows.ce[row] * log_q[rows.token[row]] + rows.soft[row] * (float((shares * log_q[ids]).sum()) + tail)
    return float(total)


def assert_same(one: Lesson, other: Lesson) -> None:
    for name in ("tokens", "parents"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), name)
    assert_same_rows(one.rows, other.rows)


def assert_same_rows(one: Rows, other: Rows) -> None:
    for name in Rows.__slots__:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), name)


def assert_sound(lesson: Lesson) -> None:
    """What the docstrings promise of shapes, types, order and padding."""
    rows = lesson.rows
    kinds = {name: getattr(rows, name).dtype for name in Rows.__slots__}
    assert kinds == {name: np.int32 if name in ("at", "token", "ids") else np.float32 for name in kinds}
    assert lesson.tokens.dtype == lesson.parents.dtype == np.int32
    assert (lesson.parents < np.arange(len(lesson))).all()
    assert ((rows.at >= 0) & (rows.at < len(lesson))).all()
    assert len(set(rows.at.tolist())) == len(rows)
    assert rows.ids.shape == rows.logprobs.shape
    padding = rows.logprobs == -np.inf
    assert not padding[:, 0].any()
    assert (rows.ids == np.where(padding, rows.ids[:, :1], rows.ids)).all()
    assert ((rows.ids >= 0) & (rows.ids < VOCABULARY)).all()


def targets_for(tokens: Sequence[int], seed: int, profile: str) -> Targets:
    """A distribution for each token, with one to four entries."""
    source = np.random.default_rng(seed)
    ids, logprobs, tails, counts = [], [], [], []
    for _ in tokens:
        count = int(source.integers(1, 5))
        shares = source.dirichlet(np.ones(count + (profile == "top_k")))
        kept = np.sort(shares[:count])[::-1]
        ids.append(source.permutation(VOCABULARY)[:count])
        logprobs.append(np.log(kept))
        tails.append(1 - kept.sum() if profile == "top_k" else 0.0)
        counts.append(count)
    return Targets(
        profile=profile,
        tokens=np.array(tokens, np.int32),
        offsets=np.cumsum([0, *counts], dtype=np.int64),
        ids=np.concatenate([np.empty(0, np.int32), *ids]).astype(np.int32),
        logprobs=np.concatenate([np.empty(0, np.float32), *logprobs]).astype(np.float32),
        tail=np.array(tails, np.float32),
    )


@given(PROMPT, WORDS)
def test_a_text_alone_is_learned_by_every_token_of_its_answer(prompt: list[int], words: tuple[int, ...]) -> None:
    answer = (*words, END)
    lesson = text_lesson("a", [*prompt, *answer], len(prompt))
    assert_sound(lesson)
    assert lesson.is_chain
    assert not lesson.rows.is_soft
    assert [path_to(lesson, at) for at in lesson.rows.at] == [[*prompt, *answer[:n]] for n in range(len(answer))]
    assert tuple(lesson.rows.token) == answer
    assert_same(lesson, hard_lesson(EncodedExample("a", (*prompt, *answer), len(prompt))))


@given(PROMPT, WORDS, SEED, st.integers(0, 5), st.sampled_from(("top_k", "sampled")), st.floats(0.0, 1.0))
def test_a_soft_text_weighs_token_and_distribution(
    prompt: list[int], words: tuple[int, ...], seed: int, unknown: int, profile: str, ce_weight: float
) -> None:
    answer = (*words, END)
    known = max(0, len(answer) - unknown)
    targets = targets_for(answer[:known], seed, profile)
    lesson = text_lesson("a", [*prompt, *answer], len(prompt), targets, ce_weight)
    assert_sound(lesson)
    student = Student(seed)
    expected = 0.0
    for place, token in enumerate(answer):
        log_q = student([*prompt, *answer[:place]])
        if place >= known:
            expected -= log_q[token]
            continue
        entries = slice(targets.offsets[place], targets.offsets[place + 1])
        soft = -(np.exp(targets.logprobs[entries].astype(np.float64)) * log_q[targets.ids[entries]]).sum()
        if profile == "top_k":
            outside = 1 - np.exp(log_q[targets.ids[entries]]).sum()
            soft -= float(targets.tail[place]) * math.log(outside)
        expected += -ce_weight * log_q[token] + (1 - ce_weight) * soft
    assert cross_entropy(lesson.rows, student.at_rows(lesson)) == pytest.approx(expected, rel=1e-5, abs=1e-5)
    np.testing.assert_array_equal(lesson.rows.ce[known:], 1.0)
    np.testing.assert_array_equal(lesson.rows.soft[known:], 0.0)
    assert (lesson.rows.tail[known:] == NO_TAIL).all()
    assert (lesson.rows.tail[:known] == NO_TAIL).all() == (profile == "sampled" or known == 0)


def test_a_distribution_without_a_tail_still_has_a_bucket_for_it() -> None:
    # what is left over is 0 up to rounding; the student's share there must be pulled down all the same
    targets = replace(targets_for([2], 1, "top_k"), tail=np.zeros(1, np.float32))
    tail = float(text_lesson("a", [1, 2], 1, targets, 0.0).rows.tail[0])
    assert math.isfinite(tail)
    assert tail < -80


@pytest.mark.parametrize("given_tokens", [[3], [2, 3], [2, 0, 1]])
def test_targets_of_another_text_are_refused(given_tokens: list[int]) -> None:
    with pytest.raises(ValueError, match="another text"):
        text_lesson("a", [5, 2, 0], 1, targets_for(given_tokens, 1, "top_k"))


@given(PROMPT, closed_sets(), SEED)
def test_the_rows_of_closed_answers_are_the_cross_entropy_over_whole_answers(
    prompt: list[int], answers: Answers, seed: int
) -> None:
    lesson = answers_lesson("a", prompt, answers)
    assert_sound(lesson)
    student = Student(seed)
    expected = -sum(share * student.log_share(prompt, answer) for answer, share in answers.items())
    assert cross_entropy(lesson.rows, student.at_rows(lesson)) == pytest.approx(expected, rel=1e-5, abs=1e-5)


@given(PROMPT, closed_sets(ends=False), SEED)
def test_an_answer_that_another_one_begins_with_is_learned_as_far_as_it_goes(
    prompt: list[int], answers: Answers, seed: int
) -> None:
    lesson, student = answers_lesson("a", prompt, answers), Student(seed)
    expected = -sum(share * student.log_share(prompt, answer) for answer, share in answers.items())
    assert cross_entropy(lesson.rows, student.at_rows(lesson)) == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_an_answer_that_another_one_begins_with_ends_at_a_fork() -> None:
    lesson = answers_lesson("a", [5], {(1, 2, END): 0.75, (1, 2, 3, END): 0.25})
    rows = {tuple(path_to(lesson, at)): number for number, at in enumerate(lesson.rows.at.tolist())}
    assert list(rows) == [(5,), (5, 1), (5, 1, 2), (5, 1, 2, 3)]
    assert lesson.rows.ce.tolist() == [1.0, 1.0, 0.0, 0.25]
    assert lesson.rows.soft.tolist() == [0.0, 0.0, 1.0, 0.0]
    fork = rows[5, 1, 2]
    assert lesson.rows.ids[fork].tolist() == [END, 3]
    assert np.exp(lesson.rows.logprobs[fork]).tolist() == pytest.approx([0.75, 0.25])


@given(PROMPT, closed_sets(), SEED)
def test_the_divergences_of_the_forks_add_up_to_that_of_whole_answers(
    prompt: list[int], answers: Answers, seed: int
) -> None:
    lesson, student = answers_lesson("a", prompt, answers), Student(seed)
    rows, logs = lesson.rows, student.at_rows(lesson)
    log_q = np.take_along_axis(logs, rows.ids.astype(np.int64), axis=1)
    value, _ = divergence(np, rows.logprobs.astype(np.float64), log_q, rows.logprobs > -np.inf, Divergence())
    found = float((rows.soft * value).sum() - (rows.ce * logs[np.arange(len(rows)), rows.token]).sum())
    expected = sum(share * (math.log(share) - student.log_share(prompt, answer)) for answer, share in answers.items())
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)


@given(PROMPT, WORDS)
def test_one_certain_answer_is_learned_as_its_text_is(prompt: list[int], words: tuple[int, ...]) -> None:
    answer = (*words, END)
    assert_same(answers_lesson("a", prompt, {answer: 1.0}), text_lesson("a", [*prompt, *answer], len(prompt)))


@given(closed_sets(), st.floats(0.25, 4.0), st.floats(0.0, 0.99))
def test_a_temperature_softens_before_a_floor_leaves_out(answers: Answers, temperature: float, floor: float) -> None:
    shares = np.array(list(answers.values())) ** (1 / temperature)
    shares /= shares.sum()
    if np.abs(shares - floor).min() < 1e-9:
        return  # rounding decides
    kept = shares >= min(floor, shares.max())
    expected = np.where(kept, shares, 0.0) / shares[kept].sum()
    found = cooled(list(answers.values()), temperature, floor)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert found.sum() == pytest.approx(1.0)
    assert found.max() > 0


def test_a_floor_above_every_answer_keeps_the_best_ones() -> None:
    assert cooled([0.4, 0.4, 0.2], 1.0, 0.9).tolist() == [0.5, 0.5, 0.0]


@pytest.mark.parametrize("temperature", [1e-3, 1.0, 1e3])
def test_probabilities_that_vanish_stay_defined(temperature: float) -> None:
    found = cooled([0.0, 1e-300, 0.6, 0.4], temperature, 0.0)
    assert np.isfinite(found).all()
    assert found[0] == 0.0
    assert found.sum() == pytest.approx(1.0)


@given(PROMPT, closed_sets(), SEED)
def test_paths_hold_every_row_once_and_the_same_loss(prompt: list[int], answers: Answers, seed: int) -> None:
    lesson, student = answers_lesson("a", prompt, answers), Student(seed)
    found = paths(lesson)
    for one in found:
        assert one.is_chain
        assert one.id == lesson.id
        assert len(one.rows)
        assert_sound(one)

    def seen(part: Lesson) -> list[tuple[Any, ...]]:
        columns = (part.rows.token, part.rows.ce, part.rows.soft, part.rows.tail)
        return [
            (*path_to(part, at), *(column[row].item() for column in columns), part.rows.ids[row].tobytes())
            for row, at in enumerate(part.rows.at.tolist())
        ]

    assert sorted(row for one in found for row in seen(one)) == sorted(seen(lesson))
    parts = [cross_entropy(one.rows, student.at_rows(one)) for one in found]
    assert sum(parts) == pytest.approx(cross_entropy(lesson.rows, student.at_rows(lesson)), rel=1e-6, abs=1e-6)


def a_lesson(number: int, seed: int) -> Lesson:
    """One of three kinds: a text, a soft text, closed answers."""
    source = np.random.default_rng([seed, number])
    prompt = source.integers(1, VOCABULARY, source.integers(1, 6)).tolist()
    answer = [*source.integers(1, VOCABULARY, source.integers(0, 5)).tolist(), END]
    if number % 3 == 0:
        return text_lesson(f"{number}", [*prompt, *answer], len(prompt))
    if number % 3 == 1:
        targets = targets_for(answer[: len(answer) - number % 2], seed, "top_k")
        return text_lesson(f"{number}", [*prompt, *answer], len(prompt), targets, 0.25)
    texts = {(*source.integers(1, VOCABULARY, source.integers(0, 4)).tolist(), END) for _ in range(4)}
    return answers_lesson(f"{number}", prompt, dict(zip(texts, source.dirichlet(np.ones(len(texts))), strict=True)))


def assert_holds(batch: Batch, lessons: Sequence[Lesson], seed: int) -> None:
    """Every token stands in a cell of its own, sees its own path alone, at its depth; the rows are all there."""
    assert batch.ids == tuple(lesson.id for lesson in lessons)
    assert batch.used == sum(map(len, lessons))
    lines, width = batch.tokens.shape
    tokens, positions = batch.tokens.reshape(-1), batch.positions.reshape(-1)
    causal = np.tri(width, dtype=bool)
    assert batch.visible is None or batch.visible.shape == (lines, width, width)

    def read(at: int) -> list[int]:
        """The tokens that a cell sees, by position."""
        line, column = divmod(at, width)
        seen = np.flatnonzero(causal[column] if batch.visible is None else batch.visible[line, column])
        cells = line * width + seen
        assert positions[cells].tolist() == list(range(len(cells)))
        assert positions[at] == len(cells) - 1
        return [int(token) for token in tokens[cells]]

    at = batch.rows.at.tolist()
    expected = [path_to(lesson, place) for lesson in lessons for place in lesson.rows.at.tolist()]
    assert [read(place) for place in at] == expected
    student = Student(seed)
    logs = np.stack([student(read(place)) for place in at])
    parts = [cross_entropy(lesson.rows, student.at_rows(lesson)) for lesson in lessons]
    assert cross_entropy(batch.rows, logs) == pytest.approx(sum(parts), rel=1e-6, abs=1e-6)
    if batch.visible is not None:
        assert batch.visible[:, np.arange(width), np.arange(width)].all()  # a row without any would be no softmax
        assert not (batch.visible & ~causal).any()


@given(st.lists(st.integers(0, 30), min_size=1, max_size=6), SEED, st.integers(0, 9), st.booleans())
def test_a_batch_lets_each_token_see_its_own_path_alone(
    numbers: list[int], seed: int, more: int, is_packed: bool
) -> None:
    lessons = [a_lesson(number, seed) for number in numbers]
    width = max(map(len, lessons)) + more
    batch = collated(lessons, None if is_packed else width, is_packed)
    assert batch.tokens.shape == ((1, batch.used) if is_packed else (len(lessons), width))
    assert (batch.visible is None) == (not is_packed and all(lesson.is_chain for lesson in lessons))
    assert_holds(batch, lessons, seed)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=6), SEED)
def test_a_batch_is_as_wide_as_its_longest_lesson(numbers: list[int], seed: int) -> None:
    lessons = [a_lesson(number, seed) for number in numbers]
    assert collated(lessons).tokens.shape == (len(lessons), max(map(len, lessons)))


def test_joined_rows_are_padded_as_each_lessons_own_are() -> None:
    narrow, wide = a_lesson(0, 1), answers_lesson("b", [5], {(n, END): 0.25 for n in (1, 2, 3, 4)})
    rows = collated([narrow, wide]).rows
    assert rows.ids.shape[1] == 4
    assert (rows.ids[: len(narrow.rows)] == narrow.rows.token[:, None]).all()
    assert (rows.logprobs[: len(narrow.rows), 1:] == -np.inf).all()
    np.testing.assert_array_equal(rows.ids[len(narrow.rows) :], wide.rows.ids)


def test_no_lessons_token_is_seen_by_another_lesson_in_a_pack() -> None:
    lessons = [a_lesson(number, 7) for number in range(6)]
    visible = collated(lessons, packed=True).visible
    assert visible is not None
    owner = np.repeat(np.arange(6), [len(lesson) for lesson in lessons])
    assert not visible[0][owner[:, None] != owner[None, :]].any()
