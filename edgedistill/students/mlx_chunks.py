"""The loss of runs of tokens, for MLX: see `torch_chunks`."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import numpy as np

from .chunks import Chunks, chunk_divergence
from .divergence import Divergence
from .mlx_head import Head, HeadRows, head_value

__all__ = ["chunk_arrays", "with_chunks"]


def chunk_arrays(chunks: Chunks, count: int, size: int) -> dict[str, mx.array]:
    """The runs as arrays of `count` runs and `size` rows, more than there are: the others weigh nothing."""
    more, missing = count - len(chunks), size - len(chunks.rows)
    return {
        "rows": mx.array(np.pad(chunks.rows, (0, missing)).astype(np.int32)),
        "numbers": mx.array(np.pad(chunks.numbers, (0, missing), constant_values=count - 1).astype(np.int32)),
        "logprob": mx.array(np.pad(chunks.logprob, (0, more), constant_values=-1.0)),
        "weight": mx.array(np.pad(chunks.weight, (0, more))),
    }


def with_chunks(
    hidden: mx.array, head: Head, rows: HeadRows, chunks: dict[str, mx.array], how: Divergence
) -> tuple[HeadRows, mx.array]:
    """The rows with the runs' losses among their cross entropies, and what is to be added to `head_loss` of them."""
    at, numbers, log_p, weight = (chunks[name] for name in ("rows", "numbers", "logprob", "weight"))
    nothing = mx.zeros(at.shape)
    looked = HeadRows(rows.token[at], nothing, nothing, None, rows.logprobs[at], rows.tail[at])
    fixed = replace(head, weight=mx.stop_gradient(head.weight))
    _, each = head_value(mx.stop_gradient(hidden)[at], fixed, looked, how)
    log_q = mx.zeros_like(log_p).at[numbers].add(-each[:, 0])
    value, slope = chunk_divergence(mx, log_p, log_q, how)
    ce = rows.ce.at[at].add(-(weight * slope)[numbers])
    return replace(rows, ce=mx.stop_gradient(ce)), mx.stop_gradient((weight * (value - slope * log_q)).sum())
