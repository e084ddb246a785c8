"""Models compared over the same tokens: exact divergences, whatever the grouping, the prompt or the vocabulary."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pico import pico_gguf, silent

from edgedistill.errors import EdgeDistillError, InvalidInput
from edgedistill.llamacpp import comparison
from edgedistill.llamacpp.comparison import Comparison, ScoredText, Side, compare, divergence_between, in_chunks
from edgedistill.llamacpp.divergence import Divergence, KeptRow, Reduction, Rows, kept_rows
from edgedistill.llamacpp.probe import kl_divergence, next_token_logits
from edgedistill.targets import Capture, CaptureSettings, decode

needs_llama_cpp = pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason="llama_cpp is not installed")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pico")
    return [pico_gguf(folder / f"{seed}.gguf", seed=seed) for seed in (1, 2)]


def texts(count: int, shared: int = 0, longest: int = 40) -> list[ScoredText]:
    random = np.random.default_rng(count)
    head = tuple(random.integers(3, 250, shared).tolist())
    found = []
    for _ in range(count):
        prompt, answer = (random.integers(3, 250, random.integers(2, longest)).tolist() for _ in range(2))
        found.append(ScoredText((*head, *prompt, *answer), shared + len(prompt)))
    return found


def one_by_one(path: Path, rows: list[ScoredText]) -> np.ndarray:
    """The logits before every scored token, each text decoded from its beginning."""
    before = [row.tokens[:place] for row in rows for place in range(row.start, len(row.tokens))]
    return next_token_logits(path, before, 1)


@needs_llama_cpp
@pytest.mark.parametrize("shared", [0, 20])
def test_divergences_are_those_of_the_texts_decoded_one_by_one(models: list[Path], shared: int) -> None:
    rows = texts(7, shared)
    (found,) = divergence_between(models[0], models[1:], rows, 2, silent)
    ours, theirs = (one_by_one(path, rows) for path in models)
    assert found.kl.shape == (sum(row.scored for row in rows),)
    assert np.allclose(found.kl, kl_divergence(ours, theirs), atol=3e-3)  # other batches round otherwise
    assert (found.reference_top == ours.argmax(axis=1)).mean() > 0.99
    assert (found.other_top == theirs.argmax(axis=1)).mean() > 0.99


@needs_llama_cpp
def test_a_model_is_no_way_from_itself(models: list[Path]) -> None:
    (found,) = divergence_between(models[0], models[:1], texts(3), 2, silent)
    assert found.kl.max() < 1e-9
    assert found.summary()["top1"] == 1.0


@needs_llama_cpp
def test_long_texts_and_many_scored_tokens_go_through_small_batches(
    models: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [*texts(3, longest=30), ScoredText(tuple(range(3, 200)), 50)]
    whole = divergence_between(models[0], models[1:], rows, 1, silent)[0].kl
    monkeypatch.setattr(comparison, "CELLS", 32)
    monkeypatch.setattr(comparison, "OUTPUTS", 7)
    pieces = divergence_between(models[0], models[1:], rows, 1, silent)[0].kl
    assert np.allclose(whole, pieces, atol=3e-3)


@needs_llama_cpp
def test_sides_may_have_prompts_of_their_own(models: list[Path]) -> None:
    """The teacher sees a guide, the student does not; what they answer is compared token by token."""
    plain = texts(5)
    guided = [ScoredText((*range(10, 40), *row.tokens), 30 + row.start) for row in plain]
    found = compare([Side(models[0], guided), Side(models[1], plain)], Comparison([(0, 1), (1, 0)]), 2, silent).pairs
    ours, theirs = one_by_one(models[0], guided), one_by_one(models[1], plain)
    assert np.allclose(found[0].kl, kl_divergence(ours, theirs), atol=3e-3)
    assert np.allclose(found[1].kl, kl_divergence(theirs, ours), atol=3e-3)


@needs_llama_cpp
def test_sides_that_do_not_match_are_refused(models: list[Path]) -> None:
    rows = texts(3)
    other = [*rows[:2], ScoredText(rows[2].tokens, rows[2].start + 1)]
    with pytest.raises(InvalidInput, match="different scored tokens"):
        compare([Side(models[0], rows), Side(models[1], other)], Comparison([(0, 1)]), 1, silent)
    with pytest.raises(InvalidInput, match="without a scored token"):
        divergence_between(models[0], models[1:], [ScoredText((4, 5), 2)], 1, silent)
    with pytest.raises(InvalidInput, match="the model knows 4096"):
        divergence_between(models[0], models[1:], [ScoredText((4,) * 4200, 1)], 1, silent)


def test_a_long_text_is_cut_into_whole_chunks() -> None:
    assert in_chunks(list(range(10)), 4, 2) == [ScoredText((0, 1, 2, 3), 2), ScoredText((4, 5, 6, 7), 2)]


def reduced(logits: list[np.ndarray], pairs: list[tuple[int, int]], kept: list[KeptRow | None] | None = None) -> list:
    width = min(one.shape[1] for one in logits)
    kept_for = [len(logits) - 1] if kept else []
    with Reduction(width, len(logits), pairs, kept_for, 2) as reduction:
        reduction.add(Rows([list(one) for one in logits], kept or []))
        found, held = reduction.found()
    return [*found, *held]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(2, 70), st.floats(0.01, 30), st.floats(-1e3, 1e3))
def test_the_reduction_is_exact(seed: int, rows: int, columns: int, scale: float, shift: float) -> None:
    random = np.random.default_rng(seed)
    logits = [
        (scale * random.standard_normal((rows, columns + extra)) + shift).astype(np.float32) for extra in (0, 3, 0)
    ]
    pairs = [(0, 1), (0, 2), (1, 0), (1, 2)]
    for (one, other), found in zip(pairs, reduced(logits, pairs), strict=True):
        cut = [logits[number][:, :columns] for number in (one, other)]
        expected = kl_divergence(*cut)
        assert np.allclose(found.kl, expected, atol=2e-5 + 1e-6 * abs(shift), rtol=1e-4)
        assert (found.reference_top == cut[0].argmax(axis=1)).all()
        assert (found.other_top == cut[1].argmax(axis=1)).all()


def test_the_divergence_of_near_distributions_is_good_to_a_millionth() -> None:
    random = np.random.default_rng(0)
    one = (5 * random.standard_normal((4, 50_000))).astype(np.float32)
    other = one + (1e-2 * random.standard_normal(one.shape)).astype(np.float32)
    (found,) = reduced([one, other], [(0, 1)])
    assert found.kl.min() > 1e-6
    assert np.allclose(found.kl, kl_divergence(one, other), atol=1e-6)


def test_logits_that_are_not_finite_are_refused() -> None:
    logits = np.zeros((2, 5), np.float32)
    broken = logits.copy()
    broken[1, 2] = np.nan
    with pytest.raises(EdgeDistillError, match="not finite"):
        reduced([logits, broken], [(0, 1)])


def test_kept_distributions_are_a_reference_of_their_own() -> None:
    random = np.random.default_rng(3)
    teacher, student = ((3 * random.standard_normal((4, 300))).astype(np.float32) for _ in range(2))
    capture = Capture(CaptureSettings("top_k", mass=0.99, largest=300, draws=1), 300, seed=0)
    for row in teacher[:3]:
        capture.add(int(row.argmax()), row)
    kept = [*kept_rows(decode(capture.encoded())), None]
    _, found = reduced([teacher, student], [(0, 1)], kept)
    exact = kl_divergence(teacher, student)[:3]
    assert np.isnan(found.kl[3])
    assert (found.kl[:3] <= exact + 0.05).all()
    assert np.allclose(found.kl[:3], exact, rtol=0.1)
    assert (found.reference_top[:3] == teacher[:3].argmax(axis=1)).all()
    assert found.summary()["tokens"] == 3


def test_drawn_tokens_are_no_distribution() -> None:
    capture = Capture(CaptureSettings("sampled", mass=1.0, largest=8, draws=5), 20, seed=0)
    capture.add(1, np.zeros(20, np.float32))
    with pytest.raises(ValueError, match="no distribution"):
        kept_rows(decode(capture.encoded()))


def test_a_summary_has_percentiles_and_the_worst_places() -> None:
    kl = np.array([0.0, 3.0, 1.0, np.nan])
    found = Divergence(kl, np.array([1, 2, 3, 4], np.int32), np.array([1, 2, 9, 9], np.int32))
    assert found.worst(5) == [1, 2]
    assert found.summary() == pytest.approx(
        {"mean": 4 / 3, "p99": 2.96, "p999": 2.996, "max": 3.0, "top1": 2 / 3, "tokens": 3}
    )
