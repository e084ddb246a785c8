"""What a batched decoder does: tokens in, logits out, for many texts that begin alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidInput

__all__ = ["Chunk", "Decoder", "Logits", "Pending", "feed", "first_line", "must_fit", "next_chunks"]

Logits = NDArray[np.float32]
STEP_TOKENS = 512  # tokens that one step appends at most, to all texts together: it bounds a step's memory
STEP_LOGITS = 256  # rows of logits that one step gives at most


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens to append to a text, and of how many of the last ones the logits are wanted."""

    tokens: Sequence[int]
    wanted: int = 1


class Decoder(Protocol):
    """A model that keeps texts in numbered slots. A slot that is new holds the prefix, decoded once for all.

    Raises what its library raises where memory does not suffice.
    """

    vocab_size: int
    """How many logits a row has."""
    context: int
    """The longest text, in tokens, that the model knows."""

    def start(self, prefix: Sequence[int]) -> None:
        """Decode what all texts begin with; every slot is new again."""

    def step(self, chunks: Mapping[int, Chunk]) -> dict[int, Logits]:
        """Append to some slots; the logits of each, float32 of shape (wanted, vocabulary), rows in order."""

    def fork(self, slot: int, others: Iterable[int]) -> None:
        """Make other, new slots hold what a slot holds."""

    def free(self, slots: Iterable[int]) -> None:
        """Make slots new again."""


@dataclass(slots=True)
class Pending:
    """Tokens that are still to be appended to a text; the logits of the last `wanted` of them are asked for."""

    tokens: list[int]
    wanted: int = 1


def next_chunks(waiting: Mapping[int, Pending]) -> dict[int, Chunk]:
    """As much of what waits as one step takes, taken off it.

    >>> waiting = {7: Pending([1, 2, 3], 2)}
    >>> next_chunks(waiting)
    {7: Chunk(tokens=[1, 2, 3], wanted=2)}
    >>> waiting
    {7: Pending(tokens=[], wanted=0)}
    """
    chunks: dict[int, Chunk] = {}
    room, rows = STEP_TOKENS, STEP_LOGITS
    for slot, pending in sorted(waiting.items(), key=lambda item: len(item[1].tokens)):
        unwanted = len(pending.tokens) - pending.wanted
        count = min(len(pending.tokens), room, unwanted + rows)
        if count <= 0:
            continue
        wanted = max(0, count - unwanted)
        chunks[slot] = Chunk(pending.tokens[:count], wanted)
        del pending.tokens[:count]
        pending.wanted -= wanted
        room, rows = room - count, rows - wanted
    return chunks


def feed(decoder: Decoder, texts: Mapping[int, Chunk]) -> dict[int, Logits]:
    """Append to slots in as many steps as it takes; the wanted logits of each."""
    waiting = {slot: Pending(list(chunk.tokens), chunk.wanted) for slot, chunk in texts.items()}
    found: dict[int, list[Logits]] = {slot: [] for slot in texts}
    while any(pending.tokens for pending in waiting.values()):
        for slot, rows in decoder.step(next_chunks(waiting)).items():
            found[slot].append(rows)
    return {slot: np.concatenate(rows) for slot, rows in found.items() if rows}


def must_fit(decoder: Decoder, length: int) -> None:
    """Raise InvalidInput where a text is longer than the model knows."""
    if length > decoder.context:
        raise InvalidInput(
            f"the longest prompt and its answer need {length} tokens, the model knows {decoder.context}",
            "Shorten the prompt or the teacher's guide and examples, or use another model.",
        )


def first_line(error: Exception) -> str:
    """What a library has to say of its error, in one line."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
