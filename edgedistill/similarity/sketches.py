"""Sketches of texts: keys of which two similar texts share one, and a few bytes that tell most others apart.

The keys of a short text are its rarest shingles, so many that two texts as similar as the threshold must share one
(prefix filtering: Chaudhuri et al., A Primitive Operator for Similarity Joins, 2006). A long text would need too many:
its keys are the bands of its MinHash (Broder 1997), of which two such texts share one all but surely.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from .words import SHINGLE, normalised

__all__ = ["TEXT", "Sketcher", "Sketches", "as_bytes", "most_differing"]

LONG = 256  # shingles; pairs of longer texts are found by MinHash
PERMUTATIONS = 256
BANDS = 32
LARGEST_MISS = 1e-7  # of the pairs of long texts right at the threshold, the share that agree in no band
DOUBT = 6.0  # standard deviations of the one-bit estimate that leave none: 1 pair in 1e8
ROUNDING = 1e-6
BUCKETS = 20  # bits of a shingle's hash by which its frequency is counted
HASHED = 1 << 18  # characters hashed at a time
SKETCHED = 1024  # texts sketched at a time

Hashes = NDArray[np.uint64]
Indices = NDArray[np.int64]
Number = TypeVar("Number", float, NDArray[np.float64])
# one text: a hash of its words, its number of different shingles, a bitmap of these, one bit of each of its MinHash's
# minima (of a long text only), how many keys it has; where its words are in a file
TEXT = np.dtype(
    [
        ("exact", "<u8"),
        ("size", "<u4"),
        ("bitmap", "<u2", 16),
        ("minima", "<u2", PERMUTATIONS // 16),
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
    keys: Hashes

    def __len__(self) -> int:
        return len(self.words)


class Sketcher:
    """Makes sketches for one threshold. `sample` are texts that show which shingles are common."""

    def __init__(self, threshold: float, sample: Iterable[str]) -> None:
        self._threshold = threshold
        self._counts = np.zeros(1 << BUCKETS, dtype=np.uint32)
        share = (1 - threshold) / 2  # of the one-bit minima, those in which texts at the threshold differ
        self._most_minima = PERMUTATIONS * share + DOUBT * (PERMUTATIONS * share * (1 - share)) ** 0.5
        # the more minima in a band, the fewer pairs agree in all of them by chance
        fits = [n for n in range(5, PERMUTATIONS // BANDS + 1) if (1 - threshold**n) ** BANDS <= LARGEST_MISS]
        self._in_a_band = max([4, *fits])
        self._learn([normalised(text) for text in sample])

    def sketch(self, texts: Sequence[str]) -> Sketches:
        """The sketches of texts; those with the same words have the same."""
        words = [normalised(text) for text in texts]
        if not self._counts.any():
            self._learn(words)
        records = np.zeros(len(words), dtype=TEXT)
        keys = []
        start = 0
        for part in _slices(words):
            stop = start + len(part)
            keys.append(self._fill(records[start:stop], _Shingles(part, self._counts)))
            start = stop
        records["exact"] = [int.from_bytes(blake2b(as_bytes(text), digest_size=8).digest(), "little") for text in words]
        return Sketches(words, records, np.concatenate([np.empty(0, np.uint64), *keys]))

    def _learn(self, words: list[str]) -> None:
        """Count the shingles of texts. Any order of them would do; with the rare ones first, few texts share a key."""
        for part in _slices(words):
            found = _bucket(_Shingles(part, self._counts).hashes)
            self._counts += np.bincount(found, minlength=1 << BUCKETS).astype(np.uint32)

    def near(
        self, texts: NDArray[np.void], others: NDArray[np.void], pairs: tuple[Indices, Indices]
    ) -> tuple[Indices, Indices]:
        """Those of the pairs, given as numbers in two lists of records, that may be as similar as the threshold."""
        mine, theirs = pairs
        one, other = texts["size"][mine], others["size"][theirs]
        alike = np.minimum(one, other) >= self._threshold * np.maximum(one, other)
        mine, theirs, one, other = mine[alike], theirs[alike], one[alike], other[alike]
        # every bit in which the bitmaps differ is a shingle that only one text has (Sandes et al., Bitmap Filter, 2020)
        differing = ONES[texts["bitmap"][mine] ^ others["bitmap"][theirs]].sum(axis=1, dtype=np.uint16)
        alike = differing <= most_differing((one + other).astype(np.float64), self._threshold)
        mine, theirs, is_long = mine[alike], theirs[alike], np.minimum(one, other)[alike] > LONG
        if is_long.any():
            differing = ONES[texts["minima"][mine] ^ others["minima"][theirs]].sum(axis=1, dtype=np.uint16)
            alike = ~is_long | (differing <= self._most_minima)
            mine, theirs = mine[alike], theirs[alike]
        return mine, theirs

    def _fill(self, records: NDArray[np.void], shingles: _Shingles) -> Hashes:
        """The keys of some texts, whose records are filled in."""
        sizes = shingles.sizes
        records["size"] = sizes
        records["bitmap"] = shingles.bitmaps()
        owners, keys = shingles.rarest(np.where(self._threshold * sizes <= LONG, self._prefix(sizes), 0))
        is_long = np.flatnonzero(sizes > LONG)
        if len(is_long):
            minima = shingles.minima(is_long)
            records["minima"][is_long] = _one_bit_each(minima)
            owners = np.concatenate([owners, np.repeat(is_long, BANDS)])
            keys = np.concatenate([keys, _bands(minima, self._in_a_band).ravel()])
        records["keys"] = np.bincount(owners, minlength=len(records))
        return keys[np.argsort(owners, kind="stable")]

    def _prefix(self, sizes: Indices) -> Indices:
        """How many of its rarest shingles a text must show: a similar one lacks fewer than these."""
        shared = np.ceil(self._threshold * sizes - ROUNDING).astype(np.int64)
        prefix: Indices = np.minimum(sizes, sizes - shared + 1)
        return prefix


class _Shingles:
    """The hashes of the different shingles of some texts: one text's after another's, its rarest first."""

    def __init__(self, words: Sequence[str], counts: NDArray[np.uint32]) -> None:
        lengths = np.array([len(text) for text in words], dtype=np.int64)
        padded = "".join(text + "\n" * SHINGLE for text in words)  # no words have a line break
        letters = np.frombuffer(padded.encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.uint64)
        windows = np.maximum(1, lengths - SHINGLE + 1)
        before = np.cumsum(windows) - windows
        begins = np.cumsum(lengths + SHINGLE) - lengths - SHINGLE
        places = np.arange(windows.sum()) + np.repeat(begins - before, windows)
        first, second, third, fourth = (letters[places + step] for step in range(SHINGLE))
        hashes = _mixed(_mixed(first | second << np.uint64(21) | third << np.uint64(42)) + fourth)
        owners = np.repeat(np.arange(len(words)), windows)
        order = np.lexsort((hashes, counts[_bucket(hashes)], owners))
        hashes, owners = hashes[order], owners[order]
        is_new = np.ones(len(hashes), dtype=np.bool_)
        is_new[1:] = (hashes[1:] != hashes[:-1]) | (owners[1:] != owners[:-1])
        self.hashes: Hashes = hashes[is_new]
        self.owners: Indices = owners[is_new]
        self.sizes: Indices = np.bincount(self.owners, minlength=len(words))

    def rarest(self, counts: Indices) -> tuple[Indices, Hashes]:
        """So many of each text's rarest shingles, with the number of the text."""
        first = np.cumsum(self.sizes) - self.sizes
        rank = np.arange(len(self.hashes)) - first[self.owners]
        chosen = rank < counts[self.owners]
        return self.owners[chosen], self.hashes[chosen]

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
        rows = RMinHash.digest_matrix_from_flat_token_hashes(hashes, ends, PERMUTATIONS, 0).to_rows()
        return np.array(rows, dtype=np.uint32)


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
    buckets: Indices = (hashes >> np.uint64(64 - BUCKETS)).astype(np.int64)
    return buckets


def _mixed(values: Hashes) -> Hashes:
    """Values in which every bit hangs on every bit (the finalizer of SplitMix64, Steele et al. 2014)."""
    values = (values ^ values >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ values >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    mixed: Hashes = values ^ values >> np.uint64(31)
    return mixed


def _bands(minima: NDArray[np.uint32], size: int) -> Hashes:
    """A hash of each band of so many minima: (texts, BANDS). The same minima in another band have another one."""
    minima = minima[:, : BANDS * size].reshape(len(minima), BANDS, size)
    hashes = np.broadcast_to(_mixed(np.arange(1, BANDS + 1, dtype=np.uint64)), minima.shape[:2])
    for index in range(size):
        hashes = _mixed(hashes + minima[:, :, index])
    return hashes


def _one_bit_each(minima: NDArray[np.uint32]) -> NDArray[np.uint16]:
    """One bit of each minimum: (texts, PERMUTATIONS / 16). See Li and König, b-Bit Minwise Hashing, arXiv 0910.3349."""
    bits = (minima * np.uint32(0x9E3779B1)) >> np.uint32(31)
    return np.packbits(bits.astype(np.uint8), axis=1).view("<u2")
