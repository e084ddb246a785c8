"""What comes next in an answer, told by the model only where more than one thing may.

A decider is a generator: it yields tokens that are settled and must now be computed, is sent the logits behind the
last of them (float32, shape (vocabulary,)), and returns how the answer ends. Its first yield is what every answer
begins with. All deciders are greedy.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .branches import AnswerTrie, follow
from .grammar import GrammarState
from .model import LlamaModel

__all__ = ["Decider", "Ending", "among", "freely", "under_grammar"]


@dataclass(frozen=True, slots=True)
class Ending:
    """The last tokens of an answer, which nobody needs to compute, and its probability where that is known."""

    tokens: tuple[int, ...] = ()
    probability: float | None = None


Decider = Generator[list[int], NDArray[np.float32], Ending]


def freely(model: LlamaModel) -> Decider:
    """The most probable token each time, until the model ends its answer."""
    logits = yield []
    while True:
        token = int(np.argmax(logits))
        if model.ends(token):
            return Ending()
        logits = yield [token]


def under_grammar(model: LlamaModel, state: GrammarState, jump: bool) -> Decider:
    """The most probable token that the grammar allows each time.

    With `jump`, tokens that must follow are settled with it; else each is a step of its own, as in plain servers.
    """
    logits = yield state.forced() if jump else []
    while True:
        allowed = state.allowed()
        token = int(allowed[np.argmax(logits[allowed])])
        if model.ends(token):
            return Ending()
        state.accept(token)
        tokens = [token, *(state.forced() if jump else ())]
        if state.finished:
            return Ending(tuple(tokens))
        logits = yield tokens


def among(trie: AnswerTrie) -> Decider:
    """The most probable way at each place where the answers of a finite set part.

    The probability is the one with which sampling under a grammar of the set would draw the answer.
    """
    node, share = trie.root, 1.0
    if not node.children:  # a set of one answer; the end token is always the last
        return Ending(trie.forced[:-1], share)
    logits = yield list(trie.forced)
    while True:
        children = list(node.children.items())
        weights = logits[[token for token, _ in children]].astype(np.float64)
        best = int(np.argmax(weights))
        share /= float(np.exp(weights - weights[best]).sum())
        token, child = children[best]
        tokens, node = follow(child, (token,))
        if not node.children:
            return Ending(tokens[:-1], share)
        logits = yield list(tokens)
