"""A finite set of answers as a tree of tokens, and the probability that a model gives each of them.

At every node the model's distribution is taken over the tokens that lead on to an answer; an answer's probability is
the product along its way. It is the distribution from which constrained sampling draws, exactly.
"""

from __future__ import annotations

import math
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
        inner = {choice[:end] for choice in self._choices for end in range(len(choice))}
        self.ways = tuple(sorted(set(self._choices) - inner))
        """The shortest set of ways that pass every node where there is a choice; empty for a single answer."""

    @property
    def stem(self) -> Way:
        """What all answers begin with: the way to the first choice."""
        return min(self._choices, key=len, default=())

    def asked(self, way: Way) -> list[Way]:
        """The nodes on a way at which there is a choice: at these the logits are needed."""
        return [way[:end] for end in range(len(way) + 1) if way[:end] in self._choices]

    def choice(self, node: Way, logits: NDArray[np.float32], ends: AbstractSet[int]) -> dict[int, float]:
        """The probability of each token that a node allows, from the logits there."""
        tokens = self._choices[node]
        row = logits.astype(np.float64)
        scores = np.array([np.logaddexp.reduce(row[sorted(ends)]) if token == END else row[token] for token in tokens])
        weights = np.exp(scores - scores.max())
        return {token: float(weight) for token, weight in zip(tokens, weights / weights.sum(), strict=True)}

    def probabilities(self, choices: Mapping[Way, Mapping[int, float]]) -> dict[str, float]:
        """The probability of each answer, from the choice at each node where there is one. They sum to 1.

        >>> trie = AnswerTrie({"a": [0], "ab": [0, 1], "c": [2]})
        >>> even = np.zeros(4, np.float32)
        >>> trie.probabilities({node: trie.choice(node, even, {3}) for node in [(), (0,)]})
        {'a': 0.25, 'ab': 0.25, 'c': 0.5}
        """
        found = {
            text: math.prod(choices.get(way[:end], {}).get(way[end], 1.0) for end in range(len(way)))
            for text, way in self._ways.items()
        }
        total = sum(found.values())  # 1 up to rounding, but for answers that are one and the same for the tokenizer
        return {text: probability / total for text, probability in found.items()}

    def length(self, text: str) -> int:
        """How many tokens an answer has."""
        return len(self._ways[text]) - 1
