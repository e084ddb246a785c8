"""The divergence of one model's whole distributions from another's, each with its head, without keeping either."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from .torch_head import CHUNK_BYTES

__all__ = ["Taught", "whole_kl"]


@dataclass(frozen=True, slots=True)
class Taught:
    """What is learned from: the teacher's hidden states (R, H) and its head (V, H), and the weight of each row (R,)."""

    hidden: torch.Tensor
    head: torch.Tensor
    weight: torch.Tensor


def whole_kl(hidden: torch.Tensor, head: torch.Tensor, taught: Taught, chunk: int | None = None) -> torch.Tensor:
    """The weighted sum over R rows of KL(teacher || student) in nats, over the whole vocabulary.

    `hidden` is (R, H) and `head` (V, H), which gets no gradient. Logits are made for `chunk` rows at a time, in
    float32, and become their gradient in place, as in `torch_head`: two products a row with the student's head, one
    with the teacher's.
    """
    size = chunk or max(1, CHUNK_BYTES // (4 * head.shape[0]))
    total: torch.Tensor = _WholeKL.apply(hidden, head, taught, size)
    return total


class _WholeKL(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, head: torch.Tensor, taught: Taught, chunk: int) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        slope = torch.empty_like(hidden)
        for begin in range(0, len(hidden), chunk):
            part = slice(begin, begin + chunk)
            log_p = torch.log_softmax((taught.hidden[part] @ taught.head.t()).float(), dim=1)
            log_q = torch.log_softmax((hidden[part] @ head.t()).float(), dim=1)
            p, weight = log_p.exp(), taught.weight[part, None]
            total += (p * log_p.sub_(log_q) * weight).sum()
            torch.mm(log_q.exp_().sub_(p).mul_(weight).to(head.dtype), head, out=slope[part])
        ctx.save_for_backward(slope)
        return total

    @staticmethod
    def backward(ctx: Any, total: torch.Tensor) -> Any:
        (slope,) = ctx.saved_tensors
        return slope * total.to(slope.dtype), None, None, None
