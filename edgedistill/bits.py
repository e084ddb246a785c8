"""Columns of small numbers as bits, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import InvalidInput

__all__ = ["PLANES", "Reader", "damage", "pack", "pack_small"]

PLANES = (16, 8, 4, 2, 1)
SMALL_WIDTHS = (1, 2, 4, 8, 12, 16)


def pack(values: NDArray[Any], width: int) -> bytes:
    """Values below 2 ** width in planes of 16, 8, 4, 2 and 1 bits: those that sum to the width, the low bits first.

    A plane of less than 8 bits is cut into equal runs, and each byte holds one value of every run.
    """
    planes = []
    for size in PLANES:
        if not width & size:
            continue
        part = values.astype("<u2" if size == 16 else "u1")
        values = values >> size
        if size < 8:
            runs = np.zeros((8 // size, -(-len(part) * size // 8)), np.uint8)
            runs.ravel()[: len(part)] = part
            runs &= 2**size - 1
            part = runs[0]
            for number in range(1, len(runs)):
                part |= runs[number] << number * size
        planes.append(part.tobytes())
    return b"".join(planes)


def pack_small(values: NDArray[Any]) -> tuple[tuple[int, int, int], bytes]:
    """Mostly small values in as few bits as suits them, and apart what exceeds these; before, their shape.

    The largest value of the width says that there is more. The shape: the width; of what exceeds it, width and number.
    """
    largest = int(values.max(initial=0))
    costs = {}
    for width in SMALL_WIDTHS:
        mark = 2**width - 1
        over = int(np.count_nonzero(values >= mark)) if largest >= mark else 0
        costs[width] = width * len(values) + over * max(0, largest - mark).bit_length()
        if not over:
            break
    width = min(costs, key=lambda width: costs[width])
    mark = 2**width - 1
    where = np.flatnonzero(values >= mark)
    more = values[where] - values.dtype.type(mark)
    more_width = int(more.max(initial=0)).bit_length()
    fits = values.copy()
    fits[where] = mark
    return (width, more_width, len(more)), pack(fits, width) + pack(more, more_width)


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
                runs = np.empty((8 // size, len(part)), np.uint8)
                for number in range(len(runs)):
                    np.right_shift(part, number * size, out=runs[number])
                runs &= 2**size - 1
                part = runs.ravel()[:count]
            plane = part.astype(dtype)
            values = values | plane << shift if shift else plane
            shift += size
        return values

    def small(self, count: int, dtype: Any, width: int, more_width: int, more: int) -> NDArray[Any]:
        """What `pack_small` wrote."""
        values = self.packed(count, width, dtype)
        where = np.flatnonzero(values == 2**width - 1) if width else np.empty(0, np.intp)
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
