"""The fused head has the values and gradients of the dense loss, in every backend, and holds no rows x vocabulary."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from required import required_or_skipped

from edgedistill.students import BACKENDS
from edgedistill.students.divergence import LEAST_LOG, Divergence
from edgedistill.students.lessons import NO_TAIL, Rows

Array = NDArray[Any]

ROWS, VOCABULARY, WIDTH, KEPT = 37, 301, 24, 7
CHUNK = 8  # does not divide ROWS
EXACT = 1e-5
HOWS = (
    Divergence(),
    Divergence("reverse_kl"),
    Divergence("jsd", 0.3),
    Divergence("jsd", 0.7, 2.0),
    Divergence("forward_kl", 0.5, 3.0),
    Divergence("reverse_kl", 0.5, 0.5),
)


@dataclass(frozen=True)
class Found:
    """What a head returns; gradients are those of twice the total."""

    total: float
    each: Array
    by_hidden: Array
    by_head: Array | None


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    pytest.importorskip("torch")  # the dense loss that all are held against
    required_or_skipped(request.param, BACKENDS[request.param][0])
    return str(request.param)


def rows_of(seed: int, tail: bool = True, soft: bool = True, ce: bool = True) -> Rows:
    """Rows with 1 to KEPT kept tokens, padded to one width; some without weights, some without a tail."""
    source = np.random.default_rng(seed)
    ids = np.stack([source.choice(VOCABULARY, KEPT, replace=False) for _ in range(ROWS)]).astype(np.int32)
    logs = np.log(source.dirichlet(np.ones(KEPT + 1), ROWS)).astype(np.float32)
    logprobs, rest = logs[:, :-1].copy(), np.exp(logs[:, -1])
    for row, count in enumerate(source.integers(1, KEPT + 1, ROWS)):
        rest[row] += np.exp(logprobs[row, count:]).sum()
        ids[row, count:], logprobs[row, count:] = ids[row, 0], -np.inf
    token = source.integers(0, VOCABULARY, ROWS).astype(np.int32)
    token[::2] = ids[::2, 0]
    has_tail = source.random(ROWS) < 0.8 if tail else np.zeros(ROWS, bool)
    weights = source.random((2, ROWS)).astype(np.float32) * np.array([[ce], [soft]], np.float32)
    weights[0, 3] = weights[1, 4] = 0.0
    weights[:, 5] = 0.0
    return Rows(
        at=np.arange(ROWS, dtype=np.int32),
        token=token,
        ce=weights[0],
        soft=weights[1],
        ids=ids,
        logprobs=logprobs,
        tail=np.where(has_tail, np.log(rest), NO_TAIL).astype(np.float32),
    )


def inputs(seed: int, spread: float = 1.0) -> tuple[Array, Array]:
    source = np.random.default_rng(1000 + seed)
    hidden = spread * source.standard_normal((ROWS, WIDTH))
    return hidden.astype(np.float32), source.standard_normal((VOCABULARY, WIDTH)).astype(np.float32)


def dense(hidden: Array, head: Array, rows: Rows, how: Divergence) -> Found:
    """The definitions in float64, with all logits in memory, and what autograd makes of them."""
    import torch

    h, w = (torch.tensor(values, dtype=torch.float64, requires_grad=True) for values in (hidden, head))
    log_q = (h @ w.T).log_softmax(-1)
    total = torch.zeros((), dtype=torch.float64)
    each = np.zeros((len(rows), 2))
    for row in range(len(rows)):
        present = rows.logprobs[row] > -np.inf
        kept = torch.tensor(rows.ids[row][present].astype(np.int64))
        p, q = torch.tensor(rows.logprobs[row][present], dtype=torch.float64), log_q[row, kept]
        if rows.tail[row] > NO_TAIL:
            others = torch.ones(head.shape[0], dtype=torch.bool)
            others[kept] = False
            p = torch.cat([p, torch.tensor([rows.tail[row]], dtype=torch.float64)])
            q = torch.cat([q, log_q[row, others].logsumexp(0)[None]])
        ce, value = -log_q[row, rows.token[row]], compared(p.clamp_min(LEAST_LOG), q, how)
        total = total + ce * float(rows.ce[row]) + value * float(rows.soft[row])
        each[row] = ce.item(), value.item() if rows.is_soft else 0.0
    (2 * total).backward()
    return Found(total.item(), each, h.grad.numpy(), w.grad.numpy())


def compared(log_p: Any, log_q: Any, how: Divergence) -> Any:
    """The divergence of two vectors of logs."""
    t = how.temperature
    if t != 1.0:
        log_p, log_q = (log_p / t).log_softmax(0), (log_q / t).log_softmax(0)
    p, q = log_p.exp(), log_q.exp()
    log_m = (how.beta * p + (1 - how.beta) * q).log()
    values = {
        "forward_kl": (p * (log_p - log_q)).sum(),
        "reverse_kl": (q * (log_q - log_p)).sum(),
        "jsd": how.beta * (p * (log_p - log_m)).sum() + (1 - how.beta) * (q * (log_q - log_m)).sum(),
    }
    return t**2 * values[how.kind]


def fused(backend: str, hidden: Array, head: Array, rows: Rows, how: Divergence, learns: bool = True) -> Found:
    """The same by a backend's fused head, in float32."""
    return {"torch": torch_fused, "mlx": mlx_fused}[backend](hidden, head, rows, how, learns)


