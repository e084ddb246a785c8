"""Columns of small numbers as bits, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import InvalidInput

__all__ = ["PLANES", "Reader", "damage", "pack", "pack_small"]

PLANES = (16, 8, 4, 2, 1)
# by the bits of a plane, a word of as many bytes as a byte of the plane has values
WORDS: dict[int, np.dtype[Any]] = {4: np.dtype("<u2"), 2: np.dtype("<u4"), 1: np.dtype("<u8")}
# a word times this has in its highest byte the values of all its bytes, one behind the other
GATHER = {
    size: word.type(sum(1 << 8 * (word.itemsize - 1 - place) + size * place for place in range(word.itemsize)))
    for size, word in WORDS.items()
}
BYTES = np.arange(256, dtype=np.uint8)
# for each byte the word of its values
SPREAD = {
    size: np.stack([BYTES >> low & 2**size - 1 for low in range(0, 8, size)], axis=1).view(word)[:, 0]
    for size, word in WORDS.items()
}
SMALL_WIDTHS = (1, 2, 3, 4, 6, 8, 10, 12, 16)


def pack(values: NDArray[Any], width: int) -> bytes:
    """Values below 2 ** width in planes of 16, 8, 4, 2 and 1 bits: those that sum to the width, the low bits first.

    A byte of a plane of less than 8 bits holds as many values as fit, the first in its lowest bits.
    """
    planes = []
    for size in PLANES:
        if not width & size:
            continue
        if size >= 8:
            part = values.astype("<u2" if size == 16 else "u1")
        else:
            word = WORDS[size]
            spread = np.zeros(-(-len(values) // word.itemsize), word)
            np.bitwise_and(values, 2**size - 1, out=spread.view(np.uint8)[: len(values)], casting="unsafe")
            spread *= GATHER[size]
            part = spread.view(np.uint8)[word.itemsize - 1 :: word.itemsize]
        planes.append(part.tobytes())
        width -= size
        if width:
            values = values >> size
    return b"".join(planes)


def pack_small(values: NDArray[Any]) -> tuple[tuple[int, int, int], bytes]:
    """Mostly small values in as few bits as suits them, and apart what exceeds these; before, their shape.

    The largest value of the width says that there is more. The shape: the width; of what exceeds it, width and number.
    """
    largest = int(values.max(initial=0))
    least, width, over = len(values) * 64, 0, 0
    for candidate in SMALL_WIDTHS:
        mark = 2**candidate - 1
        count = int(np.count_nonzero(values >= mark)) if largest >= mark else 0
        rest = count * max(0, largest - mark).bit_length()
        if len(values) * candidate + rest < least:
            least, width, over = len(values) * candidate + rest, candidate, count
        if rest <= len(values):  # one more bit for each value would not save as much
            break
    if not over:
        return (width, 0, 0), pack(values, width)
    top = values.dtype.type(2**width - 1)
    more = values.take(np.flatnonzero(values >= top)) - top
    more_width = int(more.max()).bit_length()
    return (width, more_width, over), pack(np.minimum(values, top), width) + pack(more, more_width)


class Reader:
    """Takes columns off the front of a blob. Raises InvalidInput where there is less left than a column needs."""

    def __init__(self, data: NDArray[np.uint8]) -> None:
        self._data = data

    def packed(self, count: int, width: int, dtype: Any) -> NDArray[Any]:
        """What `pack` wrote."""
        values, shift = np.zeros(0 if width else count, dtype), 0
        for size in PLANES:
            if not width & size:
                continue
            part = self._take(-(-count * size // 8))
            if size == 16:
                part = part.view("<u2")
            elif size < 8:
                part = SPREAD[size].take(part).view(np.uint8)[:count]
            plane = part.astype(dtype)
            if shift:
                plane <<= shift
                plane |= values
            values = plane
            shift += size
        return values

    def small(self, count: int, dtype: Any, width: int, more_width: int, more: int) -> NDArray[Any]:
        """What `pack_small` wrote."""
        values = self.packed(count, width, dtype)
        if more:
            where = np.flatnonzero(values == 2**width - 1)
            if len(where) != more:
                raise damage("a column of small numbers does not fit")
            values[where] += self.packed(more, more_width, dtype)
        return values

    def _take(self, size: int) -> NDArray[np.uint8]:
        taken, self._data = self._data[:size], self._data[size:]
        if len(taken) < size:
            raise damage("it ends too early")
        return taken


def damage(why: str) -> InvalidInput:
    return InvalidInput(f"damaged targets: {why}", "Restore the file, or teach again.")
