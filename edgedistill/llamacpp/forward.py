"""One pass of a GGUF over given conversations: the next-token logits at every token of their answers, piece by piece.

A piece is as many answers, or as much of a long one, as the logits of may be in memory at once: a row of a vocabulary
of 150,000 takes 600 KB.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import EdgeDistillError
from ..records import common_length
from .context import DecodeBatch
from .model import LlamaModel, last_error, load_llama_cpp

if TYPE_CHECKING:
    from .importance import Importance

__all__ = ["Forward", "ForwardSettings", "LogitRoom", "Piece", "TokenRow", "Window", "pieces_of"]

BATCH = 512  # tokens that llama.cpp computes at once
MOST_ROWS = 64  # answers in a piece: each is a sequence of its own
MOST_TOKENS = 2048  # of a piece's own tokens: attention looks at all of them
PREFIX = 0  # the sequence that holds what all rows begin with
MASK = 64  # a context's cells come in multiples of this


@dataclass(frozen=True, slots=True)
class TokenRow:
    """Token ids of one conversation; those from `start` on, which is at least 1, are the answer."""

    tokens: tuple[int, ...]
    start: int

    @property
    def answer(self) -> tuple[int, ...]:
        return self.tokens[self.start :]


@dataclass(frozen=True, slots=True)
class Window:
    """The tokens `first` to `last` (exclusive) of the answer of one row."""

    row: int
    first: int
    last: int


Piece = tuple[Window, ...]


class LogitRoom:
    """Memory for the logits of one piece after the other, of one model or of several that take turns."""

    def __init__(self) -> None:
        self._memory = np.empty(0, np.float32)

    def of(self, count: int, width: int) -> NDArray[np.float32]:
        """An array of this shape; what the room held before is gone."""
        if count * width > len(self._memory):
            self._memory = np.empty(count * width, np.float32)
        return self._memory[: count * width].reshape(count, width)


@dataclass(frozen=True, slots=True)
class ForwardSettings:
    """How a model is run, and how many bytes of logits are in memory at once."""

    threads: int
    gpu_layers: int = -1
    logit_bytes: int = 64 << 20
    writable: bool = False
    """Whether the weights can be changed while the model is open."""


def pieces_of(rows: Sequence[TokenRow], most: int) -> list[Piece]:
    """All answers, in order, in pieces of at most `most` tokens; a longer answer is cut, and its parts stand alone.

    >>> pieces_of([TokenRow((1, 2, 3), 1), TokenRow((1, 2), 1), TokenRow((1, 2, 3, 4), 1)], 3)[0]
    (Window(row=0, first=0, last=2), Window(row=1, first=0, last=1))
    """
    found: list[Piece] = []
    open_piece: list[Window] = []
    answers = tokens = 0
    for number, row in enumerate(rows):
        length = len(row.answer)
        is_full = answers + length > most or tokens + len(row.tokens) > MOST_TOKENS or len(open_piece) == MOST_ROWS
        if open_piece and is_full:
            found.append(tuple(open_piece))
            open_piece, answers, tokens = [], 0, 0
        if length > most:
            found += [(Window(number, first, min(first + most, length)),) for first in range(0, length, most)]
        elif length:
            open_piece.append(Window(number, 0, length))
            answers += length
            tokens += len(row.tokens)
    return [*found, tuple(open_piece)] if open_piece else found


class Forward:
    """A loaded model that goes through the pieces of `rows` in order. Use it as a context manager.

    What all rows begin with is decoded once. With an `importance`, what the weights are multiplied with is summed up
    on the way. Raises EdgeDistillError where the model does not load or memory is short.
    """

    def __init__(
        self,
        path: Path,
        rows: Sequence[TokenRow],
        pieces: Sequence[Piece],
        settings: ForwardSettings,
        importance: Importance | None = None,
    ) -> None:
        self._lib = load_llama_cpp()
        self._path = path
        self._rows = rows
        self._importance = importance
        self._prefix = _shared(rows)
        self._model = LlamaModel(path, settings.gpu_layers, writable=settings.writable)
        self.vocab_size = self._model.vocab_size
        try:
            self._context = self._open(pieces, settings)
        except BaseException:
            self._model.close()
            raise
        self._memory = self._lib.llama_get_memory(self._context)
        self._batch = DecodeBatch(self._lib, BATCH)
        self._found: NDArray[np.float32] = np.empty((0, self.vocab_size), np.float32)
        self._filled = self._pending = 0
        self._is_begun = False

    def __enter__(self) -> Forward:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._context:
            self._lib.llama_free(self._context)
            self._context = None
        self._model.close()

    def _open(self, pieces: Sequence[Piece], settings: ForwardSettings) -> Any:
        wanted = self._lib.llama_context_default_params()
        own = max((sum(len(self._rows[one.row].tokens) for one in piece) for piece in pieces), default=1)
        wanted.n_ctx = -(-(self._prefix + own) // MASK) * MASK
        wanted.n_batch = wanted.n_ubatch = BATCH
        wanted.n_seq_max = 1 + max(map(len, pieces), default=1)
        wanted.kv_unified = True
        wanted.n_threads = wanted.n_threads_batch = settings.threads
        wanted.no_perf = True
        if self._importance is not None:
            wanted.cb_eval = self._importance.callback
        context = self._lib.llama_init_from_model(self._model.handle, wanted)
        if not context:
            raise EdgeDistillError(
                f"{self._path}: no context of {wanted.n_ctx} tokens ({last_error()})", "Is there enough memory?"
            )
        return context

    def logits(self, piece: Piece, room: LogitRoom) -> NDArray[np.float32]:
        """The logits before each token of a piece: float32 of shape (tokens, vocabulary), in the room's memory.

        Raises EdgeDistillError where llama.cpp cannot decode it.
        """
        if not self._is_begun:
            self._begin()
        self._found = room.of(sum(window.last - window.first for window in piece), self.vocab_size)
        self._filled = 0
        for sequence, window in enumerate(piece, start=PREFIX + 1):
            row, begin = self._rows[window.row], self._prefix
            if window.first:
                begin = row.start + window.first - 1
            elif self._prefix:
                self._lib.llama_memory_seq_cp(self._memory, PREFIX, sequence, -1, -1)
            self._add(row.tokens[: row.start + window.last - 1], begin, sequence, window.last - window.first)
        self._decode()
        if piece[-1].last == len(self._rows[piece[-1].row].answer):  # else the next piece is the rest of this row
            for sequence in range(PREFIX + 1, PREFIX + 1 + len(piece)):
                self._lib.llama_memory_seq_rm(self._memory, sequence, -1, -1)
        return self._found

    def _begin(self) -> None:
        self._is_begun = True
        self._add(self._rows[0].tokens[: self._prefix], 0, PREFIX, 0)
        self._decode()

    def _add(self, tokens: Sequence[int], begin: int, sequence: int, wanted: int) -> None:
        """Put the tokens from `begin` on into batches; the logits of the last `wanted` are kept."""
        while begin < len(tokens):
            if self._batch.room == 0:
                self._decode()
            end = min(len(tokens), begin + self._batch.room)
            kept = max(0, end - max(begin, len(tokens) - wanted))
            self._batch.add(tokens[begin:end], begin, sequence, kept)
            self._pending += kept
            begin = end

    def _decode(self) -> None:
        if self._batch.size == 0:
            return
        code = self._lib.llama_decode(self._context, self._batch.struct)
        if code != 0:
            raise EdgeDistillError(f"{self._path}: llama_decode ended with {code} ({last_error()})", "")
        if self._importance is not None:
            self._importance.end_batch()
        if self._pending:
            pointer = self._lib.llama_get_logits(self._context)
            address = ctypes.cast(pointer, ctypes.c_void_p).value or 0
            size = self._pending * self.vocab_size
            here = np.ctypeslib.as_array((ctypes.c_float * size).from_address(address))
            self._found[self._filled : self._filled + self._pending] = here.reshape(self._pending, -1)
            self._filled += self._pending
        self._pending = 0
        self._batch.clear()


def _shared(rows: Sequence[TokenRow]) -> int:
    """How many tokens all rows begin with, at least one less than the shortest prompt has."""
    if len(rows) < 2:
        return 0
    first = rows[0].tokens
    alike = min(common_length(first, row.tokens) for row in rows[1:])
    return max(0, min(alike, *(row.start - 1 for row in rows)))
