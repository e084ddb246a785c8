"""Answers from one GGUF to many prompts, with the part that they share decoded once."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from ..errors import InvalidInput
from ..records import Completion, Example, Message, Prompt, Tool, Wanted, common_length, prompt_seed
from .branches import AnswerTrie, BranchEngine, BranchSettings, Ranked
from .context import FlashAttention
from .engine import BatchEngine, EngineSettings
from .grammar import Grammar
from .kept_turns import MEMORY_SHARE, KeptTurns
from .layout import Layout, Work, best_layout
from .model import LlamaModel, load_llama_cpp
from .prefix import PrefixCache
from .requests import Answer, Request
from .sampling import Sampling

__all__ = ["Answerer", "AnswererSettings", "SharedPrompt", "fits_context"]

AHEAD = 512  # requests that are looked at for the longest, before a context is opened
SCORED = 16  # answers that are scored at a time: enough to fill a batch
PROMPT = 128  # tokens that each slot has for a prompt's own part; a longer one takes the room of several slots


class SharedPrompt:
    """What all prompts of a task begin with, split from what is their own, exactly at a special token.

    A special token is always a boundary for the tokenizer, so that head and tail tokenized apart give the tokens of the
    whole. `tools` are those that most prompts offer; one that offers others shares less.
    """

    def __init__(self, model: LlamaModel, preamble: Sequence[Message], tools: Sequence[Tool] = ()) -> None:
        self._model = model
        self._preamble = tuple(preamble)
        self._tools = tuple(tools)
        self._template = model.chat_template()
        one, other = (self._text((Message("user", text),), self._tools) for text in ("a", "b"))
        shared = one[: common_length(one, other)]
        self._head = shared[: self._last_special(shared)]
        head = model.tokenize(self._head, add_bos=model.adds_bos) if self._head else []
        # behind the last special token most prompts share a few more ("user", a line break): most, as a prompt may
        # begin with what the tokenizer merges with them
        first, second = self._own(one), self._own(other)
        self._more = first[: common_length(first, second)]
        self.tokens = head + self._more

    def split(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> tuple[int, list[int]]:
        """How many of the shared tokens a conversation begins with, and its own tokens after these.

        Raises InvalidInput where the model's template does not keep the shared text as it is.
        """
        text = self._text(messages, tools)
        if tuple(tools) != self._tools:
            tokens = self._model.tokenize(text, add_bos=self._model.adds_bos)
            alike = min(common_length(tokens, self.tokens), len(tokens) - 1)
            return alike, tokens[alike:]
        if not text.startswith(self._head):
            raise InvalidInput("the chat template changes the system text with the prompt", "Use another model.")
        own = self._own(text)
        if own[: len(self._more)] == self._more:
            return len(self.tokens), own[len(self._more) :]
        return len(self.tokens) - len(self._more), own

    def _own(self, text: str) -> list[int]:
        return self._model.tokenize(text[len(self._head) :], add_bos=self._model.adds_bos and not self._head)

    def _text(self, messages: Sequence[Message], tools: Sequence[Tool]) -> str:
        text = self._template.render((*self._preamble, *messages), tools=tools)
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


def fits_context(path: Path, preamble: Sequence[Message], max_tokens: int, tools: Sequence[Tool] = ()) -> bool:
    """Whether the model's context holds the preamble, the tools, a prompt of usual length and an answer."""
    with LlamaModel(path, vocab_only=True) as model:
        limit = int(model.metadata(f"{model.metadata('general.architecture')}.context_length") or 0)
        return len(SharedPrompt(model, preamble, tools).tokens) + PROMPT + max_tokens <= limit


@dataclass(frozen=True)
class AnswererSettings:
    """How a model is run: where the prefix's state and the best layout are kept, and what the hardware does."""

    threads: int
    gpu_layers: int = -1
    flash_attention: FlashAttention = "auto"
    prefix_cache: PrefixCache | None = None
    layouts: Path | None = None
    """A folder for the layouts that were found best; None finds them again."""
    keeps_turns: bool = False
    """Whether prompts are turns of conversations that come back longer: what was computed of them waits in memory."""


