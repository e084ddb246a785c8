"""Soft targets: the teacher's distribution at each token of a completion, sparse, in few bytes.

One blob a completion, whose layout docs/targets.md describes. All in it are columns over positions or entries, so no
loop runs over tokens. Of two profiles, `top_k` keeps the most probable tokens and the mass outside of them; `sampled`
keeps the counts of independent draws (Sparse Logit Sampling, arXiv 2503.16870), which is unbiased.
"""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .bits import PLANES, Reader, damage, pack, pack_small
from .errors import InvalidInput

__all__ = ["VERSION", "Capture", "CaptureSettings", "Targets", "decode", "encode", "sampled", "top_k"]

Kept = tuple[NDArray[np.int32], NDArray[np.float32], float]

VERSION = 2
PROFILES = ("top_k", "sampled")
# version, profile, draws, vocabulary, positions, entries, symbols, the least entry count, width of the counts above it;
# then, of the symbols' gaps and of the entries' steps: width, and width and number of what exceeds it
HEADER = struct.Struct("<BBHIIIIIBBBIBBI")
CHECK = struct.Struct("<I")
STEPS_PER_NAT = np.float32(8)
FLOOR = np.float32(255)  # steps; entries further below their position's first one are stored at this distance
LARGEST_DRAWS = 4096
# log-odds of a tail in steps of 1/8 around code 128; what is below the least of these is no tail: code 0
ODDS = (np.arange(256) - 128) / 8
LEAST_TAIL, MOST_TAIL = np.float32(1.25e-7), np.float32(1 - 1e-6)
TAILS = np.where(np.arange(256) > 0, 1 / (1 + np.exp(-ODDS)), 0.0).astype(np.float32)
HEADS = np.log1p(-TAILS)  # log of the mass that is kept
WORTH = 1 / 16  # of the mass that may be missing; a token that has less is not worth its bytes

BLOCK, SLICE = 16_384, 512  # logits exponentiated at once, and summed at once


@dataclass(frozen=True, slots=True, eq=False)
class Targets:
    """The teacher's distribution at each completion token, sparse."""

    profile: str
    """`top_k` or `sampled`."""
    tokens: NDArray[np.int32]
    """(n,) The completion's token ids, in the teacher's tokenization, with the end token if it was scored."""
    offsets: NDArray[np.int64]
    """(n + 1,) The entries of token i are those from offsets[i] up to offsets[i + 1]: at least one."""
    ids: NDArray[np.int32]
    """(m,) Token ids kept; within a position by falling probability, ties by rising id."""
    logprobs: NDArray[np.float32]
    """(m,) Natural log of the probability at temperature 1 over the whole vocabulary; or log(count / draws)."""
    tail: NDArray[np.float32]
    """(n,) Probability outside the kept ids; 0 for `sampled`."""


@dataclass(frozen=True, slots=True)
class CaptureSettings:
    """What is kept of a distribution: `top_k` by mass, at most `largest` tokens; `sampled` by draws."""

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

    def add(self, token: int, logits: NDArray[np.float32]) -> None:
        """Keep a position: float32 logits of shape (vocab_size,), read in place, and the token that stands there.

        Raises InvalidInput where the logits are no distribution.
        """
        if logits.shape != (self._vocab_size,):
            raise ValueError(f"logits of shape {logits.shape} for a vocabulary of {self._vocab_size}")
        settings = self._settings
        if settings.profile == "top_k":
            self._kept.append(top_k(logits, settings.mass, settings.largest))
        else:
            self._kept.append(sampled(logits, settings.draws, self._random))
        self._tokens.append(token)

    def copy(self) -> Capture:
        """A capture that goes on from the same positions by itself, with draws of its own."""
        other = Capture(self._settings, self._vocab_size, 0)
        other._random = self._random.spawn(1)[0]
        other._tokens, other._kept = [*self._tokens], [*self._kept]
        return other

    def encoded(self, count: int | None = None) -> bytes:
        """The blob of the first `count` positions, by default of all."""
        kept = self._kept[:count]
        targets = Targets(
            profile=self._settings.profile,
            tokens=np.array(self._tokens[:count], np.int32),
            offsets=np.cumsum([0, *(len(row[0]) for row in kept)], dtype=np.int64),
            ids=np.concatenate([np.empty(0, np.int32), *(row[0] for row in kept)]),
            logprobs=np.concatenate([np.empty(0, np.float32), *(row[1] for row in kept)]),
            tail=np.array([row[2] for row in kept], np.float32),
        )
        return encode(targets, self._vocab_size)


