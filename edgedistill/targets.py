"""Soft targets: the teacher's distribution at each token of a completion, sparse, in few bytes.

One blob a completion. Its layout is documented in docs/targets.md, which numpy alone can read; everything in it is a
column over all positions or all entries, so that no loop runs over tokens. Two profiles: `top_k` keeps the most
probable tokens and the mass outside of them; `sampled` keeps the counts of independent draws (Sparse Logit Sampling,
arXiv 2503.16870), which is unbiased.
"""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .errors import InvalidInput

__all__ = ["Capture", "CaptureSettings", "Targets", "decode", "encode", "sampled", "top_k"]

Kept = tuple[NDArray[np.int32], NDArray[np.float32], float]

VERSION = 1
PROFILES = ("top_k", "sampled")
# version, profile, draws, vocabulary, positions, entries, symbols, bytes of the symbols' unary column,
# low bits of a symbol's step, low bits of a value's step, width of an entry count
HEADER = struct.Struct("<BBHIIIIIBBB")
CHECK = struct.Struct("<I")
STEPS_PER_NAT = 24
FLOOR = 16 * STEPS_PER_NAT  # entries further below their position's first one are stored at this distance
TAIL_BITS, TAIL_MIDDLE, TAIL_SCALE = 12, 2048, 128
LARGEST_DRAWS = 4096
LARGEST_LOW_BITS = 24
PLANES = (16, 8, 4, 2, 1)

BLOCK, SLICE = 16_384, 512  # logits exponentiated at once, and summed at once
REACHES = (7.0, 12.0, math.inf)  # nats below the most probable token that are searched, until enough is found


@dataclass(frozen=True, slots=True, eq=False)
class Targets:
    """The teacher's distribution at each completion token, sparse."""

    profile: str
    """`top_k` or `sampled`."""
    tokens: NDArray[np.int32]
    """(n,) The completion's token ids, in the teacher's tokenization, with the end token if it was scored."""
    offsets: NDArray[np.int64]
    """(n + 1,) The entries of token i are those from offsets[i] up to offsets[i + 1]; each token has at least one."""
    ids: NDArray[np.int32]
    """(m,) Token ids kept; within a position by falling probability, ties by rising id."""
    logprobs: NDArray[np.float32]
    """(m,) Natural log of the probability at temperature 1 over the whole vocabulary; or log(count / draws)."""
    tail: NDArray[np.float32]
    """(n,) Probability outside the kept ids; 0 for `sampled`."""


@dataclass(frozen=True, slots=True)
class CaptureSettings:
    """What is kept of each distribution: for `top_k` by mass, at most `largest` tokens; for `sampled` by draws."""

    profile: Literal["top_k", "sampled"]
    mass: float
    largest: int
    draws: int


class Capture:
    """Gathers the distributions at an answer's tokens, row by row, then gives the blob."""

    def __init__(self, settings: CaptureSettings, vocab_size: int, seed: int) -> None:
        self._settings = settings
        self._vocab_size = vocab_size
        self._random = np.random.default_rng(seed)
        self._tokens: list[int] = []
        self._kept: list[Kept] = []

    def __len__(self) -> int:
        return len(self._tokens)

    def add(self, token: int, logits: NDArray[np.float32]) -> None:
        """Keep a position: float32 logits of shape (vocab_size,), read in place, and the token that stands there.

        Raises InvalidInput where the logits are no distribution.
        """
        if logits.shape != (self._vocab_size,):
            raise ValueError(f"logits of shape {logits.shape} for a vocabulary of {self._vocab_size}")
        if self._settings.profile == "top_k":
            kept = top_k(logits, self._settings.mass, self._settings.largest)
        else:
            kept = sampled(logits, self._settings.draws, self._random)
        self._tokens.append(token)
        self._kept.append(kept)

    def copy(self) -> Capture:
        """A capture that goes on from the same positions on its own, with draws of its own."""
        other = Capture(self._settings, self._vocab_size, 0)
        other._random = self._random.spawn(1)[0]
        other._tokens, other._kept = [*self._tokens], [*self._kept]
        return other

    def targets(self, count: int | None = None) -> Targets:
        """The first `count` positions, by default all, as they were captured."""
        kept = self._kept[:count]
        ids = [np.empty(0, np.int32), *(row[0] for row in kept)]
        logprobs = [np.empty(0, np.float32), *(row[1] for row in kept)]
        return Targets(
            profile=self._settings.profile,
            tokens=np.array(self._tokens[:count], np.int32),
            offsets=np.cumsum([0, *(len(row[0]) for row in kept)], dtype=np.int64),
            ids=np.concatenate(ids),
            logprobs=np.concatenate(logprobs),
            tail=np.array([row[2] for row in kept], np.float32),
        )

    def encoded(self, count: int | None = None) -> bytes:
        """The blob of the first `count` positions, by default of all."""
        return encode(self.targets(count), self._vocab_size)


