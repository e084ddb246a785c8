"""The KV state of a shared prefix, kept on disk: decoded once a run, read back in every later process.

A long prefix (guide and examples) takes tens of seconds to decode and a fraction of one to read. The file is bound to
the model's content, the tokens, the library's version and how keys and values lie, and to its own hash: anything else
is decoded again.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from ..errors import EdgeDistillError
from ..records import digest
from ..run import file_sha256, free_space, write_whole
from .context import Context
from .model import load_llama_cpp

__all__ = ["PREFIX", "SHORTEST", "PrefixCache", "decode_prefix"]

PREFIX = 0  # the sequence that holds the shared prefix
# tokens; to read a state takes 2 ms and 0.02 ms a token, to decode it 0.3 to 1 ms a token with a small model on a CPU:
# of fewer tokens what is saved is lost in the time that a process takes to start
SHORTEST = 64
LARGEST_SHARE = 0.1  # of the free disk
ROWS = 16  # that kernels compute together: those left over are computed, and rounded, in another way


@dataclass(frozen=True)
class PrefixCache:
    """Where states of one model's prefixes are kept. Losing the folder costs time, nothing else."""

    folder: Path
    model_sha256: str
    writes: bool = True
    layout: str = ""
    """How keys and values lie in the context, where it is not as by default."""
    single: bool = False
    """Keep one state: another that is written takes its place."""

    def restore(self, context: Any, tokens: Sequence[int]) -> bool:
        """Load the prefix into sequence 0; False where no whole state of exactly these tokens is kept."""
        path = self._path(tokens)
        stated = path.with_suffix(".sha256")
        if not path.is_file() or not stated.is_file() or stated.read_text(encoding="utf-8") != file_sha256(path):
            return False
        found = (ctypes.c_int32 * len(tokens))()
        count = ctypes.c_size_t(0)
        size = load_llama_cpp().llama_state_seq_load_file(
            context, os.fsencode(path), 0, found, len(tokens), ctypes.byref(count)
        )
        return size > 0 and list(found[: count.value]) == list(tokens)

    def keep(self, context: Any, tokens: Sequence[int]) -> None:
        """Save the prefix of sequence 0, where it is long enough to be worth it and the disk takes it."""
        lib = load_llama_cpp()
        size = lib.llama_state_seq_get_size(context, 0)
        if not self.writes or len(tokens) < SHORTEST or size > LARGEST_SHARE * free_space(self.folder):
            return
        path = self._path(tokens)
        partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
        array = (ctypes.c_int32 * len(tokens))(*tokens)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for other in self.folder.glob("prefix-*") if self.single else ():
                other.unlink(missing_ok=True)
            if lib.llama_state_seq_save_file(context, os.fsencode(partial), 0, array, len(tokens)) > 0:
                write_whole(path.with_suffix(".sha256"), file_sha256(partial).encode())
                os.replace(partial, path)
        except (OSError, EdgeDistillError):  # the next process decodes the prefix again, that is all
            pass
        finally:
            partial.unlink(missing_ok=True)

    def _path(self, tokens: Sequence[int]) -> Path:
        version = metadata.version("llama-cpp-python")
        bound = digest(self.model_sha256, list(tokens), version, *filter(None, (self.layout,)))
        return self.folder / f"prefix-{bound[:24]}.kv"


def decode_prefix(context: Context, cache: PrefixCache | None, prefix: Sequence[int]) -> bool:
    """Make sequence 0 of a new context hold the prefix; whether it was read from the cache instead of computed.

    Every row of it is computed in a whole group, as it would be within a longer prompt: so answers behind it are, bit
    by bit, those that a loop over single prompts gets. Not so where the rows that fill the last group could not be
    forgotten again, and where somebody looks on, who shall see the prefix alone.
    """
    if cache is not None and cache.restore(context.handle, prefix):
        return True
    context.cut(PREFIX)  # what a failed restore may have left
    step = context.batch.capacity
    fills = context.can_step_back and context.settings.watch is None
    more = min(-len(prefix) % ROWS, context.settings.cells - len(prefix)) if fills else 0
    whole = [*prefix, *list(prefix[-1:]) * more]
    for start in range(0, len(whole), step):
        context.batch.clear()
        context.batch.add(whole[start : start + step], start, PREFIX, 0)
        context.decode()
    if more:
        context.cut(PREFIX, len(prefix))
    if cache is not None:
        cache.keep(context.handle, prefix)
    return False
