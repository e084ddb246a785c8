"""Texts seen so far, searched by similarity.

What is known of them lies in files. Of these only what shares a key with a new text is looked at, so that the search
takes hardly longer the more texts there are.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from ..run import no_room
from .postings import Postings
from .sketches import TEXT, Sketcher, Sketches, as_bytes, most_differing, near
from .words import jaccard, shingles_of

__all__ = ["SimilarTexts", "Twin", "in_blocks"]

# what is in memory at a time
BLOCK = 8192  # new texts
BLOCK_CHARACTERS = 1 << 22

Candidates = dict[int, set[tuple[bool, int, int, int]]]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Twin:
    """An earlier text: its id, and whether its words are the very same."""

    id: str
    is_exact: bool

    @property
    def reason(self) -> str:
        """Why a text with such a twin is dropped."""
        return "exact duplicate" if self.is_exact else "near duplicate"


def in_blocks(rows: Iterable[T], text: Callable[[T], str]) -> Iterator[list[T]]:
    """The rows in the blocks in which `SimilarTexts` is fastest, of texts that memory surely holds."""
    block: list[T] = []
    characters = 0
    for row in rows:
        block.append(row)
        characters += len(text(row))
        if len(block) == BLOCK or characters >= BLOCK_CHARACTERS:
            yield block
            block, characters = [], 0
    if block:
        yield block


class SimilarTexts:
    """Texts seen so far, in files of a folder of their own. Use it as a context manager.

    Of two texts at least as similar as the threshold (Jaccard of character 4-grams), the earlier is the other's twin.
    `sample` are some thousand texts from all over what will come; the search is slower without, its results the same.
    Where the same texts are looked up in several, these share a sketcher, and texts are given as sketches.
    """

    def __init__(self, threshold: float, where: Path, sample: Iterable[str] | Sketcher = ()) -> None:
        self._threshold = threshold
        self._sketcher = sample if isinstance(sample, Sketcher) else Sketcher(sample)
        self._count = self._written = 0
        try:
            self._folder = Path(tempfile.mkdtemp(prefix="similar.partial-", dir=where))
            self._texts, self._words = (
                (self._folder / name).open("w+b", buffering=0) for name in ("texts.bin", "words.txt")
            )
        except OSError as error:
            raise no_room(where, error) from error
        self._postings = Postings(self._folder)

    def __enter__(self) -> SimilarTexts:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the files."""
        self._postings.close()
        for file in (self._texts, self._words):
            file.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def add(self, rows: Sequence[tuple[str, str]]) -> None:
        """Take in texts, given as (id, text), without a search.

        Raises Stopped where the disk is full.
        """
        self._append(self._sketches([text for _, text in rows]), [name for name, _ in rows])

    def twins(self, texts: Sequence[str] | Sketches) -> list[Twin | None]:
        """For each text the first that was added of the same words, else the first that is similar, else None."""
        sketches = texts if isinstance(texts, Sketches) else self._sketches(texts)
        candidates = self._candidates(sketches)
        return [self._earlier_twin(words, candidates[row]) for row, words in enumerate(sketches.words)]

    def screen(self, rows: Sequence[tuple[str, str]]) -> list[Twin | None]:
        """The same for texts given as (id, text), those before it in the list included; those without one are added.

        Raises Stopped where the disk is full.
        """
        return self.screen_sketches([name for name, _ in rows], self._sketches([text for _, text in rows]))

    def screen_sketches(self, names: Sequence[str], sketches: Sketches) -> list[Twin | None]:
        """The same for texts of which there are sketches, with their ids."""
        candidates = self._candidates(sketches)
        block = _Block(sketches, self._threshold)
        found: list[Twin | None] = []
        for row, words in enumerate(sketches.words):
            twin = self._earlier_twin(words, candidates[row])
            if twin is None and (other := block.twin(row)) is not None:
                twin = Twin(names[other], sketches.words[other] == words)
            if twin is None:
                block.add(row)
            found.append(twin)
        self._append(sketches.chosen(block.rows), [names[row] for row in block.rows])
        return found

    def _sketches(self, texts: Sequence[str]) -> Sketches:
        return self._sketcher.sketch(texts, self._threshold)[0]

    def _append(self, sketches: Sketches, names: list[str]) -> None:
        """Write what is known of texts."""
        texts = sketches.texts.copy()
        words = [as_bytes(f"{name}\n{text}") for name, text in zip(names, sketches.words, strict=True)]
        lengths = np.array([len(data) for data in words], dtype=np.uint64)
        texts["length"] = lengths
        texts["start"] = self._written + np.cumsum(lengths) - lengths
        try:
            for file, data in ((self._texts, texts.tobytes()), (self._words, b"".join(words))):
                file.seek(0, os.SEEK_END)
                if file.write(data) != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise no_room(self._folder, error) from error
        self._postings.add(sketches.keys, sketches.owners + self._count)
        self._count += len(texts)
        self._written += int(lengths.sum())

    def _candidates(self, sketches: Sketches) -> Candidates:
        """By text, the earlier ones that may be its twin: (whether the words differ, number, start, length)."""
        found: Candidates = defaultdict(set)
        if not self._count:
            return found
        texts = np.memmap(self._texts, dtype=TEXT, mode="r")
        for pairs in self._postings.pairs(sketches.keys, sketches.owners):
            mine, theirs = near(sketches.texts, texts, pairs, self._threshold)
            differs = texts["exact"][theirs] != sketches.texts["exact"][mine]
            columns = differs, theirs, texts["start"][theirs], texts["length"][theirs]
            for row, *one in zip(mine.tolist(), *(column.tolist() for column in columns), strict=True):
                found[row].add(tuple(one))
        return found

    def _earlier_twin(self, words: str, candidates: set[tuple[bool, int, int, int]]) -> Twin | None:
        mine = shingles_of(words) if candidates else set()
        for _, _, start, length in sorted(candidates):
            self._words.seek(start)
            name, _, other = self._words.read(length).decode("utf-8", "surrogatepass").partition("\n")
            if words == other or jaccard(mine, shingles_of(other)) >= self._threshold:
                return Twin(name, words == other)
        return None