def top_k(logits: NDArray[np.float32], mass: float, largest: int) -> Kept:
    """The ids, log-probabilities and tail of the smallest set that reaches `mass`, at most `largest` tokens.

    `logits` has shape (V,) and is read in place. Ids come by falling probability, ties by rising id. The tail is good
    to about 1e-6. Raises InvalidInput where the logits are no distribution.

    >>> ids, logprobs, tail = top_k(np.log(np.array([0.1, 0.6, 0.3], np.float32)), 0.8, 64)
    >>> ids.tolist(), np.exp(logprobs).round(3).tolist(), round(tail, 3)
    ([1, 2], [0.6, 0.3], 0.1)
    """
    top, sums = _weights(logits)
    total = float(sums.sum())
    for reach in REACHES:
        near = _most_probable(logits, top - reach, largest) if mass * total > 1.0 else np.array([logits.argmax()])
        cumulated = np.cumsum(np.exp(logits[near] - top, dtype=np.float64))
        if len(near) >= largest or cumulated[-1] >= mass * total:
            break
    count = min(int(np.searchsorted(cumulated, mass * total)) + 1, len(near), largest)
    near = near[:count]
    logprobs = logits[near] - np.float32(top + math.log(total))
    return near.astype(np.int32), logprobs, max(0.0, 1.0 - float(cumulated[count - 1]) / total)


