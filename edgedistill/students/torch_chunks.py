"""The loss of runs of tokens, for torch, by the same fused head as all other rows."""

from __future__ import annotations

from dataclasses import replace

import torch

from .chunks import Chunks, chunk_divergence
from .divergence import Divergence
from .torch_head import HeadRows, head_loss

__all__ = ["with_chunks"]


def with_chunks(
    hidden: torch.Tensor, head: torch.Tensor, rows: HeadRows, chunks: Chunks, how: Divergence
) -> tuple[HeadRows, torch.Tensor]:
    """The rows with the runs' losses among their cross entropies, and what is to be added to `head_loss` of them.

    A run's loss depends on its tokens by the sum of their log-probabilities alone. So its gradient is that of their
    cross entropies, each with minus the loss's derivative by that sum as its weight: once that is known, by a first
    look at these rows without a gradient, one pass over all rows gives everything. What is added makes the sum the
    loss's value; it is a scalar without a gradient. Shapes as in `head_loss`.
    """
    at, numbers, log_p, weight = (
        torch.from_numpy(values).to(hidden.device)
        for values in (chunks.rows, chunks.numbers, chunks.logprob, chunks.weight)
    )
    # the first look computes cross entropies alone: no weights, no distribution
    nothing = torch.zeros(len(at), device=hidden.device)
    looked = HeadRows(rows.token[at], nothing, nothing, None, rows.logprobs[at], rows.tail[at])
    with torch.no_grad():
        _, each = head_loss(hidden.detach()[at], head.detach(), looked, how)
    own = -each[:, 0]
    log_q = torch.zeros_like(log_p).index_add_(0, numbers, own)
    value, slope = chunk_divergence(torch, log_p, log_q, how)
    ce = rows.ce.index_add(0, at, -(weight * slope)[numbers])
    return replace(rows, ce=ce), (weight * (value - slope * log_q)).sum()
