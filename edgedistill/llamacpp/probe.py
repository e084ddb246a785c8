"""What a GGUF makes of given text: token ids and next-token logits, for the proofs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import EdgeDistillError
from .context import DecodeBatch
from .model import LlamaModel, load_llama_cpp

__all__ = ["kl_divergence", "next_token_logits"]


def next_token_logits(path: Path, rows: Sequence[Sequence[int]], threads: int) -> NDArray[np.float32]:
    """Logits of the token after each row of ids: float32 of shape (rows, vocabulary).

    Raises EdgeDistillError where llama.cpp cannot decode a row.
    """
    lib = load_llama_cpp()
    found = []
    with LlamaModel(path) as model:
        settings = lib.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = max(map(len, rows)) + 1
        settings.n_threads = settings.n_threads_batch = threads
        context = lib.llama_init_from_model(model.handle, settings)
        if not context:
            raise EdgeDistillError(f"{path}: llama.cpp opens no context", "Is there enough memory?")
        batch = DecodeBatch(lib, settings.n_batch)
        try:
            for row in rows:
                lib.llama_memory_clear(lib.llama_get_memory(context), True)
                batch.clear()
                last = batch.add(list(row), 0, 0, 1) - 1
                if lib.llama_decode(context, batch.struct) != 0:
                    raise EdgeDistillError(f"{path}: llama.cpp cannot decode a probe", "Export again.")
                pointer = lib.llama_get_logits_ith(context, last)
                found.append(np.ctypeslib.as_array(pointer, shape=(model.vocab_size,)).copy())
        finally:
            lib.llama_free(context)
    return np.stack(found)


def kl_divergence(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float64]:
    """KL(one || other) in nats for each row of logits, over the columns that both have.

    >>> float(kl_divergence(np.zeros((1, 3), np.float32), np.zeros((1, 4), np.float32))[0])
    0.0
    """
    width = min(one.shape[1], other.shape[1])
    p, q = (_log_softmax(logits[:, :width].astype(np.float64)) for logits in (one, other))
    return np.asarray((np.exp(p) * (p - q)).sum(axis=1))


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))
