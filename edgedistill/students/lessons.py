"""What one example teaches, token by token, the same for every backend: plain numpy arrays.

A lesson is a tree of tokens. Most are a chain: prompt, then answer. Where a closed set of answers is learned, the
answers branch off behind the prompt, and each token sees the tokens on its own path alone. At each loss row the
student's hidden state predicts what follows: one token (cross entropy), a distribution (soft targets), or both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..targets import Targets
from .alignment import Aligned
from .chunks import Chunks, joined_chunks
from .encode import EncodedExample

__all__ = [
    "NO_TAIL",
    "Batch",
    "Lesson",
    "Rows",
    "aligned_lesson",
    "answers_lesson",
    "collated",
    "cooled",
    "hard_lesson",
    "paths",
    "text_lesson",
]

NO_TAIL = -np.inf
ROOT = -1


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """The loss rows of a lesson or a batch: R rows, each with up to K kept tokens.

    A row's entries beyond its own repeat its first id, with a log-probability of -inf, so that all rows are of one
    width; a row without soft targets holds its token alone.
    """

    at: NDArray[np.int32]
    """(R,) The token, in the lesson or in the batch laid flat, whose hidden state predicts."""
    token: NDArray[np.int32]
    """(R,) What follows there."""
    ce: NDArray[np.float32]
    """(R,) Weight of the cross entropy with that token."""
    soft: NDArray[np.float32]
    """(R,) Weight of the divergence from the teacher's distribution."""
    ids: NDArray[np.int32]
    """(R, K) Kept tokens."""
    logprobs: NDArray[np.float32]
    """(R, K) The teacher's natural log-probabilities, -inf where there is no entry."""
    tail: NDArray[np.float32]
    """(R,) Log of the teacher's probability outside the kept tokens; `NO_TAIL` where that is no bucket of its own."""

    def __len__(self) -> int:
        return len(self.at)

    @property
    def is_soft(self) -> bool:
        """Whether any row has a distribution to learn."""
        return bool(self.soft.any())


@dataclass(frozen=True, slots=True, eq=False)
class Lesson:
    """One example: its tokens, what each of them follows, and its loss rows."""

    id: str
    tokens: NDArray[np.int32]
    """(T,)"""
    parents: NDArray[np.int32]
    """(T,) The place of the token that each one follows, always an earlier place; -1 for the first."""
    rows: Rows
    chunks: Chunks | None = None
    """Runs of rows whose probability the teacher tells as a whole."""

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def weight(self) -> float:
        """What the rows weigh together: losses are divided by it."""
        together = self.chunks.rows_weight if self.chunks is not None else 0.0
        return float(self.rows.ce.sum(dtype=np.float64) + self.rows.soft.sum(dtype=np.float64)) + together

    @property
    def is_chain(self) -> bool:
        """Whether each token follows the one before it."""
        return bool(np.array_equal(self.parents, np.arange(-1, len(self) - 1)))


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Lessons side by side: B sequences of L cells, of which some are padding at the end."""

    ids: tuple[str, ...]
    tokens: NDArray[np.int32]
    """(B, L)"""
    positions: NDArray[np.int32]
    """(B, L) How many tokens come before each one on its own path."""
    visible: NDArray[np.bool_] | None
    """(B, L, L) Whether the first token sees the second; None where all lessons are chains: plain causal attention."""
    rows: Rows
    used: int
    """Cells that hold a token."""
    chunks: Chunks | None = None

    @property
    def shared(self) -> int:
        """Tokens that all sequences begin with, where there are several and each is a chain; else 0."""
        if self.visible is not None or len(self.tokens) < 2:
            return 0
        differs = (self.tokens != self.tokens[0]).any(axis=0)
        longest = int(differs.argmax()) if differs.any() else differs.size
        return min(longest, int(self.tokens.shape[1]) - 1)


def hard_lesson(example: EncodedExample) -> Lesson:
    """The lesson of an example's text alone: a row for each token that carries the loss."""
    lesson = text_lesson(example.id, example.tokens, example.start)
    if not example.gaps:
        return lesson
    learned = np.concatenate([np.arange(begin, end) for begin, end in example.spans]) - example.start
    return replace(lesson, rows=_picked(lesson.rows, learned))


def text_lesson(
    identity: str, tokens: Sequence[int], start: int, targets: Targets | None = None, ce_weight: float = 1.0
) -> Lesson:
    """The lesson of a text whose tokens from `start` on are the answer.

    With `targets`, whose tokens must be the answer's own, in the student's vocabulary, and may lack the last ones (an
    end that was not scored): the rows that have a distribution weigh `ce_weight` for the token and the rest for the
    distribution; the others are learned by the token alone.
    """
    ids = np.asarray(tokens, np.int32)
    count = len(ids) - start
    rows = Rows(
        at=np.arange(start - 1, len(ids) - 1, dtype=np.int32),
        token=ids[start:],
        ce=np.ones(count, np.float32),
        soft=np.zeros(count, np.float32),
        ids=ids[start:, None],
        logprobs=np.zeros((count, 1), np.float32),
        tail=np.full(count, NO_TAIL, np.float32),
    )
    chain = np.arange(-1, len(ids) - 1, dtype=np.int32)
    if targets is not None:
        known = np.arange(min(len(targets.tokens), count), dtype=np.int32)
        rows = _softened(rows, targets, ce_weight, known)
    return Lesson(identity, ids[:-1], chain[:-1], rows)  # behind the last token nothing is predicted


