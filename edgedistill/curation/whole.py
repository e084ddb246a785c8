"""The rules that look at all rows together: answers too long or short for their cell, and cells that are over-filled.

A cell is what rows have in common: their tags, or where the recipe says so, their answer.
"""

from __future__ import annotations

import hashlib
from array import array

import numpy as np
from numpy.typing import NDArray

from ..recipe import CurateSettings
from .rules import said_in

__all__ = ["Objections", "Whole"]

FEWEST_ROWS = 20  # of a cell, for it to have a usual length
Objections = dict[int, tuple[str, str]]


class Whole:
    """The rows that no other rule objects to, 20 bytes of each; `add` them in order, then ask for `objections`."""

    def __init__(self, settings: CurateSettings) -> None:
        self._settings = settings
        self._cells: dict[str, int] = {}
        self._cell_of, self._lengths, self._order = array("l"), array("l"), array("L")

    @staticmethod
    def is_asked(settings: CurateSettings) -> bool:
        """Whether one of these rules is asked for: only then rows have to wait for the last one."""
        return settings.length_factor > 0 or settings.per_cell is not None

    def add(self, identity: str, tags: tuple[str, ...], answer: str) -> None:
        """Take in a row."""
        self._cell_of.append(0 if self._settings.cell == "answer" else self._cell(", ".join(sorted(tags))))
        self._lengths.append(0)
        self.change(len(self._lengths) - 1, answer)
        self._order.append(int(hashlib.sha256(identity.encode()).hexdigest()[:8], 16))

    def change(self, number: int, answer: str) -> None:
        """The answer of a row that was added, by number, is this one."""
        if self._settings.cell == "answer":
            self._cell_of[number] = self._cell(answer.strip())
        self._lengths[number] = len(said_in(answer).strip())

    def _cell(self, name: str) -> int:
        return self._cells.setdefault(name, len(self._cells))

    def objections(self, before: Objections) -> Objections:
        """By the number of a row, in the order in which they were added, the reason and what is wrong.

        Rows of `before`, which are thrown out already, count for nothing.
        """
        names = list(self._cells)
        cells, lengths, order = (np.array(one, dtype=np.int64) for one in (self._cell_of, self._lengths, self._order))
        found = dict(before)
        for cell, all_rows in _grouped(cells).items():
            rows = np.array([row for row in all_rows.tolist() if row not in before], dtype=np.int64)
            if self._settings.length_factor > 0:
                found |= _odd_lengths(rows, lengths[rows], self._settings.length_factor)
            if self._settings.per_cell is not None:
                left = np.array([row for row in rows.tolist() if row not in found], dtype=np.int64)
                many = _too_many(left, order[left], self._settings.per_cell)
                found |= dict.fromkeys(many, ("over-filled cell", f"{names[cell]!r} has {len(left)} rows"[:120]))
        return found


def _grouped(cells: NDArray[np.int64]) -> dict[int, NDArray[np.int64]]:
    rows = np.argsort(cells, kind="stable")
    numbers, starts = np.unique(cells[rows], return_index=True)
    return dict(zip(numbers.tolist(), np.split(rows, starts[1:]), strict=True))


def _odd_lengths(rows: NDArray[np.int64], lengths: NDArray[np.int64], factor: float) -> Objections:
    """
    >>> _odd_lengths(np.arange(21), np.array([10] * 20 + [500]), 20.0)
    {20: ('too long', '500 characters, usual are 10')}
    """
    if len(rows) < FEWEST_ROWS:
        return {}
    usual = float(np.median(lengths))
    found: Objections = {}
    for reason, is_odd in (("too long", lengths > factor * usual), ("too short", lengths < usual / factor)):
        for row, length in zip(rows[is_odd].tolist(), lengths[is_odd].tolist(), strict=True):
            found[row] = reason, f"{length} characters, usual are {usual:.0f}"
    return found


def _too_many(rows: NDArray[np.int64], order: NDArray[np.int64], most: int) -> list[int]:
    """The rows above `most`, chosen by their ids alone.

    >>> _too_many(np.array([4, 5, 6]), np.array([30, 10, 20]), 2)
    [4]
    """
    chosen: list[int] = rows[np.argsort(order, kind="stable")[most:]].tolist()
    return chosen