class _Block:
    """The texts of one block that were kept so far, in memory."""

    def __init__(self, sketches: Sketches, threshold: float) -> None:
        self.rows: list[int] = []
        self._words, self._threshold = sketches.words, threshold
        self._sizes: list[int] = sketches.texts["size"].tolist()
        self._bitmaps = [int.from_bytes(bitmap.tobytes(), "little") for bitmap in sketches.texts["bitmap"]]
        self._keys = _shared_keys(sketches)
        self._kept: dict[int, list[int]] = {}

    def twin(self, row: int) -> int | None:
        """The first text kept that is similar to this one."""
        kept = self._kept
        candidates = {other for key in self._keys[row] if key in kept for other in kept[key]}
        near_it = sorted(self._near(row, candidates)) if candidates else []
        mine = shingles_of(self._words[row]) if near_it else set()
        similar = (one for one in near_it if jaccard(mine, shingles_of(self._words[one])) >= self._threshold)
        return next(similar, None)

    def _near(self, row: int, candidates: set[int]) -> Iterator[int]:
        """Those of other texts that may be as similar as the threshold."""
        size, bitmap, sizes, bitmaps = self._sizes[row], self._bitmaps[row], self._sizes, self._bitmaps
        for other in candidates:
            if (bitmap ^ bitmaps[other]).bit_count() <= most_differing(size + sizes[other], self._threshold):
                yield other

    def add(self, row: int) -> None:
        self.rows.append(row)
        for key in self._keys[row]:
            self._kept.setdefault(key, []).append(row)


def _shared_keys(sketches: Sketches) -> list[list[int]]:
    """By text, those of its keys that another text of the block has too: most have none."""
    order = np.argsort(sketches.keys)
    ordered = sketches.keys[order]
    is_same = ordered[1:] == ordered[:-1]
    is_shared = np.zeros(len(ordered), dtype=np.bool_)
    is_shared[order[1:][is_same]] = is_shared[order[:-1][is_same]] = True
    ends: list[int] = np.cumsum(np.bincount(sketches.owners[is_shared], minlength=len(sketches))).tolist()
    keys: list[int] = sketches.keys[is_shared].tolist()
    return [keys[start:end] for start, end in zip([0, *ends], ends, strict=False)]
