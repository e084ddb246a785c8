"""One problem for the soft losses of several makers, and each maker's loss with its gradient on it.

A student's hidden states and a frozen head, and a teacher's. Each maker gets the inputs that it needs: Liger and TRL
the teacher's hidden states and head, which must then be in memory while the student learns, and are as narrow here as
the student's, to their favour; ours and the dense loss the 64 most probable tokens of each row, and what is outside.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from edgedistill.students.divergence import Divergence
from edgedistill.students.lessons import Rows
from edgedistill.students.torch_head import HeadRows, head_loss

__all__ = ["LIGER_CHUNKS", "Kind", "Loss", "Problem", "dense", "losses", "problem", "targets"]

VOCABULARY, WIDTH, KEPT = 151_936, 1024, 64
SHARPNESS = 4.0  # standard deviation of the teacher's logits
BETA = 0.5
LIGER_CHUNKS = (1024, 128)  # rows: its default, and a smaller one, which needs less memory

Kind = Literal["jsd", "forward_kl"]


@dataclass(frozen=True)
class Problem:
    """Float32 throughout: R rows, H wide, V tokens."""

    hidden: torch.Tensor
    """(R, H) The student's, which wants a gradient."""
    head: torch.Tensor
    """(V, H) The student's, frozen."""
    teacher_hidden: torch.Tensor
    teacher_head: torch.Tensor
    kept: HeadRows | None = None
    """The teacher's most probable tokens, once they are known."""


Loss = Callable[[Problem], tuple[torch.Tensor, torch.Tensor]]
"""The mean divergence of the rows, and its gradient by the student's hidden states."""


def problem(rows: int, vocabulary: int = VOCABULARY, width: int = WIDTH) -> Problem:
    """The same for the same sizes."""
    source = torch.Generator().manual_seed(0)

    def drawn(size: int, spread: float) -> torch.Tensor:
        return torch.randn(size, width, generator=source).mul_(spread)

    teacher = drawn(rows, 1.0)
    # a student that is on its way: its logits are the teacher's and as much again of its own
    hidden = (teacher + 0.5 * drawn(rows, 1.0)).requires_grad_()
    head = drawn(vocabulary, SHARPNESS / width**0.5)
    return Problem(hidden, head + drawn(vocabulary, 0.25 * SHARPNESS / width**0.5), teacher, head)


def targets(given: Problem) -> Rows:
    """What a teacher's run would have stored for each row."""
    found = []
    for rows in given.teacher_hidden.split(64):
        logits = rows @ given.teacher_head.t()
        logprobs, ids = (logits - logits.logsumexp(dim=1, keepdim=True)).topk(KEPT, dim=1)
        found.append((ids, logprobs))
    ids, logprobs = (torch.cat(column).numpy() for column in zip(*found, strict=True))
    count = len(ids)
    outside = np.log1p(-np.exp(logprobs.astype(np.float64)).sum(axis=1))
    return Rows(
        at=np.arange(count, dtype=np.int32),
        token=ids[:, 0].astype(np.int32),
        ce=np.zeros(count, np.float32),
        soft=np.ones(count, np.float32),
        ids=ids.astype(np.int32),
        logprobs=logprobs,
        tail=outside.astype(np.float32),
    )


def dense(given: Problem, kind: Kind) -> torch.Tensor:
    """Each row's divergence over the kept tokens and the rest, by plain operations that autograd goes back through."""
    assert given.kept is not None
    assert given.kept.ids is not None
    log_all = torch.log_softmax(given.hidden @ given.head.t(), dim=1)
    log_kept = log_all.gather(1, given.kept.ids)
    log_q = torch.cat([log_kept, torch.log1p(-log_kept.exp().sum(dim=1, keepdim=True))], dim=1)
    log_p = torch.cat([given.kept.logprobs, given.kept.tail[:, None]], dim=1).to(log_q.dtype)
    p, q = log_p.exp(), log_q.exp()
    if kind == "forward_kl":
        return (p * (log_p - log_q)).sum(dim=1)
    log_m = (BETA * p + (1 - BETA) * q).log()
    return (BETA * p * (log_p - log_m) + (1 - BETA) * q * (log_q - log_m)).sum(dim=1)


def losses(peers: Path, kind: Kind) -> dict[str, Loss]:
    """Name -> loss; the folder holds trl and liger-kernel."""
    sys.path.append(str(peers))
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss  # type: ignore[import-not-found]
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction  # type: ignore[import-not-found]

    beta = BETA if kind == "jsd" else 0.0  # both take 0 for KL(teacher || student)

    def ours(given: Problem) -> torch.Tensor:
        assert given.kept is not None
        total, _ = head_loss(given.hidden, given.head, given.kept, Divergence(kind, BETA))
        return total / len(given.hidden)

    def liger(chunk: int) -> Callable[[Problem], torch.Tensor]:
        settings = {"weight_hard_loss": 0.0, "weight_soft_loss": 1.0, "compiled": False}
        loss = LigerFusedLinearJSDLoss(beta=beta, chunk_size=chunk, **settings)

        def computed(given: Problem) -> torch.Tensor:
            labels = torch.zeros(len(given.hidden), dtype=torch.int64)
            found: torch.Tensor = loss(given.hidden, given.head, given.teacher_hidden, given.teacher_head, labels)
            return found

        return computed

    def trl(given: Problem) -> torch.Tensor:
        teacher = (given.teacher_hidden, given.teacher_head, None)
        each, _ = ChunkedDivergenceFunction.apply(given.hidden, given.head, None, *teacher, beta)
        found: torch.Tensor = each.mean()
        return found

    found: dict[str, Callable[[Problem], torch.Tensor]] = {
        "ours": ours,
        "dense": lambda given: dense(given, kind).mean(),
        **{f"liger_{chunk}": liger(chunk) for chunk in LIGER_CHUNKS},
        "trl": trl,
    }
    return {name: _with_gradient(loss) for name, loss in found.items()}


def _with_gradient(loss: Callable[[Problem], torch.Tensor]) -> Loss:
    def computed(given: Problem) -> tuple[torch.Tensor, torch.Tensor]:
        value = loss(given)
        (slope,) = torch.autograd.grad(value, given.hidden)
        return value.detach(), slope

    return computed


def with_targets(given: Problem, rows: Rows) -> Problem:
    """The problem with the teacher's kept tokens."""
    return Problem(
        given.hidden, given.head, given.teacher_hidden, given.teacher_head, HeadRows.of(rows, torch.device("cpu"))
    )


def as_arrays(rows: Rows) -> dict[str, Any]:
    """The columns of the rows, by name, for a file."""
    return {name: getattr(rows, name) for name in Rows.__slots__}
