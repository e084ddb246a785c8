"""Whether guessing tokens ahead pays: from how long steps of several rows take here, and how often guesses hold.

A guess of `drafted` tokens is checked in one step of `drafted` + 1 rows. What that gives is Leviathan et al. (ICML
2023): speed-up = E / (drafted * draft_cost + V(drafted + 1) / V(1)), E = (1 - a^(drafted + 1)) / (1 - a), with `a` the
chance that a guessed token holds and V(n) the time of a step of n rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["WORTH_IT", "Guesses", "guess_ahead", "looked_up", "needed_acceptance", "speed_up"]

WORTH_IT = 1.05  # a smaller gain is not worth the risk of a wrong estimate
NGRAM = 2  # tokens that must have been there before for what followed them to be guessed again


def speed_up(acceptance: float, drafted: int, step_ms: Mapping[int, float], draft_cost: float = 0.0) -> float:
    """Times faster with so many tokens guessed; `draft_cost` is a guessed token's share of a plain step.

    >>> round(speed_up(0.8, 3, {1: 10.0, 4: 25.1}, draft_cost=0.1), 2)
    1.05
    >>> speed_up(0.0, 3, {1: 10.0, 4: 10.0}), speed_up(1.0, 3, {1: 10.0, 4: 10.0})
    (1.0, 4.0)
    """
    held = drafted + 1 if acceptance >= 1 else (1 - acceptance ** (drafted + 1)) / (1 - acceptance)
    return held / (drafted * draft_cost + step_ms[drafted + 1] / step_ms[1])


def needed_acceptance(drafted: int, step_ms: Mapping[int, float]) -> float | None:
    """How often a guess must hold for guessing to be worth it; None where even perfect guesses are not.

    >>> needed_acceptance(1, {1: 10.0, 2: 15.0}), needed_acceptance(1, {1: 10.0, 2: 20.0})
    (0.575, None)
    """
    if speed_up(1.0, drafted, step_ms) <= WORTH_IT:
        return None
    low, high = 0.0, 1.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (low, middle) if speed_up(middle, drafted, step_ms) > WORTH_IT else (middle, high)
    return round(high, 4)


@dataclass(frozen=True)
class Guesses:
    """How guessing went: steps in all, those with a guess, and in these tokens that held and guesses that broke off."""

    steps: int
    guessed: int
    held: int
    broken: int

    @property
    def acceptance(self) -> float:
        """The chance that a guessed token holds."""
        return self.held / (self.held + self.broken) if self.held + self.broken else 0.0

    def promise(self, drafted: int, step_ms: Mapping[int, float]) -> float:
        """Times faster as a whole: where nothing is guessed, nothing is gained.

        >>> round(Guesses(steps=6, guessed=2, held=4, broken=0).promise(2, {1: 10.0, 3: 15.0}), 2)
        1.43
        """
        share = (self.guessed + self.held) / (self.steps + self.held)  # of the tokens, those that such steps give
        return 1 / (1 - share + share / speed_up(self.acceptance, drafted, step_ms))


def looked_up(pairs: Sequence[tuple[Sequence[int], Sequence[int]]], drafted: int) -> Guesses:
    """What comes of guessing that the last `NGRAM` tokens go on as where they stood before; pairs of prompt and answer.

    >>> looked_up([([1, 2, 3, 4], [1, 2, 3, 4, 9])], 2)
    Guesses(steps=3, guessed=1, held=2, broken=0)
    """
    steps = guessed = held = broken = 0
    for prompt, answer in pairs:
        seen, place = [*prompt, *answer], len(prompt)
        while place < len(seen):
            guess = guess_ahead(seen[:place], drafted)
            right = 0
            while right < len(guess) and place + right < len(seen) and seen[place + right] == guess[right]:
                right += 1
            steps += 1
            guessed += bool(guess)
            held += right
            broken += right < len(guess) and place + right < len(seen)
            place += right + 1
    return Guesses(steps, guessed, held, broken)


def guess_ahead(seen: Sequence[int], drafted: int) -> list[int]:
    """What followed the last place where the text's end stood before; nothing where it did not.

    >>> guess_ahead([7, 8, 9, 5, 7, 8], 2)
    [9, 5]
    """
    end = list(seen[-NGRAM:])
    for start in range(len(seen) - NGRAM - 1, -1, -1):
        if list(seen[start : start + NGRAM]) == end:
            return list(seen[start + NGRAM : start + NGRAM + drafted])
    return []
