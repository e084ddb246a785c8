"""The divergence on sparse buckets is the textbook's, its slope its derivative, and the same in every library."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from required import required_or_skipped

from edgedistill.students.divergence import LEAST_LOG, Divergence, divergence

Array = NDArray[Any]

KINDS = ("forward_kl", "reverse_kl", "jsd")
SEED = st.integers(0, 10_000)
BUCKETS = st.integers(1, 40)
SPREAD = st.floats(0.0, 6.0)
HOW = st.builds(
    Divergence,
    kind=st.sampled_from(KINDS),
    beta=st.floats(0.05, 0.95),
    temperature=st.one_of(st.just(1.0), st.floats(0.5, 4.0)),
)


def buckets(seed: int, count: int, spread: float, rows: int = 3) -> tuple[Array, Array, Array]:
    """Log-masses of a teacher and a student in so many buckets, each row normalised, and which of them are real.

    Padding holds numbers that must not matter. No mass is below what a stored tail is good to.
    """
    source = np.random.default_rng(seed)
    present = np.arange(count) < source.integers(1, count + 1, rows)[:, None]
    present = np.take_along_axis(present, source.random(present.shape).argsort(axis=1), axis=1)
    logs = []
    for _ in range(2):
        mass = np.exp(spread * source.standard_normal(present.shape)) * present
        mass = np.maximum(mass / mass.sum(axis=1, keepdims=True), 2e-6) * present
        mass /= mass.sum(axis=1, keepdims=True)
        logs.append(np.where(present, np.log(np.where(present, mass, 1.0)), source.uniform(-30, 30, present.shape)))
    return logs[0], logs[1], present


def defined(p: Array, q: Array, how: Divergence) -> float:
    """The definition on two plain distributions, in float64."""
    if how.temperature != 1.0:
        p, q = p ** (1 / how.temperature), q ** (1 / how.temperature)
        p, q = p / p.sum(), q / q.sum()

    def kl(one: Array, other: Array) -> float:
        return float((one * np.log(one / other)).sum())

    mixture = how.beta * p + (1 - how.beta) * q
    values = {
        "forward_kl": lambda: kl(p, q),
        "reverse_kl": lambda: kl(q, p),
        "jsd": lambda: how.beta * kl(p, mixture) + (1 - how.beta) * kl(q, mixture),
    }
    return how.temperature**2 * values[how.kind]()


@given(SEED, BUCKETS, SPREAD, HOW)
def test_it_is_the_definition_on_the_buckets(seed: int, count: int, spread: float, how: Divergence) -> None:
    log_p, log_q, present = buckets(seed, count, spread)
    value, slope = divergence(np, log_p.astype(np.float32), log_q.astype(np.float32), present, how)
    assert value.shape == (3,)
    assert value.dtype == slope.dtype == np.float32
    for row, real in enumerate(present):
        expected = defined(np.exp(log_p[row, real]), np.exp(log_q[row, real]), how)
        assert value[row] == pytest.approx(expected, rel=2e-5, abs=2e-5)
        assert not slope[row, ~real].any()


@given(SEED, st.integers(2, 30), st.integers(1, 29), st.floats(0.0, 3.0), HOW)
def test_it_compares_two_dense_distributions_whose_rest_is_one_bucket(
    seed: int, size: int, kept: int, spread: float, how: Divergence
) -> None:
    kept = min(kept, size - 1)
    source = np.random.default_rng(seed)
    logits = spread * source.standard_normal((2, size))
    p, q = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    largest = np.argsort(-p)[:kept]
    merged = [np.append(one[largest], np.delete(one, largest).sum()) for one in (p, q)]
    assume(merged[0].min() > 1.1e-6)  # what is less is taken for 1e-6: a stored tail is no better
    log_p, log_q = (np.log(one)[None].astype(np.float32) for one in merged)
    value, _ = divergence(np, log_p, log_q, np.ones((1, kept + 1), bool), how)
    assert value[0] == pytest.approx(defined(merged[0], merged[1], how), rel=2e-5, abs=2e-5)


@given(SEED, BUCKETS, st.floats(0.0, 3.0), HOW)
def test_the_slope_is_the_derivative_by_each_log_mass(seed: int, count: int, spread: float, how: Divergence) -> None:
    log_p, log_q, present = buckets(seed, count, spread)
    _, slope = divergence(np, log_p, log_q, present, how)
    step = 1e-6
    for bucket in range(count):
        sides = []
        for moved in (step, -step):
            other = log_q.copy()
            other[:, bucket] += moved
            sides.append(divergence(np, log_p, other, present, how)[0])
        numeric = (sides[0] - sides[1]) / (2 * step)
        np.testing.assert_allclose(slope[:, bucket], numeric, rtol=1e-4, atol=1e-7)


@given(SEED, BUCKETS, SPREAD, HOW)
def test_it_is_never_negative_and_nothing_between_equals(seed: int, count: int, spread: float, how: Divergence) -> None:
    log_p, log_q, present = buckets(seed, count, spread)
    value, _ = divergence(np, log_p.astype(np.float32), log_q.astype(np.float32), present, how)
    assert (value > -1e-5 * how.temperature**2).all()
    same, slope = divergence(np, log_p, log_p, present, how)
    assert np.abs(same).max() < 1e-12
    # what a step of the logits can change is the slope less its mean over the student's masses
    pull = np.where(present, slope - np.exp(log_p) * slope.sum(axis=1, keepdims=True), 0.0)
    assert np.abs(pull).max() < 1e-10


@given(SEED, BUCKETS, SPREAD, st.floats(0.5, 4.0))
def test_jsd_of_equal_parts_is_symmetric_and_bounded(seed: int, count: int, spread: float, temperature: float) -> None:
    log_p, log_q, present = buckets(seed, count, spread)
    how = Divergence("jsd", 0.5, temperature)
    one, _ = divergence(np, log_p, log_q, present, how)
    other, _ = divergence(np, log_q, log_p, present, how)
    np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)
    assert (one <= temperature**2 * np.log(2) + 1e-9).all()


@given(SEED, BUCKETS, SPREAD, st.floats(0.05, 0.95))
def test_jsd_with_beta_turned_round_is_the_other_ones(seed: int, count: int, spread: float, beta: float) -> None:
    log_p, log_q, present = buckets(seed, count, spread)
    one, _ = divergence(np, log_p, log_q, present, Divergence("jsd", beta))
    other, _ = divergence(np, log_q, log_p, present, Divergence("jsd", 1 - beta))
    np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


@given(SEED, BUCKETS, st.floats(0.0, 2.0), st.sampled_from(("forward_kl", "reverse_kl")))
def test_a_high_temperature_compares_logs(seed: int, count: int, spread: float, kind: Any) -> None:
    # arXiv 1503.02531, section 2: towards T^2 / 2 times the mean square of the differences of the logits, each less
    # its own mean
    log_p, log_q, present = buckets(seed, count, spread)
    value, _ = divergence(np, log_p, log_q, present, Divergence(kind, temperature=1e4))
    for row, real in enumerate(present):
        difference = log_p[row, real] - log_q[row, real]
        assert value[row] == pytest.approx(difference.var() / 2, rel=1e-2, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_teacher_holds_for_impossible_counts_as_one_in_a_million(kind: Any) -> None:
    present = np.ones((1, 2), bool)
    log_q = np.log(np.array([[0.5, 0.5]], np.float32))
    clipped, least = (np.array([[0.0, low]], np.float32) for low in (-87.0, LEAST_LOG))
    one, other = (divergence(np, log_p, log_q, present, Divergence(kind)) for log_p in (clipped, least))
    assert one[0] == other[0]
    assert (one[1] == other[1]).all()
    assert np.isfinite(one[0]).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [0.02, 0.1, 0.25, 1.0, 10.0, 1000.0])
@pytest.mark.parametrize("far", [0.0, -20.0, -87.0])
def test_it_is_finite_at_every_temperature(kind: Any, temperature: float, far: float) -> None:
    # without a bucket for the other tokens, the student may hold the kept ones for next to impossible
    log_p = np.log(np.array([[0.9, 0.1 - 1e-6, 1e-6]], np.float32))
    log_q = np.array([[far, far - 3.0, far - 13.0]], np.float32)
    value, slope = divergence(np, log_p, log_q, np.ones((1, 3), bool), Divergence(kind, 0.5, temperature))
    assert np.isfinite(value).all()
    assert np.isfinite(slope).all()


@pytest.fixture(scope="module", params=["torch", "mlx.core"])
def library(request: pytest.FixtureRequest) -> Any:
    """A library of arrays beside numpy."""
    backend = request.param.partition(".")[0]
    required_or_skipped(backend, (backend,))
    return import_module(request.param)


@given(SEED, BUCKETS, SPREAD, HOW)
def test_every_library_gives_the_same(library: Any, seed: int, count: int, spread: float, how: Divergence) -> None:
    log_p, log_q, present = buckets(seed, count, spread)
    log_p, log_q = log_p.astype(np.float32), log_q.astype(np.float32)
    expected = divergence(np, log_p, log_q, present, how)
    to_array = library.from_numpy if library.__name__ == "torch" else library.array
    found = divergence(library, to_array(log_p), to_array(log_q), to_array(present), how)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == library.float32
        np.testing.assert_allclose(one.tolist(), other, rtol=2e-5, atol=2e-5)