class Answerer:
    """A loaded model with its shared prompt, ready for many prompts."""

    def __init__(
        self,
        path: Path,
        preamble: Sequence[Message],
        schema: dict[str, Any] | None,
        settings: AnswererSettings,
        tools: Sequence[Tool] = (),
    ) -> None:
        self.model = LlamaModel(path, settings.gpu_layers)
        self.shared = SharedPrompt(self.model, preamble, tools)
        self._grammar = Grammar(self.model, schema) if schema else None
        self._settings = settings
        self.turns = KeptTurns(_budget()) if settings.keeps_turns and self.model.can_step_back else None
        """What was computed of conversations."""

    def __enter__(self) -> Answerer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.model.close()

    def engine(self, layout: Layout, ahead: Sequence[Request], jump: bool = True) -> BatchEngine:
        """An engine with room for as many answers at a time, and for the longest of the requests ahead.

        Raises InvalidInput where the model's own context does not hold the longest.
        """
        shared = len(self.shared.tokens)
        longest = max((request.cells for request in ahead), default=1)
        self._require_room(longest)
        samples = max((request.sampling.samples for request in ahead), default=1)
        slots = max(layout.slots, 1)
        usual = max((request.sampling.max_tokens for request in ahead), default=0) + PROMPT
        together = max(longest * min(samples, slots), slots * min(usual, longest))
        settings = EngineSettings(
            slots=slots,
            context=shared + (longest if layout.split else together),
            threads=self._settings.threads,
            prefix_cache=self._settings.prefix_cache,
            jump=jump,
            split=layout.split,
            flash_attention=flash(self._settings, layout),
            reuse=slots == 1 and not layout.split and self.model.can_step_back and self.turns is None,
            turns=None if layout.split else self.turns,
        )
        return BatchEngine(self.model, settings, self.shared.tokens, self._grammar)

    def request(self, prompt: Prompt, sampling: Sampling) -> Request:
        """The prompt as the engine takes it. Its own seed comes from the run's seed and its id."""
        shared, tokens = self.shared.split(prompt.messages, prompt.tools)
        return Request(prompt.id, shared, tokens, replace(sampling, seed=prompt_seed(sampling.seed, prompt.id)))

    def complete(
        self,
        prompts: Iterable[Prompt],
        sampling: Sampling,
        slots: int = 0,
        jump: bool = True,
        wanted: Wanted | None = None,
    ) -> Generator[Completion, None, None]:
        """Yield the completions of each prompt, or those that are wanted, in the order they finish.

        Prompts are taken as there is room for them. `slots` are answered at a time; 0 finds the best number. `jump` is
        as in EngineSettings.
        """
        if self.turns is not None:
            self.turns.next_round()
        requests = (self.request(prompt, sampling) for prompt in prompts)
        if wanted is not None:
            asked = ((self.request(prompt, sampling), wanted(prompt)) for prompt in prompts)
            requests = (part for request, numbers in asked for part in request.only(numbers))
        yield from self._run(requests, jump, slots)

    def rank(self, prompts: Iterable[Prompt], trie: AnswerTrie, floor: float = 0.0) -> Generator[Ranked, None, None]:
        """Yield the probability of each answer of a finite set, prompt by prompt, in order.

        Branches less probable than `floor` are not followed: the answers behind one have equal parts of it.
        """
        for part in _parts(self.request(prompt, Sampling(1)) for prompt in prompts):
            with self.ranking(trie, part.ahead, floor) as engine:
                yield from engine.run(part.within(max(request.cells for request in part.ahead)))

    def ranking(self, trie: AnswerTrie, ahead: Sequence[Request], floor: float = 0.0) -> BranchEngine:
        """An engine that ranks the answers of a set, with room for the longest of the requests ahead."""
        longest = max(len(request.tokens) for request in ahead)
        self._require_room(longest + trie.depth)
        how = self._settings
        settings = BranchSettings(longest, how.threads, floor, how.prefix_cache, flash(how, Layout(1, split=False)))
        return BranchEngine(self.model, trie, settings, self.shared.tokens)

    def trie(self, answers: Sequence[str]) -> AnswerTrie:
        """The answers as the model writes them."""
        return AnswerTrie([self.model.tokenize(answer, special=False) for answer in answers], self.model.end_of_turn)

    def score(self, examples: Iterable[Example], sampling: Sampling) -> Generator[Completion, None, None]:
        """Yield each example's answer with the distribution at each of its tokens, the end token's included."""
        requests = (self._given(example, sampling) for example in examples)
        yield from self._run(requests, True, SCORED)

    def _given(self, example: Example, sampling: Sampling) -> Request:
        request = self.request(Prompt(example.id, example.messages[:-1], tools=example.tools), sampling)
        answer = self.model.tokenize(example.messages[-1].content, special=False)
        return replace(request, given=(*answer, self.model.end_of_turn))

    def _require_room(self, longest: int) -> None:
        needed, limit = len(self.shared.tokens) + longest, self.model.context_limit
        if needed > limit:
            raise InvalidInput(
                f"{self.model.path}: the longest prompt and its answer need {needed} tokens, the model knows {limit}",
                "Shorten the prompt or the teacher's guide and examples, or use another model.",
            )

    def _run(self, requests: Iterator[Request], jump: bool, slots: int) -> Generator[Completion, None, None]:
        layout = None
        for part in _parts(requests):
            layout = layout or (Layout(slots, split=False) if slots else self._best_layout(part.ahead))
            with self.engine(layout, part.ahead, jump) as engine:
                for answer in engine.run(part.within(engine.room)):
                    yield _completion(answer)

    def _best_layout(self, ahead: Sequence[Request]) -> Layout:
        own = sum(len(request.tokens) for request in ahead) // len(ahead)
        in_chunks = self._grammar is not None or self.turns is not None
        work = Work(len(self.shared.tokens), own, ahead[0].sampling.max_tokens, in_chunks)
        return best_layout(self.model, work, self._settings.threads, self._settings.layouts)


