"""One llama.cpp context with the batch that feeds it: opened, filled, decoded, read, closed."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import EdgeDistillError
from .model import LlamaModel, last_error, load_llama_cpp

__all__ = ["Context", "ContextSettings", "DecodeBatch", "State"]

FlashAttention = Literal["auto", "on", "off"]
State = ctypes.Array[ctypes.c_uint8]
"""The keys and values of a sequence, as llama.cpp writes them."""
KvType = Literal["f16", "q8_0"]
KV_TYPES = {"f16": 1, "q8_0": 8}  # ggml_type
FLASH = {"auto": -1, "off": 0, "on": 1}  # llama_flash_attn_type
MICRO_BATCH = 512  # rows that a call of llama_decode computes at once
PADDING = 256  # cells of a KV buffer come in multiples of this


@dataclass(frozen=True)
class ContextSettings:
    """The shape of a context. With `split` every sequence has `cells` of its own, else all share them.

    Shared cells make a copied sequence cost nothing and read a common prefix once a step, but every row attends over
    all cells in use. Split ones keep attention short, and copy where a sequence is copied.
    """

    cells: int
    sequences: int
    threads: int
    batch_tokens: int = MICRO_BATCH
    """Rows of a call of llama_decode."""
    split: bool = False
    flash_attention: FlashAttention = "auto"
    micro_batch: int = MICRO_BATCH
    """Rows that llama.cpp computes at once."""
    kv_type: KvType = "f16"
    """How keys and values are kept; `q8_0` needs flash attention."""
    outputs: int = 0
    """The most rows of a micro-batch whose logits are wanted, which bounds their buffers; 0 is all."""
    watch: Any = None
    """What llama.cpp shows every tensor as it is computed: a `ggml_backend_sched_eval_callback`."""


class Context:
    """A context and its memory. Counters: `decoded_tokens` (rows computed), `steps` (calls of llama_decode).

    Raises EdgeDistillError where there is not enough memory for it.
    """

    def __init__(self, model: LlamaModel, settings: ContextSettings) -> None:
        self._lib = load_llama_cpp()
        self._model = model
        self.settings = settings
        self.decoded_tokens = 0
        self.steps = 0
        self.handle = self._open()
        self._memory = self._lib.llama_get_memory(self.handle)
        self.batch = DecodeBatch(self._lib, settings.batch_tokens)

    def _open(self) -> Any:
        wanted, settings = self._lib.llama_context_default_params(), self.settings
        each = -(-settings.cells // PADDING) * PADDING
        wanted.n_ctx = each * settings.sequences if settings.split else settings.cells
        wanted.n_batch = settings.batch_tokens
        wanted.n_ubatch = min(settings.micro_batch, settings.batch_tokens)
        wanted.type_k = wanted.type_v = KV_TYPES[settings.kv_type]
        wanted.n_seq_max = settings.sequences
        wanted.kv_unified = not settings.split
        wanted.n_threads = wanted.n_threads_batch = settings.threads
        wanted.flash_attn_type = FLASH[settings.flash_attention]
        wanted.no_perf = True
        wanted.n_outputs_max = max(settings.outputs, settings.sequences) if settings.outputs else 0
        if settings.watch is not None:
            wanted.cb_eval = settings.watch
        handle = self._lib.llama_init_from_model(self._model.handle, wanted)
        if not handle:
            raise EdgeDistillError(
                f"{self._model.path}: no context of {wanted.n_ctx} tokens ({last_error()})",
                "Lower teach.slots or max_tokens.",
            )
        return handle

    def close(self) -> None:
        if self.handle:
            self._lib.llama_free(self.handle)
            self.handle = None

    @property
    def can_step_back(self) -> bool:
        """Whether `cut` may leave a beginning of a sequence."""
        return self._model.can_step_back

    def copy(self, source: int, target: int, end: int = -1) -> None:
        """Make `target` hold what `source` holds before position `end`. `target` must be empty."""
        if self.settings.split:  # a stream is copied whole
            self._lib.llama_memory_seq_cp(self._memory, source, target, -1, -1)
            if end >= 0:
                self.cut(target, end)
        else:
            self._lib.llama_memory_seq_cp(self._memory, source, target, 0, end)

    def cut(self, sequence: int, start: int = -1, end: int = -1) -> None:
        """Forget a sequence from position `start` to before `end`, where the model can step back, or all of it."""
        self._lib.llama_memory_seq_rm(self._memory, sequence, start, end)

    def state(self, sequence: int, largest: int | None = None) -> State | None:
        """What a sequence holds, to be restored in any context of the model that lays out its values alike.

        None where that is more than `largest` bytes, or llama.cpp does not give it. Of layers with a sliding window it
        has what the next token looks at.
        """
        size: int = self._lib.llama_state_seq_get_size(self.handle, sequence)
        if largest is not None and size > largest:
            return None
        state: State = (ctypes.c_uint8 * size)()
        return state if self._lib.llama_state_seq_get_data(self.handle, state, size, sequence) else None

    def restore(self, sequence: int, state: State) -> bool:
        """Make a sequence hold a state; False, and it holds nothing, where there is no room for that."""
        if self._lib.llama_state_seq_set_data(self.handle, state, len(state), sequence) == 0:
            self.cut(sequence)
            return False
        return True

    def decode(self) -> None:
        """Compute the batch.

        Raises EdgeDistillError where llama.cpp cannot.
        """
        self.decoded_tokens += self.batch.size
        self.steps += 1
        code = self._lib.llama_decode(self.handle, self.batch.struct)
        if code != 0:
            raise EdgeDistillError(
                f"{self._model.path}: llama_decode ended with {code} ({last_error()})", "Lower teach.slots."
            )

    def logits(self, row: int) -> NDArray[np.float32]:
        """The logits, float32 of shape (vocabulary,), of a row of the last batch; read in place, until the next one."""
        pointer = self._lib.llama_get_logits_ith(self.handle, row)
        if not pointer:
            raise EdgeDistillError(f"{self._model.path}: no logits for row {row} ({last_error()})", "")
        address = ctypes.cast(pointer, ctypes.c_void_p).value
        size = self._model.vocab_size
        found: NDArray[np.float32] = np.ctypeslib.as_array((ctypes.c_float * size).from_address(address or 0))
        return found


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
        self.capacity = capacity
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
        return self.capacity - self.size

    def clear(self) -> None:
        self.size = 0
        self._wanted[:] = 0

    def add(self, tokens: Sequence[int], position: int, sequence: int, wanted: int) -> int:
        """Append tokens of one sequence, and keep the logits of the last `wanted`; return the row behind them."""
        end = self.size + len(tokens)
        here = slice(self.size, end)
        self._token[here] = tokens
        self._position[here] = np.arange(position, position + len(tokens))
        self._sequence[here] = sequence
        self._wanted[end - wanted : end] = 1
        self.size = end
        self.struct.n_tokens = end
        return end
