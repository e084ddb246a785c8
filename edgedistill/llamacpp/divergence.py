"""How far models are from each other on given answers: exact KL divergences over the whole vocabulary, as a stream.

All models go through the same pieces of the same rows, side by side. Of a piece's logits a few numbers a token stay; no
logits go to the disk. llama-perplexity writes them all down instead, rounded to 16 bits: for 50,000 tokens of a
vocabulary of 150,000 that is 15 GB.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..run import stop_if_asked
from ..targets import Targets
from .forward import Forward, ForwardSettings, LogitRoom, Piece, TokenRow, pieces_of
from .importance import Importance
from .model import LlamaModel

__all__ = ["Distributions", "Divergence", "Reference", "Taught", "compare", "sparse_divergence"]

Report = Callable[[int, int], None]
MEMORY_SHARE = 0.5  # of the free memory, for the files of the models that are open side by side
LEAST_REST = 1e-12


class Distributions:
    """Next-token distributions, one a row of logits: float32 of shape (n, vocabulary), which are shifted in place."""

    def __init__(self, logits: NDArray[np.float32]) -> None:
        self.shifted = logits
        """(n, vocabulary) The logits less the largest of their row."""
        self.top: NDArray[np.int64] = logits.argmax(axis=1)
        """(n,) The most probable token."""
        self.log_sums = np.empty(len(logits))
        """(n,) log of the sum of exp over the shifted logits."""
        self._weights: NDArray[np.float32] | None = None
        scratch = np.empty(logits.shape[1], np.float32)
        for number, (row, top) in enumerate(zip(logits, self.top, strict=True)):
            row -= row[top]
            self.log_sums[number] = np.log(np.exp(row, out=scratch).sum())

    def log_probability(self, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
        """(n,) The natural log of the probability of one token a row."""
        return np.asarray(self.shifted[np.arange(len(tokens)), tokens] - self.log_sums)

    def divergence(self, other: Distributions) -> NDArray[np.float64]:
        """(n,) KL(this || other) of each row in nats, over the columns that both have."""
        if self._weights is None:
            self._weights = np.exp(self.shifted)
        width = min(self.shifted.shape[1], other.shifted.shape[1])
        scratch = np.empty(width, np.float32)
        found = np.empty(len(self.shifted))
        for number, weights in enumerate(self._weights):
            # both are shifted by their largest: where there is weight the difference is small, and exact in float32
            np.subtract(self.shifted[number, :width], other.shifted[number, :width], out=scratch)
            found[number] = np.dot(weights[:width], scratch)
        return np.asarray(found / np.exp(self.log_sums) - self.log_sums + other.log_sums)


def sparse_divergence(targets: Targets, first: int, other: Distributions, rows: range) -> NDArray[np.float64]:
    """(n,) KL of stored distributions, from position `first` on, to those rows of `other`, in nats.

    Over the kept tokens and one bucket for all others: at most the whole divergence (data-processing inequality). NaN
    behind the last stored position: a teacher's end token may not have been scored.
    """
    found = np.full(len(rows), np.nan)
    stop = min(first + len(rows), len(targets.tokens))
    for number, (start, end) in enumerate(pairwise(targets.offsets[first : stop + 1])):
        theirs = targets.logprobs[start:end].astype(np.float64)
        ours = other.shifted[rows[number], targets.ids[start:end]] - other.log_sums[rows[number]]
        tail = float(targets.tail[first + number])
        rest = max(1.0 - float(np.exp(ours).sum()), LEAST_REST)
        outside = tail * np.log(tail / rest) if tail > 0 else 0.0
        found[number] = (np.exp(theirs) * (theirs - ours)).sum() + outside
    return found


@dataclass(frozen=True, slots=True)
class Divergence:
    """One model's figures at every token of the answers, row after row."""

    kl: NDArray[np.float64]
    """(n,) KL(reference || model) in nats; zeros for the reference itself."""
    top: NDArray[np.int64]
    """(n,) The model's most probable token."""
    nll: NDArray[np.float64]
    """(n,) -log of the model's probability of the token that stands there, in nats."""
    teacher: NDArray[np.float64]
    """(n,) KL(teacher || model) in nats; NaN where the teacher's distribution is not known."""


@dataclass(frozen=True)
class Taught:
    """The teacher's distributions: stored for some rows, or computed by a GGUF with the same tokens."""

    targets: Sequence[Targets | None] = ()
    """One for each row; its first tokens are the row's answer."""
    path: Path | None = None
    rows: Sequence[TokenRow] = ()
    """For `path`: the same answers behind the teacher's prompt."""


