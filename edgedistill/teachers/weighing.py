"""Closed answers: every prompt with the probability of each answer that its schema allows."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from itertools import islice

from ..records import Completion, Prompt
from .answer_trie import AnswerTrie, Way
from .decoder import Chunk, Decoder, Logits, feed, must_fit
from .shared_prefix import SharedPrefix

__all__ = ["Weigher"]

ROWS = 4  # times as many places in the answers at a time as prompts, for they are short


@dataclass(slots=True)
class _Asked:
    """A prompt under way: its own tokens, the answers behind it, and what the model makes of their choices."""

    prompt: Prompt
    tokens: list[int]
    trie: AnswerTrie
    choices: dict[Way, dict[int, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where answers to a prompt part: whose it is, the tokens that lead there, and how probable that is."""

    owner: int
    node: Way
    share: float


class Weigher:
    """Asks a decoder for the probability of every answer of a closed set.

    A place in the answers that is less probable than `floor` is not asked: the answers behind it have equal parts.
    """

    def __init__(
        self,
        decoder: Decoder,
        prefix: SharedPrefix,
        answers: Sequence[str],
        ends: AbstractSet[int],
        floor: float = 0.0,
    ) -> None:
        self._decoder = decoder
        self._prefix = prefix
        self._answers = answers
        self._ends = ends
        self._floor = floor
        self._tries: dict[str, AnswerTrie] = {}

    def completions(self, prompts: Iterable[Prompt], slots: int) -> Iterator[Completion]:
        """Yield one completion per prompt, with `answers`; the text is the most probable one.

        A prompt is decoded once, with what all answers begin with; then what leads to each further place where answers
        part, on a copy of it.
        """
        waiting = iter(prompts)
        while rows := list(islice(waiting, slots)):
            started = time.perf_counter()
            group = dict(enumerate(map(self._ask, rows)))
            try:
                self._follow(group, self._decode_stems(group), range(slots, (1 + ROWS) * slots))
            finally:
                self._decoder.free(range((1 + ROWS) * slots))
            seconds = time.perf_counter() - started
            yield from (self._completion(asked, seconds) for asked in group.values())

    def _ask(self, prompt: Prompt) -> _Asked:
        self._prefix.require_tools(prompt.tools)
        tail = self._prefix.tail(prompt.messages)
        if tail not in self._tries:  # nearly always the same for all prompts
            found = zip(self._answers, self._prefix.continued(tail, self._answers), strict=True)
            self._tries = {tail: AnswerTrie(dict(found))}
        asked = _Asked(prompt, self._prefix.prompt(prompt.messages), self._tries[tail])
        longest = max(map(asked.trie.length, self._answers))
        must_fit(self._decoder, len(self._prefix.tokens) + len(asked.tokens) + longest)
        return asked

    def _decode_stems(self, group: Mapping[int, _Asked]) -> list[_Place]:
        stems = {number: asked.trie.stem for number, asked in group.items()}
        chunks = {n: Chunk([*group[n].tokens, *stem]) for n, stem in stems.items() if stem is not None}
        found: list[_Place] = []
        for number, rows in feed(self._decoder, chunks).items():
            found += self._choose(group[number], _Place(number, stems[number] or (), 1.0), rows[0])
        return found

    def _follow(self, group: Mapping[int, _Asked], places: Iterable[_Place], branches: Sequence[int]) -> None:
        waiting = deque(places)
        while waiting:
            taken = {branch: waiting.popleft() for branch in branches[: len(waiting)]}
            for number in group:
                self._decoder.fork(number, [branch for branch, place in taken.items() if place.owner == number])
            chunks = {
                branch: Chunk(place.node[len(group[place.owner].trie.stem or ()) :]) for branch, place in taken.items()
            }
            for branch, rows in feed(self._decoder, chunks).items():
                waiting += self._choose(group[taken[branch].owner], taken[branch], rows[0])
            self._decoder.free(taken)

    def _choose(self, asked: _Asked, place: _Place, logits: Logits) -> list[_Place]:
        """Note what the model makes of a place; return those behind it that are probable enough to be asked."""
        choice = asked.choices[place.node] = asked.trie.choice(place.node, logits, self._ends)
        onward = asked.trie.onward(place.node, choice, place.share, self._floor)
        return [_Place(place.owner, node, share) for node, share in onward.items()]

    def _completion(self, asked: _Asked, seconds: float) -> Completion:
        found = asked.trie.probabilities(asked.choices)
        best = max(found, key=found.__getitem__)
        return Completion(
            prompt_id=asked.prompt.id,
            text=best,
            finish_reason="stop",
            prompt_tokens=len(self._prefix.tokens) + len(asked.tokens),
            completion_tokens=asked.trie.length(best),
            seconds=seconds,
            answers=found,
        )