def _parts(requests: Iterator[Request]) -> Iterator[_Part]:
    """The requests in parts, each for one context: it goes on until a request comes that does not fit."""
    ahead: list[Request] = []
    while ahead := [*ahead, *islice(requests, AHEAD - len(ahead))]:
        part = _Part(ahead, requests)
        yield part
        ahead = part.left


class _Part:
    """Requests for one context: those that were looked at for the longest, and what comes after them."""

    def __init__(self, ahead: Sequence[Request], more: Iterator[Request]) -> None:
        self.ahead = ahead
        self.left: list[Request] = []
        """The request that did not fit, if one came."""
        self._requests = chain(ahead, more)

    def within(self, room: int) -> Iterator[Request]:
        """The requests that fit so many cells, until one does not."""
        for request in self._requests:
            if request.cells > room:
                self.left = [request]
                return
            yield request


def _budget() -> int:
    """Bytes that conversations may take while they wait."""
    import psutil

    return int(MEMORY_SHARE * psutil.virtual_memory().available)


def flash(settings: AnswererSettings, layout: Layout) -> FlashAttention:
    """Flash attention as asked for; by itself, on where sequences are short and split, or where there is a GPU.

    On CPUs a long shared prefix is read faster without.
    """
    if settings.flash_attention == "auto" and not layout.split and not load_llama_cpp().llama_supports_gpu_offload():
        return "off"
    return settings.flash_attention


def _completion(answer: Answer) -> Completion:
    return Completion(
        prompt_id=answer.id,
        text=answer.text,
        finish_reason=answer.finish_reason,
        prompt_tokens=answer.prompt_tokens,
        completion_tokens=len(answer.tokens),
        seconds=answer.seconds,
        sample=answer.sample,
        targets=answer.targets,
    )