def aligned_lesson(
    identity: str, tokens: Sequence[int], start: int, aligned: Aligned, ce_weight: float = 0.0
) -> Lesson:
    """The lesson of a text of which a teacher with another tokenizer tells what it can; see `alignment`.

    Its tokens from `start` on are the answer. Rows with a distribution, and runs of rows whose probability is known
    together, weigh `ce_weight` for the token and the rest for the distribution; the others are learned by the token.
    """
    plain = text_lesson(identity, tokens, start)
    rows = _softened(plain.rows, aligned.targets, ce_weight, aligned.rows)
    ce = rows.ce.copy()
    ce[aligned.chunks.rows] = ce_weight
    chunks = replace(aligned.chunks, weight=aligned.chunks.weight * np.float32(1.0 - ce_weight))
    return replace(plain, rows=replace(rows, ce=ce), chunks=chunks if len(chunks) else None)


def _softened(rows: Rows, targets: Targets, ce_weight: float, at: NDArray[np.int32]) -> Rows:
    """The rows with the distributions of those at `at`."""
    if not np.array_equal(targets.tokens, rows.token[at]):
        raise ValueError("the targets are of another text")
    counts = np.diff(targets.offsets)
    width = int(counts.max(initial=1))
    filled = np.arange(width) < counts[:, None]
    kept = np.repeat(targets.ids[targets.offsets[:-1]][:, None], width, axis=1)
    kept[filled] = targets.ids
    shares = np.full(kept.shape, -np.inf, np.float32)
    shares[filled] = targets.logprobs
    ids = np.repeat(rows.token[:, None], width, axis=1)
    logprobs = np.full(ids.shape, -np.inf, np.float32)
    logprobs[:, 0] = 0.0
    ids[at], logprobs[at] = kept, shares
    tail, ce, soft = rows.tail.copy(), rows.ce.copy(), rows.soft.copy()
    # of drawn tokens there is no tail: the student's own one holds tokens that could have been drawn
    if targets.profile == "top_k":
        tail[at] = np.log(np.maximum(targets.tail, np.finfo(np.float32).tiny))
    ce[at], soft[at] = ce_weight, 1.0 - ce_weight
    return replace(rows, ce=ce, soft=soft, ids=ids, logprobs=logprobs, tail=tail)


def answers_lesson(identity: str, prompt: Sequence[int], answers: Mapping[tuple[int, ...], float]) -> Lesson:
    """The lesson of a closed set of answers: token ids and the probability to learn of each, which sum to 1.

    The loss is the cross entropy over whole answers, - sum_a p(a) log q(a | prompt), less the entropy of p. It falls
    apart into one divergence at each branch of the trie of answers, weighed by the probability of getting there.
    Divided by the sum of these weights it is a mean over tokens like that of plain text, and the same where one answer
    has all probability.
    """
    tokens, parents = list(prompt), list(range(-1, len(prompt) - 1))
    children: dict[int, dict[int, tuple[int, float]]] = {}  # place -> token -> (its place, probability)
    for answer, share in answers.items():
        place = len(prompt) - 1
        for token in answer if share > 0 else ():
            node = children.setdefault(place, {})
            if token not in node:
                node[token] = (len(tokens), 0.0)
                tokens.append(token)
                parents.append(place)
            child, so_far = node[token]
            node[token] = (child, so_far + share)
            place = child
    # behind an answer's last token nothing is predicted: it has no place of its own
    inner = [*range(len(prompt) - 1), *sorted(children)]
    number = {place: new for new, place in enumerate(inner)}
    follows = [ROOT if parents[place] == ROOT else number[parents[place]] for place in inner]
    rows = _branch_rows({number[place]: children[place] for place in children})
    return Lesson(identity, np.array(tokens, np.int32)[inner], np.array(follows, np.int32), rows)


def cooled(shares: Sequence[float], temperature: float, floor: float) -> NDArray[np.float64]:
    """Probabilities as p^(1/temperature), normalised, then those below `floor` left out, and normalised again.

    The largest one stays in any case.

    >>> cooled([0.5, 0.3, 0.2], 0.5, 0.2).round(3).tolist()
    [0.735, 0.265, 0.0]
    """
    with np.errstate(divide="ignore"):
        logs = np.log(np.asarray(shares, np.float64)) / temperature
    found = np.exp(logs - logs.max())
    found /= found.sum()
    found[found < min(floor, found.max())] = 0.0
    kept: NDArray[np.float64] = found / found.sum()
    return kept


