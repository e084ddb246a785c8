"""A server's latency: one streamed request at a time, and when its first and its last text came.

The time begins with the text in hand and includes the connection, as a client of its own would have it.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import EdgeDistillError, InvalidInput
from ..recipe import TeacherSettings, TeachSettings
from ..records import Message, Prompt
from .address import endpoint_of
from .capabilities import Capabilities, Question
from .http import Client, Limits, NoReply, Reply
from .openai import key_of
from .reply import Witness, refusal_of
from .server import Server

__all__ = ["StreamedModel", "StreamingTask"]

USAGE: dict[str, Any] = {"stream_options": {"include_usage": True}}
HINT = "See that it runs, then run the same command again."


@dataclass(frozen=True)
class StreamingTask:
    """What a server is asked; `asked` has its address and the id of the model."""

    asked: TeacherSettings
    preamble: Sequence[Message]
    schema: dict[str, Any] | None
    prompts: Sequence[Prompt]
    max_tokens: int
    endless: bool = False
    """Every answer has `max_tokens` tokens; only servers that know `ignore_eos` can do that."""
    reuses_prefix: bool = True
    """Whether the server may keep what prompts share; llama-server can be told not to."""


@dataclass
class _Stream:
    """A streamed answer, taken apart as it comes: server-sent events, one a chunk of text."""

    rest: bytes = b""
    events: int = 0
    pieces: int = 0
    first: float | None = None
    last: float | None = None
    ended: float | None = None
    usage: dict[str, Any] = field(default_factory=dict)
    error: str | None = None

    def feed(self, piece: bytes) -> None:
        now = time.perf_counter()
        *lines, self.rest = (self.rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self._event(line[5:].strip(), now)

    def _event(self, data: bytes, now: float) -> None:
        self.events += 1
        if data == b"[DONE]":
            self.ended = self.ended or now
            return
        try:
            payload = json.loads(data)
        except (ValueError, RecursionError):
            payload = None
        if not isinstance(payload, dict) or payload.get("error"):
            self.error = "an error" if payload else "what is not JSON"
            return
        if isinstance(payload.get("usage"), dict):
            self.usage = payload["usage"]
        choices = payload.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
        delta = choice.get("delta")
        if isinstance(delta, dict) and isinstance(delta.get("content"), str) and delta["content"]:
            self.pieces += 1
            self.first, self.last = self.first or now, now
        if choice.get("finish_reason"):
            self.ended = now


class StreamedModel:
    """A server's model that is asked one prompt at a time; close it, or use it in a `with`.

    `load` says what the server is: `runtime`. Raises EdgeDistillError where it does not answer, InvalidInput where it
    has no such model, Unsafe where its address is refused.
    """

    def __init__(self, task: StreamingTask, limits: Limits | None = None) -> None:
        self.load: dict[str, Any] = {"load_ms": None, "shared_tokens": None, "runtime": {"server": task.asked.url}}
        self._task = task
        self._limits = limits or Limits()
        self._endpoint = endpoint_of(task.asked)
        self._key = key_of(task.asked)
        self._client = Client(self._endpoint, self._key, self._limits)
        self._extras = self._optional()
        self._capabilities = Capabilities()
        self._loop = asyncio.new_event_loop()
        try:
            self._loop.run_until_complete(self._meet())
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> StreamedModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, number: int) -> dict[str, Any]:
        """What the prompt of that number took, as `llamacpp.timing.TimedModel.ask` says it.

        Token counts are the server's own; where it tells none, pieces of text are counted, and no prompt tokens.
        """
        return self._loop.run_until_complete(self._ask(self._task.prompts[number]))

    def close(self) -> dict[str, Any]:
        """Close the connection; of a server's memory nothing is known."""
        if not self._loop.is_closed():
            self._loop.run_until_complete(self._client.__aexit__(None, None, None))
            self._loop.close()
        return {"peak_memory_bytes": None}

    def _optional(self) -> list[dict[str, Any]]:
        """What is asked beside the question, the most first; a server that refuses one is asked with the next."""
        needed: dict[str, Any] = {"ignore_eos": True} if self._task.endless else {}
        wishes = [{**USAGE, "cache_prompt": False}] if not self._task.reuses_prefix else []
        return [{**needed, **wish} for wish in (*wishes, USAGE, {})]

    async def _meet(self) -> None:
        await self._client.__aenter__()
        task, model = self._task, self._task.asked.model
        server = Server(self._client, self._endpoint.url, model, self._key, self._limits, Witness(model))
        settings = TeachSettings(max_tokens=task.max_tokens)
        with tempfile.TemporaryDirectory() as scratch:
            self._capabilities = await server.meet(settings, task.schema, Path(scratch))
        while (refusal := await self._refusal(task.prompts[0])) is not None:
            self._extras.pop(0)
            if not self._extras:
                needs = " with ignore_eos, which bench.output_tokens needs" if task.endless else ""
                raise InvalidInput(f"{self._endpoint.url} refuses a streamed answer{needs}: {refusal}", "")
        self.load["runtime"]["asked_with"] = sorted(self._extras[0])

    async def _refusal(self, prompt: Prompt) -> str | None:
        """Why the server does not take the request in its present form, or None."""
        stream = _Stream()
        reply = await self._exchange(prompt, stream)
        if reply.status == 200:
            return None
        failure = refusal_of(reply, self._key, 0.0)
        if not failure.refused:
            raise EdgeDistillError(f"{self._endpoint.url}: {failure.reason}", HINT)
        return failure.reason

    async def _ask(self, prompt: Prompt) -> dict[str, Any]:
        stream = _Stream()
        started = time.perf_counter()
        reply = await self._exchange(prompt, stream)
        ended = stream.ended or time.perf_counter()
        if reply.status != 200:
            raise EdgeDistillError(
                f"{self._endpoint.url}: {refusal_of(reply, self._key, 0.0).reason} to {prompt.text[:60]!r}", HINT
            )
        if stream.error or not stream.events:
            found = stream.error or "an answer in one piece"
            raise EdgeDistillError(f"{self._endpoint.url} sent {found} where a streamed answer was asked for", HINT)
        count = stream.usage.get("completion_tokens")
        tokens = count if isinstance(count, int) and count > 0 else stream.pieces
        first, last = stream.first or ended, stream.last or ended
        prompt_tokens = stream.usage.get("prompt_tokens")
        return {
            "ttft_ms": round((first - started) * 1000, 3),
            "e2e_ms": round((ended - started) * 1000, 3),
            "tpot_ms": round((last - first) * 1000 / (tokens - 1), 3) if tokens > 1 else None,
            "prompt_tokens": prompt_tokens if isinstance(prompt_tokens, int) else None,
            "completion_tokens": tokens,
        }

    async def _exchange(self, prompt: Prompt, stream: _Stream) -> Reply:
        task = self._task
        question = Question((*task.preamble, *prompt.messages), task.max_tokens, tools=prompt.tools)
        body = self._capabilities.body(task.asked.model, question, task.schema)
        body = {**body, "stream": True, **self._extras[0]}
        try:
            return await self._client.ask("chat/completions", body, task.max_tokens, stream.feed)
        except NoReply as error:
            raise EdgeDistillError(f"{self._endpoint.url}: {error.reason}", HINT) from None
