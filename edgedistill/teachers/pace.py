"""How fast to ask: how many requests at a time, when to wait, when to give up.

The number under way grows while more of them bring more answers a second, and halves where the server says that it has
too much to do (additive increase, multiplicative decrease). While a server fails one request after another nothing is
sent but a small question now and then, which tells a server that is away from one that only fails what it was asked.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import Stopped
from .http import Limits
from .reply import Failure

__all__ = ["Pace", "Ticket"]

START = 4
GAIN = 0.25  # of the further requests, what share must show in answers a second to be worth it
PATIENCE = 32  # windows after which more requests are tried again
STRIKES = 6  # failures in a row, at least, after which a small question is asked
LONGEST_HOLD = 10  # times `away`: how long a server that asks for time is waited for


@dataclass(frozen=True)
class Ticket:
    """A request under way, and when it was sent."""

    sent: float


class Pace:
    """The state of all requests to one server. Times are of a monotonic clock, in seconds."""

    def __init__(self, limits: Limits, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit: float = min(START, most)
        """How many requests may be under way."""
        self.away = False
        self.stretch = 0
        """Counts the stretches between two answers; failures in one of `outages` were the server's alone."""
        self.outages: set[int] = set()
        self._limits = limits
        self._most = most
        self._clock = clock
        self._under_way = 0
        self._useful: float = most
        self._growing = True
        self._changed = clock()
        self._before: tuple[float, float] | None = None
        self._answers, self._seconds, self._windows = 0, 0.0, 0
        self._hold = 0.0
        self._strikes = 0
        self._since = self._until = self._next_trial = self._pause = 0.0

    def delay(self) -> float | None:
        """Seconds until one more request may go: 0 is now, None is after something has changed."""
        if self.away or self._under_way >= int(self.limit):
            return None
        return max(0.0, self._hold - self._clock())

    def begin(self) -> Ticket:
        """Count a request that goes now."""
        self._under_way += 1
        return Ticket(self._clock())

    def succeed(self, ticket: Ticket) -> None:
        """Count an answer."""
        self._under_way -= 1
        self._is_back()
        if ticket.sent < self._changed:
            return
        self._answers += 1
        self._seconds += self._clock() - ticket.sent
        if self._answers >= self.limit:
            self._adapt(self.limit * self._answers / max(self._seconds, 1e-9))

    def fail(self, ticket: Ticket, failure: Failure) -> bool:
        """Count a failure. Returns whether it counts against the answer that was asked for, not the server alone."""
        self._under_way -= 1
        self._wait(failure.wait)
        if failure.crowded and ticket.sent >= self._changed:
            self._growing = False
            self._set(max(1.0, self.limit / 2))
        if failure.alive:
            self._is_back()
            return True
        if self.away:
            return False
        self._strikes += 1
        if failure.away or self._strikes >= max(STRIKES, self.limit):
            now = self._clock()
            self.away, self._since, self._until = True, now, now + self._limits.away
            self._pause = self._limits.trial
            self._next_trial = now + self._pause if failure.away else now
        return not failure.away

    def trial_delay(self) -> float:
        """Seconds until the next small question to a server that is away."""
        return max(0.0, max(self._next_trial, self._hold) - self._clock())

    def tried(self, failure: Failure | None) -> None:
        """Count what a small question brought; None is an answer.

        Raises Stopped where the server has been away for too long.
        """
        if failure is None or failure.alive:
            self._is_back()
            return
        now = self._clock()
        self.outages.add(self.stretch)
        self._wait(failure.wait)
        if now >= self._until:
            raise Stopped(
                f"the server has failed every request for {now - self._since:.0f} s: {failure.reason}",
                "See that it runs, then run the same command again.",
            )
        self._next_trial = now + self._limits.trial + random.uniform(0, self._pause)
        self._pause = min(2 * self._pause, self._limits.away / 8)

    def _wait(self, seconds: float) -> None:
        """Send nothing for as long as the server asks for; in that time it is not away."""
        now = self._clock()
        longer = now + seconds - max(self._hold, now)
        if longer > 0:
            self._hold = now + seconds
            self._until = min(self._until + longer, self._since + LONGEST_HOLD * self._limits.away)

    def _is_back(self) -> None:
        self._strikes = 0
        self.away = False
        if self.stretch in self.outages:
            self._set(min(self.limit, START))
        self.stretch += 1

    def _adapt(self, rate: float) -> None:
        """Choose the next limit, after as many answers as the last one allowed at a time, at so many a second."""
        self._windows += 1
        if not self._growing:
            self._set(min(self.limit + 1, self._useful))
            if self._windows >= PATIENCE:
                self._growing, self._before, self._useful, self._windows = True, None, self._most, 0
            return
        if self._before is not None:
            limit, before = self._before
            if rate < before * (1 + GAIN * (self.limit / limit - 1)):
                self._growing, self._windows, self._useful = False, 0, limit
                self._set(limit)
                return
        self._before = (self.limit, rate)
        self._growing, self._windows = self.limit < self._most, 0
        self._set(min(2 * self.limit, self._most))

    def _set(self, limit: float) -> None:
        self.limit = limit
        self._changed = self._clock()
        self._answers, self._seconds = 0, 0.0
