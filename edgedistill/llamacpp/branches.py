"""The probability of every answer of a finite set, from the places where the answers part.

The answers' tokens form a trie. Where only one token may follow, nothing is asked; where several may, the model's
probabilities, made to sum to 1 over these, are the branches' shares. So an answer has exactly the probability with
which sampling under a grammar of the set would draw it. The branches of many prompts are computed in one batch. A
branch whose share is below a floor is not followed: the answers behind it have equal parts of it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from .context import Context, ContextSettings, FlashAttention
from .model import LlamaModel
from .prefix import PREFIX, PrefixCache, decode_prefix
from .requests import Request

__all__ = ["AnswerTrie", "BranchEngine", "BranchSettings", "Ranked"]

TOGETHER = 16  # prompts at a time: every row attends over the cells of all of them; each has a sequence ...
BRANCHES = 239  # ... and so have the branches that are computed at once: with the prefix, llama.cpp's LLAMA_MAX_SEQ
BATCH = 2048  # rows of one call


@dataclass(slots=True, eq=False)
class Node:
    """A place behind some tokens, and the tokens that may follow."""

    children: dict[int, Node] = field(default_factory=dict)
    answer: int = -1
    """The answer that ends here, if one does."""

    def answers(self) -> Iterator[int]:
        """All answers that end here or further on."""
        if self.answer >= 0:
            yield self.answer
        for child in self.children.values():
            yield from child.answers()


class AnswerTrie:
    """The tokens of all answers, those in common once. `end` is the token behind a whole answer."""

    def __init__(self, answers: Sequence[Sequence[int]], end: int) -> None:
        self.lengths = [len(tokens) for tokens in answers]
        start = Node()
        for number, tokens in enumerate(answers):
            node = start
            for token in (*tokens, end):
                node = node.children.setdefault(token, Node())
            node.answer = number
        self.forced, self.root = follow(start)
        """Tokens that every answer begins with, and the place where the first ones part."""
        self.depth = max(self.lengths) + 1


def follow(node: Node, tokens: tuple[int, ...] = ()) -> tuple[tuple[int, ...], Node]:
    """The next place where answers part or one ends, and the tokens on the way there."""
    while len(node.children) == 1:
        token, node = next(iter(node.children.items()))
        tokens = (*tokens, token)
    return tokens, node


@dataclass(frozen=True, slots=True)
class Ranked:
    """The probability of each answer to one request, in the order of the set."""

    id: str
    probabilities: tuple[float, ...]
    prompt_tokens: int
    seconds: float


@dataclass(frozen=True)
class BranchSettings:
    """How the engine runs; `longest` is the most own tokens of a prompt."""

    longest: int
    threads: int
    floor: float = 0.0
    prefix_cache: PrefixCache | None = None
    flash_attention: FlashAttention = "auto"


@dataclass(frozen=True, slots=True)
class _Branch:
    """A place to be computed: whose it is, the tokens that lead there, and its share."""

    owner: int
    tokens: tuple[int, ...]
    node: Node
    share: float


class BranchEngine:
    """Ranks the answers of a finite set for many prompts with one model."""

    def __init__(
        self, model: LlamaModel, trie: AnswerTrie, settings: BranchSettings, prefix: Sequence[int] = ()
    ) -> None:
        self._trie = trie
        self._floor = settings.floor
        rows = max(BATCH, settings.longest + trie.depth)
        self._context = Context(
            model,
            ContextSettings(
                cells=len(prefix) + 2 * rows,  # the prompts of a batch, and a batch of branches behind them
                sequences=1 + TOGETHER + BRANCHES,
                threads=settings.threads,
                batch_tokens=rows,
                flash_attention=settings.flash_attention,
            ),
        )
        decode_prefix(self._context, settings.prefix_cache, prefix)

    @property
    def decoded_tokens(self) -> int:
        return self._context.decoded_tokens

    def close(self) -> None:
        self._context.close()

    def __enter__(self) -> BranchEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, requests: Iterable[Request]) -> Iterator[Ranked]:
        """Yield the answers' probabilities for each request, in order."""
        source = iter(requests)
        held: list[Request] = []
        while group := [*held, *islice(source, TOGETHER - len(held))]:
            fitting, rows = 0, 0
            for request in group:
                rows += len(request.tokens) + len(self._trie.forced)
                if fitting and rows > self._context.batch.capacity:
                    break
                fitting += 1
            held = group[fitting:]
            yield from self._rank(group[:fitting])

    def _rank(self, requests: Sequence[Request]) -> Iterator[Ranked]:
        started = time.perf_counter()
        shares = np.zeros((len(requests), len(self._trie.lengths)))
        branches: deque[_Branch] = deque()
        self._context.batch.clear()
        ends = [self._place_prompt(owner, request) for owner, request in enumerate(requests)]
        if self._trie.root.children:
            self._context.decode()
            for owner, (row, _) in enumerate(ends):
                branches += self._part(_Branch(owner, (), self._trie.root, 1.0), row, shares)
        else:
            shares[:] = 1.0  # a set of one answer
        while branches:
            placed = self._place_branches(branches, [position for _, position in ends])
            self._context.decode()
            for branch, row in placed:
                branches += self._part(branch, row, shares)
        for sequence in range(1, 1 + TOGETHER + BRANCHES):
            self._context.cut(sequence)  # a branch holds its prompt's cells too
        shares /= shares.sum(axis=1, keepdims=True)
        seconds = (time.perf_counter() - started) / len(requests)
        for request, probabilities in zip(requests, shares.tolist(), strict=True):
            yield Ranked(request.id, tuple(probabilities), request.shared + len(request.tokens), seconds)

    def _place_prompt(self, owner: int, request: Request) -> tuple[int, int]:
        """Put a prompt and what every answer begins with into the batch; its last row, and the position behind it."""
        sequence = owner + 1
        self._context.copy(PREFIX, sequence, request.shared)
        own = [*request.tokens, *self._trie.forced]
        end = self._context.batch.add(own, request.shared, sequence, 1)
        return end - 1, request.shared + len(own)

    def _place_branches(self, branches: deque[_Branch], positions: Sequence[int]) -> list[tuple[_Branch, int]]:
        """Put as many branches as fit into the batch, each in a sequence of its own; each with its last row."""
        batch, placed = self._context.batch, []
        batch.clear()
        for sequence in range(1 + TOGETHER, 1 + TOGETHER + BRANCHES):
            self._context.cut(sequence)
            if branches and len(branches[0].tokens) <= batch.room:
                branch = branches.popleft()
                self._context.copy(branch.owner + 1, sequence, positions[branch.owner])
                end = batch.add(branch.tokens, positions[branch.owner], sequence, 1)
                placed.append((branch, end - 1))
        return placed

    def _part(
        self, branch: _Branch, row: int, shares: np.ndarray[tuple[int, int], np.dtype[np.float64]]
    ) -> list[_Branch]:
        """Give each answer behind a place its share where that is known; return the branches that must be followed."""
        children = branch.node.children
        logits = self._context.logits(row)[list(children)].astype(np.float64)
        parts = np.exp(logits - logits.max())
        parts *= branch.share / parts.sum()
        found = []
        for (token, child), share in zip(children.items(), parts.tolist(), strict=True):
            tokens, node = follow(child, (*branch.tokens, token))
            if node.children and share >= self._floor:
                found.append(_Branch(branch.owner, tokens, node, share))
            else:
                behind = list(node.answers())
                shares[branch.owner, behind] += share / len(behind)
        return found
