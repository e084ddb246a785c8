"""One teacher on its way through very many prompts: what is stored is not asked, what is in flight is all of memory."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path

from ..records import Completion, Place, Prompt, placed_prompts
from ..run import Progress, stop_if_asked
from ..store import Mark, Store
from ..teachers import ending
from .keys import AnswerKeys
from .steps import keep

__all__ = ["Asking", "Pass", "Source", "Tally"]

LOOKED_UP_AT_ONCE = 500  # prompts whose answers are looked for in one query
MARKED_EVERY = 64  # rows, after which the place that all have an answer up to is written down
LONGEST_GAP = 10_000  # prompts behind one that has no answer yet, after which the place is no longer followed


@dataclass(frozen=True)
class Source:
    """The file of prompts, and a digest of all that decides which of them is whose."""

    path: Path
    content: str


@dataclass(frozen=True)
class Pass:
    """Some of the prompts, and how completions of these are come by."""

    name: str
    is_mine: Callable[[Prompt], bool]
    answers: Callable[[Iterator[Prompt]], Iterable[Completion]]
    failed: Callable[[], int]
    """How many prompts have been given up so far."""


class Tally:
    """How many rows there are, and how fast they come; told to whoever watches."""

    def __init__(self, progress: Progress, total: int) -> None:
        self.rows = self.tokens = self.asked = self.failed = 0
        self._new_tokens = 0
        self._progress, self._total = progress, total
        self._started: float | None = None

    def know(self, rows: int, tokens: int) -> None:
        """Count rows that were there."""
        self.rows += rows
        self.tokens += tokens

    def begin(self) -> None:
        """Say where one stands before the teacher is asked anything."""
        if self._started is None:
            self._started = time.monotonic()
            self._progress("teaching", self.rows, self._total)

    def add(self, completion: Completion) -> None:
        """Count a new row, and say so."""
        self.know(1, completion.completion_tokens)
        self.asked += 1
        self._new_tokens += completion.completion_tokens
        seconds = max(time.monotonic() - (self._started or 0.0), 1e-3)
        failed = f", {self.failed} failed" if self.failed else ""
        speed = f"{self._new_tokens / seconds:,.0f} tok/s, {self.asked / seconds:,.1f} rows/s"
        self._progress(f"teaching ({speed}{failed})", self.rows, self._total)


@dataclass(slots=True)
class _Row:
    """A prompt whose answers are not all there: how many are, and how many are to come."""

    place: Place
    rows: int
    tokens: int
    left: int


@dataclass(slots=True)
class _Open:
    """A prompt that the teacher has been given."""

    prompt: Prompt
    keys: list[str]
    missing: set[str]
    row: _Row


@dataclass
class Asking:
    """One teacher's rows. `open` has, after `run`, the prompts that it left without an answer."""

    store: Store
    source: Source
    number: int
    keys: AnswerKeys
    tally: Tally
    is_paid: bool
    """Whether rows are to survive a power cut too, though not each of them at once."""
    open: dict[str, _Open] = field(default_factory=dict)
    read_all: bool = False
    """Whether every prompt has been given to the teacher."""
    _order: deque[_Row] | None = None
    _mark: Mark = field(default_factory=lambda: Mark(""))

    def run(self, one: Pass) -> None:
        """Take in the answers to those prompts of a pass that have none, each committed before it is told."""
        self.open, self.read_all, self._order = {}, False, deque()
        name = f"{self.keys.identity} {one.name}"
        self._mark = self.store.marked(name, self.source.content)
        self.tally.know(self._mark.rows, self._mark.tokens)
        prompts = self._unanswered(one)
        first = next(prompts, None)
        self.tally.begin()
        answers: Iterable[Completion] = () if first is None else one.answers(chain([first], prompts))
        try:
            with ending(answers) as completions:
                for completion in completions:
                    self.tally.failed = one.failed()
                    if self._take(completion) and self.tally.asked % MARKED_EVERY == 0:
                        self.store.mark(name, self._mark, durable=self.is_paid)
                    stop_if_asked()
        finally:
            self.store.mark(name, self._mark, durable=self.is_paid)

    def missing(self, prompt: Prompt) -> list[int]:
        """The numbers of the samples that are not there, of a prompt that the teacher has been given."""
        one = self.open[prompt.id]
        return [number for number, key in enumerate(one.keys) if key in one.missing]

    def _unanswered(self, one: Pass) -> Iterator[Prompt]:
        """The prompts of a pass that lack an answer, read and looked up as they are needed."""
        source = placed_prompts(self.source.path, self._mark.place)
        while block := list(islice(source, LOOKED_UP_AT_ONCE)):
            keyed = [(place, prompt, self.keys.of(prompt) if one.is_mine(prompt) else []) for place, prompt in block]
            held = self.store.held([key for _, _, keys in keyed for key in keys])
            for place, prompt, keys in keyed:
                if prompt.id in self.open:
                    continue
                tokens = [held[key] for key in keys if key in held]
                row = _Row(place, len(tokens), sum(tokens), len(keys) - len(tokens))
                self.tally.know(row.rows, row.tokens)
                self._follow(row)
                if row.left:
                    self.open[prompt.id] = _Open(prompt, keys, {key for key in keys if key not in held}, row)
                    yield prompt
        self.read_all = True

    def _take(self, completion: Completion) -> bool:
        """Store a completion; return whether it is new."""
        asked = self.open.get(completion.prompt_id)
        key = asked.keys[completion.sample] if asked else ""
        if asked is None or key not in asked.missing:  # it was there already
            return False
        is_new = keep(self.store, key, completion, self.number)
        asked.missing.discard(key)
        row = asked.row
        row.left, row.rows, row.tokens = row.left - 1, row.rows + 1, row.tokens + completion.completion_tokens
        if row.left == 0:
            del self.open[completion.prompt_id]
            self._advance()
        if is_new:
            self.tally.add(completion)
        else:  # by the same prompt, once more in the file
            self.tally.know(1, completion.completion_tokens)
        return is_new

    def _follow(self, row: _Row) -> None:
        if self._order is not None:
            self._order.append(row)
            self._advance()
            if len(self._order) > LONGEST_GAP:
                self._order = None

    def _advance(self) -> None:
        """Move the mark over all prompts, from where it stands, that lack nothing."""
        while self._order and self._order[0].left == 0:
            row = self._order.popleft()
            mark = self._mark
            self._mark = replace(mark, place=row.place, rows=mark.rows + row.rows, tokens=mark.tokens + row.tokens)
