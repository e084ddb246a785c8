"""Several models over the same tokens at once: where and how far their distributions lie apart.

Each model decodes a group of texts in its own context; then all are at the same tokens, and their logits are reduced
where they lie. Nothing is stored but two numbers a token and model. What all texts of a model begin with is decoded
once. Models may be shown different prompts, as a teacher's and a student's are: what is compared is the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidInput
from ..records import common_length
from ..run import Progress, stop_if_asked
from .context import Context, ContextSettings
from .divergence import Divergence, KeptRow, Reduction, Rows
from .importance import Importance, ImportanceCollector
from .model import LlamaModel
from .prefix import PREFIX, decode_prefix

__all__ = [
    "Compared",
    "Comparison",
    "ScoredText",
    "Side",
    "compare",
    "divergence_between",
    "importance_of",
    "in_chunks",
]

OUTPUTS = 128  # rows of logits at a time: the head's matrices are large enough to be fast, and 78 MB at 152k tokens
CELLS = 512  # of the texts that are decoded together; one longer text has as many as it needs
SEQUENCES = 32
LEAST_SHARED = 16  # tokens; fewer are not worth a sequence of their own


@dataclass(frozen=True, slots=True)
class ScoredText:
    """Token ids of which those from `start` on are scored: the distributions before each of them are compared."""

    tokens: tuple[int, ...]
    start: int

    @property
    def scored(self) -> int:
        return len(self.tokens) - self.start


@dataclass(frozen=True)
class Side:
    """A model and what it is shown: text by text it has as many scored tokens as the other sides."""

    path: Path
    texts: Sequence[ScoredText]
    watch: Any = None
    """What looks on while this model computes: a `ggml_backend_sched_eval_callback`."""


@dataclass(frozen=True)
class Comparison:
    """What is compared: pairs of (reference, other) by the sides' numbers, and the sides that kept rows are held to."""

    pairs: Sequence[tuple[int, int]]
    kept_for: Sequence[int] = ()
    kept: Sequence[Sequence[KeptRow | None]] = ()
    """By text, then by scored token: a distribution that was kept earlier, or None."""


@dataclass(frozen=True)
class Compared:
    """The divergence of each pair, and of each side from the kept rows."""

    pairs: list[Divergence]
    kept: list[Divergence]


def compare(sides: Sequence[Side], what: Comparison, threads: int, progress: Progress) -> Compared:
    """Decode the sides' texts and reduce their distributions; the memory is that of all models together.

    Raises InvalidInput where the sides' texts do not match or do not fit a model's context, Stopped where that was
    asked for, EdgeDistillError where llama.cpp fails or logits are not finite.
    """
    _require_matching(sides, what)
    with ExitStack() as stack:
        runners = [_Runner(side, threads, stack) for side in sides]
        width = min(runner.vocab_size for runner in runners)
        reduction = stack.enter_context(Reduction(width, len(sides), what.pairs, what.kept_for, threads))
        scored = [text.scored for text in sides[0].texts]
        done = 0
        for group in _groups([runner.own for runner in runners]):
            for runner in runners:
                runner.read(group)
            places = [(text, token) for text in group for token in range(scored[text])]
            for start in range(0, len(places), OUTPUTS):
                part = places[start : start + OUTPUTS]
                kept = [what.kept[text][token] for text, token in part] if what.kept else []
                reduction.add(Rows([runner.logits(part) for runner in runners], kept))
                stop_if_asked()
            done += len(group)
            progress("comparing", done, len(scored))
        return Compared(*reduction.found())


def divergence_between(
    reference: Path, others: Sequence[Path], texts: Sequence[ScoredText], threads: int, progress: Progress
) -> list[Divergence]:
    """How far each of the other models is from the reference on the same texts. Raises what `compare` raises."""
    sides = [Side(path, texts) for path in (reference, *others)]
    return compare(sides, Comparison([(0, number) for number in range(1, len(sides))]), threads, progress).pairs


def importance_of(path: Path, texts: Sequence[ScoredText], threads: int, progress: Progress) -> Importance:
    """How much each input of the model's matrices matters on these texts: one pass of the model alone.

    Where a pass is made anyway, its side's `watch` is an ImportanceCollector's callback. Raises what `compare` raises.
    """
    collector = ImportanceCollector()
    compare([Side(path, texts, collector.callback)], Comparison(()), threads, progress)
    return collector.importance


