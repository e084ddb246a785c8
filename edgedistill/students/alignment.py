"""The teacher's distributions for a student with another tokenizer, by the bytes that both write.

Both tokenize the same answer. Where both have a token of the same bytes at the same place, the teacher's distribution
there is the student's, over the tokens that both vocabularies have, as in GOLD of TRL; of what has no equal the mass is
known together. Elsewhere the smallest runs between boundaries of both are compared as a whole, see `chunks`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidInput
from ..records import common_length
from ..targets import Targets
from .chunks import Chunks

__all__ = ["Aligned", "Aligner", "require_aligned"]

ENOUGH, LEAST = 0.9, 0.7
"""Aligned share of the training tokens below which a run warns, and below which it is refused."""

NO_TOKEN = -1


@dataclass(frozen=True, slots=True, eq=False)
class Aligned:
    """What a teacher tells of one answer, for the tokens that the student writes it in."""

    rows: NDArray[np.int32]
    """(n,) Which of the student's tokens have a distribution, rising."""
    targets: Targets
    """The distributions of these n tokens, in the student's vocabulary: kept mass and tail sum to 1, of `sampled` too,
    whose tail is what was drawn of tokens without an equal."""
    chunks: Chunks
    """Runs of other tokens of which the probability is known together; bounds count the answer's tokens, weights are 1.

    What is in neither is known by its text alone: the teacher kept no probability of what it wrote there."""
    share: float
    """Tokens with a distribution / all tokens, without an end token that the teacher did not score."""


