"""Runs of tokens that teacher and student cut up in other ways, compared as a whole."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from required import required_or_skipped

from edgedistill.students.chunks import Chunks, chunk_divergence, joined_chunks
from edgedistill.students.divergence import Divergence
from edgedistill.students.lessons import NO_TAIL, Rows

SEED = st.integers(0, 10_000)

HOW = st.builds(
    Divergence,
    kind=st.sampled_from(("forward_kl", "reverse_kl", "jsd")),
    beta=st.floats(0.1, 0.9),
    temperature=st.sampled_from((1.0, 0.7, 2.0)),
)


def test_chunks_side_by_side_count_the_rows_before_them() -> None:
    one = Chunks(np.array([[0, 2], [3, 4]], np.int32), np.array([-1, -2], np.float32), np.ones(2, np.float32))
    none = Chunks(np.empty((0, 2), np.int32), np.empty(0, np.float32), np.empty(0, np.float32))
    found = joined_chunks([None, one, none, one], [0, 5, 9, 10])
    assert found is not None
    assert found.bounds.tolist() == [[5, 7], [8, 9], [10, 12], [13, 14]]
    assert found.rows.tolist() == [5, 6, 8, 10, 11, 13]
    assert found.numbers.tolist() == [0, 0, 1, 2, 2, 3]
    assert found.rows_weight == 6.0
    assert joined_chunks([None, none], [0, 3]) is None
    assert none.rows.tolist() == none.numbers.tolist() == []


LOGS = st.lists(st.floats(-8.0, -1e-3), min_size=1, max_size=5).map(np.array)


@given(LOGS, SEED, HOW)
@settings(deadline=None)
def test_a_run_is_compared_as_the_odds_of_its_text(log_p: NDArray[np.float64], seed: int, how: Divergence) -> None:
    log_q = -np.random.default_rng(seed).exponential(2.0, len(log_p)) - 1e-3
    value, slope = chunk_divergence(np, log_p, log_q, how)
    p, q = np.exp(log_p), np.exp(log_q)
    if how == Divergence():
        assert value == pytest.approx(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)), rel=1e-6, abs=1e-9)
    step = 1e-6
    higher, lower = (chunk_divergence(np, log_p, log_q + change, how)[0] for change in (step, -step))
    assert slope == pytest.approx((higher - lower) / (2 * step), rel=1e-3, abs=1e-4)


def test_a_teacher_that_is_sure_of_a_run_teaches_it_like_its_text() -> None:
    log_q = np.array([-3.0, -0.1, -1e-7], np.float32)
    value, slope = chunk_divergence(np, np.zeros(3, np.float32), log_q, Divergence())
    assert value == pytest.approx(-log_q, abs=2e-5)
    assert slope[:2] == pytest.approx([-1.0, -1.0], abs=2e-5)
    assert np.isfinite(slope).all()


def runs(source: np.random.Generator, size: int) -> tuple[Rows, Chunks]:
    """Nine rows of a vocabulary of so many tokens, some of them in three runs."""
    token = source.integers(0, size, 9).astype(np.int32)
    bounds = np.array([[1, 3], [4, 5], [6, 9]], np.int32)
    chunks = Chunks(bounds, -source.exponential(1, 3).astype(np.float32), source.random(3).astype(np.float32))
    rows = Rows(
        at=np.arange(9, dtype=np.int32),
        token=token,
        ce=source.random(9).astype(np.float32),
        soft=np.zeros(9, np.float32),
        ids=token[:, None],
        logprobs=np.zeros((9, 1), np.float32),
        tail=np.full(9, NO_TAIL, np.float32),
    )
    return rows, chunks


@given(SEED, HOW, st.booleans(), st.booleans())
@settings(deadline=None, max_examples=40)
def test_runs_in_the_fused_head_are_those_of_dense_autograd(
    seed: int, how: Divergence, learns: bool, has_text: bool
) -> None:
    required_or_skipped("torch", ("torch",))
    import torch

    from edgedistill.students.torch_chunks import with_chunks
    from edgedistill.students.torch_head import HeadRows, head_loss

    source = np.random.default_rng(seed)
    rows, chunks = runs(source, size=17)
    rows = replace(rows, ce=rows.ce * has_text)
    hidden = torch.tensor(source.standard_normal((len(rows), 6)), dtype=torch.float32, requires_grad=True)
    head = torch.tensor(source.standard_normal((17, 6)), dtype=torch.float32, requires_grad=learns)

    changed, more = with_chunks(hidden, head, HeadRows.of(rows, hidden.device), chunks, how)
    total, _ = head_loss(hidden, head, changed, how)
    (total + more).backward()

    exact, weights = (tensor.detach().double().requires_grad_() for tensor in (hidden, head))
    own = torch.log_softmax(exact @ weights.T, dim=1).gather(1, torch.from_numpy(rows.token).long()[:, None])[:, 0]
    expected = -(own * torch.from_numpy(rows.ce)).sum()
    for number, (first, last) in enumerate(chunks.bounds.tolist()):
        log_q, log_p = own[first:last].sum()[None], torch.tensor([float(chunks.logprob[number])], dtype=torch.float64)
        expected = expected + chunk_divergence(torch, log_p, log_q, how)[0][0] * float(chunks.weight[number])
    expected.backward()
    assert float(total.detach() + more) == pytest.approx(float(expected.detach()), rel=1e-4, abs=1e-5)
    assert hidden.grad is not None
    assert hidden.grad.numpy() == pytest.approx(exact.grad.numpy(), rel=1e-3, abs=1e-5)
    if learns:
        assert head.grad is not None
        assert head.grad.numpy() == pytest.approx(weights.grad.numpy(), rel=1e-3, abs=1e-5)


@given(SEED, HOW)
@settings(deadline=None, max_examples=20)
def test_runs_are_the_same_in_mlx(seed: int, how: Divergence) -> None:
    required_or_skipped("torch", ("torch",))
    required_or_skipped("mlx", ("mlx",))
    import mlx.core as mx
    import torch

    from edgedistill.students import mlx_chunks, mlx_head, torch_chunks, torch_head

    source = np.random.default_rng(seed)
    rows, chunks = runs(source, size=17)
    states, weights = (source.standard_normal((count, 6)).astype(np.float32) for count in (len(rows), 17))

    hidden = torch.tensor(states, requires_grad=True)
    changed, more = torch_chunks.with_chunks(
        hidden, torch.tensor(weights), torch_head.HeadRows.of(rows, hidden.device), chunks, how
    )
    expected = torch_head.head_loss(hidden, torch.tensor(weights), changed, how)[0] + more
    expected.backward()
    assert hidden.grad is not None

    def loss(hidden: Any) -> Any:
        head, arrays = mlx_head.Head(mx.array(weights)), mlx_chunks.chunk_arrays(chunks, 8, 16)
        changed, more = mlx_chunks.with_chunks(hidden, head, mlx_head.HeadRows.of(rows), arrays, how)
        return mlx_head.head_loss(hidden, head, changed, how)[0] + more

    value, slope = mx.value_and_grad(loss)(mx.array(states))
    assert value.item() == pytest.approx(float(expected.detach()), rel=1e-4, abs=1e-5)
    assert np.array(slope) == pytest.approx(hidden.grad.numpy(), rel=1e-3, abs=1e-5)
