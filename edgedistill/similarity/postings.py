"""Which texts have a key: sorted runs in files, in few of whose places a key is looked for.

New entries are merged with the run before them unless that is much longer, so the runs are few and each entry is
written a few times (O'Neil et al., The Log-Structured Merge-Tree, 1996).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..run import no_room

__all__ = ["Postings"]

GROWTH = 2  # a run is at least so many times as long as the next
IN_MEMORY = 1 << 19  # entries of the longest run that needs no file
MERGED = 1 << 19  # entries merged at a time
PAIRS = 1 << 19  # given at a time
BITS = np.uint64(32)  # of an entry for its text, and as many for its key
ANY_TEXT = np.uint64((1 << 32) - 1)

Keys = NDArray[np.uint32]
Indices = NDArray[np.int64]
Run = NDArray[np.uint64]


class Postings:
    """The keys of texts, which are given by their numbers, in files of a folder.

    An entry is a number of 64 bits: a key, then the number of a text. The files are mapped: the system holds as much of
    them in memory as there is room for.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._names = folder, count()
        self._runs: list[Run] = []
        self._files: list[Path | None] = []

    def add(self, keys: Keys, texts: Indices) -> None:
        """Take in one text for each of the keys.

        Raises Stopped where the disk is full.
        """
        if not len(keys):
            return
        entries = keys.astype(np.uint64) << BITS | texts.astype(np.uint64)
        entries.sort()
        self._runs.append(entries)
        self._files.append(None)
        while len(self._runs) > 1 and len(self._runs[-2]) < GROWTH * len(self._runs[-1]):
            self._merge()

    def close(self) -> None:
        """Let go of the files."""
        self._runs.clear()
        self._files.clear()

    def pairs(self, keys: Keys, texts: Indices) -> Iterator[tuple[Indices, Indices]]:
        """Every pair (one of `texts`, one that was added) that shares a key, in pieces; seldom more than once.

        There is one text for each of the keys.
        """
        order = np.argsort(keys, kind="stable")
        texts, first = texts[order], keys[order].astype(np.uint64) << BITS
        for run in self._runs:
            starts = np.searchsorted(run, first)
            found = np.flatnonzero(run[np.minimum(starts, len(run) - 1)] >> BITS == first >> BITS)
            starts = starts[found]
            sizes = np.searchsorted(run, first[found] | ANY_TEXT, "right") - starts
            ends = np.cumsum(sizes)
            for begin in range(0, int(sizes.sum()), PAIRS):
                numbers = np.arange(begin, min(begin + PAIRS, ends[-1]))
                which = np.searchsorted(ends, numbers, "right")
                theirs = run[starts[which] + numbers - (ends - sizes)[which]] & ANY_TEXT
                both = np.unique(texts[found[which]].astype(np.uint64) << BITS | theirs)
                yield (both >> BITS).astype(np.int64), (both & ANY_TEXT).astype(np.int64)

    def _merge(self) -> None:
        """Make one run of the last two."""
        one, other = self._runs[-2:]
        total = len(one) + len(other)
        path = self._folder / f"keys-{next(self._names)}.bin" if total > IN_MEMORY else None
        if path is None:
            merged = _sorted_together(one, other)
        else:
            try:
                with path.open("wb") as file:
                    for mine, theirs in _alike_slices(one, other):
                        file.write(_sorted_together(mine, theirs).data)
            except OSError as error:
                raise no_room(path, error) from error
            merged = np.memmap(path, dtype=np.uint64, mode="r")
        del one, other
        old = self._files[-2:]
        self._runs[-2:], self._files[-2:] = [merged], [path]  # no file is removed that is mapped
        for gone in old:
            if gone is not None:
                gone.unlink()


def _alike_slices(one: Run, other: Run) -> Iterator[tuple[Run, Run]]:
    """Two runs in slices of the same range of entries, few of them at a time."""
    edges = max(one, other, key=len)[:: MERGED // 2][1:]
    for (start, stop), (first, last) in zip(
        pairwise([0, *np.searchsorted(one, edges), len(one)]),
        pairwise([0, *np.searchsorted(other, edges), len(other)]),
        strict=True,
    ):
        yield one[start:stop], other[first:last]


def _sorted_together(one: Run, other: Run) -> Run:
    merged = np.concatenate([one, other])
    merged.sort(kind="stable")  # which is fast where there are sorted parts
    return merged
