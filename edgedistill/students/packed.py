"""Encoded examples in files, so that there may be more of them than memory holds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from ..run import whole_folder
from .encode import EncodedExample

__all__ = ["PackedExamples", "packed"]

# all little-endian, one value a row but in TOKENS and MORE: one example's after another's
TOKENS, LENGTHS, STARTS, IDS = "tokens.u32", "lengths.u32", "starts.u32", "ids.s32"
MORE, MORE_LENGTHS = "more.json", "more.u32"
TYPES = {TOKENS: "<u4", LENGTHS: "<u4", STARTS: "<u4", IDS: "S32", MORE: "u1", MORE_LENGTHS: "<u4"}


class PackedExamples(Sequence[EncodedExample]):
    """The examples in a folder; each is made when it is asked for."""

    def __init__(self, folder: Path) -> None:
        self.lengths: NDArray[np.uint32] = np.fromfile(folder / LENGTHS, dtype=TYPES[LENGTHS])
        """Tokens of each example."""
        self._bounds = _bounds(self.lengths)
        self._more_bounds = _bounds(np.fromfile(folder / MORE_LENGTHS, dtype=TYPES[MORE_LENGTHS]))
        mapped = {name: _mapped(folder / name, TYPES[name]) for name in (STARTS, TOKENS, IDS, MORE)}
        self._starts, self._tokens, self._ids, self._more = mapped.values()

    @property
    def is_whole(self) -> bool:
        """Whether the files are of one make: all rows, and all of their tokens."""
        rows = len(self._starts) == len(self._ids) == len(self._more_bounds) - 1 == len(self)
        return rows and len(self._tokens) == self._bounds[-1] and len(self._more) == self._more_bounds[-1]

    @property
    def by_text(self) -> int:
        """How many have nothing of the teacher's but its text: neither distributions nor odds."""
        return int((np.diff(self._more_bounds) == 0).sum())

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, index: int) -> EncodedExample: ...

    @overload
    def __getitem__(self, index: slice) -> list[EncodedExample]: ...

    def __getitem__(self, index: int | slice) -> EncodedExample | list[EncodedExample]:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        row = range(len(self))[index]
        tokens = self._tokens[self._bounds[row] : self._bounds[row + 1]]
        name = self._ids[row].decode("utf-8", "ignore")
        more = bytes(self._more[self._more_bounds[row] : self._more_bounds[row + 1]])
        key, answers, gaps = json.loads(more) if more else ("", (), ())
        shares = tuple((tuple(answer), share) for answer, share in answers)
        between = tuple((begin, end) for begin, end in gaps)
        return EncodedExample(name, tuple(tokens.tolist()), int(self._starts[row]), key, shares, between)


def packed(folder: Path, examples: Iterable[EncodedExample]) -> PackedExamples:
    """The examples, written to `folder` where they are not there yet; what was there of others before is removed.

    Raises Stopped where the disk is full.
    """
    found = _whole(folder)
    if found is not None:
        return found
    shutil.rmtree(folder.parent, ignore_errors=True)
    with whole_folder(folder) as partial:
        _write(partial, examples)
    return PackedExamples(folder)


def _whole(folder: Path) -> PackedExamples | None:
    """The examples of a folder, or None where there is none or something is missing of it."""
    try:
        found = PackedExamples(folder)
    except (OSError, ValueError):
        return None
    return found if found.is_whole else None


def _write(folder: Path, examples: Iterable[EncodedExample]) -> None:
    with ExitStack() as stack:
        tokens, lengths, starts, ids, more, more_lengths = (
            stack.enter_context((folder / name).open("wb"))
            for name in (TOKENS, LENGTHS, STARTS, IDS, MORE, MORE_LENGTHS)
        )
        for example in examples:
            more_of_it = (example.key, example.answers, example.gaps)
            taught = json.dumps(more_of_it).encode() if any(more_of_it) else b""
            tokens.write(np.array(example.tokens, dtype=TYPES[TOKENS]).tobytes())
            lengths.write(len(example.tokens).to_bytes(4, "little"))
            starts.write(example.start.to_bytes(4, "little"))
            ids.write(example.id.encode()[:32].ljust(32, b"\0"))
            more.write(taught)
            more_lengths.write(len(taught).to_bytes(4, "little"))


def _bounds(lengths: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Where each row begins, and the last one ends."""
    bounds = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=bounds[1:])
    return bounds


def _mapped(path: Path, kind: str) -> NDArray[Any]:
    """A file as an array of which only what is read comes into memory; an empty file cannot be mapped."""
    return np.memmap(path, dtype=kind, mode="r") if path.stat().st_size else np.empty(0, dtype=kind)
