"""The output head and the loss in one, for torch: nothing of the size rows x vocabulary is kept.

Logits are made for a few rows at a time, turned in place into their own gradient, and carried back to the hidden state
at once, as in Liger Kernel (arXiv 2410.10989, section 3.2); but against sparse targets, and without a gradient for the
head, which is frozen under an adapter. So a row costs two products with the head where a dense teacher costs three.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from .divergence import Divergence, divergence
from .lessons import Rows

__all__ = ["HeadRows", "head_loss"]

CHUNK_BYTES = 32 << 20
"""Float32 logits that are held at once."""


@dataclass(frozen=True, slots=True)
class HeadRows:
    """`Rows` as tensors on the head's device; see there."""

    token: torch.Tensor
    ce: torch.Tensor
    soft: torch.Tensor
    ids: torch.Tensor | None
    """None where no row is soft."""
    logprobs: torch.Tensor
    tail: torch.Tensor

    @classmethod
    def of(cls, rows: Rows, device: torch.device) -> HeadRows:
        """The rows, moved."""

        def moved(values: Any, dtype: torch.dtype) -> torch.Tensor:
            return torch.from_numpy(values).to(device=device, dtype=dtype)

        return cls(
            token=moved(rows.token, torch.int64),
            ce=moved(rows.ce, torch.float32),
            soft=moved(rows.soft, torch.float32),
            ids=moved(rows.ids, torch.int64) if rows.is_soft else None,
            logprobs=moved(rows.logprobs, torch.float32),
            tail=moved(rows.tail, torch.float32),
        )

    def part(self, begin: int, end: int) -> HeadRows:
        """The rows from `begin` up to `end`."""
        values = (getattr(self, name) for name in self.__slots__)
        return HeadRows(*(None if value is None else value[begin:end] for value in values))


def head_loss(
    hidden: torch.Tensor, head: torch.Tensor, rows: HeadRows, how: Divergence, chunk: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The weighted sum of the rows' losses, in nats, and the unweighted loss of each row: (R, 2), float32.

    `hidden` has shape (R, H), `head` (V, H), of one dtype; logits are computed in it and handled in float32. Of the
    rows' losses, column 0 is the cross entropy with the row's token, column 1 the divergence (0 where no row is soft);
    they carry no gradient. Where `head` requires a gradient it gets one, by one product more a row; `chunk` is the
    number of rows at once.
    """
    size = chunk or max(1, CHUNK_BYTES // (4 * head.shape[0]))
    total, each = _HeadLoss.apply(hidden, head, rows, how, size)
    return total, each


class _HeadLoss(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, head: torch.Tensor, rows: HeadRows, how: Divergence, chunk: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        wants_hidden, wants_head = hidden.requires_grad, head.requires_grad
        slope = torch.empty_like(hidden) if wants_hidden else None
        head_slope = torch.zeros_like(head, dtype=torch.float32) if wants_head else None
        each = hidden.new_empty((len(hidden), 2), dtype=torch.float32)
        buffer = head.new_empty((min(chunk, len(hidden)), head.shape[0]))
        for begin in range(0, len(hidden), chunk):
            part = slice(begin, begin + chunk)
            rows_here = hidden[part]
            logits = torch.mm(rows_here, head.t(), out=buffer[: len(rows_here)]).float()
            each[part] = _loss_and_gradient(logits, rows.part(begin, begin + chunk), how)
            back = logits.to(head.dtype)
            if slope is not None:
                torch.mm(back, head, out=slope[part])
            if head_slope is not None:
                head_slope.addmm_(back.t().float(), rows_here.float())
        ctx.save_for_backward(slope, head_slope)
        ctx.dtype = head.dtype
        ctx.mark_non_differentiable(each)
        return (each[:, 0] * rows.ce + each[:, 1] * rows.soft).sum(), each

    @staticmethod
    def backward(ctx: Any, total: torch.Tensor, each: Any = None) -> Any:
        slope, head_slope = ctx.saved_tensors
        scaled = None if head_slope is None else (head_slope * total).to(ctx.dtype)
        return None if slope is None else slope * total.to(slope.dtype), scaled, None, None, None


def _loss_and_gradient(logits: torch.Tensor, rows: HeadRows, how: Divergence) -> torch.Tensor:
    """The rows' losses; `logits` (r, V), float32, become the gradient of their weighted sum.

    With q the softmax, q_S its part on a row's kept tokens S and t what is outside, and g the derivatives of the
    divergence by log q_i and log t: its derivative by a logit is g_i - G q_i within S and (g_t / t - G) q_i outside,
    where G = sum g_i + g_t.
    """
    own = rows.token[:, None]
    given = logits.gather(1, own)
    largest = logits.amax(dim=1, keepdim=True)
    kept = None if rows.ids is None else logits.gather(1, rows.ids)
    weights = logits.sub_(largest).exp_()
    if kept is None or rows.ids is None:
        total = weights.sum(dim=1, keepdim=True)
        log_total = total.log() + largest
        weights.mul_(rows.ce[:, None] / total)
        weights.scatter_add_(1, own, -rows.ce[:, None])
        ce = (log_total - given)[:, 0]
        return torch.stack([ce, torch.zeros_like(ce)], dim=1)

    present = rows.logprobs > -torch.inf
    inside = (kept - largest).exp()
    weights.scatter_(1, rows.ids, 0.0)  # what is left sums to the rest exactly, however small it is
    rest = weights.sum(dim=1, keepdim=True)
    total = rest + (inside * present).sum(dim=1, keepdim=True)
    log_total = total.log() + largest
    ce = (log_total - given)[:, 0]
    has_tail = (rows.tail > -torch.inf)[:, None]
    log_rest = rest.clamp_min(torch.finfo(torch.float32).tiny).log() - total.log()
    log_p = torch.cat([rows.logprobs, rows.tail[:, None]], dim=1)
    log_q = torch.cat([kept - log_total, log_rest], dim=1)
    value, g = divergence(torch, log_p, log_q, torch.cat([present, has_tail], dim=1), how)
    g = g * rows.soft[:, None]
    every = g.sum(dim=1, keepdim=True) - rows.ce[:, None]
    at_rest = torch.where(has_tail, g[:, -1:] / rest.clamp_min(torch.finfo(torch.float32).tiny), 0.0)
    weights.mul_(at_rest - every / total)
    # a row's padding repeats its first id, whose entry is real: all of them write the same value
    slopes = torch.where(present, g[:, :-1] - every * inside / total, 0.0)
    weights.scatter_(1, rows.ids, torch.where(present, slopes, slopes[:, :1]))
    weights.scatter_add_(1, own, -rows.ce[:, None])
    return torch.stack([ce, value], dim=1)
