"""Encoded examples in files, so that there may be more of them than memory holds."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from ..run import no_room, sync_folder
from .encode import EncodedExample

__all__ = ["PackedExamples", "packed"]

# all little-endian, one value a row but in TOKENS: token ids, one example's after another's
TOKENS, LENGTHS, STARTS, IDS = "tokens.u32", "lengths.u32", "starts.u32", "ids.s32"
TYPES = {TOKENS: "<u4", LENGTHS: "<u4", STARTS: "<u4", IDS: "S32"}


class PackedExamples(Sequence[EncodedExample]):
    """The examples in a folder; each is made when it is asked for."""

    def __init__(self, folder: Path) -> None:
        self.lengths: NDArray[np.uint32] = np.fromfile(folder / LENGTHS, dtype=TYPES[LENGTHS])
        """Tokens of each example."""
        self._bounds = np.zeros(len(self.lengths) + 1, dtype=np.int64)
        np.cumsum(self.lengths, out=self._bounds[1:])
        self._starts, self._tokens, self._ids = (_mapped(folder / name, TYPES[name]) for name in (STARTS, TOKENS, IDS))

    @property
    def is_whole(self) -> bool:
        """Whether the files are of one make: all rows, and all of their tokens."""
        return len(self._starts) == len(self._ids) == len(self) and len(self._tokens) == self._bounds[-1]

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
        return EncodedExample(name, tuple(tokens.tolist()), int(self._starts[row]))


def packed(folder: Path, examples: Iterable[EncodedExample]) -> PackedExamples:
    """The examples, written to `folder` where they are not there yet; what was there of others before is removed.

    Raises Stopped where the disk is full.
    """
    found = _whole(folder)
    if found is not None:
        return found
    partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
    try:
        shutil.rmtree(folder.parent, ignore_errors=True)
        partial.mkdir(parents=True)
        _write(partial, examples)
        os.replace(partial, folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise no_room(folder, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return PackedExamples(folder)


def _whole(folder: Path) -> PackedExamples | None:
    """The examples of a folder, or None where there is none or something is missing of it."""
    try:
        found = PackedExamples(folder)
    except (OSError, ValueError):
        return None
    return found if found.is_whole else None


def _write(folder: Path, examples: Iterable[EncodedExample]) -> None:
    with (
        (folder / TOKENS).open("wb") as tokens,
        (folder / LENGTHS).open("wb") as lengths,
        (folder / STARTS).open("wb") as starts,
        (folder / IDS).open("wb") as ids,
    ):
        for example in examples:
            tokens.write(np.array(example.tokens, dtype=TYPES[TOKENS]).tobytes())
            lengths.write(len(example.tokens).to_bytes(4, "little"))
            starts.write(example.start.to_bytes(4, "little"))
            ids.write(example.id.encode()[:32].ljust(32, b"\0"))


def _mapped(path: Path, kind: str) -> NDArray[Any]:
    """A file as an array of which only what is read comes into memory; an empty file cannot be mapped."""
    return np.memmap(path, dtype=kind, mode="r") if path.stat().st_size else np.empty(0, dtype=kind)
