"""Continuous batching over llama.cpp's C API.

One shared prefix (system text, examples) is decoded once and shared by all slots. A slot is refilled the step it frees:
a new prompt's tokens go into the same batch as the other slots' next tokens. Under a grammar, tokens that can only be
one are appended in one chunk instead of being decoded one by one.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import EdgeDistillError, InvalidInput
from .grammar import Grammar, GrammarState
from .model import LlamaModel, last_error, load_llama_cpp
from .prefix import PrefixCache

__all__ = ["Answer", "BatchEngine", "DecodeBatch", "EngineSettings", "Request"]

PREFIX = 0  # the sequence that holds the shared prefix; slot i is sequence i + 1


@dataclass(frozen=True)
class EngineSettings:
    """How the engine runs: `context` is tokens for prefix and all slots together."""

    slots: int
    context: int
    threads: int
    batch_tokens: int = 512
    prefix_cache: PrefixCache | None = None
    jump: bool = True
    """Append forced tokens in one chunk; off, every token is decoded on its own, as plain servers do."""


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt: how many tokens of the shared prefix it begins with, and its own tokens after these."""

    id: str
    shared: int
    tokens: Sequence[int]
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer. Times are seconds since the request's admission, on a monotonic clock."""

    id: str
    tokens: tuple[int, ...]
    text: str
    finish_reason: str
    prompt_tokens: int
    first_seconds: float
    seconds: float


@dataclass(slots=True)
class _Slot:
    request: Request
    pending: list[int]
    position: int
    state: GrammarState | None
    random: np.random.Generator | None
    started: float
    answer: list[int] = field(default_factory=list)
    first_seconds: float = 0.0


class BatchEngine:
    """Answers many prompts at once with one model.

    Counters: `decoded_tokens` (rows computed, prefix included), `steps` (calls of llama_decode).
    """

    def __init__(
        self, model: LlamaModel, settings: EngineSettings, prefix: Sequence[int] = (), grammar: Grammar | None = None
    ) -> None:
        self._lib = load_llama_cpp()
        self._model = model
        self._settings = settings
        self._grammar = grammar
        self._prefix = len(prefix)
        self.decoded_tokens = 0
        self.steps = 0
        self._context = self._open_context()
        self._memory = self._lib.llama_get_memory(self._context)
        self._batch = DecodeBatch(self._lib, settings.batch_tokens)
        self._decode_prefix(list(prefix))

    def __enter__(self) -> BatchEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._context:
            self._lib.llama_free(self._context)
            self._context = None

    @property
    def room(self) -> int:
        """Tokens that all slots share: the context without the prefix."""
        return self._settings.context - self._prefix

    def run(self, requests: Iterable[Request]) -> Iterator[Answer]:
        """Yield one answer per request, in the order they finish.

        Raises InvalidInput for a request that does not fit the context, EdgeDistillError where llama.cpp fails.
        """
        waiting = iter(requests)
        following = next(waiting, None)
        slots: dict[int, _Slot] = {}
        free = list(range(self._settings.slots, 0, -1))
        while slots or following is not None:
            while following is not None and free and self._fits(following, slots):
                number = free.pop()
                slots[number] = self._admit(number, following)
                following = next(waiting, None)
            for number in self._step(slots):
                slot = slots.pop(number)
                self._lib.llama_memory_seq_rm(self._memory, number, -1, -1)
                free.append(number)
                yield self._answer(slot)

    def _open_context(self) -> Any:
        settings = self._lib.llama_context_default_params()
        settings.n_ctx = self._settings.context
        settings.n_batch = settings.n_ubatch = self._settings.batch_tokens
        settings.n_seq_max = self._settings.slots + 1
        settings.kv_unified = True  # copying a sequence then shares its cells: the prefix is really one
        settings.n_threads = settings.n_threads_batch = self._settings.threads
        settings.no_perf = True
        context = self._lib.llama_init_from_model(self._model.handle, settings)
        if not context:
            raise EdgeDistillError(
                f"{self._model.path}: no context of {self._settings.context} tokens ({last_error()})",
                "Lower teach.slots or max_tokens.",
            )
        return context

    def _decode_prefix(self, prefix: list[int]) -> None:
        cache = self._settings.prefix_cache
        if cache is not None and cache.restore(self._lib, self._context, prefix):
            return
        self._lib.llama_memory_seq_rm(self._memory, PREFIX, -1, -1)  # what a failed restore may have left
        for start in range(0, len(prefix), self._settings.batch_tokens):
            self._batch.clear()
            self._batch.add(prefix[start : start + self._settings.batch_tokens], start, PREFIX, False)
            self._decode()
        if cache is not None:
            cache.keep(self._lib, self._context, prefix)

    def _fits(self, request: Request, slots: dict[int, _Slot]) -> bool:
        needed = len(request.tokens) + request.max_tokens
        if needed > self.room:
            raise InvalidInput(
                f"a prompt of {len(request.tokens)} tokens and {request.max_tokens} for its answer do not fit the "
                f"context of {self.room}: {self._model.text(request.tokens[:24])!r}",
                "Shorten the prompt or lower max_tokens.",
            )
        used = sum(len(slot.request.tokens) + slot.request.max_tokens for slot in slots.values())
        return used + needed <= self.room

    def _admit(self, number: int, request: Request) -> _Slot:
        self._lib.llama_memory_seq_cp(self._memory, PREFIX, number, 0, request.shared)
        state = self._grammar.begin() if self._grammar else None
        forced = state.forced() if state is not None and self._settings.jump else []
        return _Slot(
            request=request,
            pending=[*request.tokens, *forced],
            position=request.shared,
            state=state,
            random=np.random.default_rng(request.seed) if request.temperature > 0 else None,
            started=time.perf_counter(),
            answer=forced,
        )

    def _step(self, slots: dict[int, _Slot]) -> list[int]:
        """Decode one batch; return the slots that finished."""
        self._batch.clear()
        sampled: dict[int, int] = {}
        for number, slot in slots.items():
            chunk = slot.pending[: self._batch.room]
            if not chunk:
                continue
            whole = len(chunk) == len(slot.pending)
            last = self._batch.add(chunk, slot.position, number, whole)
            slot.position += len(chunk)
            del slot.pending[: len(chunk)]
            if whole:
                sampled[number] = last
        self._decode()
        return [number for number, row in sampled.items() if self._sample(slots[number], row)]

    def _sample(self, slot: _Slot, row: int) -> bool:
        """Choose the slot's next token from a row of the batch; True where its answer has ended."""
        pointer = self._lib.llama_get_logits_ith(self._context, row)
        logits = np.ctypeslib.as_array(pointer, shape=(self._model.vocab_size,))
        token = _choose(logits, slot)
        if not slot.first_seconds:
            slot.first_seconds = time.perf_counter() - slot.started
        if self._model.ends(token):
            return True
        new = [token]
        if slot.state is not None:
            slot.state.accept(token)
            if self._settings.jump:
                new += slot.state.forced()
        slot.answer += new
        slot.pending = new
        return len(slot.answer) >= slot.request.max_tokens or (slot.state is not None and slot.state.finished)

    def _decode(self) -> None:
        self.decoded_tokens += self._batch.size
        self.steps += 1
        code = self._lib.llama_decode(self._context, self._batch.struct)
        if code != 0:
            raise EdgeDistillError(
                f"{self._model.path}: llama_decode ended with {code} ({last_error()})", "Lower teach.slots."
            )

    def _answer(self, slot: _Slot) -> Answer:
        tokens = slot.answer[: slot.request.max_tokens]
        whole = len(tokens) == len(slot.answer) and (
            len(tokens) < slot.request.max_tokens or (slot.state is not None and slot.state.finished)
        )
        return Answer(
            id=slot.request.id,
            tokens=tuple(tokens),
            text=self._model.text(tokens),
            finish_reason="stop" if whole else "length",
            prompt_tokens=slot.request.shared + len(slot.request.tokens),
            first_seconds=slot.first_seconds,
            seconds=time.perf_counter() - slot.started,
        )


