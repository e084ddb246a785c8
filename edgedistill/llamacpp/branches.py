"""The probability of every answer of a finite set, from one pass over the places where the answers part.

The answers' tokens form a trie. Where only one token may follow, nothing is asked; where several may, the model's
probabilities, made to sum to 1 over these, are the branches' shares. So an answer has exactly the probability with
which sampling under a grammar of the set would draw it. All branches of a prompt are computed in one batch: a row
belongs to every branch that passes through it, and the prompt's own rows to all of them.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from .context import Context, ContextSettings, FlashAttention
from .model import LlamaModel
from .prefix import PREFIX, PrefixCache, decode_prefix
from .requests import Request

__all__ = ["AnswerTrie", "BranchEngine", "BranchSettings", "Ranked"]

SEQUENCES = 256  # llama.cpp's LLAMA_MAX_SEQ
BATCH = 2048  # rows of one call: prompts of several requests and their branches


@dataclass(slots=True, eq=False)
class Node:
    """A token of the trie, and what may follow it."""

    children: dict[int, Node] = field(default_factory=dict)
    answer: int = -1
    """The answer that ends here, if one does."""


class AnswerTrie:
    """The tokens of all answers, those in common once. `end` is the token behind a whole answer."""

    def __init__(self, answers: Sequence[Sequence[int]], end: int) -> None:
        self.size = len(answers)
        self.lengths = [len(tokens) for tokens in answers]
        root = Node()
        for number, tokens in enumerate(answers):
            node = root
            for token in (*tokens, end):
                node = node.children.setdefault(token, Node())
            node.answer = number
        self.forced: list[int] = []
        """Tokens that every answer begins with."""
        while len(root.children) == 1 and root.answer < 0:
            token, root = next(iter(root.children.items()))
            self.forced.append(token)
        self.root = root
        self.rows = _rows(root)
        """Rows behind the forced tokens: (row before, token, branches that pass through)."""
        self.branches = max((max(row.branches) + 1 for row in self.rows), default=1)

    @property
    def depth(self) -> int:
        """Tokens to the last place where answers part."""
        return len(self.forced) + max((row.depth + 1 for row in self.rows), default=0)

    @property
    def decodable(self) -> bool:
        """Whether llama.cpp has enough sequences for the branches."""
        return self.branches < SEQUENCES


@dataclass(frozen=True, slots=True)
class Row:
    """A token that must be computed: its depth behind the root, its node, and the branches that it belongs to."""

    depth: int
    token: int
    node: Node
    branches: tuple[int, ...]


def _rows(root: Node) -> list[Row]:
    """The tokens behind which answers part, and those on the way there, in the order of their branches."""
    rows: list[Row] = []
    count = 0

    def walk(node: Node, depth: int) -> tuple[int, ...]:
        nonlocal count
        inner = [(token, child) for token, child in node.children.items() if _parts(child)]
        through: list[int] = []
        for token, child in inner:
            place = len(rows)
            rows.append(Row(depth, token, child, ()))
            below = walk(child, depth + 1)
            rows[place] = Row(depth, token, child, below)
            through += below
        if not inner:
            count += 1
            return (count - 1,)
        return tuple(through)

    walk(root, 0)
    return rows


def _parts(node: Node) -> bool:
    """Whether answers part at the node or behind it."""
    return len(node.children) > 1 or any(map(_parts, node.children.values()))


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
    prefix_cache: PrefixCache | None = None
    flash_attention: FlashAttention = "auto"


class BranchEngine:
    """Ranks the answers of a finite set for many prompts with one model."""

    def __init__(
        self, model: LlamaModel, trie: AnswerTrie, settings: BranchSettings, prefix: Sequence[int] = ()
    ) -> None:
        self._trie = trie
        self._each = len(trie.forced) + len(trie.rows)
        rows = max(BATCH, settings.longest + self._each)
        together = min((SEQUENCES - 1) // trie.branches, rows)
        self._together = max(1, together)
        self._context = Context(
            model,
            ContextSettings(
                cells=len(prefix) + rows + self._each,
                sequences=1 + self._together * trie.branches,
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
        while group := [*held, *islice(source, self._together - len(held))]:
            fitting, rows = 0, 0
            for request in group:
                rows += len(request.tokens) + self._each
                if fitting and rows > self._context.batch.capacity:
                    break
                fitting += 1
            held = group[fitting:]
            yield from self._rank(group[:fitting])

    def _rank(self, requests: Sequence[Request]) -> Iterator[Ranked]:
        started = time.perf_counter()
        self._context.batch.clear()
        placed = [self._place(number, request) for number, request in enumerate(requests)]
        self._context.decode()
        found = [self._probabilities(rows) for rows in placed]
        seconds = (time.perf_counter() - started) / len(requests)
        for number in range(1, 1 + len(requests) * self._trie.branches):
            self._context.cut(number)
        for request, probabilities in zip(requests, found, strict=True):
            yield Ranked(request.id, probabilities, request.shared + len(request.tokens), seconds)

    def _place(self, number: int, request: Request) -> dict[int, int]:
        """Put a prompt and all branches behind it into the batch; the row of each node where answers part."""
        trie, batch = self._trie, self._context.batch
        first = 1 + number * trie.branches
        sequences = range(first, first + trie.branches)
        for sequence in sequences:
            self._context.copy(PREFIX, sequence, request.shared)
        root = len(trie.root.children) > 1
        own = [*request.tokens, *trie.forced]
        at = request.shared
        places = {id(trie.root): batch.add(own, at, list(sequences), int(root)) - 1}
        at += len(own)
        for row in trie.rows:
            branches = [first + branch for branch in row.branches]
            parts = len(row.node.children) > 1
            places[id(row.node)] = batch.add([row.token], at + row.depth, branches, int(parts)) - 1
        return places

    def _probabilities(self, places: dict[int, int]) -> tuple[float, ...]:
        shares = np.zeros(self._trie.size)

        def spread(node: Node, share: float) -> None:
            if node.answer >= 0:
                shares[node.answer] += share
            if not node.children:
                return
            parts = np.ones(1)
            if len(node.children) > 1:
                logits = self._context.logits(places[id(node)])[list(node.children)].astype(np.float64)
                parts = np.exp(logits - logits.max())
                parts /= parts.sum()
            for child, part in zip(node.children.values(), parts, strict=True):
                spread(child, share * float(part))

        spread(self._trie.root, 1.0)
        return tuple((shares / shares.sum()).tolist())