def top_k(logits: NDArray[np.float32], mass: float, largest: int) -> Kept:
    """The ids, log-probabilities and tail of the smallest set that reaches `mass`, at most `largest` tokens.

    Left out of it is what has less than a sixteenth of 1 - mass: a flat distribution has very many such tokens, and all
    of them together hold little. `logits` has shape (V,) and is read in place. Ids come by falling probability, ties by
    rising id. The tail is good to about 1e-6. Raises InvalidInput where the logits are no distribution.

    >>> ids, logprobs, tail = top_k(np.log(np.array([0.1, 0.6, 0.3], np.float32)), 0.8, 64)
    >>> ids.tolist(), np.exp(logprobs).astype(float).round(3).tolist(), round(tail, 3)
    ([1, 2], [0.6, 0.3], 0.1)
    """
    top, sums = _weights(logits)
    total = float(sums.sum())
    least = total * (1.0 - mass) * WORTH
    if mass * total <= 1.0 or least >= 1.0:
        near = np.array([logits.argmax()])
    else:
        near = _most_probable(logits, top + math.log(least) if least > 0 else -math.inf, largest)
    cumulated = np.cumsum(np.exp(logits[near] - np.float32(top), dtype=np.float64))
    count = min(int(np.searchsorted(cumulated, mass * total)) + 1, len(near))
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
    weights = np.exp(logits[np.minimum(columns, len(logits) - 1)] - np.float32(top), dtype=np.float64)
    inner = np.cumsum(np.where(columns < len(logits), weights, 0.0), axis=1)[row]
    share = (points - bounds[slices] + sums[slices]) / sums[slices]
    within = np.clip(share * inner[:, -1], 0.0, np.nextafter(inner[:, -1], 0.0))
    # the first token whose cumulated weight lies above the point: never one without any weight
    ids, counts = np.unique(slices * SLICE + (inner <= within[:, None]).sum(axis=1), return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return ids[order].astype(np.int32), np.log(counts[order] / draws).astype(np.float32), 0.0


def _weights(logits: NDArray[np.float32]) -> tuple[float, NDArray[np.float64]]:
    """The largest logit, and the sums of exp(logit - largest) over each slice of the vocabulary.

    Block by block, so that no buffer of the row's size is made.
    """
    size, top = len(logits), float(logits.max())
    if not math.isfinite(top):
        raise InvalidInput(f"the teacher's logits have {top} as their largest", "The model or its file is damaged.")
    sums = np.empty(-(-size // SLICE), np.float64)
    block = np.empty(min(BLOCK, len(sums) * SLICE), np.float32)
    for start in range(0, size, BLOCK):
        part = block[: min(BLOCK, size - start)]
        np.subtract(logits[start : start + BLOCK], np.float32(top), out=part)
        np.exp(part, out=part)
        slices = -(-len(part) // SLICE)
        block[len(part) : slices * SLICE] = 0.0
        sums[start // SLICE :][:slices] = block[: slices * SLICE].reshape(slices, SLICE).sum(axis=1)
    return top, sums


def _most_probable(logits: NDArray[np.float32], above: float, largest: int) -> NDArray[np.intp]:
    """The ids of the logits above a bound, the `largest` first at most, by falling logit, ties by rising id."""
    near = np.flatnonzero(logits > np.float32(above))
    values = logits[near]
    if len(near) > 2 * largest:
        least = np.partition(values, -largest)[-largest]
        near, values = near[values >= least], values[values >= least]
    return near[np.argsort(-values, kind="stable")[:largest]]


def encode(targets: Targets, vocab_size: int) -> bytes:
    """The blob of one completion's targets.

    For `top_k`, log-probabilities are kept to 0.13 nats, down to 31 below their position's first one, and sum with the
    tail to 1 again when decoded; for `sampled` the counts are kept exactly. Raises ValueError where the columns are
    not what `Targets` says of them.
    """
    offsets, starts = targets.offsets, targets.offsets[:-1]
    counts = offsets[1:] - starts
    n, m = len(targets.tokens), len(targets.ids)
    if not n == len(counts) == len(targets.tail) or not m == len(targets.logprobs) == offsets[-1]:
        raise ValueError("the columns differ in length")
    least = int(counts.min()) if n else 1
    if offsets[0] != 0 or least < 1:
        raise ValueError("a position without an entry")
    used = np.concatenate((targets.tokens, targets.ids))
    if n and used.view(np.uint32).max() >= vocab_size:  # a negative one is larger still
        raise ValueError(f"a token id outside of a vocabulary of {vocab_size}")
    if targets.profile == "top_k":
        draws, below = 0, _below(targets.logprobs, starts, counts)
        tail = _tail_codes(targets.tail).tobytes()
    else:
        draws, below = _draws(targets.logprobs, starts, counts)
        tail = b""
    steps = below.copy()
    steps[1:] -= below[:-1]
    steps[starts] = 0
    if not (steps <= below).all():
        raise ValueError("probabilities rise within a position")

    counts -= least
    width = int(counts.max(initial=0)).bit_length()
    gaps, codes = _symbols(used, vocab_size)
    gap_shape, gap_columns = pack_small(gaps)
    step_shape, step_columns = pack_small(steps)
    shape = (n, m, len(gaps), least, width, *gap_shape, *step_shape)
    header = HEADER.pack(VERSION, PROFILES.index(targets.profile), draws, vocab_size, *shape)
    code_column = pack(codes, _code_bits(len(gaps) or vocab_size))
    body = b"".join((header, gap_columns, code_column, pack(counts, width), tail, step_columns))
    return body + CHECK.pack(zlib.crc32(body))


def _below(logprobs: NDArray[np.float32], starts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[Any]:
    """How far each entry lies below its position's first one, in steps of 1/8 nat."""
    below = logprobs[starts].repeat(counts)
    below -= logprobs
    below *= STEPS_PER_NAT
    if not below.min(initial=0) >= 0:
        raise ValueError("a position's first entry is not its most probable one")
    if below.max(initial=0) > FLOOR:
        np.minimum(below, FLOOR, out=below)
    below += np.float32(0.5)
    return below.astype(np.uint8)


def _draws(
    logprobs: NDArray[np.float32], starts: NDArray[np.int64], counts: NDArray[np.int64]
) -> tuple[int, NDArray[Any]]:
    """The smallest number of draws that gives these shares; how far each count lies below its position's first one."""
    shares = np.exp(logprobs, dtype=np.float64)
    different = np.unique(shares) if shares.size else np.ones(1)
    for least in range(1, LARGEST_DRAWS + 1):
        draws = round(min(least / float(different[0]), 2.0 * LARGEST_DRAWS)) if different[0] > 0 else 2 * LARGEST_DRAWS
        if draws > LARGEST_DRAWS:
            break
        if np.abs(different * draws - np.rint(different * draws)).max() < 0.25 / LARGEST_DRAWS:
            hits = np.rint(shares * draws).astype(np.int32)
            if not shares.size or (np.add.reduceat(hits, starts) == draws).all():
                return draws, (np.repeat(hits[starts], counts) - hits).astype(np.uint16)
    raise ValueError(f"shares that no number of draws up to {LARGEST_DRAWS} gives")


def _tail_codes(tail: NDArray[np.float32]) -> NDArray[np.uint8]:
    share = np.minimum(np.maximum(tail, LEAST_TAIL), MOST_TAIL)
    odds = np.log(share / (1 - share))
    return np.where(tail < LEAST_TAIL, 0, odds * 8 + np.float32(128.5)).astype(np.uint8)


def _symbols(used: NDArray[np.int32], vocab_size: int) -> tuple[NDArray[np.int32], NDArray[Any]]:
    """The gaps between the distinct ids, which rise, and the place of each used id among them.

    Where that would not save a sixth, no gaps, and the ids themselves, which are faster.
    """
    where = used.astype(np.intp)
    seen = np.zeros(vocab_size, bool)
    seen[where] = True
    distinct = int(np.count_nonzero(seen))
    gap_bits = (vocab_size // max(1, distinct)).bit_length() + 2
    if 6 * (distinct * gap_bits + len(used) * _code_bits(distinct)) > 5 * len(used) * _code_bits(vocab_size):
        return np.empty(0, np.int32), used
    symbols = np.flatnonzero(seen)
    place = np.empty(vocab_size, np.uint16 if distinct <= 2**16 else np.int32)
    place[symbols] = np.arange(distinct, dtype=place.dtype)
    gaps = symbols.astype(np.int32)
    gaps[1:] -= symbols[:-1] + 1
    return gaps, place.take(where)


def decode(data: bytes) -> Targets:
    """The targets of a blob that `encode` wrote.

    Raises InvalidInput for a blob that is damaged or of another version.
    """
    if not data or data[0] != VERSION:
        raise InvalidInput(f"targets of version {data[0] if data else 'none'}", "Update edgedistill, or teach again.")
    body = memoryview(data)[: -CHECK.size]
    if len(body) < HEADER.size or zlib.crc32(body) != CHECK.unpack(data[-CHECK.size :])[0]:
        raise damage("its checksum does not hold")
    _, profile, draws, vocab_size, n, m, d, least, width, *shapes = HEADER.unpack_from(data)
    # each entry takes a bit at least, so that the blob's length bounds what is allocated
    if not (n <= m <= 8 * len(data) and bool(n) == bool(m) and d <= min(n + m, vocab_size) and vocab_size < 2**31):
        raise damage("its counts do not fit")
    if profile >= len(PROFILES) or max(width, *shapes[:2], *shapes[3:5]) > sum(PLANES):
        raise damage("its widths do not fit")
    is_top_k = PROFILES[profile] == "top_k"

    read = Reader(np.frombuffer(body, np.uint8, offset=HEADER.size))
    symbols = np.cumsum(read.small(d, np.int32, *shapes[:3]) + 1, dtype=np.int64) - 1
    ids = read.packed(n + m, _code_bits(d or vocab_size), np.uint16 if 0 < d <= 2**16 else np.int32)
    counts = read.packed(n, width, np.int64) + least
    tail_codes = read.packed(n, 8 if is_top_k else 0, np.uint8)
    below = read.small(m, np.uint8 if is_top_k else np.uint16, *shapes[3:]).cumsum(dtype=np.int32)
    offsets = np.zeros(n + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    starts = offsets[:-1]
    if offsets[-1] != m or least < 1 or (n and ids.max() >= (d or vocab_size)) or (d and symbols[-1] >= vocab_size):
        raise damage("its columns do not fit")

    if d:
        ids = symbols.astype(np.int32).take(ids)
    below -= below[starts].repeat(counts)
    if is_top_k:
        logprobs, tail = _from_below(below, starts, counts, tail_codes), TAILS.take(tail_codes)
    else:
        logprobs, tail = _from_hits(below, starts, counts, draws), np.zeros(n, np.float32)
    return Targets(PROFILES[profile], ids[:n], offsets, ids[n:], logprobs, tail)


def _from_below(
    below: NDArray[np.int32], starts: NDArray[np.int64], counts: NDArray[np.int64], tail_codes: NDArray[np.uint8]
) -> NDArray[np.float32]:
    """Log-probabilities that sum, with the tail, to 1 at each position."""
    logprobs = below.astype(np.float32)
    logprobs *= -1 / STEPS_PER_NAT
    if starts.size:
        first = HEADS.take(tail_codes)
        first -= np.log(np.add.reduceat(np.exp(logprobs), starts))
        logprobs += first.repeat(counts)
    return logprobs


def _from_hits(
    steps: NDArray[np.int32], starts: NDArray[np.int64], counts: NDArray[np.int64], draws: int
) -> NDArray[np.float32]:
    """Log-shares: the count of a position's first entry follows from the number of draws."""
    if not starts.size:
        return np.empty(0, np.float32)
    first, rest = np.divmod(draws + np.add.reduceat(steps, starts, dtype=np.int64), counts)
    hits = np.repeat(first, counts) - steps
    if rest.any() or hits.min() < 1 or draws < 1:
        raise damage("its counts are not of so many draws")
    found: NDArray[np.float32] = np.log(hits / draws).astype(np.float32)
    return found


def _code_bits(values: int) -> int:
    return max(1, (values - 1).bit_length())