class Aligner:
    """A teacher's vocabulary and a student's."""

    def __init__(self, teacher: Sequence[bytes], student: Sequence[bytes], ends: Mapping[int, int]) -> None:
        """Take the bytes of each token (see `Tokens.pieces`), and the student's token for each end of the teacher's."""
        self._teacher, self._student = teacher, student
        self._ends = {token: end for token, end in ends.items() if token < len(teacher)}
        # of two tokens with the same bytes, the later one: SentencePiece's single bytes come before its pieces
        by_bytes = {piece: token for token, piece in enumerate(student) if piece}
        equal = [by_bytes.get(piece, NO_TOKEN) for piece in teacher]
        self._equal = np.array([*equal, NO_TOKEN], np.int64)
        """(teacher's vocabulary + 1,) The student's token of the same bytes; the last is of any id past the end."""
        self._equal[list(self._ends)] = list(self._ends.values())

    def align(self, targets: Targets, tokens: Sequence[int]) -> Aligned:
        """The targets of an answer for the student's tokens of it, the end token included.

        Where the texts differ, as a template may trim what the teacher wrote, they are aligned up to there.
        """
        written = targets.tokens.tolist()
        cuts = self._cuts(written, list(tokens))
        first, last = cuts[:-1], cuts[1:]
        pairs = (last - first == 1).all(axis=1)
        for number in np.flatnonzero(pairs).tolist():
            one, other = written[first[number, 0]], tokens[first[number, 1]]
            pairs[number] = one in self._ends or self._piece(one) == self._student[other]
        learned, found = self._mapped(targets, first[pairs, 0], np.asarray(tokens, np.int32)[first[pairs, 1]])
        rows = first[pairs, 1][learned].astype(np.int32)
        own = _own_logprobs(targets)
        logprobs = np.array([own[i:j].sum() for i, j in zip(first[:, 0], last[:, 0], strict=True)], np.float32)
        together = np.isfinite(logprobs) & ~np.isin(first[:, 1], rows)
        chunks = Chunks(
            bounds=np.stack([first[together, 1], last[together, 1]], axis=1).astype(np.int32),
            logprob=np.minimum(logprobs[together], 0.0),
            weight=np.ones(int(together.sum()), np.float32),
        )
        is_ended = bool(written) and written[-1] in self._ends
        return Aligned(rows, found, chunks, len(rows) / max(1, len(tokens) - (not is_ended)))

    def _piece(self, token: int) -> bytes:
        """A teacher's token; a model has more ids than its tokenizer where its vocabulary is padded."""
        return self._teacher[token] if token < len(self._teacher) else b""

    def _cuts(self, written: list[int], tokens: list[int]) -> NDArray[np.int64]:
        """(K, 2) How many of the teacher's and of the student's tokens come before each place where both may be cut.

        The first is the beginning of the text, the last its end or behind the end tokens.
        """
        is_ended = bool(written) and written[-1] in self._ends
        mine = [self._piece(token) for token in (written[:-1] if is_ended else written)]
        theirs = [self._student[token] for token in tokens[:-1]]
        texts = b"".join(mine), b"".join(theirs)
        # one of both may begin with whitespace that the other has not: SentencePiece puts a space before a text
        starts = [len(text) - len(text.lstrip()) for text in texts]
        if texts[0][: starts[0]] == texts[1][: starts[1]]:
            starts = [0, 0]
        bodies = [text[start:] for text, start in zip(texts, starts, strict=True)]
        same = len(bodies[0]) if bodies[0] == bodies[1] else common_length(*bodies)
        ends = [np.cumsum([0, *map(len, pieces)])[1:] - n for pieces, n in zip((mine, theirs), starts, strict=True)]
        common = np.union1d([0], np.intersect1d(ends[0], ends[1]))
        common = common[(common >= 0) & (common <= same)]
        # a token without bytes belongs to what comes before it
        cuts = np.stack([np.searchsorted(part, common, side="right") for part in ends], axis=1)
        if is_ended and same == max(map(len, bodies)):
            cuts = np.concatenate([cuts, [[len(written), len(tokens)]]])
        return cuts

    def _mapped(
        self, targets: Targets, places: NDArray[np.int64], tokens: NDArray[np.int32]
    ) -> tuple[NDArray[np.bool_], Targets]:
        """Which of the teacher's positions keep anything in the student's vocabulary, and the targets of these.

        `tokens` are what the student writes at each position.
        """
        counts = np.diff(targets.offsets)[places]
        entries = np.concatenate(
            [np.arange(0), *(np.arange(*targets.offsets[place : place + 2]) for place in places.tolist())]
        )
        row, shares = np.repeat(np.arange(len(places)), counts), np.exp(targets.logprobs[entries], dtype=np.float64)
        ids = self._equal[np.minimum(targets.ids[entries], len(self._teacher))]
        has_equal = ids != NO_TOKEN
        tail = targets.tail[places] + np.bincount(row, shares * ~has_equal, len(places))
        # several of the teacher's tokens may be one of the student's, as the ends are
        cells, cell = np.unique(row[has_equal] * len(self._student) + ids[has_equal], return_inverse=True)
        mass = np.bincount(cell, shares[has_equal], len(cells))
        rows, found = np.divmod(cells, len(self._student))
        order = np.lexsort((found, -mass, rows))
        kept = np.bincount(rows, minlength=len(places))
        learned = kept > 0
        mapped = Targets(
            profile=targets.profile,
            tokens=tokens[learned],
            offsets=np.concatenate([[0], np.cumsum(kept[learned])]),
            ids=found[order].astype(np.int32),
            logprobs=np.log(mass[order]).astype(np.float32),
            tail=tail[learned].astype(np.float32),
        )
        return learned, mapped


def _own_logprobs(targets: Targets) -> NDArray[np.float32]:
    """(n,) The log-probability of each token that the teacher wrote; NaN where it is not among those kept.

    There the tail is no more than a bound for it, from above.
    """
    place = np.repeat(np.arange(len(targets.tokens)), np.diff(targets.offsets))
    is_own = targets.ids == targets.tokens[place]
    found = np.full(len(targets.tokens), np.nan, np.float32)
    found[place[is_own]] = targets.logprobs[is_own]
    return found


def require_aligned(share: float) -> str | None:
    """A warning where less than `ENOUGH` of the training tokens has the teacher's distribution, else None.

    `share` is the mean of the rows' shares. Raises InvalidInput below `LEAST`.
    """
    if share >= ENOUGH:
        return None
    found = f"{share:.0%} of the student's tokens have a token of the teacher's as an equal"
    if share < LEAST:
        raise InvalidInput(
            f"train.loss: {found}; a soft loss needs {LEAST:.0%}",
            "Write train.loss = 'hard', use closed answers, or choose a student with the teacher's tokenizer.",
        )
    return f"{found}; below {ENOUGH:.0%} a hard loss may teach as much"
