"""Sketches of texts: keys of which two similar texts share one, and a few bytes that tell most others apart.

The keys of a short text are its rarest shingles, so many that two texts as similar as the threshold must share one
(prefix filtering: Chaudhuri et al., A Primitive Operator for Similarity Joins, 2006). A long text would need too many:
its keys are the bands of its MinHash (Broder 1997), of which two such texts share one all but surely.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain
from math import ceil, log
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from .words import SHINGLE, normalised

__all__ = ["TEXT", "Sketcher", "Sketches", "as_bytes", "banding", "most_differing", "near"]

LONG = 256  # shingles; pairs of longer texts are found by MinHash
PERMUTATIONS = 408
MOST_BANDS = 64
LARGEST_MISS = 1e-7  # of the pairs of long texts right at the threshold, the share that agree in no band
SHOWN = 256  # minima of which a text's record has a bit
DOUBT = 6.0  # standard deviations of the one-bit estimate that leave none: 1 pair in 1e8
ROUNDING = 1e-6
BUCKETS = 20  # bits of a shingle's hash by which its frequency is counted
OWNER = 10  # bits of the number of a text among those that are sketched at a time
HASHED = 1 << 18  # characters hashed at a time
SKETCHED = 1 << OWNER  # texts sketched at a time

Hashes = NDArray[np.uint64]
Keys = NDArray[np.uint32]
Indices = NDArray[np.int64]
Number = TypeVar("Number", float, NDArray[np.float64])
# one text: a hash of its words, its number of different shingles, a bitmap of these, one bit of each of its MinHash's
# minima (of a long text only), how many keys it has; where its words are in a file
TEXT = np.dtype(
    [
        ("exact", "<u8"),
        ("size", "<u4"),
        ("bitmap", "<u2", 16),
        ("minima", "<u2", SHOWN // 16),
        ("keys", "<u4"),
        ("start", "<u8"),
        ("length", "<u4"),
    ]
)
ONES = np.array([number.bit_count() for number in range(1 << 16)], dtype=np.uint8)


@dataclass(frozen=True)
class Sketches:
    """Some texts: their normalised words, a record of each (`TEXT`), and the keys of all, text by text."""

    words: list[str]
    texts: NDArray[np.void]
    keys: Keys

    def __len__(self) -> int:
        return len(self.words)

    @property
    def owners(self) -> Indices:
        """For each key the number of its text."""
        return np.repeat(np.arange(len(self)), self.texts["keys"])

    def chosen(self, rows: Sequence[int]) -> Sketches:
        """Those of some of the texts, given by their numbers from the lowest up."""
        is_chosen = np.zeros(len(self), dtype=np.bool_)
        is_chosen[list(rows)] = True
        keys = self.keys[np.repeat(is_chosen, self.texts["keys"])]
        return Sketches([self.words[row] for row in rows], self.texts[is_chosen], keys)


class Sketcher:
    """Makes sketches. `sample` are texts that show which shingles are common."""

    def __init__(self, sample: Iterable[str] = ()) -> None:
        self._counts = np.zeros(1 << BUCKETS, dtype=np.uint32)
        self._learn([normalised(text) for text in sample])

    def sketch(self, texts: Sequence[str], *thresholds: float) -> list[Sketches]:
        """The sketches of texts, one for each threshold; texts with the same words have the same."""
        words = [normalised(text) for text in texts]
        if not self._counts.any():
            self._learn(words)
        records = [np.zeros(len(words), dtype=TEXT) for _ in thresholds]
        keys: list[list[Keys]] = [[np.empty(0, np.uint32)] for _ in thresholds]
        start = 0
        for part in _slices(words):
            stop = start + len(part)
            self._fill(part, [one[start:stop] for one in records], thresholds, keys)
            start = stop
        exact = [int.from_bytes(blake2b(as_bytes(text), digest_size=8).digest(), "little") for text in words]
        for one in records:
            one["exact"] = exact
        return [Sketches(words, one, np.concatenate(found)) for one, found in zip(records, keys, strict=True)]

    def _learn(self, words: list[str]) -> None:
        """Count the shingles of texts. Any order of them would do; with the rare ones first, few texts share a key."""
        for part in _slices(words):
            found = _bucket(_Shingles(part).hashes)
            self._counts += np.bincount(found, minlength=1 << BUCKETS).astype(np.uint32)

    def _fill(
        self,
        words: Sequence[str],
        records: Sequence[NDArray[np.void]],
        thresholds: Sequence[float],
        keys: Sequence[list[Keys]],
    ) -> None:
        """Fill in the records of some texts and add their keys: of each threshold."""
        shingles = _Shingles(words)
        sizes, bitmaps = shingles.sizes, shingles.bitmaps()
        is_long = np.flatnonzero(sizes > LONG)
        minima = shingles.minima(is_long)
        for threshold, record, added in zip(thresholds, records, keys, strict=True):
            record["size"], record["bitmap"] = sizes, bitmaps
            record["minima"][is_long] = _one_bit_each(minima[:, :SHOWN])
            wanted = np.where(threshold * sizes <= LONG, _prefix(sizes, threshold), 0)
            owners, found = shingles.rarest(wanted, self._counts)
            bands = _bands(minima, *banding(threshold))
            owners = np.concatenate([owners, np.repeat(is_long, bands.shape[1])])
            found = np.concatenate([found, bands.ravel()])
            record["keys"] = np.bincount(owners, minlength=len(words))
            added.append(found[np.argsort(owners, kind="stable")].astype(np.uint32))  # the lower bits


def near(
    texts: NDArray[np.void], others: NDArray[np.void], pairs: tuple[Indices, Indices], threshold: float
) -> tuple[Indices, Indices]:
    """Those of the pairs, given as numbers in two lists of records, that may be as similar as the threshold."""
    mine, theirs = pairs
    one, other = texts["size"][mine], others["size"][theirs]
    alike = np.minimum(one, other) >= threshold * np.maximum(one, other)
    mine, theirs, one, other = mine[alike], theirs[alike], one[alike], other[alike]
    # every bit in which the bitmaps differ is a shingle that only one text has (Sandes et al., Bitmap Filter, 2020)
    differing = ONES[texts["bitmap"][mine] ^ others["bitmap"][theirs]].sum(axis=1, dtype=np.uint16)
    alike = differing <= most_differing((one + other).astype(np.float64), threshold)
    mine, theirs, is_long = mine[alike], theirs[alike], np.minimum(one, other)[alike] > LONG
    if is_long.any():
        share = (1 - threshold) / 2  # of the one-bit minima, those in which texts at the threshold differ
        most = SHOWN * share + DOUBT * (SHOWN * share * (1 - share)) ** 0.5
        differing = ONES[texts["minima"][mine] ^ others["minima"][theirs]].sum(axis=1, dtype=np.uint16)
        alike = ~is_long | (differing <= most)
        mine, theirs = mine[alike], theirs[alike]
    return mine, theirs


def _prefix(sizes: Indices, threshold: float) -> Indices:
    """How many of its rarest shingles a text must show: a similar one lacks fewer than these."""
    shared = np.ceil(threshold * sizes - ROUNDING).astype(np.int64)
    prefix: Indices = np.minimum(sizes, sizes - shared + 1)
    return prefix


def banding(threshold: float) -> tuple[int, int]:
    """How many bands of MinHash's minima are keys, and how many minima each of them has.

    The more a band has, the fewer pairs agree in all of them by chance: as many as leave hardly a pair at the threshold
    without a band in which it agrees.

    >>> banding(0.8), banding(0.85), banding(0.95), banding(0.5)
    ((54, 6), (51, 8), (26, 15), (64, 4))
    """
    found = MOST_BANDS, 4
    for size in range(4, PERMUTATIONS + 1):
        missed = 1 - threshold**size  # of pairs at the threshold, by one band
        bands = 1 if missed == 0 else MOST_BANDS + 1 if missed == 1 else ceil(log(LARGEST_MISS) / log(missed))
        if bands > MOST_BANDS or bands * size > PERMUTATIONS:
            break
        found = bands, size
    return found


class _Shingles:
    """The hashes of the different shingles of some texts, one text's after another's."""

    def __init__(self, words: Sequence[str]) -> None:
        assert len(words) <= 1 << OWNER, "more texts than a number has room for"
        lengths = np.array([len(text) for text in words], dtype=np.int64)
        padded = "".join(text + "\n" * SHINGLE for text in words)  # no words have a line break
        letters = np.frombuffer(padded.encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.uint64)
        first, second, third, fourth = (letters[step : len(letters) - SHINGLE + 1 + step] for step in range(SHINGLE))
        hashes = _mixed(_mixed(first | second << np.uint64(21) | third << np.uint64(42)) + fourth)
        windows = np.maximum(1, lengths - SHINGLE + 1)
        per_text = np.column_stack([windows, lengths + SHINGLE - windows]).ravel()
        is_inside = np.repeat(np.arange(len(per_text)) % 2 == 0, per_text)[: len(hashes)]
        owners = np.repeat(np.arange(len(words), dtype=np.uint64), windows)
        # sorted as one number, which is many times as fast as sorting by two
        found = owners << np.uint64(64 - OWNER) | hashes[is_inside] >> np.uint64(OWNER)
        found.sort()
        is_new = np.ones(len(found), dtype=np.bool_)
        np.not_equal(found[1:], found[:-1], out=is_new[1:])
        found = found[is_new]
        self.hashes: Hashes = found & np.uint64((1 << 64 - OWNER) - 1)
        self.owners: Indices = (found >> np.uint64(64 - OWNER)).astype(np.int64)
        self.sizes: Indices = np.bincount(self.owners, minlength=len(words))

    def rarest(self, wanted: Indices, counts: NDArray[np.uint32]) -> tuple[Indices, Hashes]:
        """So many of each text's rarest shingles, with the number of the text; `counts` are those of buckets."""
        chosen = np.flatnonzero(wanted[self.owners] > 0)
        owners, hashes = self.owners[chosen], self.hashes[chosen]
        common = np.minimum(counts[_bucket(hashes)], (1 << BUCKETS) - 1).astype(np.uint64)
        places = owners.astype(np.uint64) << np.uint64(64 - OWNER) | common << np.uint64(64 - OWNER - BUCKETS)
        order = np.argsort(places | hashes >> np.uint64(BUCKETS))
        sizes = np.where(wanted > 0, self.sizes, 0)
        rank = np.arange(len(order)) - (np.cumsum(sizes) - sizes)[owners]  # sorted, each text has its place still
        chosen = order[rank < wanted[owners]]
        return owners[chosen], hashes[chosen]

    def bitmaps(self) -> NDArray[np.uint16]:
        """For each text 256 bits, of which each shingle turns one over: (texts, 16)."""
        places = self.owners * 256 + (self.hashes & np.uint64(255)).astype(np.int64)
        bits = np.bincount(places, minlength=len(self.sizes) * 256)
        return np.packbits((bits & 1).astype(np.uint8).reshape(-1, 256), axis=1).view("<u2")

    def minima(self, texts: Indices) -> NDArray[np.uint32]:
        """The MinHash of some of the texts: (texts, PERMUTATIONS)."""
        from rensa import RMinHash

        is_of_these = np.zeros(len(self.sizes), dtype=np.bool_)
        is_of_these[texts] = True
        ends = np.concatenate([[0], np.cumsum(self.sizes[texts])]).astype(np.uint64)
        hashes = self.hashes[is_of_these[self.owners]]
        found = RMinHash.digest_matrix_from_flat_token_hashes(hashes, ends, PERMUTATIONS, 0).to_rows()
        count = len(texts) * PERMUTATIONS
        minima = np.fromiter(chain.from_iterable(found), dtype=np.uint32, count=count)
        return minima.reshape(len(texts), PERMUTATIONS)


