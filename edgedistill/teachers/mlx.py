"""A Hugging Face teacher, through MLX: on Apple's GPUs, and on the CPU of a Linux machine."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model

from ..errors import InvalidInput
from ..records import read_json
from ..rotations import named_as_before
from . import TeacherTask
from .decoder import STEP_LOGITS, STEP_TOKENS, Chunk, Logits, first_line
from .folder import FolderTeacher

__all__ = ["MlxDecoder", "load"]

CLEARED = 256  # steps between two times that freed memory goes back to the system
UNKNOWN = 1 << 30  # the context of a model whose config does not state it


def load(task: TeacherTask) -> FolderTeacher:
    """A teacher for the task."""
    return FolderTeacher(task, MlxDecoder, _give_back)


class MlxDecoder:
    """A model and the texts in its slots, as mlx-lm's batch caches keep them: every text has the prefix's own copy.

    Raises InvalidInput where mlx-lm does not know the architecture, or cannot batch it.
    """

    def __init__(self, folder: Path) -> None:
        try:
            rotations = named_as_before(read_json(folder / "config.json"))
            self._model, config = load_model(folder, model_config=rotations)  # runs no code of the folder's
        except ValueError as error:
            raise InvalidInput(
                f"{folder}: {first_line(error)}", "Use it with the 'transformers' or 'llamacpp' backend."
            ) from error
        if mx.default_device() == mx.Device(mx.cpu):
            self._model.set_dtype(mx.float32)  # a CPU has no faster arithmetic here
        self.vocab_size = int(self._model(mx.array([[0]])).shape[-1])
        text = config.get("text_config", config)
        self.context = int(text.get("max_position_embeddings", UNKNOWN))
        self._prefix = make_prompt_cache(self._model)
        if not all(hasattr(layer, "merge") for layer in self._prefix):
            raise InvalidInput(
                f"{folder}: mlx-lm cannot batch '{config['model_type']}'",
                "Use it with the 'transformers' or 'llamacpp' backend.",
            )
        self._seeds: dict[int, list[Any]] = {}
        self._texts = _Texts([], [])
        self._steps = 0

    def start(self, prefix: Sequence[int]) -> None:
        """Decode what all texts begin with; every slot is new again."""
        self._seeds, self._texts = {}, _Texts([], [])
        self._prefix = make_prompt_cache(self._model)
        for begin in range(0, len(prefix), STEP_TOKENS):
            self._model(mx.array([list(prefix[begin : begin + STEP_TOKENS])]), cache=self._prefix)
            mx.eval([layer.state for layer in self._prefix])

    def step(self, chunks: Mapping[int, Chunk]) -> dict[int, Logits]:
        """Append to some slots; the wanted logits of each. The output head sees only tokens whose logits are wanted."""
        new = [slot for slot in chunks if slot not in self._texts.slots]
        heads = {slot: list(chunk.tokens[: len(chunk.tokens) - chunk.wanted]) for slot, chunk in chunks.items()}
        if new:
            caches = [self._seeds.pop(slot, self._prefix) for slot in new]
            joining = _Texts(new, [layer[0].merge(list(layer)) for layer in zip(*caches, strict=True)])
            joining.append(self._model, {slot: heads.pop(slot) for slot in new})
            self._texts.extend(joining)
        self._texts.append(self._model, heads)
        rest = {slot: list(chunk.tokens[len(chunk.tokens) - chunk.wanted :]) for slot, chunk in chunks.items()}
        found: dict[int, list[Logits]] = {slot: [] for slot, chunk in chunks.items() if chunk.wanted}
        width = max(1, STEP_LOGITS // len(self._texts.slots))
        while any(rest.values()):
            taken = {slot: tokens[:width] for slot, tokens in rest.items() if tokens}
            for slot, rows in self._texts.append(self._model, taken, wanted=True).items():
                found[slot].append(rows)
                del rest[slot][:width]
        self._steps += 1
        if self._steps % CLEARED == 0:
            mx.clear_cache()
        return {slot: np.concatenate(rows) for slot, rows in found.items()}

    def fork(self, slot: int, others: Iterable[int]) -> None:
        """Make other, new slots hold what a slot holds."""
        seed = self._texts.extract(slot) if slot in self._texts.slots else self._seeds.get(slot, self._prefix)
        self._seeds.update({other: seed for other in others})

    def free(self, slots: Iterable[int]) -> None:
        """Make slots new again."""
        gone = set(slots)
        for slot in gone:
            self._seeds.pop(slot, None)
        self._texts.keep([slot for slot in self._texts.slots if slot not in gone])


class _Texts:
    """Texts that are decoded together: a row each, in mlx-lm's batch caches of all layers."""

    def __init__(self, slots: list[int], caches: list[Any]) -> None:
        self.slots = slots
        self._caches = caches

    def append(self, model: Any, tokens: Mapping[int, Sequence[int]], wanted: bool = False) -> dict[int, Logits]:
        """Append to some of the texts; where `wanted`, the logits of each new token."""
        longest = max(map(len, tokens.values()), default=0)
        if longest == 0:
            return {}
        rows = [list(tokens.get(slot, ())) for slot in self.slots]
        lengths = [len(row) for row in rows]
        if longest == 1 and 0 in lengths:
            longest = 2  # a rotating cache takes single tokens only from all rows
        padding = [longest - length for length in lengths]
        if any(padding):
            for layer in self._caches:
                layer.prepare(lengths=lengths, right_padding=padding)
        padded = [row + [0] * gap for row, gap in zip(rows, padding, strict=True)]
        logits = model(mx.array(padded), cache=self._caches)
        if any(padding):
            for layer in self._caches:
                layer.finalize()
        mx.eval([layer.state for layer in self._caches], *([logits] if wanted else []))
        if not wanted:
            return {}
        return {
            slot: np.array(logits[row, :length].astype(mx.float32))
            for row, (slot, length) in enumerate(zip(self.slots, lengths, strict=True))
            if length
        }

    def extend(self, others: _Texts) -> None:
        """Take in other texts."""
        if self.slots:
            for mine, theirs in zip(self._caches, others._caches, strict=True):
                mine.extend(theirs)
        else:
            self._caches = others._caches
        self.slots = [*self.slots, *others.slots]

    def extract(self, slot: int) -> list[Any]:
        """The caches of one text."""
        row = self.slots.index(slot)
        return [layer.extract(row) for layer in self._caches]

    def keep(self, slots: list[int]) -> None:
        """Drop all other texts."""
        if slots == self.slots:
            return
        rows = [self.slots.index(slot) for slot in slots]
        for layer in self._caches:
            if rows:
                layer.filter(rows)
        self.slots = slots
        if not rows:
            self._caches = []


def _give_back() -> None:
    gc.collect()
    mx.clear_cache()
