"""What was computed of conversations, kept while others are answered, for their next turns to go on from.

A turn comes with all that was said before it. Decoded anew, a conversation costs the square of its length. Here the
keys and values of its cells wait in plain memory, where they take no slot and lengthen nobody's attention, and are
copied back in a small part of the time that it takes to compute them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..records import common_length
from .context import State
from .requests import Request

__all__ = ["MEMORY_SHARE", "KeptTurns"]

MEMORY_SHARE = 0.1  # of what is free, for all that is kept
SHORTEST = 16  # tokens; fewer are computed as fast as they are copied
LIVES = 3  # rounds: one that did not come back in so many gives way where room is short


@dataclass(frozen=True, slots=True, eq=False)
class _Turn:
    request: Request
    tokens: Sequence[int]
    """Those whose cells are kept, behind the shared prefix: of the question, and of its answer."""
    state: State
    round: int


class KeptTurns:
    """States of sequences without the shared prefix, by the tokens that they hold; at most `budget` bytes.

    Where there is no room for more, what is there stays for some rounds: conversations come back in the order they
    left, so that to drop the oldest would be to drop each one just before it is asked for.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._turns: list[_Turn] = []
        self._round = 0
        self.resumed_tokens = 0
        """Tokens that were not computed again, as the engine counts them."""

    @property
    def held_bytes(self) -> int:
        return sum(len(turn.state) for turn in self._turns)

    def next_round(self) -> None:
        """All conversations are asked once more; none is asked twice in a round."""
        self._round += 1

    @property
    def room(self) -> int:
        """Bytes of the largest state that is kept."""
        return self._budget - sum(len(turn.state) for turn in self._turns if not self._is_old(turn))

    def keep(self, request: Request, tokens: Sequence[int], state: State) -> None:
        """Keep what a request's slot holds of `tokens`, the request's own and then its answer's."""
        if len(tokens) < SHORTEST or len(state) > self.room:
            return
        while self.held_bytes + len(state) > self._budget:
            self._turns.remove(next(turn for turn in self._turns if self._is_old(turn)))
        self._turns.append(_Turn(request, tokens, state, self._round))

    def take(self, request: Request) -> tuple[int, State] | None:
        """How many of the request's own tokens a kept state begins with, and the state.

        It must hold most of what was asked then: to take one that begins alike by chance would rob its own
        conversation. It is kept no more, unless it is of this round: then it is another one's, that begins alike or is
        another sample. One token at least is left to compute.
        """
        best: tuple[int, _Turn] | None = None
        for turn in self._turns:
            if turn.request.shared == request.shared:
                alike = min(common_length(turn.tokens, request.tokens), len(request.tokens) - 1)
                if alike >= SHORTEST and 2 * alike >= len(turn.request.tokens) and alike > (best[0] if best else 0):
                    best = alike, turn
        if best is None:
            return None
        alike, turn = best
        if turn.round < self._round:
            self._turns.remove(turn)
        return alike, turn.state

    def _is_old(self, turn: _Turn) -> bool:
        return turn.round + LIVES <= self._round
