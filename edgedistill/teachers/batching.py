"""Many answers at a time: a slot takes the next request the step it frees, and each has its own length."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..llamacpp.grammar import Grammar, GrammarState
from ..llamacpp.sampling import Sampling, choose
from ..targets import Capture
from .decoder import Chunk, Decoder, Pending, feed, next_chunks

__all__ = ["Answer", "Request", "answered"]


@dataclass(frozen=True, slots=True)
class Request:
    """One text: the tokens that come after the prefix, and how to go on, or how it goes on.

    The samples of a prompt come one after another: their prompt is decoded once.
    `given` are the tokens of an answer that is there already, with the one that ends it: it is only looked at.
    """

    id: str
    tokens: Sequence[int]
    sampling: Sampling
    sample: int = 0
    edges: tuple[bool, bool] = (True, True)
    """Whether it is the first, and the last, of its prompt's samples that are wanted."""
    given: Sequence[int] = ()
    text: str = ""
    """What the given tokens say."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a request; `tokens` are without the one that ended it, `seconds` since it was taken up."""

    request: Request
    tokens: tuple[int, ...]
    whole: bool
    """Whether it ended by itself."""
    targets: bytes | None
    seconds: float


@dataclass(slots=True)
class _Slot:
    request: Request
    state: GrammarState | None
    random: np.random.Generator | None
    capture: Capture | None
    pending: Pending
    started: float
    answer: list[int] = field(default_factory=list)
    known: list[int] = field(default_factory=list)
    """Tokens whose distribution is asked for: the answer's, and the one that ended it."""
    captured: int = 0
    over: bool = False
    whole: bool = False

    @property
    def done(self) -> bool:
        return self.over and (self.capture is None or self.captured == len(self.known))

    def append(self, tokens: Sequence[int]) -> None:
        """Go on with tokens, as far as the answer may go, and queue them."""
        kept = tokens[: self.request.sampling.max_tokens - len(self.answer)]
        self.answer += kept
        self.known += kept
        finished = self.state is not None and self.state.finished
        self.over = finished or len(self.answer) == self.request.sampling.max_tokens
        self.whole = finished and len(kept) == len(tokens)
        fed = kept[:-1] if self.over else kept  # nothing is asked about what comes after the last one
        self.pending.tokens += fed
        self.pending.wanted = 1 if self.capture is None else self.pending.wanted + len(fed)

    def result(self) -> Answer:
        seconds = time.perf_counter() - self.started
        targets = None if self.capture is None else self.capture.encoded()
        return Answer(self.request, tuple(self.answer), self.whole, targets, seconds)

    def end(self, token: int) -> None:
        self.known.append(token)
        self.over = self.whole = True


class _Batch:
    """The requests that are under way."""

    def __init__(self, decoder: Decoder, grammar: Grammar | None, ends: frozenset[int], root: int) -> None:
        self._decoder = decoder
        self._grammar = grammar
        self._ends = ends
        self._root = root
        self._behind_root: NDArray[np.float32] | None = None
        self.slots: dict[int, _Slot] = {}

    def admit(self, number: int, request: Request) -> None:
        """Take up a request."""
        sampling, given = request.sampling, request.given
        decoded = None if all(request.edges) else self._decode_once(number, request)
        slot = self.slots[number] = _Slot(
            request=request,
            state=self._grammar.begin() if self._grammar and not given else None,
            random=np.random.default_rng(sampling.seed) if sampling.temperature > 0 else None,
            capture=Capture(sampling.capture, self._decoder.vocab_size, sampling.seed) if sampling.capture else None,
            pending=Pending(list(request.tokens)) if decoded is None else Pending([], 0),
            started=time.perf_counter(),
        )
        if given:
            slot.append(given[:-1])
            slot.end(given[-1])
        elif slot.state is not None and (forced := slot.state.forced()):
            slot.append(forced)
        if decoded is not None and (slot.capture is not None or not slot.known):
            self._look(slot, decoded)

    def _decode_once(self, number: int, request: Request) -> NDArray[np.float32] | None:
        """Make a slot hold the prompt of a request, which all its samples have in common; the logits behind it."""
        first, last = request.edges
        if first:
            self._behind_root = feed(self._decoder, {self._root: Chunk(request.tokens)})[self._root][0]
        self._decoder.fork(self._root, [number])
        if last:
            self._decoder.free([self._root])
        return self._behind_root

    def step(self) -> list[int]:
        """Decode once; return the slots whose answer is whole, or as long as it may be."""
        waiting = {number: slot.pending for number, slot in self.slots.items() if not slot.done}
        if waiting:
            for number, rows in self._decoder.step(next_chunks(waiting)).items():
                for row in rows:
                    self._look(self.slots[number], row)
        return [number for number, slot in self.slots.items() if slot.done]

    def _look(self, slot: _Slot, logits: NDArray[np.float32]) -> None:
        """Choose the next token, if it is not known; capture its distribution, if that is asked for."""
        if slot.capture is None or slot.captured == len(slot.known):
            self._choose(slot, logits)
        if slot.capture is not None:
            slot.capture.add(slot.known[slot.captured], logits)
            slot.captured += 1

    def _choose(self, slot: _Slot, logits: NDArray[np.float32]) -> None:
        sampling, state = slot.request.sampling, slot.state
        if state is None:
            token = choose(logits, sampling, slot.random)
        else:
            allowed = state.allowed()
            token = int(allowed[choose(logits[allowed], sampling, slot.random)])
        if token in self._ends:
            slot.end(token)
        elif state is None:
            slot.append([token])
        else:
            state.accept(token)
            slot.append([token, *state.forced()])


def answered(
    decoder: Decoder, requests: Iterable[Request], slots: int, grammar: Grammar | None, ends: frozenset[int]
) -> Generator[Answer, None, None]:
    """Yield one answer per request, in the order they finish; a request is taken when a slot is free."""
    batch = _Batch(decoder, grammar, ends, root=slots)
    waiting = iter(requests)
    free = list(range(slots - 1, -1, -1))
    more = True
    try:
        while True:
            while more and free:
                request = next(waiting, None)
                if request is None:
                    more = False
                else:
                    batch.admit(free.pop(), request)
            if not batch.slots:
                return
            finished = {number: batch.slots.pop(number) for number in batch.step()}
            decoder.free(list(finished))
            free += finished
            for slot in finished.values():
                yield slot.result()
    finally:
        decoder.free([*batch.slots, slots])
