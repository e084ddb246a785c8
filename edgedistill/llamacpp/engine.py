"""Continuous batching over llama.cpp's C API.

One shared prefix (system text, examples) is decoded once and shared by all slots. A slot is refilled when it frees: a
new prompt's tokens go into the same batch as the other slots' next tokens. Under a grammar, tokens that can only be
one are appended in one chunk instead of being decoded one by one. Samples of one prompt share its cells. The
distribution at each token can be kept on the way, and given answers can be scored instead of written.

Where every sequence has cells of its own (`split`), llama.cpp computes sequences of consecutive numbers and equal
lengths together and all others apart. So the running slots are kept consecutive, and new prompts are decoded a group
at a time in sequences of their own before they move to a slot.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidInput
from ..records import common_length
from ..targets import Capture
from .context import Context, ContextSettings, FlashAttention
from .grammar import Grammar
from .kept_turns import KeptTurns
from .model import LlamaModel
from .prefix import PREFIX, PrefixCache, decode_prefix
from .requests import Answer, Request, Slot, longest_first
from .sampling import choose

__all__ = ["BatchEngine", "EngineSettings"]

GROUP = 8  # prompts that are decoded together where sequences have cells of their own
SHORTEST = 4  # tokens; fewer are not worth a batch of their own


@dataclass(frozen=True)
class EngineSettings:
    """How the engine runs: `context` is tokens for prefix and all slots together, or, split, for each slot."""

    slots: int
    context: int
    threads: int
    batch_tokens: int = 512
    prefix_cache: PrefixCache | None = None
    jump: bool = True
    """Append forced tokens in one chunk; off, every token is decoded on its own, as plain servers do."""
    split: bool = False
    flash_attention: FlashAttention = "auto"
    reuse: bool = False
    """Of a request in the only slot, compute what begins otherwise than the one before: further samples and turns."""
    turns: KeptTurns | None = None
    """Where what was computed of each conversation waits for its next turn; not where sequences are split."""
    endless: bool = False
    """Write on behind an end token, up to the longest answer: to time answers of a stated length."""


class BatchEngine:
    """Answers many prompts at once with one model.

    Counters: `decoded_tokens` (rows computed, prefix included), `steps` (calls of llama_decode), `idle_rows` (slots
    that stood empty at a step, while answers were written).
    """

    def __init__(
        self, model: LlamaModel, settings: EngineSettings, prefix: Sequence[int] = (), grammar: Grammar | None = None
    ) -> None:
        self._model = model
        self._settings = settings
        self._grammar = grammar
        self._prefix = len(prefix)
        self._group = min(GROUP, settings.slots) if settings.split else 0
        self.jump = settings.jump
        """Whether the next requests' forced tokens are appended in one chunk."""
        self.idle_rows = 0
        self.slot_steps = 0
        self._context = Context(
            model,
            ContextSettings(
                cells=settings.context,
                sequences=settings.slots + 1 + self._group,
                threads=settings.threads,
                batch_tokens=settings.batch_tokens,
                split=settings.split,
                flash_attention=settings.flash_attention,
            ),
        )
        self._slots: dict[int, Slot] = {}
        self._free: list[int] = []
        self._left: tuple[int, list[int]] = (0, [])  # in the only slot: of how much of the prefix, and tokens behind it
        self._staged = [False] * self._group  # whether a staging sequence still holds the whole prefix
        decode_prefix(self._context, settings.prefix_cache, prefix)

    def __enter__(self) -> BatchEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._context.close()

    @property
    def decoded_tokens(self) -> int:
        return self._context.decoded_tokens

    @property
    def steps(self) -> int:
        return self._context.steps

    @property
    def batch_tokens(self) -> int:
        """Rows that a step computes at most."""
        return self._settings.batch_tokens

    @property
    def room(self) -> int:
        """Cells for the largest request: the context without the prefix."""
        return self._settings.context - self._prefix

    def run(self, requests: Iterable[Request]) -> Iterator[Answer]:
        """Yield one answer per request and sample, in the order they finish.

        Raises InvalidInput for a request that does not fit the context, EdgeDistillError where llama.cpp fails.
        """
        waiting = longest_first(requests, self._settings.slots)
        following = next(waiting, None)
        slots = self._slots = {}
        self._free = list(range(self._settings.slots, 0, -1))
        for number in self._free:  # what a run that was left in the middle may have kept
            self._context.cut(number)
        self._left = (0, [])
        while slots or following is not None:
            new: list[int] = []
            while following is not None and self._has_room(following, len(new)):
                new.append(self._admit(following))
                following = next(waiting, None)
            if self._settings.split:
                for start in range(0, len(new), self._group):
                    self._decode_group(new[start : start + self._group])
                self._close_ranks()
            self._step()
            for number in [number for number, slot in slots.items() if slot.done]:
                slot = slots.pop(number)
                self._leave(number, slot)
                self._free.append(number)
                yield self._answer(slot)

    def _has_room(self, request: Request, admitted: int) -> bool:
        """Whether the request can begin now. Where sequences are split, it waits for others to be decoded with."""
        samples = request.sampling.samples
        if request.cells * (1 if self._settings.split else samples) > self.room:
            raise InvalidInput(
                f"a prompt of {len(request.tokens)} tokens and {request.cells - len(request.tokens)} for its answer do "
                f"not fit the context of {self.room}: {self._model.text(request.tokens[:24])!r}",
                "Shorten the prompt or lower max_tokens.",
            )
        if self._settings.split:
            worth = 1 if admitted or not self._slots else -(-self._group // 2)
            return len(self._free) >= max(samples, worth)
        used = sum(slot.request.cells * (1 + len(slot.siblings)) for slot in self._slots.values())
        return len(self._free) >= samples and used + request.cells * samples <= self.room

    def _admit(self, request: Request) -> int:
        number = self._free.pop()
        shared, left = self._left
        kept = min(common_length(left, request.tokens), len(request.tokens) - 1) if shared == request.shared else 0
        if kept:
            self._context.cut(number, shared + kept)
        elif not self._settings.split:
            kept = self._resume(number, request)
            self._context.copy(PREFIX, number, request.shared)
        slot = self._slots[number] = self._begin(request, kept=kept)
        slot.siblings = [self._free.pop() for _ in range(request.sampling.samples - 1)]
        return number

    def _resume(self, number: int, request: Request) -> int:
        """Have a slot hold what is kept of a conversation, or nothing; return how many of its own tokens that is."""
        self._context.cut(number)
        turns = self._settings.turns
        if turns is None or (found := turns.take(request)) is None:
            return 0
        kept, state = found
        if not self._context.restore(number, state):
            return 0
        self._context.cut(number, request.shared + kept)
        turns.resumed_tokens += kept
        return kept

    def _leave(self, number: int, slot: Slot) -> None:
        """Free the cells of an answered request, or have the next one find what begins as it does."""
        if self._settings.reuse:
            self._left = (slot.request.shared, slot.held)
            return
        if self._settings.turns is not None and not slot.request.given:
            self._keep(number, slot, self._settings.turns)
        self._context.cut(number)

    def _keep(self, number: int, slot: Slot, turns: KeptTurns) -> None:
        """Keep what a slot holds behind the prefix, where it can be cut back to what the next turn begins with."""
        if 0 < self._model.window < slot.position:  # what is behind the window is not in the state
            return
        self._context.cut(number, 0, slot.request.shared)
        state = self._context.state(number, turns.room)
        if state is not None:
            turns.keep(slot.request, slot.held, state)

    def _begin(self, request: Request, sample: int = 0, kept: int = 0) -> Slot:
        sampling = request.sampling
        sample += request.first_sample
        state = self._grammar.begin() if self._grammar and not request.given else None
        forced = state.forced() if state is not None and self.jump else []
        keep = sampling.capture
        return Slot(
            request=request,
            sample=sample,
            position=request.shared + kept,
            started=time.perf_counter(),
            state=state,
            capture=Capture(keep, self._model.vocab_size, sampling.seed + sample) if keep else None,
            random=np.random.default_rng(sampling.seed + sample) if sampling.temperature > 0 else None,
            pending=[*request.tokens[kept:], *forced, *request.given[:-1]],
            expected=[*forced, *request.given] if keep else [],
            answer=[*forced],
            closing=bool(request.given),
        )

    def _step(self) -> None:
        """Decode the next tokens of all slots in one batch."""
        batch, slots = self._context.batch, self._slots
        batch.clear()
        rows = []
        # the shortest first: whoever is writing goes on, and new prompts take the room that is left
        order = sorted(slots) if self._settings.split else sorted(slots, key=lambda number: len(slots[number].pending))
        for number in order:
            room = 1 if self._settings.split else batch.room
            if room and not slots[number].done:
                rows.append((number, *self._add(slots[number], number, room)))
        if not rows:
            return
        self.slot_steps += self._settings.slots
        self.idle_rows += self._settings.slots - len(rows)
        self._context.decode()
        for number, end, wanted in rows:
            self._read(number, end, wanted)

    def _add(self, slot: Slot, sequence: int, room: int) -> tuple[int, int]:
        """Put the slot's next tokens into the batch; return the row behind them, and how many rows are wanted."""
        chunk, rest = slot.pending[:room], max(0, len(slot.pending) - room)
        wanted = max(0, min(len(chunk), slot.wanted - rest))
        end = self._context.batch.add(chunk, slot.position, sequence, wanted)
        slot.position += len(chunk)
        del slot.pending[:room]
        return end, wanted

    def _read(self, number: int, end: int, wanted: int) -> None:
        """Take from the wanted rows what they say."""
        slot = self._slots[number]
        for row in range(end - wanted, end):
            logits = self._context.logits(row)
            if slot.expected and slot.capture is not None:
                slot.capture.add(slot.expected.pop(0), logits)
            else:
                for sample, sibling in enumerate(slot.siblings, start=1):  # before the first one chooses for itself
                    self._fork(number, sample, sibling, logits)
                slot.siblings = []
                self._choose(slot, logits)
        slot.done = slot.done or (slot.closing and not slot.pending)

    def _fork(self, first: int, sample: int, number: int, logits: NDArray[np.float32]) -> None:
        """Begin another sample of a prompt that has just been decoded."""
        parent = self._slots[first]
        self._context.copy(first, number)
        slot = self._slots[number] = self._begin(parent.request, sample)
        if slot.capture is not None and parent.capture is not None:
            slot.capture = parent.capture.copy()  # of the forced tokens before the first choice
        slot.started, slot.position, slot.pending, slot.expected = parent.started, parent.position, [], []
        self._choose(slot, logits)

    def _choose(self, slot: Slot, logits: NDArray[np.float32]) -> None:
        """Choose the slot's next token."""
        allowed = slot.state.allowed() if slot.state is not None else None
        best = choose(logits if allowed is None else logits[allowed], slot.request.sampling, slot.random)
        token = best if allowed is None else int(allowed[best])
        if slot.capture is not None:
            slot.capture.add(token, logits)
        if not slot.first_seconds:
            slot.first_seconds = time.perf_counter() - slot.started
        if self._model.ends(token) and not self._settings.endless:
            slot.done = True
            return
        slot.answer.append(token)
        slot.pending = [token]
        if slot.state is not None:
            slot.state.accept(token)
            if self.jump:
                forced = slot.state.forced()
                slot.answer += forced
                slot.pending += forced
                slot.expected = list(forced) if slot.capture is not None else []
        whole = slot.state is not None and slot.state.finished
        if whole or len(slot.answer) >= slot.request.sampling.max_tokens:
            slot.closing = bool(slot.expected)  # the distributions at the last forced tokens are still to come
            slot.pending.pop()
            slot.done = not slot.closing

    def _decode_group(self, numbers: Sequence[int]) -> None:
        """Decode new prompts together, in sequences that stand side by side, as far as the shortest goes.

        What is left of the longer ones goes along with the other slots, token by token.
        """
        slots = [self._slots[number] for number in numbers]
        stages = [self._settings.slots + 1 + place for place in range(len(numbers))]
        for stage, slot in zip(stages, slots, strict=True):
            self._stage(stage, slot.request.shared)
        while (length := min(len(slot.pending) for slot in slots)) >= SHORTEST:
            self._context.batch.clear()
            length = min(length, self._settings.batch_tokens // len(slots))
            rows = [self._add(slot, stage, length) for stage, slot in zip(stages, slots, strict=True)]
            self._context.decode()
            if min(len(slot.pending) for slot in slots) < SHORTEST:
                break
        else:
            rows = []
        for number, stage, slot in zip(numbers, stages, slots, strict=True):
            self._context.copy(stage, number)
            self._context.cut(stage, min(slot.request.shared, self._prefix))
        for number, (end, wanted) in zip(numbers, rows, strict=False):
            self._read(number, end, wanted)

    def _stage(self, stage: int, shared: int) -> None:
        """Make a staging sequence hold the first `shared` tokens of the prefix."""
        place = stage - self._settings.slots - 1
        if not self._staged[place]:
            self._context.cut(stage)
            self._context.copy(PREFIX, stage)
        self._context.cut(stage, shared)
        self._staged[place] = shared == self._prefix

    def _close_ranks(self) -> None:
        """Move slots down so that those in use are consecutive."""
        while self._free and self._slots and max(self._slots) > min(self._free):
            last, first = max(self._slots), min(self._free)
            self._context.copy(last, first)
            self._context.cut(last)
            self._slots[first] = self._slots.pop(last)
            self._free[self._free.index(first)] = last

    def _answer(self, slot: Slot) -> Answer:
        request = slot.request
        tokens = list(request.given) if request.given else slot.answer[: request.sampling.max_tokens]
        whole = bool(request.given) or (
            len(tokens) == len(slot.answer)
            and (len(tokens) < request.sampling.max_tokens or (slot.state is not None and slot.state.finished))
        )
        cut = len(tokens) if len(slot.answer) > len(tokens) else None
        return Answer(
            id=request.id,
            tokens=tuple(tokens),
            text=self._model.text(tokens),
            finish_reason="stop" if whole else "length",
            prompt_tokens=request.shared + len(request.tokens),
            first_seconds=slot.first_seconds,
            seconds=time.perf_counter() - slot.started,
            sample=slot.sample,
            targets=slot.capture.encoded(cut) if slot.capture is not None else None,
        )