def most_differing(sizes: Number, threshold: float) -> Number:
    """How many shingles only one of two similar texts has, at most; `sizes` are those of both together."""
    return sizes * ((1 - threshold) / (1 + threshold)) + ROUNDING


def as_bytes(text: str) -> bytes:
    """A text in UTF-8, half surrogate pairs and all."""
    return text.encode("utf-8", "surrogatepass")


def _slices(words: list[str]) -> Iterator[list[str]]:
    """The texts in parts of which memory surely holds all shingles."""
    start = characters = 0
    for index, text in enumerate(words, start=1):
        characters += len(text)
        if characters >= HASHED or index - start == SKETCHED or index == len(words):
            yield words[start:index]
            start, characters = index, 0


def _bucket(hashes: Hashes) -> Indices:
    buckets: Indices = (hashes >> np.uint64(64 - OWNER - BUCKETS)).astype(np.int64)
    return buckets


def _mixed(values: Hashes) -> Hashes:
    """Values in which every bit hangs on every bit (the finalizer of SplitMix64, Steele et al. 2014)."""
    values = (values ^ values >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ values >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    mixed: Hashes = values ^ values >> np.uint64(31)
    return mixed


def _bands(minima: NDArray[np.uint32], bands: int, size: int) -> Hashes:
    """A hash of each band of so many minima: (texts, bands). The same minima in another band have another one."""
    minima = minima[:, : bands * size].reshape(len(minima), bands, size)
    hashes = np.broadcast_to(_mixed(np.arange(1, bands + 1, dtype=np.uint64)), minima.shape[:2])
    for index in range(size):
        hashes = _mixed(hashes + minima[:, :, index])
    return hashes


def _one_bit_each(minima: NDArray[np.uint32]) -> NDArray[np.uint16]:
    """One bit of each minimum: (texts, minima / 16). See Li and König, b-Bit Minwise Hashing, arXiv 0910.3349."""
    bits = (minima * np.uint32(0x9E3779B1)) >> np.uint32(31)
    return np.packbits(bits.astype(np.uint8), axis=1).view("<u2")