def _choose(logits: NDArray[np.float32], slot: _Slot) -> int:
    """The next token: the most probable one, or one drawn at the request's temperature from its top-p set."""
    allowed = slot.state.allowed() if slot.state is not None else None
    scores = logits if allowed is None else logits[allowed]
    if slot.random is None:
        best = int(np.argmax(scores))
    else:
        best = _draw(scores / slot.request.temperature, slot.request.top_p, slot.random)
    return best if allowed is None else int(allowed[best])


def _draw(scores: NDArray[np.float32], top_p: float, random: np.random.Generator) -> int:
    weights = np.exp(scores - scores.max(), dtype=np.float64)
    order = np.argsort(-weights)
    cumulated = np.cumsum(weights[order]) / weights.sum()
    # in the order of the ids, so that two weights that change places by a rounding change no draw
    kept = np.sort(order[: int(np.searchsorted(cumulated, top_p)) + 1])
    return int(random.choice(kept, p=weights[kept] / weights[kept].sum()))


class DecodeBatch:
    """A `llama_batch` over numpy arrays, filled by slices instead of attribute by attribute."""

    def __init__(self, lib: Any, capacity: int) -> None:
        self._token = np.zeros(capacity, dtype=np.int32)
        self._position = np.zeros(capacity, dtype=np.int32)
        self._sequence = np.zeros(capacity, dtype=np.int32)
        self._counts = np.ones(capacity, dtype=np.int32)
        self._wanted = np.zeros(capacity, dtype=np.int8)
        starts = self._sequence.ctypes.data + 4 * np.arange(capacity, dtype=np.uint64)
        self._sequence_pointers = starts.astype(np.uint64)
        self._capacity = capacity
        self.size = 0
        self.struct = lib.llama_batch()
        for name, array in (
            ("token", self._token),
            ("pos", self._position),
            ("n_seq_id", self._counts),
            ("seq_id", self._sequence_pointers),
            ("logits", self._wanted),
        ):
            kind = dict(lib.llama_batch._fields_)[name]
            setattr(self.struct, name, ctypes.cast(array.ctypes.data, kind))

    @property
    def room(self) -> int:
        return self._capacity - self.size

    def clear(self) -> None:
        self.size = 0
        self._wanted[:] = 0

    def add(self, tokens: Sequence[int], position: int, sequence: int, sample: bool) -> int:
        """Append tokens of one sequence; return the row of the last one, whose logits are kept if `sample`."""
        end = self.size + len(tokens)
        here = slice(self.size, end)
        self._token[here] = tokens
        self._position[here] = np.arange(position, position + len(tokens))
        self._sequence[here] = sequence
        self._wanted[end - 1] = sample
        self.size = end
        self.struct.n_tokens = end
        return end - 1
