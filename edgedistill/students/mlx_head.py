"""The output head and the loss in one, for MLX: nothing of the size rows x vocabulary is kept.

The same as `torch_head`: logits are made for a few rows at a time, turned into their own gradient, and carried back to
the hidden state at once. MLX computes when it is asked and in an order of its own, so each piece is made to depend on
the one before it: else all of them would be in memory at the same time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from .divergence import Divergence, divergence
from .lessons import Rows

__all__ = ["Head", "HeadRows", "head_loss", "head_value"]

CHUNK_BYTES = 16 << 20
"""Float32 logits of one piece. MLX makes room for some pieces before it has computed the first."""
TINY = 1.1754943508222875e-38


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """An output head without a bias: a `Linear`'s weight, or a tied embedding's, of shape (V, H), as it is or in bits.

    `learns` tells whether it gets a gradient; MLX's arrays do not know that themselves.
    """

    weight: mx.array
    learns: bool = False
    scales: mx.array | None = None
    """For a quantized head, whose weight is packed; then it cannot learn."""
    biases: mx.array | None = None
    group_size: int = 0
    bits: int = 0
    mode: str = "affine"

    @classmethod
    def of(cls, module: Any, learns: bool = False) -> Head:
        """The head in an `nn.Linear`, an `nn.Embedding`, or in one of these quantized."""
        if "scales" not in module:
            return cls(module.weight, learns)
        more = (module.group_size, module.bits, module.mode)
        return cls(module.weight, False, module.scales, module.get("biases"), *more)

    @property
    def vocabulary(self) -> int:
        """V."""
        return int(self.weight.shape[0])

    def logits(self, hidden: mx.array) -> mx.array:
        """(r, H) to (r, V), in the dtype of `hidden`."""
        return hidden @ self.weight.T if self.scales is None else self._quantized(hidden, True)

    def back(self, slope: mx.array) -> mx.array:
        """(r, V) to (r, H), in the dtype of `slope`."""
        return slope @ self.weight if self.scales is None else self._quantized(slope, False)

    def _quantized(self, values: mx.array, transpose: bool) -> mx.array:
        return mx.quantized_matmul(
            values, self.weight, self.scales, self.biases, transpose, self.group_size, self.bits, self.mode
        )


@dataclass(frozen=True, slots=True, eq=False)
class HeadRows:
    """`Rows` as MLX arrays; see there."""

    token: mx.array
    ce: mx.array
    soft: mx.array
    ids: mx.array | None
    """None where no row is soft."""
    logprobs: mx.array
    tail: mx.array

    @classmethod
    def of(cls, rows: Rows) -> HeadRows:
        """The rows, moved."""
        return cls(
            token=mx.array(rows.token),
            ce=mx.array(rows.ce),
            soft=mx.array(rows.soft),
            ids=mx.array(rows.ids) if rows.is_soft else None,
            logprobs=mx.array(rows.logprobs),
            tail=mx.array(rows.tail),
        )

    def part(self, begin: int, end: int) -> HeadRows:
        """The rows from `begin` up to `end`."""
        values = (getattr(self, name) for name in self.__slots__)
        return HeadRows(*(None if value is None else value[begin:end] for value in values))


def head_loss(
    hidden: mx.array, head: Head, rows: HeadRows, how: Divergence, chunk: int | None = None
) -> tuple[mx.array, mx.array]:
    """The weighted sum of the rows' losses, in nats, and the unweighted loss of each row: (R, 2), float32.

    `hidden` has shape (R, H); logits are computed in its dtype and handled in float32. Of the rows' losses, column 0 is
    the cross entropy with the row's token, column 1 the divergence (0 where no row is soft); they carry no gradient.
    Where `head` learns it gets a gradient, by one product more a row; `chunk` is the number of rows at once.
    """
    found: dict[str, mx.array] = {}

    @mx.custom_function  # type: ignore[untyped-decorator]
    def value(hidden: mx.array, weight: mx.array) -> tuple[mx.array, mx.array]:
        each, found["hidden"], found["weight"] = _walked(hidden, head, rows, how, chunk or _fitting(head))
        return _total(each, rows), each

    @value.vjp  # type: ignore[untyped-decorator]
    def slopes(primals: Any, cotangents: Any, outputs: Any) -> tuple[mx.array, mx.array]:
        hidden, weight = primals
        back = found["hidden"] * cotangents[0]
        return back.astype(hidden.dtype), (found["weight"] * cotangents[0]).astype(weight.dtype)

    total, each = value(hidden, head.weight)
    return total, each


def head_value(
    hidden: mx.array, head: Head, rows: HeadRows, how: Divergence, chunk: int | None = None
) -> tuple[mx.array, mx.array]:
    """What `head_loss` returns, without what a gradient needs: half of its work."""
    size, pieces = chunk or _fitting(head), list[mx.array]()
    for begin in range(0, len(hidden), size):
        here = _behind(hidden[begin : begin + size], pieces[-1:])
        pieces.append(_losses(head.logits(here).astype(mx.float32), rows.part(begin, begin + size), how)[0])
    each = mx.concatenate(pieces)
    return _total(each, rows), each


def _fitting(head: Head) -> int:
    return max(1, CHUNK_BYTES // (4 * head.vocabulary))


def _total(each: mx.array, rows: HeadRows) -> mx.array:
    return (each[:, 0] * rows.ce + each[:, 1] * rows.soft).sum()


def _behind(values: mx.array, earlier: list[mx.array]) -> mx.array:
    """The values, computed after other ones."""
    return mx.depends(values, earlier) if earlier else values


def _walked(
    hidden: mx.array, head: Head, rows: HeadRows, how: Divergence, chunk: int
) -> tuple[mx.array, mx.array, mx.array]:
    """The rows' losses, and the derivatives of their weighted sum by `hidden` (R, H) and by the head, both float32.

    The latter is a single 0 where the head does not learn.
    """
    losses, slopes = list[mx.array](), list[mx.array]()
    weight = mx.zeros(head.weight.shape, mx.float32) if head.learns else mx.zeros(())
    for begin in range(0, len(hidden), chunk):
        here = _behind(hidden[begin : begin + chunk], [*losses[-1:], *slopes[-1:], *([weight] if head.learns else [])])
        each, slope = _losses(head.logits(here).astype(mx.float32), rows.part(begin, begin + chunk), how)
        losses.append(each)
        slopes.append(head.back(slope.astype(here.dtype)).astype(mx.float32))
        if head.learns:
            weight = weight + slope.T @ here.astype(mx.float32)
    return mx.concatenate(losses), mx.concatenate(slopes), weight


def _losses(logits: mx.array, rows: HeadRows, how: Divergence) -> tuple[mx.array, mx.array]:
    """The rows' losses, (r, 2), and the derivative of their weighted sum by `logits`, (r, V), all float32.

    With q the softmax, q_S its part on a row's kept tokens S and t what is outside, and g the derivatives of the
    divergence by log q_i and log t: its derivative by a logit is g_i - G q_i within S and (g_t / t - G) q_i outside,
    where G = sum g_i + g_t.
    """
    own, weigh = rows.token[:, None], rows.ce[:, None]
    given = mx.take_along_axis(logits, own, 1)
    largest = logits.max(axis=1, keepdims=True)
    if rows.ids is None:
        weights = mx.exp(logits - largest)
        total = weights.sum(axis=1, keepdims=True)
        ce = mx.log(total) + largest - given
        slope = weights * (weigh / total)
        slope = mx.put_along_axis(slope, own, mx.take_along_axis(slope, own, 1) - weigh, 1)
        return mx.concatenate([ce, mx.zeros_like(ce)], axis=1), slope

    present = rows.logprobs > -mx.inf
    kept = mx.take_along_axis(logits, rows.ids, 1)
    inside = mx.exp(kept - largest)
    # what is left sums to the rest exactly, however small it is
    weights = mx.exp(mx.put_along_axis(logits, rows.ids, mx.array(-mx.inf), 1) - largest)
    rest = weights.sum(axis=1, keepdims=True)
    total = rest + mx.where(present, inside, 0.0).sum(axis=1, keepdims=True)
    log_total = mx.log(total) + largest
    has_tail = (rows.tail > -mx.inf)[:, None]
    log_rest = mx.log(mx.maximum(rest, TINY)) - mx.log(total)
    log_p = mx.concatenate([rows.logprobs, rows.tail[:, None]], axis=1)
    log_q = mx.concatenate([kept - log_total, log_rest], axis=1)
    value, g = divergence(mx, log_p, log_q, mx.concatenate([present, has_tail], axis=1), how)
    g = g * rows.soft[:, None]
    every = g.sum(axis=1, keepdims=True) - weigh
    at_rest = mx.where(has_tail, g[:, -1:] / mx.maximum(rest, TINY), 0.0)
    slope = weights * (at_rest - every / total)
    # a row's padding repeats its first id, whose entry is real: all of them write the same value
    slopes = mx.where(present, g[:, :-1] - every * inside / total, 0.0)
    slope = mx.put_along_axis(slope, rows.ids, mx.where(present, slopes, slopes[:, :1]), 1)
    slope = mx.put_along_axis(slope, own, mx.take_along_axis(slope, own, 1) - weigh, 1)
    return mx.concatenate([log_total - given, value[:, None]], axis=1), slope
