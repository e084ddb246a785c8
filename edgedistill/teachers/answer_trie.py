"""A finite set of answers as a tree of tokens, and the probability that a model gives each of them.

At every node the model's distribution is taken over the tokens that lead on to an answer; an answer's probability is
the product along its way. It is the distribution from which constrained sampling draws, exactly; but for nodes that
are so improbable that they are not asked: the answers behind one have equal parts of its probability.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet

import numpy as np
from numpy.typing import NDArray

__all__ = ["END", "AnswerTrie"]

END = -1
"""Stands for all tokens that end an answer."""
Way = tuple[int, ...]


class AnswerTrie:
    """Answers as ways through a tree; END closes each, so that one may begin another."""

    def __init__(self, answers: Mapping[str, Sequence[int]]) -> None:
        self._ways = {text: (*tokens, END) for text, tokens in answers.items()}
        children: dict[Way, set[int]] = {}
        for way in self._ways.values():
            for end in range(len(way)):
                children.setdefault(way[:end], set()).add(way[end])
        self._choices = {way: sorted(tokens) for way, tokens in children.items() if len(tokens) > 1}
        self._behind = Counter(way[:end] for way in self._ways.values() for end in range(len(way)))
        self._onward: dict[Way, list[Way]] = {node: [] for node in self._choices}
        for node in self._choices:
            before = [node[:end] for end in range(len(node)) if node[:end] in self._choices]
            if before:
                self._onward[before[-1]].append(node)

    @property
    def stem(self) -> Way | None:
        """What all answers begin with: the way to the first choice; None for a single answer."""
        return min(self._choices, key=len, default=None)

    def onward(self, node: Way, choice: Mapping[int, float], share: float, floor: float) -> dict[Way, float]:
        """The next nodes with a choice behind one of that share, each with its own share; none below the floor."""
        shares = {other: share * choice[other[len(node)]] for other in self._onward[node]}
        return {other: part for other, part in shares.items() if part >= floor}

    def choice(self, node: Way, logits: NDArray[np.float32], ends: AbstractSet[int]) -> dict[int, float]:
        """The probability of each token that a node allows, from the logits there."""
        tokens = self._choices[node]
        row = logits.astype(np.float64)
        scores = np.array([np.logaddexp.reduce(row[sorted(ends)]) if token == END else row[token] for token in tokens])
        weights = np.exp(scores - scores.max())
        return {token: float(weight) for token, weight in zip(tokens, weights / weights.sum(), strict=True)}

    def probabilities(self, choices: Mapping[Way, Mapping[int, float]]) -> dict[str, float]:
        """The probability of each answer, from the choice at each node that was asked. They sum to 1.

        >>> trie = AnswerTrie({"a": [0], "ab": [0, 1], "c": [2]})
        >>> even = np.zeros(4, np.float32)
        >>> trie.probabilities({node: trie.choice(node, even, {3}) for node in [(), (0,)]})
        {'a': 0.25, 'ab': 0.25, 'c': 0.5}
        """
        found = {text: self._probability(way, choices) for text, way in self._ways.items()}
        total = sum(found.values())  # 1 up to rounding, but for answers that are one and the same for the tokenizer
        return {text: probability / total for text, probability in found.items()}

    def _probability(self, way: Way, choices: Mapping[Way, Mapping[int, float]]) -> float:
        found = 1.0
        for end, token in enumerate(way):
            node = way[:end]
            if node in choices:
                found *= choices[node][token]
            elif node in self._choices:
                return found / self._behind[node]
        return found

    def length(self, text: str) -> int:
        """How many tokens an answer has."""
        return len(self._ways[text]) - 1
