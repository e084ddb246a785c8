"""Attention of many texts of different lengths behind one prefix, whose keys and values are there once.

The tokens of all texts stand in one row, without padding. Each attends to the prefix, in one product for all of them,
and to its own text; the two parts are joined by their sums of exponentials, as in FlashAttention (arXiv:2205.14135)
and Hydragen (arXiv:2402.05099).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

__all__ = ["Memory", "Options", "Step"]

GROWTH = 64  # tokens by which the room of a text grows
Tensor = Any  # torch's types are not looked at


@dataclass(frozen=True, slots=True)
class Options:
    """What a layer's attention adds to the plain one."""

    scale: float
    window: int | None = None
    """How many tokens back it sees."""
    softcap: float | None = None
    sinks: Tensor = None
    """One more score for each head, to which nothing belongs (gpt-oss)."""

    def scored(self, products: Tensor) -> Tensor:
        """Scores in float32."""
        scores = products.float() * self.scale
        return scores if not self.softcap else torch.tanh(scores / self.softcap) * self.softcap


@dataclass(slots=True)
class _Layer:
    """Keys and values of one layer: of the prefix (heads, tokens, size), of the texts (rows, heads, room, size)."""

    own: list[Tensor]
    prefix: list[Tensor]


class Memory:
    """Keys and values of numbered texts; one that is new has only the prefix."""

    def __init__(self) -> None:
        self._layers: dict[int, _Layer] = {}
        self._rows: dict[int, int] = {}
        self._lengths: dict[int, int] = {}
        self.prefix = 0
        """Tokens of the prefix."""

    def length(self, slot: int) -> int:
        """Tokens of a text, without the prefix."""
        return self._lengths.get(slot, 0)

    def row(self, slot: int) -> int:
        """The row of a text, its own from now on."""
        if slot not in self._rows:
            taken = set(self._rows.values())
            self._rows[slot] = next(row for row in range(len(taken) + 1) if row not in taken)
        return self._rows[slot]

    def grow(self, slot: int, count: int) -> None:
        self._lengths[slot] = self.length(slot) + count

    def free(self, slots: Iterable[int]) -> None:
        for slot in slots:
            self._rows.pop(slot, None)
            self._lengths.pop(slot, None)

    def fork(self, slot: int, others: Sequence[int]) -> None:
        """Make other texts hold what one holds."""
        length, row = self.length(slot), self.row(slot)
        rows = [self.row(other) for other in others]
        for other in others:
            self._lengths[other] = length
        for layer in self._layers.values():
            self._make_room(layer, max(rows, default=0) + 1, length)
            for kept in layer.own:
                kept[rows, :, :length] = kept[row, :, :length].clone()

    def add_to_prefix(self, slot: int) -> None:
        """Put a text behind the prefix of all."""
        row, length = self.row(slot), self.length(slot)
        for layer in self._layers.values():
            new = [kept[row, :, :length] for kept in layer.own]
            before = layer.prefix or [one[:, :0] for one in new]
            layer.prefix = [torch.cat(pair, dim=1) for pair in zip(before, new, strict=True)]
            layer.own = []
        self.prefix += length
        self.free([slot])

    def clear(self) -> None:
        self._layers.clear()
        self._rows.clear()
        self._lengths.clear()
        self.prefix = 0

    def write(self, number: int, new: Sequence[Tensor], rows: Tensor, places: Tensor) -> _Layer:
        """Keep the keys and values of new tokens (heads, tokens, size), and give back the whole layer."""
        layer = self._layers.setdefault(number, _Layer([], []))
        if not layer.own:
            layer.own = [one.new_empty((0, one.shape[0], 0, one.shape[2])) for one in new]
        self._make_room(layer, max(self._rows.values()) + 1, max(self._lengths.values()))
        for kept, one in zip(layer.own, new, strict=True):
            kept[rows, :, places] = one.transpose(0, 1)
        return layer

    @staticmethod
    def _make_room(layer: _Layer, rows: int, tokens: int) -> None:
        for number, kept in enumerate(layer.own):
            have_rows, heads, have_tokens, size = kept.shape
            if rows > have_rows or tokens > have_tokens:
                wider = kept.new_zeros(
                    (max(rows, have_rows), heads, -(-max(tokens, have_tokens) // GROWTH) * GROWTH, size)
                )
                wider[:have_rows, :, :have_tokens] = kept
                layer.own[number] = wider


@dataclass(slots=True)
class _Group:
    """Texts that go on by about as many tokens: their rows, and where each new token stands among all."""

    rows: Tensor
    where: Tensor
    """(texts, most new tokens): index of each token in the step; 0 where a text has no more."""
    real: Tensor
    """(texts, most new tokens): which of these are tokens."""
    places: Tensor
    """(texts, most new tokens): the place of each in its own text."""
    end: int
    """The longest text, new tokens included."""


@dataclass(slots=True)
class Step:
    """One forward pass: which tokens are appended to which texts."""

    memory: Memory
    tokens: Mapping[int, Sequence[int]]
    device: str
    groups: list[_Group] = field(default_factory=list)
    rows: Tensor = None
    places: Tensor = None
    """The row of each token, and its place in its own text."""
    last: int = 0
    """The largest of these places."""

    def __post_init__(self) -> None:
        starts: dict[int, tuple[int, int]] = {}
        rows: list[int] = []
        places: list[int] = []
        for slot, tokens in self.tokens.items():
            before = self.memory.length(slot)
            starts[slot] = (len(rows), before)
            rows += [self.memory.row(slot)] * len(tokens)
            places += range(before, before + len(tokens))
            self.memory.grow(slot, len(tokens))
        self.rows, self.places = self._tensor(rows), self._tensor(places)
        self.last = max(places)
        alike: dict[int, list[int]] = {}
        for slot, tokens in self.tokens.items():
            alike.setdefault(len(tokens).bit_length(), []).append(slot)
        self.groups = [self._group(slots, starts) for slots in alike.values()]

    def _group(self, slots: Sequence[int], starts: Mapping[int, tuple[int, int]]) -> _Group:
        counts = self._tensor([len(self.tokens[slot]) for slot in slots])[:, None]
        numbers = torch.arange(max(len(self.tokens[slot]) for slot in slots), device=self.device)[None]
        first, before = (self._tensor([starts[slot][which] for slot in slots])[:, None] for which in (0, 1))
        real = numbers < counts
        return _Group(
            rows=self._tensor([self.memory.row(slot) for slot in slots]),
            where=torch.where(real, first + numbers, 0),
            real=real,
            places=before + numbers,
            end=max(self.memory.length(slot) for slot in slots),
        )

    def _tensor(self, numbers: Sequence[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.long, device=self.device)

    def attend(self, layer: int, query: Tensor, new: Sequence[Tensor], options: Options) -> Tensor:
        """What every token takes from the texts: (tokens, heads, size), for a query of shape (heads, tokens, size)."""
        kept = self.memory.write(layer, new, self.rows, self.places)
        heads, count, size = query.shape
        shared = new[0].shape[0]  # several query heads share one of keys and values
        query = query.reshape(shared, heads // shared, count, size)
        parts = [self._to_texts(query, kept.own, options)]
        if self.memory.prefix:
            parts.append(self._to_prefix(query, kept.prefix, options))
        sums = torch.stack([part[1] for part in parts])
        if options.sinks is not None:
            sinks = options.sinks.float().reshape(1, shared, heads // shared, 1).expand(1, *sums.shape[1:])
            sums = torch.cat([sums, sinks])
        shares = sums.softmax(dim=0)
        found = sum(part[0] * share[..., None] for part, share in zip(parts, shares, strict=False))
        return found.to(query.dtype).reshape(heads, count, -1).transpose(0, 1)

    def _to_prefix(self, query: Tensor, prefix: Sequence[Tensor], options: Options) -> tuple[Tensor, Tensor]:
        keys, values = prefix
        shared, many, count, size = query.shape
        scores = torch.matmul(query.reshape(shared, many * count, size), keys.transpose(1, 2))
        scores = options.scored(scores.reshape(shared, many, count, -1))
        if options.window and self.memory.prefix + self.last >= options.window:
            distances = (self.memory.prefix + self.places)[:, None] - torch.arange(keys.shape[1], device=self.device)
            scores = scores.masked_fill(distances >= options.window, torch.finfo(scores.dtype).min)
        weights = scores.softmax(dim=-1).to(values.dtype)
        found = torch.matmul(weights.reshape(shared, many * count, -1), values)
        return found.reshape(shared, many, count, -1).float(), scores.logsumexp(dim=-1)

    def _to_texts(self, query: Tensor, own: Sequence[Tensor], options: Options) -> tuple[Tensor, Tensor]:
        shared, many, count, size = query.shape
        found = own[1].new_empty((shared, many, count, own[1].shape[-1]), dtype=torch.float32)
        sums = found.new_empty((shared, many, count))
        for group in self.groups:
            texts, longest = group.where.shape
            keys, values = (kept[group.rows, :, : group.end] for kept in own)
            asked = query[:, :, group.where].permute(2, 0, 1, 3, 4).reshape(texts, shared, many * longest, size)
            scores = options.scored(torch.matmul(asked, keys.transpose(2, 3)))
            scores = scores.reshape(texts, shared, many, longest, group.end)
            distances = group.places[..., None] - torch.arange(group.end, device=self.device)
            hidden = distances < 0
            if options.window:
                hidden |= distances >= options.window
            scores = scores.masked_fill(hidden[:, None, None], torch.finfo(scores.dtype).min)
            weights = scores.softmax(dim=-1).to(values.dtype).reshape(texts, shared, many * longest, group.end)
            part = torch.matmul(weights, values).reshape(texts, shared, many, longest, -1)
            where = group.where[group.real]
            found[:, :, where] = part.permute(1, 2, 0, 3, 4)[:, :, group.real].float()
            sums[:, :, where] = scores.logsumexp(dim=-1).permute(1, 2, 0, 3)[:, :, group.real]
        return found, sums