def _branch_rows(children: Mapping[int, Mapping[int, tuple[int, float]]]) -> Rows:
    """A row for each place that something follows: its children's probabilities, weighed by its own."""
    places = sorted(children)
    width = max(len(children[place]) for place in places)
    ids = np.zeros((len(places), width), np.int32)
    shares = np.zeros((len(places), width))
    for row, place in enumerate(places):
        tokens = list(children[place])
        ids[row] = tokens[0]
        ids[row, : len(tokens)] = tokens
        shares[row, : len(tokens)] = [share for _, share in children[place].values()]
    reach = shares.sum(axis=1)
    with np.errstate(divide="ignore"):
        logprobs = np.log(shares / reach[:, None]).astype(np.float32)
    is_fork = (shares > 0).sum(axis=1) > 1
    weight = reach.astype(np.float32)
    return Rows(
        at=np.array(places, np.int32),
        token=ids[:, 0].copy(),
        ce=np.where(is_fork, 0, weight).astype(np.float32),
        soft=np.where(is_fork, weight, 0).astype(np.float32),
        ids=ids,
        logprobs=logprobs,
        tail=np.full(len(places), NO_TAIL, np.float32),
    )


def paths(lesson: Lesson) -> list[Lesson]:
    """The lesson as plain chains, for a backend that cannot let tokens branch, each row in one of them.

    One a leaf, but for leaves all of whose rows are in an earlier chain.
    """
    if lesson.is_chain:
        return [lesson]
    leaves = sorted(set(range(len(lesson))) - set(lesson.parents.tolist()))
    taken: set[int] = set()
    found = []
    for leaf in leaves:
        chain = [leaf]
        while lesson.parents[chain[-1]] != ROOT:
            chain.append(int(lesson.parents[chain[-1]]))
        chain.reverse()
        place = {node: number for number, node in enumerate(chain)}
        mine = [row for row, at in enumerate(lesson.rows.at.tolist()) if at in place and at not in taken]
        if not mine:
            continue
        taken.update(lesson.rows.at[mine].tolist())
        rows = _picked(lesson.rows, np.array(mine, np.intp))
        rows = replace(rows, at=np.array([place[at] for at in rows.at.tolist()], np.int32))
        found.append(Lesson(lesson.id, lesson.tokens[chain], np.arange(-1, len(chain) - 1, dtype=np.int32), rows))
    return found


def _picked(rows: Rows, wanted: NDArray[np.intp]) -> Rows:
    return Rows(*(getattr(rows, name)[wanted] for name in Rows.__slots__))


def collated(lessons: Sequence[Lesson], width: int | None = None, packed: bool = False) -> Batch:
    """Lessons side by side, each a sequence padded behind its end to `width` or to the longest.

    With `packed`, all of them in one sequence, each seeing itself alone, with positions that begin at 0.
    """
    length = max(map(len, lessons))
    shape = (1, sum(map(len, lessons))) if packed else (len(lessons), length if width is None else width)
    tokens, positions = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    is_plain = not packed and all(lesson.is_chain for lesson in lessons)
    visible = (
        None if is_plain else np.broadcast_to(np.eye(shape[1], dtype=bool), (shape[0], *shape[1:], shape[1])).copy()
    )
    starts = []
    place = 0
    for number, lesson in enumerate(lessons):
        line, column = (0, place) if packed else (number, 0)
        cells = slice(column, column + len(lesson))
        tokens[line, cells] = lesson.tokens
        seen = _ancestors(lesson) if visible is not None else None
        if visible is not None and seen is not None:
            visible[line, cells, cells] = seen
            positions[line, cells] = seen.sum(axis=1) - 1
        else:
            positions[line] = np.arange(shape[1])
        starts.append(line * shape[1] + column)
        place += len(lesson)
    rows = _joined([lesson.rows for lesson in lessons], starts)
    firsts = np.cumsum([0, *(len(lesson.rows) for lesson in lessons)]).tolist()[:-1]
    chunks = joined_chunks([lesson.chunks for lesson in lessons], firsts)
    return Batch(tuple(lesson.id for lesson in lessons), tokens, positions, visible, rows, place, chunks)


def _ancestors(lesson: Lesson) -> NDArray[np.bool_]:
    """(T, T) Whether the second token is on the path to the first, itself included."""
    if lesson.is_chain:
        return np.tri(len(lesson), dtype=bool)
    seen = np.eye(len(lesson), dtype=bool)
    for place, parent in enumerate(lesson.parents.tolist()):
        if parent != ROOT:
            seen[place] |= seen[parent]
    return seen


def _joined(parts: Sequence[Rows], starts: Sequence[int]) -> Rows:
    width = max(part.ids.shape[1] for part in parts)
    columns: dict[str, Any] = {
        name: np.concatenate([getattr(part, name) for part in parts]) for name in ("token", "ce", "soft", "tail")
    }
    columns["at"] = np.concatenate([part.at + start for part, start in zip(parts, starts, strict=True)])
    columns["ids"] = np.concatenate([_widened(part.ids, width, part.ids[:, :1]) for part in parts])
    columns["logprobs"] = np.concatenate([_widened(part.logprobs, width, np.float32(-np.inf)) for part in parts])
    return Rows(**columns)


def _widened(values: NDArray[Any], width: int, filling: Any) -> NDArray[Any]:
    missing = np.broadcast_to(filling, (len(values), width - values.shape[1])).astype(values.dtype)
    return np.concatenate([values, missing], axis=1)
