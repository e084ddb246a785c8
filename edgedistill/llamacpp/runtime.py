"""One model on one device: a prompt in, its answer out as it comes, one at a time.

What all prompts share is computed once, or read from a saved state. Under a schema, tokens that must follow are
computed together with the choice before them, and of a finite set of answers only the places where they part are asked
about. llama-server and Ollama decode such answers token by token: `jump=False` does that, for comparison.
"""

from __future__ import annotations

import codecs
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidInput
from ..records import Message, Tool
from ..schema import closed_answers
from .answer import SharedPrompt
from .branches import AnswerTrie
from .context import MICRO_BATCH, Context, ContextSettings, FlashAttention, KvType
from .deciding import Decider, Ending, among, freely, under_grammar
from .grammar import Grammar
from .model import LlamaModel, load_llama_cpp
from .prefix import PREFIX, SHORTEST, PrefixCache, decode_prefix
from .speculative import guess_ahead

__all__ = ["Reply", "Runtime", "RuntimeSettings"]

OWN = 1  # the sequence of the prompt that is being answered
USUAL = 192  # tokens of a prompt's own part
CELLS = 256  # a context grows in multiples of this


@dataclass(frozen=True)
class RuntimeSettings:
    """How a model is run on this device; `tune` finds the best values."""

    threads: int
    prompt_threads: int = 0
    """Threads for more than one row at a time; 0 is `threads`."""
    micro_batch: int = MICRO_BATCH
    kv_type: KvType = "f16"
    flash_attention: FlashAttention = "auto"
    drafted: int = 0
    """Tokens of a free answer that are guessed ahead, where what stands before went on in some way already."""
    gpu_layers: int = -1
    prefixes: Callable[[], Sequence[PrefixCache]] | None = None
    """Where the state of what all prompts share may be kept, best first; asked for only where it is worth it. One that
    is computed is written to the last."""

    @property
    def layout(self) -> str:
        """How keys and values lie: a saved state of another layout cannot be read."""
        return f"{self.kv_type}-{self.flash_attention}"


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer. Times are milliseconds since the text was handed in; `ttft_ms` is when its first text was there."""

    text: str
    finish_reason: str
    ttft_ms: float
    e2e_ms: float
    prompt_tokens: int
    """Of the prompt's own part."""
    shared_tokens: int
    tokens: int
    """Of the answer, however they came about."""
    forced: int
    """Of these, the ones that nobody chose: they had to follow."""
    steps: int
    """Calls of llama_decode."""
    probability: float | None = None
    """Of an answer of a finite set."""


