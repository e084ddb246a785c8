"""Many questions to one server at a time, and their answers as they come.

The requests run in an event loop in a thread of its own; the rows are pulled, and the answers yielded, in the thread of
whoever asks.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

from ..errors import InvalidInput, Stopped
from ..records import Prompt
from ..run import stop_if_asked
from .http import Limits
from .pace import Pace, Ticket
from .reply import Answer, Failure

__all__ = ["Asker", "Conversation", "Row"]

WIDTH = 4  # rows that wait for their next attempt, for each that may be under way
POLL = 0.25  # seconds between two looks whether to stop
REFUSALS = 10  # refused rows, before any answer, that show that no row will do


@dataclass(frozen=True, slots=True)
class Row:
    """One answer that is wanted."""

    prompt: Prompt
    sample: int


@dataclass(frozen=True)
class Conversation:
    """How a server is asked: for a row, once, and a small question that any server answers that works."""

    attempt: Callable[[Row, int], Awaitable[Answer | Failure]]
    """The number says how many answers to the row were of no use before."""
    greet: Callable[[], Awaitable[Answer | Failure]]


Outcome = tuple[Row, Answer | Failure] | BaseException | None


class Asker:
    """Asks for rows, each until there is an answer or no hope of one.

    What the session raises, or an attempt, ends everything.
    """

    def __init__(
        self, session: Callable[[], AbstractAsyncContextManager[Conversation]], pace: Pace, limits: Limits, most: int
    ) -> None:
        self._session = session
        self._pace = pace
        self._limits = limits
        self._most = most
        self._outcomes: SimpleQueue[Outcome] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._resting = 0
        self._retries = float(limits.spare_retries)
        self._answered, self._refused = 0, 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._watching = False

    def results(self, rows: Iterator[Row]) -> Generator[tuple[Row, Answer | Failure], None, None]:
        """Yield the last word on each row. Closed early, it cancels what is under way."""
        first = next(rows, None)
        if first is None:
            return
        self._start()
        try:
            self._submit(first)
            unfinished, more = 1, True
            while more or unfinished:
                while more and self._has_room(unfinished):
                    row = next(rows, None)
                    if row is None:
                        more = False
                    else:
                        self._submit(row)
                        unfinished += 1
                if not unfinished:
                    return
                outcome = self._next()
                if outcome is not None:
                    unfinished -= 1
                    yield outcome
        finally:
            self.stop()

    def stop(self) -> None:
        """Cancel what is under way, and wait until its thread has ended."""
        thread, self._thread = self._thread, None
        if thread is not None:
            with suppress(RuntimeError):  # the loop has ended by itself
                self._loop.call_soon_threadsafe(self._main.cancel)
            if thread is not threading.current_thread():  # which may be where garbage is collected
                thread.join()

    def _has_room(self, unfinished: int) -> bool:
        return unfinished - self._resting < int(self._pace.limit) and unfinished < WIDTH * self._most

    def _next(self) -> tuple[Row, Answer | Failure] | None:
        """The next outcome; None where there may only be more room now."""
        while True:
            try:
                outcome = self._outcomes.get(timeout=POLL)
            except Empty:
                stop_if_asked()
                if self._thread is None:
                    raise Stopped("the teacher was closed", "Run the same command again.") from None
                continue
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome

    def _start(self) -> None:
        up = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run(up)), name="teacher", daemon=True)
        self._thread.start()
        up.wait()

    def _submit(self, row: Row) -> None:
        with suppress(RuntimeError):  # the loop has ended: why is the next outcome
            self._loop.call_soon_threadsafe(self._waiting.put_nowait, row)

    async def _run(self, up: threading.Event) -> None:
        """Run until cancelled, or until something raises, which is then an outcome."""
        self._loop = asyncio.get_running_loop()
        self._waiting: asyncio.Queue[Row] = asyncio.Queue()
        self._turn = asyncio.Event()
        self._main = asyncio.create_task(self._serve())
        up.set()
        await asyncio.wait({self._main})
        self._report(self._main)

    async def _serve(self) -> None:
        async with self._session() as conversation:
            self._conversation = conversation
            try:
                while True:
                    self._spawn(self._settle(await self._waiting.get()))
            finally:
                await _cancelled(self._tasks)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(self._report)

    def _report(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._outcomes.put(error)

    async def _settle(self, row: Row) -> None:
        """Ask for a row until there is a last word on it."""
        self._retries += self._limits.retries
        failed: list[int] = []
        useless = 0
        while True:
            ticket = await self._my_turn()
            result = await self._conversation.attempt(row, useless)
            if isinstance(result, Answer):
                self._pace.succeed(ticket)
                self._answered += 1
                self._done(row, result)
                return
            counts = self._failed(ticket, result)
            useless += result.alive
            if counts and not result.alive:
                failed.append(self._pace.stretch)
            failed = [stretch for stretch in failed if stretch not in self._pace.outages]
            over = len(failed) >= self._limits.attempts or useless > self._limits.redo
            if not result.retry or over or not self._may_retry(counts):
                self._done(row, result)
                return
            if counts:
                await self._rest(len(failed) + useless, result.wait)

    def _failed(self, ticket: Ticket, failure: Failure) -> bool:
        """Count a failed request. Returns whether it counts against the row."""
        was_away = self._pace.away
        counts = self._pace.fail(ticket, failure)
        if self._pace.away and not was_away and not self._watching:
            self._watching = True
            self._spawn(self._watch())
        self._refused += failure.refused
        if self._refused >= REFUSALS and not self._answered:
            raise InvalidInput(
                f"the server refuses every prompt: {failure.reason}", "Mend what it names in the recipe."
            )
        self._wake()
        return counts

    async def _watch(self) -> None:
        """Greet a server that fails every request, now and then, until it answers."""
        while self._pace.away:
            await asyncio.sleep(self._pace.trial_delay())
            if self._pace.away and not self._pace.trial_delay():
                result = await self._conversation.greet()
                self._pace.tried(result if isinstance(result, Failure) else None)
        self._watching = False
        self._wake()

    def _done(self, row: Row, result: Answer | Failure) -> None:
        self._outcomes.put((row, result))
        self._wake()

    def _may_retry(self, counts: bool) -> bool:
        """Whether one more request is within what all rows together may cost."""
        if counts and self._retries < 1:
            return False
        self._retries -= counts
        return True

    async def _rest(self, attempts: int, least: float) -> None:
        """Wait before the next attempt, for a random time (full jitter), and as long as the server asked for."""
        longest = min(self._limits.longest_backoff, self._limits.backoff * 2 ** (attempts - 1))
        self._resting += 1
        self._outcomes.put(None)
        try:
            await asyncio.sleep(max(least, random.uniform(0, longest)))
        finally:
            self._resting -= 1

    async def _my_turn(self) -> Ticket:
        while (delay := self._pace.delay()) != 0:
            turn = self._turn
            try:
                await asyncio.wait_for(turn.wait(), delay)
            except asyncio.TimeoutError:
                continue
        return self._pace.begin()

    def _wake(self) -> None:
        """Let all who wait for their turn look again."""
        self._turn.set()
        self._turn = asyncio.Event()


async def _cancelled(tasks: set[asyncio.Task[None]]) -> None:
    """Wait until all of these have ended, told to."""
    for task in list(tasks):
        task.cancel()
    if tasks:
        await asyncio.wait(set(tasks))
