"""A teacher behind any server that speaks OpenAI's chat completions: vLLM, llama-server, Ollama, LM Studio, a host."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import AsyncIterator, Generator, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace

from ..errors import EdgeDistillError, InvalidInput, MissingRequirement
from ..recipe import TeacherSettings, TeachSettings
from ..records import Completion, Example, Prompt, Wanted, prompt_seed
from ..schema import schema_validator
from . import TeacherTask
from .address import Resolver, endpoint_of, resolve
from .asking import Asker, Conversation, Row
from .capabilities import Capabilities, Question
from .http import Client, Limits
from .pace import Pace
from .reply import Answer, Failure, Witness, complaint
from .server import Server

__all__ = ["OpenaiTeacher", "key_of", "load"]

ANOTHER = 1_000_003  # between the seeds of two attempts for the same answer
SEEDS = 2**31  # some servers keep a seed in 32 bits


class OpenaiTeacher:
    """Asks a server, as many prompts at a time as it bears; each answer is looked at before it counts.

    `failures` has, after `complete`, the reason for each prompt id that got no answer; `capabilities` is what the
    server was found to take.
    """

    def __init__(self, task: TeacherTask, limits: Limits | None = None, resolver: Resolver = resolve) -> None:
        self.failures: dict[str, str] = {}
        self.capabilities: Capabilities | None = None
        self._task = task
        self._limits = limits or Limits()
        self._resolver = resolver
        self._endpoint = endpoint_of(task.settings)
        self._key = key_of(task.settings)
        self._is_valid = schema_validator(task.schema)
        self._witness = Witness(task.settings.model)
        self._asker: Asker | None = None
        self._prompts = 0

    def complete(
        self, prompts: Iterable[Prompt], settings: TeachSettings, seed: int, wanted: Wanted | None = None
    ) -> Generator[Completion, None, None]:
        """Yield `settings.samples` completions per prompt, or those that are wanted, in the order they finish.

        Raises EdgeDistillError at the end where prompts got no answer: they are in `failures`, and all others were
        yielded. Raises Stopped where the server is away, or answers as another model.
        """
        if settings.targets != "none":
            raise MissingRequirement(
                "a server's API does not tell whole distributions, which teach.targets needs",
                'Use a local teacher, or set teach.targets = "none".',
            )
        return self._complete(self._rows(prompts, wanted or (lambda _: range(settings.samples))), settings, seed)

    def score(self, examples: Iterable[Example], settings: TeachSettings, seed: int) -> Iterator[Completion]:
        """Raise MissingRequirement: no server tells this."""
        raise MissingRequirement(
            "a server's API does not tell the distribution at the tokens of a given text", "Use a local teacher."
        )

    def close(self) -> None:
        """Cancel what is under way."""
        if self._asker is not None:
            self._asker.stop()
            self._asker = None

    def _complete(self, rows: Iterator[Row], settings: TeachSettings, seed: int) -> Generator[Completion, None, None]:
        self.close()
        self.failures, self._prompts = {}, 0
        most = min(settings.slots or self._limits.in_flight, self._limits.in_flight)
        asker = Asker(lambda: self._session(settings, seed), Pace(self._limits, most), self._limits, most)
        self._asker = asker
        for row, result in asker.results(rows):
            if isinstance(result, Failure):
                self.failures[row.prompt.id] = result.reason
                continue
            yield Completion(
                prompt_id=row.prompt.id,
                text=result.text,
                finish_reason="length" if result.finish_reason == "length" else "stop",
                prompt_tokens=result.prompt_tokens,
                completion_tokens=result.completion_tokens,
                seconds=result.seconds,
                sample=row.sample,
            )
        if self.failures:
            reasons = ", ".join(f"{name} ({n})" for name, n in Counter(self.failures.values()).most_common(3))
            raise EdgeDistillError(
                f"{len(self.failures)} of {self._prompts} prompts got no answer: {reasons}",
                "Run the same command again: only these are asked.",
            )

    def _rows(self, prompts: Iterable[Prompt], wanted: Wanted) -> Iterator[Row]:
        for prompt in prompts:
            self._prompts += 1
            for sample in wanted(prompt):
                yield Row(prompt, sample)

    @asynccontextmanager
    async def _session(self, settings: TeachSettings, seed: int) -> AsyncIterator[Conversation]:
        task = self._task
        model, schema = task.settings.model, task.schema
        async with Client(self._endpoint, self._key, self._limits, self._resolver) as client:
            server = Server(client, self._endpoint.url, model, self._key, self._limits, self._witness)
            capabilities = self.capabilities or await server.meet(settings, schema, task.scratch)
            self.capabilities = capabilities

            async def attempt(row: Row, useless: int) -> Answer | Failure:
                messages = (*task.preamble, *row.prompt.messages)
                own = (prompt_seed(seed, row.prompt.id, row.sample) + useless * ANOTHER) % SEEDS
                question = replace(Question.of(messages, settings, own), tools=row.prompt.tools)
                result = await server.ask(capabilities.body(model, question, schema), settings.max_tokens)
                if isinstance(result, Failure):
                    return result
                return (
                    self._witness.check(result) or complaint(result, self._is_valid, bool(row.prompt.tools)) or result
                )

            yield Conversation(attempt, lambda: server.greet(capabilities, settings))


def load(task: TeacherTask) -> OpenaiTeacher:
    """A teacher for the task.

    Raises InvalidInput where its URL, key or schema is not one.
    """
    return OpenaiTeacher(task)


def key_of(settings: TeacherSettings) -> str | None:
    """The key from the environment variable that the recipe names; None where it is not set."""
    key = os.environ.get(settings.api_key_env, "").strip()
    if not key:
        return None
    if not key.isascii() or not key.isprintable() or " " in key:
        raise InvalidInput(f"the environment variable {settings.api_key_env} holds no key", "Set it to the key alone.")
    return key