class Runtime:
    """A loaded model with its shared prompt and, under a schema, what it allows. Close it, or use it in a `with`.

    In place of a schema there may be a rule for calls (`call_grammar.calls_rule`); `tools` are what the model is shown.
    Raises InvalidInput for a schema that cannot be decoded under, or a model without a chat template.
    """

    def __init__(
        self,
        path: Path,
        preamble: Sequence[Message],
        schema: dict[str, Any] | None,
        settings: RuntimeSettings,
        tools: Sequence[Tool] = (),
    ) -> None:
        self.settings = settings
        self._tools = tuple(tools)
        self.model = LlamaModel(path, settings.gpu_layers)
        self._context: Context | None = None
        self.restored = False
        """Whether the shared prompt was read from a saved state."""
        try:
            self.shared = SharedPrompt(self.model, preamble, tools)
            self._grammar = Grammar(self.model, schema) if schema else None
            closed = closed_answers(schema)
            self._trie = self._branches(closed) if closed else None
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Runtime:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.forget()
        self.model.close()

    @property
    def closed(self) -> bool:
        """Whether the answers are a finite set that is decided at its branches."""
        return self._trie is not None

    def prepare(self, own_tokens: int, max_tokens: int) -> None:
        """Make room for a prompt of so many own tokens and its answer, with the shared part ready.

        Raises InvalidInput where the model's own context does not hold it.
        """
        needed = len(self.shared.tokens) + own_tokens + max_tokens
        limit = self.model.context_limit
        if needed > limit:
            raise InvalidInput(
                f"{self.model.path}: prompt and answer need {needed} tokens, the model knows {limit}",
                "Shorten the prompt, or lower max_tokens.",
            )
        if self._context is None or self._context.settings.cells < needed:
            self._open(min(limit, -(-needed // CELLS) * CELLS))

    def warm_up(self, max_tokens: int) -> None:
        """Have the shared part ready, and room for a prompt of usual length, before a text is there."""
        room = self.model.context_limit - len(self.shared.tokens) - max_tokens
        self.prepare(min(USUAL, max(0, room)), max_tokens)

    def answer(
        self,
        messages: Sequence[Message],
        max_tokens: int,
        on_text: Callable[[str], None] | None = None,
        jump: bool = True,
    ) -> Reply:
        """The greedy answer to a conversation; `on_text` is given its text piece by piece as soon as it is settled.

        Raises InvalidInput where prompt and answer do not fit the model's context.
        """
        started = time.perf_counter()
        shared, own = self.shared.split(messages, self._tools)
        self.prepare(len(self.shared.tokens) - shared + len(own), max_tokens)
        work = _Work(self.model, started, on_text, max_tokens)
        try:
            if self._grammar is None and self.settings.drafted:
                ending = self._guess(work, shared, own)
            else:
                ending = self._decide(work, self._decider(jump), shared, own)
        finally:
            assert self._context is not None
            self._context.cut(OWN)
        return work.reply(ending, (len(own), shared))

    def _decide(self, work: _Work, decider: Decider, shared: int, own: list[int]) -> Ending | None:
        """Compute what the decider settles until the answer ends; None where it was cut at its longest."""
        assert self._context is not None
        self._context.copy(PREFIX, OWN, shared)
        settled, ending = _advance(decider, None)
        work.tokens += settled  # shown with the first choice, not before the model was asked
        pending, position = [*own, *settled], shared
        if ending is not None:  # there is but one answer
            work.settle(ending.tokens, 0)
        while ending is None and len(work.tokens) < work.longest:
            logits = self._compute(pending, position)
            work.steps += -(-len(pending) // self._context.batch.capacity)
            position += len(pending)
            pending, ending = _advance(decider, logits)
            tokens = pending if ending is None else ending.tokens
            work.settle(tokens, min(1, len(tokens)))
        return ending if len(work.tokens) <= work.longest else None

    def _guess(self, work: _Work, shared: int, own: list[int]) -> Ending | None:
        """As `_decide` for a free answer, with tokens guessed ahead: one step chooses behind each that holds."""
        assert self._context is not None
        self._context.copy(PREFIX, OWN, shared)
        pending, guess, position = own, list[int](), shared
        while len(work.tokens) < work.longest:
            end = self._place([*pending, *guess], position, 1 + len(guess))
            work.steps += 1
            settled: list[int] = []
            for row in range(end - 1 - len(guess), end):
                token = int(np.argmax(self._context.logits(row)))
                if self.model.ends(token):
                    work.settle(settled, len(settled))
                    return Ending()
                settled.append(token)
                if len(settled) <= len(guess) and token != guess[len(settled) - 1]:
                    break
            work.settle(settled, len(settled))
            position += len(pending) + len(settled) - 1
            self._context.cut(OWN, position)  # guesses that did not hold
            pending = settled[-1:]
            room = work.longest - len(work.tokens) - 1
            guess = guess_ahead([*own, *work.tokens], min(self.settings.drafted, max(0, room)))
        return None

    def _compute(self, tokens: Sequence[int], position: int) -> NDArray[np.float32]:
        """The logits behind tokens of the prompt in hand."""
        assert self._context is not None
        return self._context.logits(self._place(tokens, position, 1) - 1)

    def _place(self, tokens: Sequence[int], position: int, wanted: int) -> int:
        """Compute tokens of the prompt in hand, the last `wanted` to be read; the row behind them."""
        context = self._context
        assert context is not None
        step = context.batch.capacity
        for start in range(0, len(tokens), step):
            chunk = tokens[start : start + step]
            context.batch.clear()
            end = context.batch.add(chunk, position + start, OWN, wanted if start + len(chunk) == len(tokens) else 0)
            context.decode()
        return end

    def _decider(self, jump: bool) -> Decider:
        if self._trie is not None and jump:
            return among(self._trie)
        if self._grammar is not None:
            return under_grammar(self.model, self._grammar.begin(), jump)
        return freely(self.model)

    def _branches(self, answers: Sequence[str]) -> AnswerTrie:
        return AnswerTrie([self.model.tokenize(answer, special=False) for answer in answers], self.model.end_of_turn)

    def _open(self, cells: int) -> None:
        self.forget()
        how = self.settings
        self._context = Context(
            self.model,
            ContextSettings(
                cells=cells,
                sequences=2,
                threads=how.threads,
                batch_tokens=max(how.micro_batch, MICRO_BATCH),
                flash_attention=self._flash(),
                micro_batch=how.micro_batch,
                kv_type=how.kv_type,
            ),
        )
        if how.prompt_threads:
            load_llama_cpp().llama_set_n_threads(self._context.handle, how.threads, how.prompt_threads)
        self.restored = self._share(self._context)

    def _share(self, context: Context) -> bool:
        """Make the context hold what all prompts share; whether that was read from a saved state."""
        tokens, asked = self.shared.tokens, self.settings.prefixes
        kept = asked() if asked is not None and len(tokens) >= SHORTEST else ()
        caches = [replace(cache, layout=self.settings.layout) for cache in kept]
        if any(cache.restore(context.handle, tokens) for cache in caches[:-1]):
            return True
        return decode_prefix(context, caches[-1] if caches else None, tokens)

    def _flash(self) -> FlashAttention:
        """Flash attention as asked for; by itself on where keys and values are rounded, which it alone computes."""
        if self.settings.flash_attention != "auto" or self.settings.kv_type == "f16":
            return self.settings.flash_attention
        return "on"

    def forget(self) -> None:
        """Drop what is computed and what is shared, as at a start; the weights stay."""
        if self._context is not None:
            self._context.close()
            self._context = None


def _advance(decider: Decider, logits: NDArray[np.float32] | None) -> tuple[list[int], Ending | None]:
    """The tokens that the decider settles next, or how the answer ends."""
    try:
        return (next(decider) if logits is None else decider.send(logits)), None
    except StopIteration as stopped:
        ending: Ending = stopped.value
        return [], ending


@dataclass
class _Work:
    """An answer in the making."""

    model: LlamaModel
    started: float
    on_text: Callable[[str], None] | None
    longest: int
    tokens: list[int] = field(default_factory=list)
    chosen: int = 0
    steps: int = 0
    first: float = 0.0
    decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")(errors="replace")
    )

    def settle(self, tokens: Sequence[int], chosen: int) -> None:
        """Take in tokens, `chosen` of which the model chose; what stands behind the longest answer is not shown."""
        shown = len(self.tokens) if self.chosen else 0
        self.chosen += chosen
        self.tokens += tokens
        text = self.decoder.decode(b"".join(map(self.model.piece, self.tokens[shown : self.longest])))
        if text and not self.first:
            self.first = time.perf_counter()
        if text and self.on_text is not None:
            self.on_text(text)

    def reply(self, ending: Ending | None, prompt: tuple[int, int]) -> Reply:
        """The answer; of one that was cut the probability is not known."""
        rest = self.decoder.decode(b"", True)
        if rest and self.on_text is not None:
            self.on_text(rest)
        del self.tokens[self.longest :]
        text = self.model.text(self.tokens)
        ended = time.perf_counter()
        return Reply(
            text=text,
            finish_reason="length" if ending is None else "stop",
            ttft_ms=round(((self.first or ended) - self.started) * 1000, 3),
            e2e_ms=round((ended - self.started) * 1000, 3),
            prompt_tokens=prompt[0],
            shared_tokens=prompt[1],
            tokens=len(self.tokens),
            forced=len(self.tokens) - self.chosen,
            steps=self.steps,
            probability=None if ending is None else ending.probability,
        )
