"""How far a student's next-token distribution is from the teacher's, on the teacher's sparse support.

The teacher's targets keep a few tokens of each position and the mass outside of them. Teacher and student are compared
over the same buckets: every kept token, and one bucket for all others, so that both sum to 1. One implementation
serves numpy, torch and MLX: `xp` is the library whose arrays are handed in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Divergence", "divergence"]

LEAST_LOG = -13.815510557964274
"""log(1e-6): what a stored tail is good to. A tail of 0 would make the reverse divergences infinite."""


LEAST_MASS = 1e-37
"""Near the smallest float32: what a mixture is taken for where both of its parts vanished, whose terms are 0 then."""


@dataclass(frozen=True, slots=True)
class Divergence:
    """Which divergence is minimised; `beta` belongs to `jsd` alone."""

    kind: Literal["forward_kl", "reverse_kl", "jsd"] = "forward_kl"
    beta: float = 0.5
    temperature: float = 1.0


def divergence(xp: Any, log_p: Any, log_q: Any, present: Any, how: Divergence) -> tuple[Any, Any]:
    """The divergence of each row in nats, and its derivative by the student's log-probability of each bucket.

    `log_p` and `log_q` are float32 of shape (R, B): natural logs of the teacher's and of the student's mass in each
    bucket, the student's from its softmax over the whole vocabulary; `present`, bool of that shape, tells real buckets
    from padding, where both may hold anything finite. Returns arrays of shape (R,) and (R, B).

    - `forward_kl`: KL(p || q) = sum p (log p - log q); the loss of Hinton et al., arXiv 1503.02531, up to a constant.
      Where a bucket for the other tokens is absent and the kept ones are draws of the teacher, this is the unbiased
      loss of Sparse Logit Sampling, arXiv 2503.16870.
    - `reverse_kl`: KL(q || p), as in MiniLLM, arXiv 2306.08543.
    - `jsd`: beta KL(p || m) + (1 - beta) KL(q || m) with m = beta p + (1 - beta) q; generalised Jensen-Shannon
      divergence, arXiv 2306.13649, eq. 1.

    With a temperature T other than 1, p and q become p^(1/T) and q^(1/T), normalised over the buckets, and the
    divergence is multiplied by T^2, so that gradients keep their size (arXiv 1503.02531, section 2).
    """
    log_p = xp.where(present, xp.clip(log_p, LEAST_LOG, 0.0), 0.0)
    log_q = xp.where(present, log_q, 0.0)
    if how.temperature != 1.0:
        log_p, log_q = (_softened(xp, log, present, how.temperature) for log in (log_p, log_q))
    p, q = (xp.where(present, xp.exp(log), 0.0) for log in (log_p, log_q))
    if how.kind == "forward_kl":
        value, slope = p * (log_p - log_q), -p
    elif how.kind == "reverse_kl":
        value, slope = q * (log_q - log_p), q * (log_q - log_p + 1.0)
    else:
        mixed = how.beta * p + (1.0 - how.beta) * q
        log_m = xp.log(xp.clip(xp.where(present, mixed, 1.0), LEAST_MASS, None))
        value = how.beta * p * (log_p - log_m) + (1.0 - how.beta) * q * (log_q - log_m)
        slope = (1.0 - how.beta) * q * (log_q - log_m)
    if how.temperature != 1.0:
        # through the normalisation: d log q'_i / d log q_j = (1 if i = j) / T - q'_j / T; then the factor T^2
        slope = how.temperature * (slope - q * slope.sum(axis=1)[:, None])
        value = how.temperature**2 * value
    return value.sum(axis=1), slope


def _softened(xp: Any, log: Any, present: Any, temperature: float) -> Any:
    """Logs of x^(1/T), normalised over the present buckets."""
    cooled = xp.where(present, log / temperature, -xp.inf)
    # torch's own `max` returns places too; without the largest taken off, a low temperature underflows to log(0)
    largest = cooled.amax(axis=1) if hasattr(cooled, "amax") else cooled.max(axis=1)
    cooled = xp.where(present, cooled - largest[:, None], 0.0)
    total = xp.where(present, xp.exp(cooled), 0.0).sum(axis=1)
    return xp.where(present, cooled - xp.log(total)[:, None], 0.0)