def torch_fused(hidden: Array, head: Array, rows: Rows, how: Divergence, learns: bool) -> Found:
    import torch

    from edgedistill.students.torch_head import HeadRows, head_loss

    h = torch.from_numpy(hidden).requires_grad_()
    w = torch.from_numpy(head.copy()).requires_grad_(learns)
    total, each = head_loss(h, w, HeadRows.of(rows, h.device), how, CHUNK)
    (2 * total).backward()
    return Found(total.item(), each.numpy(), h.grad.numpy(), w.grad.numpy() if learns else None)


def mlx_fused(hidden: Array, head: Array, rows: Rows, how: Divergence, learns: bool) -> Found:
    import mlx.core as mx

    from edgedistill.students.mlx_head import Head, HeadRows, head_loss, head_value

    given = HeadRows.of(rows)

    def twice(hidden: Any, weight: Any) -> Any:
        total, each = head_loss(hidden, Head(weight, learns), given, how, CHUNK)
        return 2 * total, each

    h, w = mx.array(hidden), mx.array(head)
    (total, each), found = mx.value_and_grad(twice, argnums=(0, 1) if learns else 0)(h, w)
    by_hidden, by_head = found if learns else (found, None)
    alone, again = head_value(h, Head(w), given, how, CHUNK)
    assert alone.item() == pytest.approx(total.item() / 2, rel=1e-6)
    assert np.allclose(np.array(again), np.array(each), rtol=1e-6, atol=1e-6)
    return Found(total.item() / 2, np.array(each), np.array(by_hidden), np.array(by_head) if learns else None)


def apart(found: Array | None, expected: Array | None) -> float:
    """The largest difference, relative to the largest value."""
    assert found is not None
    assert expected is not None
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-30))


def assert_like_dense(found: Found, expected: Found, within: float = EXACT) -> None:
    assert found.total == pytest.approx(expected.total, rel=within)
    assert apart(found.each, expected.each) < within
    assert apart(found.by_hidden, expected.by_hidden) < within
    assert apart(found.by_head, expected.by_head) < within


@pytest.mark.parametrize("tail", [True, False], ids=["tail", "no tail"])
@pytest.mark.parametrize("how", HOWS, ids=lambda how: f"{how.kind}-{how.beta}-{how.temperature}")
def test_a_soft_loss_and_its_gradients_are_the_dense_ones(backend: str, how: Divergence, tail: bool) -> None:
    hidden, head = inputs(0)
    rows = rows_of(1, tail=tail)
    assert_like_dense(fused(backend, hidden, head, rows, how), dense(hidden, head, rows, how))


