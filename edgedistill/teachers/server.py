"""One server: its model, what it takes, and one request to it at a time."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import InvalidInput, Stopped
from ..recipe import TeachSettings
from ..records import digest
from .capabilities import GREETING_TOKENS, Capabilities, greeting, learn, recalled, remember
from .http import Client, Limits, NoReply
from .reply import Answer, Failure, Witness, answer_of, failure_of, models_of, refusal_of

__all__ = ["Server"]

KNOCKS = 3  # tries to reach a server at the start, where none may run at all
BROKEN = 3  # answers 500 or 501 in a row to a first question that show that the server does not take it
GREETINGS = 5  # answers in which a server must have said the same model twice in a row
NAMED = 5  # models of a server that a message names


@dataclass(frozen=True)
class Server:
    """A server that is asked for one model."""

    client: Client
    url: str
    model: str
    key: str | None
    limits: Limits
    witness: Witness

    async def ask(self, body: dict[str, Any], max_tokens: int) -> Answer | Failure:
        """What one request brings.

        Raises EdgeDistillError where no further one can bring anything else.
        """
        started = time.monotonic()
        try:
            reply = await self.client.ask("chat/completions", body, max_tokens)
        except NoReply as error:
            return failure_of(error)
        if reply.status != 200:
            return refusal_of(reply, self.key, self.limits.longest_retry_after)
        answer = answer_of(reply)
        return answer if isinstance(answer, Failure) else replace(answer, seconds=time.monotonic() - started)

    async def greet(self, capabilities: Capabilities, settings: TeachSettings) -> Answer | Failure:
        """What a small question brings, asked once."""
        body = capabilities.body(self.model, greeting(settings), None)
        result = await self.ask(body, GREETING_TOKENS)
        return self.witness.check(result) or result if isinstance(result, Answer) else result

    async def meet(self, settings: TeachSettings, schema: dict[str, Any] | None, scratch: Path) -> Capabilities:
        """What the server takes, after it has shown that it answers as the model.

        Raises InvalidInput where it has no such model or refuses the settings, Stopped where it does not answer.
        """
        version = await self._require_model()
        settled = (self.url, self.model, version, schema, settings.top_k > 0, settings.min_p > 0)
        path = scratch / f"openai-{digest(settled)[:16]}.json"
        found = recalled(path)
        if found is not None:
            answer = await self._first(found.body(self.model, greeting(settings), None))
            found = found if isinstance(answer, Answer) else None
        if found is None:
            found = await learn(self._first, self.model, settings, schema)
            remember(path, found)
        for _ in range(GREETINGS):
            if self.witness.model is not None:
                return found
            await self._first(found.body(self.model, greeting(settings), None))
        raise Stopped(f"{self.url}: each answer comes from another model", "Ask a server that keeps to one.")

    async def _require_model(self) -> str:
        """What kind of server it is, by its own words; InvalidInput where it lists models, but not this one."""
        for knock in range(KNOCKS):
            try:
                reply = await self.client.ask("models")
            except NoReply as error:
                if error.away and knock == KNOCKS - 1:
                    raise Stopped(
                        f"no server answers at {self.url}: {error.reason}",
                        "Start it, or correct teacher.url; then run the same command again.",
                    ) from None
                await asyncio.sleep(self.limits.trial)
                continue
            if reply.status in (401, 402, 403):
                refusal_of(reply, self.key, 0.0)
            listed = models_of(reply)
            # the last two are how Ollama and Gemini list what is asked for by the plain name
            if listed is None or {self.model, f"{self.model}:latest", f"models/{self.model}"} & set(listed):
                return reply.headers.get("server", "")
            names = ", ".join(f"'{name}'" for name in listed[:NAMED])
            more = f" and {len(listed) - NAMED} more" if len(listed) > NAMED else ""
            raise InvalidInput(f"{self.url} has no model '{self.model}'", f"It has {names}{more}.")
        return ""

    async def _first(self, body: dict[str, Any]) -> Answer | Failure:
        """What a first question brings, asked until the server says yes or no."""
        started, tries, broken = time.monotonic(), 0, 0
        while True:
            result = await self.ask(body, body.get("max_tokens", 0))
            tries += 1
            if isinstance(result, Answer):
                if self.witness.model is None:
                    self.witness.meet(result)
                return result
            broken = broken + 1 if result.reason in ("HTTP 500", "HTTP 501") else 0
            if result.refused or broken == BROKEN:
                return result
            if tries >= self.limits.attempts and time.monotonic() - started >= self.limits.away:
                raise Stopped(
                    f"{self.url} gave no usable answer: {result.reason}",
                    "See that it runs, then run the same command again.",
                )
            longest = min(self.limits.longest_backoff, self.limits.backoff * 2 ** (tries - 1))
            await asyncio.sleep(max(result.wait, random.uniform(0, longest)))
