"""Closed answers: every prompt with the probability of each answer that its schema allows."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from itertools import islice

from ..records import Completion, Prompt
from .answer_trie import AnswerTrie, Way
from .decoder import Chunk, Decoder, Logits, feed, must_fit
from .shared_prefix import SharedPrefix

__all__ = ["Weigher"]

ROWS = 4  # times as many ways through the answers at a time as prompts, for they are short


@dataclass(slots=True)
class _Asked:
    """A prompt under way: its own tokens, the answers behind it, and what the model makes of their choices."""

    prompt: Prompt
    tokens: list[int]
    trie: AnswerTrie
    choices: dict[Way, dict[int, float]] = field(default_factory=dict)


class Weigher:
    """Asks a decoder for the probability of every answer of a closed set."""

    def __init__(self, decoder: Decoder, prefix: SharedPrefix, answers: Sequence[str], ends: AbstractSet[int]) -> None:
        self._decoder = decoder
        self._prefix = prefix
        self._answers = answers
        self._ends = ends
        self._tries: dict[str, AnswerTrie] = {}

    def completions(self, prompts: Iterable[Prompt], slots: int) -> Iterator[Completion]:
        """Yield one completion per prompt, with `answers`; the text is the most probable one.

        A prompt is decoded once, with what all answers begin with; then each way through the answers on a copy of it.
        """
        waiting = iter(prompts)
        while rows := list(islice(waiting, slots)):
            started = time.perf_counter()
            group = dict(enumerate(map(self._ask, rows)))
            try:
                self._decode_stems(group)
                self._decode_ways(group, range(slots, (1 + ROWS) * slots))
            finally:
                self._decoder.free(range((1 + ROWS) * slots))
            seconds = time.perf_counter() - started
            yield from (self._completion(asked, seconds) for asked in group.values())

    def _ask(self, prompt: Prompt) -> _Asked:
        tail = self._prefix.tail(prompt.messages)
        if tail not in self._tries:  # nearly always the same for all prompts
            found = zip(self._answers, self._prefix.continued(tail, self._answers), strict=True)
            self._tries = {tail: AnswerTrie(dict(found))}
        asked = _Asked(prompt, self._prefix.prompt(prompt.messages), self._tries[tail])
        longest = max(map(asked.trie.length, self._answers))
        must_fit(self._decoder, len(self._prefix.tokens) + len(asked.tokens) + longest)
        return asked

    def _decode_stems(self, group: Mapping[int, _Asked]) -> None:
        chunks = {n: Chunk([*asked.tokens, *asked.trie.stem]) for n, asked in group.items() if asked.trie.ways}
        for number, rows in feed(self._decoder, chunks).items():
            stem = group[number].trie.stem
            self._choose(group[number], stem, rows[0])

    def _decode_ways(self, group: Mapping[int, _Asked], branches: Sequence[int]) -> None:
        jobs = [(n, way) for n, asked in group.items() for way in asked.trie.ways if way != asked.trie.stem]
        for start in range(0, len(jobs), len(branches)):
            taken = dict(zip(branches, jobs[start : start + len(branches)], strict=False))
            for number in group:
                self._decoder.fork(number, [branch for branch, (root, _) in taken.items() if root == number])
            chunks = {}
            for branch, (number, way) in taken.items():
                rest = way[len(group[number].trie.stem) :]
                chunks[branch] = Chunk(rest, len(rest))
            for branch, rows in feed(self._decoder, chunks).items():
                number, way = taken[branch]
                asked, stem = group[number], len(group[number].trie.stem)
                for node in asked.trie.asked(way):
                    if len(node) > stem:
                        self._choose(asked, node, rows[len(node) - stem - 1])
            self._decoder.free(taken)

    def _choose(self, asked: _Asked, node: Way, logits: Logits) -> None:
        asked.choices[node] = asked.trie.choice(node, logits, self._ends)

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