@pytest.mark.parametrize(("ce", "soft"), [(True, False), (False, True)], ids=["text alone", "distribution alone"])
def test_either_loss_alone_is_the_dense_one(backend: str, ce: bool, soft: bool) -> None:
    hidden, head = inputs(2)
    rows = rows_of(3, ce=ce, soft=soft)
    found = fused(backend, hidden, head, rows, Divergence())
    assert_like_dense(found, dense(hidden, head, rows, Divergence()))
    assert found.each[:, 1].any() == soft


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.0, 3.0), st.sampled_from(HOWS))
def test_a_sure_student_and_an_unsure_one_have_the_dense_gradients(seed: int, spread: float, how: Divergence) -> None:
    pytest.importorskip("torch")
    hidden, head = inputs(seed, spread)
    rows = rows_of(seed)
    expected = dense(hidden, head, rows, how)
    for name, (libraries, _) in BACKENDS.items():
        required_or_skipped(name, libraries)
        assert_like_dense(fused(name, hidden, head, rows, how), expected, within=1e-4)


def test_a_student_that_leaves_nothing_to_the_other_tokens_has_a_gradient(backend: str) -> None:
    """All of its probability is on kept tokens, as far as float32 can tell; the teacher has some elsewhere."""
    hidden, head = inputs(4)
    rows = rows_of(5)
    for row in range(ROWS):
        hidden[row] = 60 * head[rows.ids[row, 0]] / np.linalg.norm(head[rows.ids[row, 0]])
    for how in HOWS:
        found = fused(backend, hidden, head, rows, how)
        assert np.isfinite(found.total)
        assert np.isfinite(found.by_hidden).all()
        assert np.isfinite(found.by_head).all()  # type: ignore[arg-type]


def test_a_frozen_head_changes_no_other_gradient(backend: str) -> None:
    hidden, head = inputs(6)
    rows = rows_of(7)
    frozen = fused(backend, hidden, head, rows, Divergence(), learns=False)
    assert frozen.by_head is None
    assert apart(frozen.by_hidden, fused(backend, hidden, head, rows, Divergence()).by_hidden) < 1e-6


def test_rows_that_weigh_nothing_teach_nothing(backend: str) -> None:
    hidden, head = inputs(8)
    rows = rows_of(9)
    rows = replace(rows, ce=np.zeros_like(rows.ce), soft=np.where(np.arange(ROWS) == 2, rows.soft, 0))
    by_hidden = fused(backend, hidden, head, rows, Divergence("jsd", 0.5, 2.0)).by_hidden
    assert by_hidden[2].any()
    assert not np.delete(by_hidden, 2, axis=0).any()


def test_a_kept_token_may_stand_in_any_place(backend: str) -> None:
    hidden, head = inputs(10)
    rows = rows_of(11)
    full = np.flatnonzero((rows.logprobs > -np.inf).all(axis=1))
    turned = replace(rows, ids=rows.ids.copy(), logprobs=rows.logprobs.copy())
    turned.ids[full], turned.logprobs[full] = rows.ids[full, ::-1], rows.logprobs[full, ::-1]
    one, other = (fused(backend, hidden, head, given, Divergence("reverse_kl")) for given in (rows, turned))
    assert apart(one.by_hidden, other.by_hidden) < 1e-6


@pytest.mark.parametrize("how", HOWS[:3], ids=lambda how: how.kind)
def test_sixteen_bits_stay_finite_and_near(backend: str, how: Divergence) -> None:
    hidden, head = inputs(12)
    rows = rows_of(13)
    expected = dense(hidden, head, rows, how)
    total, slope = {"torch": torch_bfloat16, "mlx": mlx_bfloat16}[backend](hidden, head, rows, how)
    assert math.isfinite(total)
    assert total == pytest.approx(expected.total, rel=0.02)
    assert apart(slope, expected.by_hidden) < 0.05


def torch_bfloat16(hidden: Array, head: Array, rows: Rows, how: Divergence) -> tuple[float, Array]:
    import torch

    from edgedistill.students.torch_head import HeadRows, head_loss

    h = torch.from_numpy(hidden).bfloat16().requires_grad_()
    total, _ = head_loss(h, torch.from_numpy(head).bfloat16(), HeadRows.of(rows, h.device), how, CHUNK)
    (2 * total).backward()
    return float(total.detach()), h.grad.float().numpy()