@dataclass(frozen=True)
class Reference:
    """What models are compared with, and on what."""

    path: Path
    rows: Sequence[TokenRow]
    taught: Taught = Taught()


def compare(
    reference: Reference,
    others: Sequence[Path],
    settings: ForwardSettings,
    report: Report,
    importance: Importance | None = None,
) -> list[Divergence]:
    """The reference's own figures, then those of each other model; `report` is told tokens done, and in all.

    Models are open side by side as long as half of the free memory holds their files; else the reference is gone
    through again with the next ones. An `importance` sums up how the reference's weights are used meanwhile.
    """
    groups = _groups(reference, others)
    total = len(groups) * sum(len(row.answer) for row in reference.rows)
    found: list[list[Divergence]] = []
    done = 0
    for number, group in enumerate(groups):
        parts: list[list[Divergence]] = [[] for _ in range(1 + len(group))]
        for figures in _side_by_side(reference, group, settings, importance if number == 0 else None):
            for part, one in zip(parts, figures, strict=True):
                part.append(one)
            done += len(figures[0].kl)
            report(done, total)
            stop_if_asked()
        found += parts if number == 0 else parts[1:]
    return [_joined(parts) for parts in found]


def _groups(reference: Reference, others: Sequence[Path]) -> list[list[Path]]:
    """The other models in groups whose files fit into memory beside the reference's, at least one a group."""
    import psutil

    beside = [path for path in (reference.path, reference.taught.path) if path is not None]
    room = MEMORY_SHARE * psutil.virtual_memory().available - sum(path.stat().st_size for path in beside)
    groups: list[list[Path]] = [[]]
    taken = 0
    for path in others:
        size = path.stat().st_size
        if groups[-1] and taken + size > room:
            groups.append([])
            taken = 0
        groups[-1].append(path)
        taken += size
    return groups


def _side_by_side(
    reference: Reference, others: Sequence[Path], settings: ForwardSettings, importance: Importance | None
) -> Iterator[list[Divergence]]:
    """The figures of the reference and of the others, piece by piece."""
    rows, taught = reference.rows, reference.taught
    with LlamaModel(reference.path, vocab_only=True) as model:
        pieces = pieces_of(rows, max(1, settings.logit_bytes // (4 * model.vocab_size)))
    own_room, other_room, known_room = LogitRoom(), LogitRoom(), LogitRoom()
    with ExitStack() as stack:
        base = stack.enter_context(Forward(reference.path, rows, pieces, settings, importance))
        models = [stack.enter_context(Forward(path, rows, pieces, settings)) for path in others]
        teacher = stack.enter_context(Forward(taught.path, taught.rows, pieces, settings)) if taught.path else None
        for piece in pieces:
            known = Distributions(teacher.logits(piece, known_room)) if teacher else None
            own = Distributions(base.logits(piece, own_room))
            figures = [_figures(own, own, (reference, piece), known)]
            for other in models:
                figures.append(_figures(own, Distributions(other.logits(piece, other_room)), (reference, piece), known))
            yield figures


def _figures(
    base: Distributions, one: Distributions, where: tuple[Reference, Piece], known: Distributions | None
) -> Divergence:
    reference, piece = where
    rows, stored = reference.rows, reference.taught.targets
    tokens = [token for window in piece for token in rows[window.row].answer[window.first : window.last]]
    if known is not None:
        teacher = known.divergence(one)
    elif stored:
        teacher = _stored(stored, piece, one)
    else:
        teacher = np.full(len(tokens), np.nan)
    kl = np.zeros(len(tokens)) if one is base else base.divergence(one)
    return Divergence(kl, one.top, -one.log_probability(np.array(tokens)), teacher)


def _stored(stored: Sequence[Targets | None], piece: Piece, one: Distributions) -> NDArray[np.float64]:
    parts = []
    row = 0
    for window in piece:
        targets, count = stored[window.row], window.last - window.first
        unknown = np.full(count, np.nan)
        here = range(row, row + count)
        parts.append(unknown if targets is None else sparse_divergence(targets, window.first, one, here))
        row += count
    return np.concatenate(parts)


def _joined(parts: Sequence[Divergence]) -> Divergence:
    columns = zip(*((one.kl, one.top, one.nll, one.teacher) for one in parts), strict=True)
    return Divergence(*(np.concatenate(column) for column in columns))