def sampled(logits: NDArray[np.float32], draws: int, random: np.random.Generator) -> Kept:
    """The ids that `draws` independent draws hit, by falling count, and the log of each one's share of the draws.

    The shares are an unbiased estimate of the probabilities. `logits` has shape (V,) and is read in place. Raises
    InvalidInput where the logits are no distribution.
    """
    top, sums = _weights(logits)
    bounds = np.cumsum(sums)
    points = np.minimum(random.random(draws) * bounds[-1], np.nextafter(bounds[-1], 0.0))
    slices = np.searchsorted(bounds, points, side="right")
    drawn, row = np.unique(slices, return_inverse=True)
    columns = drawn[:, None] * SLICE + np.arange(SLICE)
    weights = np.exp(logits[np.minimum(columns, len(logits) - 1)] - top, dtype=np.float64)
    inner = np.cumsum(np.where(columns < len(logits), weights, 0.0), axis=1)[row]
    share = (points - bounds[slices] + sums[slices]) / sums[slices]
    within = np.clip(share * inner[:, -1], 0.0, np.nextafter(inner[:, -1], 0.0))
    # the first token whose cumulated weight lies above the point: never one without any weight
    ids, counts = np.unique(slices * SLICE + (inner <= within[:, None]).sum(axis=1), return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return ids[order].astype(np.int32), np.log(counts[order] / draws).astype(np.float32), 0.0


def _weights(logits: NDArray[np.float32]) -> tuple[float, NDArray[np.float64]]:
    """The largest logit, and the sums of exp(logit - largest) over each slice of the vocabulary.

    Block by block, so that the row is read once and no buffer of its size is made.
    """
    size, top = len(logits), float(logits.max())
    if not math.isfinite(top):
        raise InvalidInput(f"the teacher's logits have {top} as their largest", "The model or its file is damaged.")
    sums = np.empty(-(-size // SLICE), np.float64)
    block = np.empty(min(BLOCK, len(sums) * SLICE), np.float32)
    for start in range(0, size, BLOCK):
        here = logits[start : start + BLOCK]
        used = -(-len(here) // SLICE)
        part = block[: len(here)]
        np.subtract(here, np.float32(top), out=part)
        np.exp(part, out=part)
        block[len(here) : used * SLICE] = 0.0
        sums[start // SLICE : start // SLICE + used] = block[: used * SLICE].reshape(used, SLICE).sum(axis=1)
    return top, sums


def _most_probable(logits: NDArray[np.float32], above: float, largest: int) -> NDArray[np.intp]:
    """The ids of the logits above a bound, at most the `largest` first, by falling logit, ties by rising id."""
    near = np.flatnonzero(logits > np.float32(above))
    if len(near) > 2 * largest:
        least = np.partition(logits[near], -largest)[-largest]
        near = near[logits[near] >= least]
    return near[np.argsort(-logits[near], kind="stable")[:largest]]


def encode(targets: Targets, vocab_size: int) -> bytes:
    """The blob of one completion's targets.

    For `top_k` a log-probability is kept to 0.05 nats (where it is less than 16 below its position's first one) and
    probabilities and tail sum to 1 again when decoded; for `sampled` the counts are kept exactly. Raises ValueError
    where the targets break what `Targets` says of its columns.
    """
    counts = np.diff(targets.offsets)
    _check(targets, counts, vocab_size)
    starts = targets.offsets[:-1]
    if targets.profile == "top_k":
        draws = 0
        below = np.repeat(targets.logprobs[starts], counts) - targets.logprobs
        steps = np.rint(np.minimum(below * np.float32(STEPS_PER_NAT), np.float32(FLOOR))).astype(np.int32)
        tail = _pack(_tail_codes(targets.tail), TAIL_BITS)
    else:
        draws, hits = _draws(targets.logprobs, starts)
        steps = np.repeat(hits[starts], counts) - hits
        tail = b""
    rises = np.diff(steps)[np.flatnonzero(~_firsts(starts, len(steps))[1:])]
    if rises.size and rises.min() < 0:
        raise ValueError("within a position, probabilities must fall")

    symbols, codes = _symbols(np.concatenate([targets.tokens, targets.ids]), vocab_size)
    gaps = np.diff(symbols, prepend=-1) - 1
    symbol_low, value_low = _low_bits(gaps), _low_bits(rises)
    symbol_unary = _unary(gaps >> symbol_low)
    width = int(counts.max(initial=1) - 1).bit_length()
    body = b"".join(
        (
            HEADER.pack(
                VERSION,
                PROFILES.index(targets.profile),
                draws,
                vocab_size,
                len(counts),
                len(steps),
                len(symbols),
                len(symbol_unary),
                symbol_low,
                value_low,
                width,
            ),
            _pack(gaps, symbol_low),
            symbol_unary,
            _pack(codes, _code_bits(len(symbols))),
            _pack(counts - 1, width),
            tail,
            _pack(rises, value_low),
            _unary(rises >> value_low),
        )
    )
    return body + CHECK.pack(zlib.crc32(body))


def _check(targets: Targets, counts: NDArray[np.int64], vocab_size: int) -> None:
    sizes = len(targets.tokens) == len(targets.tail) == len(counts) and targets.offsets[0] == 0
    if not sizes or not len(targets.ids) == len(targets.logprobs) == targets.offsets[-1]:
        raise ValueError("the columns differ in length")
    if counts.size and counts.min() < 1:
        raise ValueError("a position without an entry")
    for ids in (targets.tokens, targets.ids):
        if ids.size and not 0 <= ids.min() <= ids.max() < vocab_size:
            raise ValueError(f"a token id outside the vocabulary of {vocab_size}")
    if not np.isfinite(targets.logprobs).all():
        raise ValueError("a log-probability that is not finite")


def _draws(logprobs: NDArray[np.float32], starts: NDArray[np.int64]) -> tuple[int, NDArray[np.int32]]:
    """The smallest number of draws that gives these shares, and the count of each entry."""
    if not logprobs.size:
        return 1, np.empty(0, np.int32)
    shares = np.exp(logprobs, dtype=np.float64)
    different = np.unique(shares)
    for least in range(1, LARGEST_DRAWS + 1):
        draws = round(least / float(different[0]))
        if draws > LARGEST_DRAWS:
            break
        if np.abs(different * draws - np.rint(different * draws)).max() < 0.5 / LARGEST_DRAWS:
            hits = np.rint(shares * draws).astype(np.int32)
            if (np.add.reduceat(hits, starts) == draws).all():
                return draws, hits
    raise ValueError(f"shares that no number of draws up to {LARGEST_DRAWS} gives")


def _symbols(used: NDArray[np.int32], vocab_size: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """The distinct ids, rising, and the place of each used id among them."""
    seen = np.zeros(vocab_size, bool)
    seen[used] = True
    symbols = np.flatnonzero(seen)
    place = np.empty(vocab_size, np.int32)
    place[symbols] = np.arange(len(symbols), dtype=np.int32)
    return symbols, place.take(used)


def _tail_codes(tail: NDArray[np.float32]) -> NDArray[np.int32]:
    """Log-odds of the tail in steps of 1/128 nat, from 1 to 4095; 0 stands for no tail."""
    with np.errstate(divide="ignore"):
        share = np.clip(tail.astype(np.float64), 0.0, 1.0)
        odds = np.log(share) - np.log1p(-share)
    code = np.rint(np.clip(odds * TAIL_SCALE + TAIL_MIDDLE, 0, 2**TAIL_BITS - 1))
    return np.asarray(code, np.int32)


def decode(data: bytes) -> Targets:
    """The targets of a blob that `encode` wrote.

    Raises InvalidInput for a blob that is damaged or of another version.
    """
    if not data or data[0] != VERSION:
        raise InvalidInput(f"targets of version {data[0] if data else 'none'}", "Update edgedistill, or teach again.")
    if len(data) < HEADER.size + CHECK.size or zlib.crc32(data[: -CHECK.size]) != CHECK.unpack(data[-CHECK.size :])[0]:
        raise _damage("its checksum does not hold")
    _, profile, draws, vocab_size, n, m, d, unary_bytes, symbol_low, value_low, width = HEADER.unpack_from(data)
    # each entry takes a bit at least, so that the blob's length bounds what is allocated
    bounded = n <= m <= 8 * len(data) and d <= min(n + m, vocab_size) and (n > 0 or m == 0) and vocab_size < 2**31
    if profile >= len(PROFILES) or not bounded or max(symbol_low, value_low, width) > LARGEST_LOW_BITS:
        raise _damage("its counts do not fit")

    read = _Reader(data[HEADER.size : -CHECK.size])
    low = read.packed(d, symbol_low)
    gaps = (read.unary(d, unary_bytes).astype(np.int64) << symbol_low) | low
    symbols = np.cumsum(gaps + 1) - 1
    codes = read.packed(n + m, _code_bits(d))
    counts = read.packed(n, width).astype(np.int64) + 1
    tail_codes = read.packed(n, TAIL_BITS if PROFILES[profile] == "top_k" else 0)
    low = read.packed(m - n, value_low)
    rises = (read.unary(m - n, read.left).astype(np.int32) << value_low) | low
    if int(counts.sum()) != m or (n and (symbols[-1] >= vocab_size or codes.max() >= d)):
        raise _damage("its columns do not fit")

    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    steps = _cumulated(rises, offsets[:-1], counts)
    ids = symbols.astype(np.int32).take(codes)
    if PROFILES[profile] == "top_k":
        logprobs, tail = _from_steps(steps, offsets[:-1], counts, tail_codes)
    else:
        logprobs, tail = _from_hits(steps, offsets[:-1], counts, draws), np.zeros(n, np.float32)
    return Targets(PROFILES[profile], ids[:n], offsets, ids[n:], logprobs, tail)


def _from_steps(
    steps: NDArray[np.uint16], starts: NDArray[np.int64], counts: NDArray[np.int64], tail_codes: NDArray[np.int32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Log-probabilities that sum, with the tail, to 1 at each position; and the tail."""
    below = steps * np.float32(-1 / STEPS_PER_NAT)
    odds = np.where(tail_codes == 0, -np.inf, (tail_codes - TAIL_MIDDLE) / TAIL_SCALE)
    shift = -np.log1p(np.exp(odds))
    if starts.size:
        shift -= np.log(np.add.reduceat(np.exp(below), starts))
    below += np.repeat(shift.astype(np.float32), counts)
    return below, (1.0 / (1.0 + np.exp(-odds))).astype(np.float32)


def _from_hits(
    steps: NDArray[np.uint16], starts: NDArray[np.int64], counts: NDArray[np.int64], draws: int
) -> NDArray[np.float32]:
    """Log-shares: the count of a position's first entry follows from the number of draws."""
    if not starts.size:
        return np.empty(0, np.float32)
    first, rest = np.divmod(draws + np.add.reduceat(steps, starts, dtype=np.int64), counts)
    hits = np.repeat(first, counts) - steps
    if rest.any() or hits.min() < 1 or draws < 1:
        raise _damage("its counts are not of so many draws")
    return np.asarray(np.log(hits / draws), np.float32)


def _cumulated(rises: NDArray[np.int32], starts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.uint16]:
    """Steps below each position's first entry. Sums wrap at 2 ** 16, so that their differences hold."""
    size = len(rises) + len(starts)
    steps = np.zeros(size, np.uint16)
    steps[~_firsts(starts, size)] = rises
    np.add.accumulate(steps, out=steps)
    steps -= np.repeat(steps[starts], counts)
    return steps


def _firsts(starts: NDArray[np.int64], size: int) -> NDArray[np.bool_]:
    firsts = np.zeros(size, bool)
    firsts[starts] = True
    return firsts


def _code_bits(symbols: int) -> int:
    return max(1, (symbols - 1).bit_length())


def _low_bits(values: NDArray[Any]) -> int:
    """How many bits of each value are best stored as they are, the rest in unary (Rice coding)."""
    mean = float(values.mean()) if values.size else 0.0
    return min(LARGEST_LOW_BITS, max(0, round(math.log2(max(mean * math.log(2), 1.0)))))


def _pack(values: NDArray[Any], width: int) -> bytes:
    """Values below 2 ** width in planes of 16, 8, 4, 2 and 1 bits: those that sum to the width, the low bits first.

    A plane of less than 8 bits is cut into equal runs, and each byte holds one value of every run.
    """
    planes = []
    for size in PLANES:
        if not width & size:
            continue
        part = (values & (2**size - 1)).astype("<u2" if size == 16 else "u1")
        values = values >> size
        if size < 8:
            runs = np.zeros((8 // size, -(-len(part) * size // 8)), np.uint8)
            runs.ravel()[: len(part)] = part
            part = runs[0]
            for number in range(1, len(runs)):
                part |= runs[number] << number * size
        planes.append(part.tobytes())
    return b"".join(planes)


def _unary(values: NDArray[Any]) -> bytes:
    """Each value as so many 0 bits, then a 1."""
    if not values.size:
        return b""
    ends = np.cumsum(values + 1)
    bits = np.zeros(int(ends[-1]), np.uint8)
    bits[ends - 1] = 1
    return np.packbits(bits).tobytes()


class _Reader:
    """Takes columns off the front of a blob. Raises InvalidInput where there is less left than a column needs."""

    def __init__(self, data: bytes) -> None:
        self._data = np.frombuffer(data, np.uint8)
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def packed(self, count: int, width: int) -> NDArray[np.int32]:
        values = np.zeros(count, np.int32)
        shift = 0
        for size in PLANES:
            if not width & size:
                continue
            part = self._take(-(-count * size // 8))
            if size == 16:
                part = part.view("<u2")
            elif size < 8:
                mask = np.uint8(2**size - 1)
                part = np.concatenate([part >> start & mask for start in range(0, 8, size)])[:count]
            values |= part.astype(np.int32) << shift
            shift += size
        return values

    def unary(self, count: int, size: int) -> NDArray[np.intp]:
        ends = np.flatnonzero(np.unpackbits(self._take(size)).view(bool))
        if len(ends) != count:
            raise _damage("a unary column does not fit")
        return np.diff(ends, prepend=-1) - 1

    def _take(self, size: int) -> NDArray[np.uint8]:
        if size > self.left:
            raise _damage("it ends too early")
        self._at += size
        return self._data[self._at - size : self._at]


def _damage(why: str) -> InvalidInput:
    return InvalidInput(f"damaged targets: {why}", "Restore the file, or teach again.")
