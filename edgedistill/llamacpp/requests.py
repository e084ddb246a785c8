"""What the batch engine is asked, what it answers, and what it keeps of each in between."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, islice

import numpy as np

from ..targets import Capture
from .grammar import GrammarState
from .sampling import Sampling

__all__ = ["Answer", "Request", "Slot", "longest_first"]

WINDOW = 2  # times the slots: requests that are looked at ahead, the longest of which goes first


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt: how many tokens of the shared prefix it begins with, and its own tokens after these.

    `given` is an answer that is scored instead of written, its end token included.
    """

    id: str
    shared: int
    tokens: Sequence[int]
    sampling: Sampling
    given: tuple[int, ...] = ()
    first_sample: int = 0

    @property
    def cells(self) -> int:
        """The most cells that one answer to it fills, the shared prefix apart."""
        return len(self.tokens) + (len(self.given) or self.sampling.max_tokens)

    def only(self, samples: Sequence[int]) -> Iterator[Request]:
        """Requests for some samples, of rising numbers: one for each run of numbers without a gap."""
        for _, run in groupby(enumerate(samples), lambda one: one[1] - one[0]):
            numbers = [number for _, number in run]
            yield replace(self, first_sample=numbers[0], sampling=replace(self.sampling, samples=len(numbers)))


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer. Times are seconds since the request's admission, on a monotonic clock."""

    id: str
    tokens: tuple[int, ...]
    text: str
    finish_reason: str
    prompt_tokens: int
    first_seconds: float
    seconds: float
    sample: int = 0
    targets: bytes | None = None


@dataclass(slots=True)
class Slot:
    request: Request
    sample: int
    position: int
    started: float
    state: GrammarState | None
    capture: Capture | None
    random: np.random.Generator | None
    pending: list[int]
    expected: list[int] = field(default_factory=list)
    """Tokens that the last rows of `pending` predict and that are known: forced or given ones."""
    answer: list[int] = field(default_factory=list)
    siblings: list[int] = field(default_factory=list)
    """Slots that wait for this prompt, for further samples of it."""
    first_seconds: float = 0.0
    closing: bool = False
    """Whether nothing is left to choose: only what is known must still be looked up."""
    done: bool = False

    @property
    def held(self) -> list[int]:
        """The tokens whose cells it holds, behind the shared prefix: the request's own, and then the answer's."""
        whole = [*self.request.tokens, *(self.request.given or self.answer)]
        return whole[: self.position - self.request.shared]

    @property
    def wanted(self) -> int:
        """Rows at the end of `pending` whose logits are needed."""
        return (len(self.expected) if self.capture is not None else 0) + (0 if self.closing else 1)


def longest_first(requests: Iterable[Request], slots: int) -> Iterator[Request]:
    """The requests, the longest first within a window; none has more samples than there are slots.

    A single slot takes them as they come.
    """
    source = iter(requests)
    while window := list(islice(source, WINDOW * slots if slots > 1 else 1)):
        window.sort(key=lambda request: -request.cells)
        for request in window:
            for first in range(0, request.sampling.samples, slots):
                samples = min(slots, request.sampling.samples - first)
                sampling = replace(request.sampling, samples=samples)
                yield replace(request, first_sample=request.first_sample + first, sampling=sampling)
