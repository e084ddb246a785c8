"""Answers from one GGUF to many prompts, with the part that they share decoded once."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InvalidInput
from ..records import Completion, Message, Prompt, common_length
from .engine import BatchEngine, EngineSettings, Request
from .grammar import Grammar
from .model import LlamaModel
from .prefix import PrefixCache

__all__ = ["Answerer", "Sampling", "SharedPrompt", "fits_context"]

PROMPT = 128  # tokens that each slot has for a prompt's own part; a longer one takes the room of several slots


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; temperature 0 is greedy."""

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


class SharedPrompt:
    """What all prompts of a task begin with, split from what is their own, exactly at a special token.

    A special token is always a boundary for the tokenizer, so that head and tail tokenized apart give the tokens of the
    whole.
    """

    def __init__(self, model: LlamaModel, preamble: Sequence[Message]) -> None:
        self._model = model
        self._preamble = tuple(preamble)
        self._template = model.chat_template()
        one, other = (self._text((Message("user", text),)) for text in ("a", "b"))
        shared = one[: common_length(one, other)]
        self._head = shared[: self._last_special(shared)]
        head = model.tokenize(self._head, add_bos=model.adds_bos) if self._head else []
        # behind the last special token most prompts share a few more ("user", a line break): most, as a prompt may
        # begin with what the tokenizer merges with them
        first, second = self._own(one), self._own(other)
        self._more = first[: common_length(first, second)]
        self.tokens = head + self._more

    def split(self, messages: Sequence[Message]) -> tuple[int, list[int]]:
        """How many of the shared tokens a conversation begins with, and its own tokens after these.

        Raises InvalidInput where the model's template does not keep the shared text as it is.
        """
        text = self._text(messages)
        if not text.startswith(self._head):
            raise InvalidInput("the chat template changes the system text with the prompt", "Use another model.")
        own = self._own(text)
        if own[: len(self._more)] == self._more:
            return len(self.tokens), own[len(self._more) :]
        return len(self.tokens) - len(self._more), own

    def _own(self, text: str) -> list[int]:
        return self._model.tokenize(text[len(self._head) :], add_bos=self._model.adds_bos and not self._head)

    def _text(self, messages: Sequence[Message]) -> str:
        text = self._template.render((*self._preamble, *messages))
        bos = self._template.bos
        return text.removeprefix(bos) if bos and self._model.adds_bos else text

    def _last_special(self, text: str) -> int:
        """Where the last special token of a text begins, or 0."""
        tokens = self._model.tokenize(text)
        rest = b""
        for token in reversed(tokens):
            piece = self._model.piece(token)
            if not piece:  # a special token: its name stands right before the rest
                name = self._model.name(token)
                return len(text) - len(rest.decode()) - len(name)
            rest = piece + rest
        return 0


def fits_context(path: Path, preamble: Sequence[Message], max_tokens: int) -> bool:
    """Whether the model's context holds the preamble, a prompt of usual length and an answer."""
    with LlamaModel(path, vocab_only=True) as model:
        limit = int(model.metadata(f"{model.metadata('general.architecture')}.context_length") or 0)
        return len(SharedPrompt(model, preamble).tokens) + PROMPT + max_tokens <= limit


class Answerer:
    """A loaded model with its shared prompt, ready for many prompts."""

    def __init__(
        self,
        path: Path,
        preamble: Sequence[Message],
        schema: dict[str, Any] | None,
        threads: int,
        gpu_layers: int = -1,
        prefix_cache: PrefixCache | None = None,
    ) -> None:
        self.model = LlamaModel(path, gpu_layers)
        self.shared = SharedPrompt(self.model, preamble)
        self._grammar = Grammar(self.model, schema) if schema else None
        self._threads = threads
        self._prefix_cache = prefix_cache

    def __enter__(self) -> Answerer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.model.close()

    def engine(self, slots: int, max_tokens: int, requests: Sequence[Request], jump: bool = True) -> BatchEngine:
        """An engine with room for as many answers at a time, and for the longest of the requests."""
        longest = max((len(request.tokens) + request.max_tokens for request in requests), default=0)
        room = max(longest, slots * (PROMPT + max_tokens))
        needed, limit = len(self.shared.tokens) + longest, self.model.context_limit
        if needed > limit:
            raise InvalidInput(
                f"{self.model.path}: the longest prompt and its answer need {needed} tokens, the model knows {limit}",
                "Shorten the prompt or the teacher's guide and examples, or use another model.",
            )
        context = len(self.shared.tokens) + room
        settings = EngineSettings(slots, context, self._threads, prefix_cache=self._prefix_cache, jump=jump)
        return BatchEngine(self.model, settings, self.shared.tokens, self._grammar)

    def request(self, prompt: Prompt, sampling: Sampling) -> Request:
        """The prompt as the engine takes it. Its own seed comes from the run's seed and its id."""
        shared, tokens = self.shared.split(prompt.messages)
        return Request(
            id=prompt.id,
            shared=shared,
            tokens=tokens,
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=sampling.seed ^ int(prompt.id[:8], 16),
        )

    def complete(
        self, prompts: Iterable[Prompt], sampling: Sampling, slots: int, jump: bool = True
    ) -> Generator[Completion, None, None]:
        """Yield one completion per prompt, in the order they finish; `jump` as in EngineSettings."""
        requests = [self.request(prompt, sampling) for prompt in prompts]
        with self.engine(slots, sampling.max_tokens, requests, jump) as engine:
            for answer in engine.run(requests):
                yield Completion(
                    prompt_id=answer.id,
                    text=answer.text,
                    finish_reason=answer.finish_reason,
                    prompt_tokens=answer.prompt_tokens,
                    completion_tokens=len(answer.tokens),
                    seconds=answer.seconds,
                )