def mlx_bfloat16(hidden: Array, head: Array, rows: Rows, how: Divergence) -> tuple[float, Array]:
    import mlx.core as mx

    from edgedistill.students.mlx_head import Head, HeadRows, head_loss

    weight, given = mx.array(head).astype(mx.bfloat16), HeadRows.of(rows)
    step = mx.value_and_grad(lambda hidden: 2 * head_loss(hidden, Head(weight), given, how, CHUNK)[0])
    total, slope = step(mx.array(hidden).astype(mx.bfloat16))
    assert slope.dtype == mx.bfloat16
    return float(np.array(total)) / 2, np.array(slope.astype(mx.float32))


# -- memory


@pytest.mark.parametrize("soft", [True, False], ids=["soft", "hard"])
def test_torch_makes_no_tensor_larger_than_a_chunk_of_logits(soft: bool) -> None:
    torch = pytest.importorskip("torch")
    from torch.utils._python_dispatch import TorchDispatchMode

    sizes: list[int] = []

    class Watching(TorchDispatchMode):  # type: ignore[misc]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            made = out if isinstance(out, (tuple, list)) else [out]
            sizes.extend(part.numel() for part in made if isinstance(part, torch.Tensor))
            return out

    hidden, head = inputs(16)
    with Watching():
        torch_fused(hidden, head, rows_of(17, soft=soft), Divergence(), learns=False)
    assert max(sizes) == max(CHUNK * VOCABULARY, head.size)
    assert max(sizes) < ROWS * VOCABULARY


@pytest.mark.parametrize("soft", [True, False], ids=["soft", "hard"])
@pytest.mark.parametrize("learns", [True, pytest.param(False, marks=pytest.mark.compiled)], ids=["learning", "frozen"])
def test_mlx_holds_a_few_chunks_of_logits_at_a_time(soft: bool, learns: bool) -> None:
    required_or_skipped("mlx", BACKENDS["mlx"][0])
    import mlx.core as mx

    from edgedistill.students.mlx_head import Head, HeadRows, head_loss

    vocabulary, count, chunk = 20_000, 1024, 8
    rows = rows_of(18, soft=soft)
    given = HeadRows.of(
        Rows(*(np.resize(getattr(rows, name), (count, *getattr(rows, name).shape[1:])) for name in Rows.__slots__))
    )
    hidden, weight = mx.random.normal((count, WIDTH)), mx.random.normal((vocabulary, WIDTH))
    how = Divergence("jsd", 0.3, 2.0)
    step = mx.value_and_grad(
        lambda h, w: head_loss(h, Head(w, learns), given, how, chunk)[0], (0, 1) if learns else (0,)
    )
    mx.eval(hidden, weight)
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    _, found = mx.compile(step)(hidden, weight)
    mx.eval(found)
    piece, whole = 4 * chunk * vocabulary, 4 * count * vocabulary
    # mlx makes room for what it has only planned yet, up to some hundred operations
    assert mx.get_peak_memory() - before < 32 * piece + 4 * weight.nbytes < whole / 2
    for compiled, plain in zip(found, step(hidden, weight)[1], strict=True):
        assert apart(np.array(compiled), np.array(plain)) < EXACT


# -- heads in 4 bits


@pytest.mark.parametrize("kind", ["linear", "embedding"])
def test_a_quantized_head_has_the_loss_and_the_gradient_of_what_it_stands_for(kind: str) -> None:
    pytest.importorskip("torch")
    required_or_skipped("mlx", BACKENDS["mlx"][0])
    import mlx.core as mx
    import mlx.nn as nn

    from edgedistill.students.mlx_head import Head, HeadRows, head_loss

    source, rows, how = np.random.default_rng(19), rows_of(20), Divergence()
    hidden = source.standard_normal((ROWS, 64)).astype(np.float32)
    plain = nn.Linear(64, VOCABULARY, bias=False) if kind == "linear" else nn.Embedding(VOCABULARY, 64)
    packed = plain.to_quantized(group_size=32, bits=4)
    meant = mx.dequantize(packed.weight, packed.scales, packed.biases, group_size=32, bits=4)
    step = mx.value_and_grad(lambda h: 2 * head_loss(h, Head.of(packed), HeadRows.of(rows), how, CHUNK)[0])
    total, slope = step(mx.array(hidden))
    expected = dense(hidden, np.array(meant), rows, how)
    assert total.item() / 2 == pytest.approx(expected.total, rel=EXACT)
    assert apart(np.array(slope), expected.by_hidden) < EXACT