def in_chunks(tokens: Sequence[int], size: int, start: int) -> list[ScoredText]:
    """A long text cut into whole chunks, each scored from `start` on, as llama-perplexity does it."""
    return [ScoredText(tuple(tokens[first : first + size]), start) for first in range(0, len(tokens) - size + 1, size)]


def _require_matching(sides: Sequence[Side], what: Comparison) -> None:
    counts = [[text.scored for text in side.texts] for side in sides]
    if what.kept:
        counts.append([len(rows) for rows in what.kept])
    if any(one != counts[0] for one in counts):
        raise InvalidInput("the sides have different scored tokens", "Compare models of one tokenizer.")
    if any(text.start < 1 or text.scored < 1 for side in sides for text in side.texts):
        raise InvalidInput("a text without a scored token, or whose first token is scored", "Leave it out.")


def _groups(own: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Numbers of the texts that are decoded together: as many as every side's cells hold, or one that is longer."""
    group: list[int] = []
    used = [0] * len(own)
    for text, lengths in enumerate(zip(*own, strict=True)):
        wanted = [cells + length for cells, length in zip(used, lengths, strict=True)]
        if group and (len(group) == SEQUENCES or max(wanted) > CELLS):
            yield group
            group, wanted = [], list(lengths)
        group.append(text)
        used = wanted
    if group:
        yield group


class _Runner:
    """One side's model and context, with what its texts share in sequence 0."""

    def __init__(self, side: Side, threads: int, stack: ExitStack) -> None:
        self._texts = side.texts
        model = stack.enter_context(LlamaModel(side.path))
        self.vocab_size = model.vocab_size
        self._shared = _shared(side.texts)
        self.own = [len(text.tokens) - 1 - self._shared for text in side.texts]
        """Tokens of each text that are decoded: the last one is only predicted."""
        longest = max(self.own, default=1)
        if self._shared + longest > model.context_limit:
            raise InvalidInput(
                f"{side.path}: a text of {self._shared + longest + 1} tokens, the model knows {model.context_limit}",
                "Shorten the texts.",
            )
        cells = self._shared + max(CELLS, longest)
        settings = ContextSettings(cells, SEQUENCES + 1, threads, batch_tokens=CELLS, outputs=OUTPUTS, watch=side.watch)
        self._context = Context(model, settings)
        stack.callback(self._context.close)
        self._sequence: dict[int, int] = {}
        if self._shared:
            decode_prefix(self._context, None, side.texts[0].tokens[: self._shared])

    def read(self, group: Sequence[int]) -> None:
        """Decode the texts of a group up to where they are scored."""
        for sequence in self._sequence.values():
            self._context.cut(sequence)
        self._sequence = {text: PREFIX + 1 + number for number, text in enumerate(group)}
        batch = self._context.batch
        batch.clear()
        for text, sequence in self._sequence.items():
            if self._shared:
                self._context.copy(PREFIX, sequence)
            place, end = self._shared, self._texts[text].start - 1
            while place < end:
                count = min(end - place, batch.room)
                batch.add(self._texts[text].tokens[place : place + count], place, sequence, 0)
                place += count
                if not batch.room:
                    self._context.decode()
                    batch.clear()
        if batch.size:
            self._context.decode()

    def logits(self, places: Sequence[tuple[int, int]]) -> list[NDArray[np.float32]]:
        """Decode (text, scored token) places, at most OUTPUTS of them; their logits, valid until the next call."""
        batch = self._context.batch
        batch.clear()
        for text, run in groupby(places, key=lambda place: place[0]):
            scored, tokens = self._texts[text], [token for _, token in run]
            first, count = scored.start - 1 + tokens[0], len(tokens)
            batch.add(scored.tokens[first : first + count], first, self._sequence[text], count)
        self._context.decode()
        return [self._context.logits(row) for row in range(len(places))]


def _shared(texts: Sequence[ScoredText]) -> int:
    """How many tokens all texts begin with, none of them followed by a scored one."""
    if len(texts) < 2:
        return 0
    first, least = texts[0], min(text.start for text in texts) - 1
    shared = min(common_length(first.tokens, text.tokens) for text in texts)
    shared = min(shared, least)
    return shared if shared >= LEAST_SHARED else 0
