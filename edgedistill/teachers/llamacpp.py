"""A GGUF teacher, through llama.cpp's batch engine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..llamacpp.answer import Answerer, Sampling
from ..llamacpp.prefix import PrefixCache
from ..recipe import TeachSettings
from ..records import Completion, Prompt
from ..run import cores
from . import TeacherTask

__all__ = ["LlamaTeacher", "load"]


class LlamaTeacher:
    """Holds the weights from its first question to `close`."""

    def __init__(self, task: TeacherTask) -> None:
        self._task = task
        self._answerer: Answerer | None = None

    def complete(self, prompts: Iterable[Prompt], settings: TeachSettings, seed: int) -> Iterator[Completion]:
        """Yield one completion per prompt, in the order they finish."""
        if self._answerer is None:
            task = self._task
            cache = PrefixCache(task.scratch, task.sha256)
            self._answerer = Answerer(task.model, task.preamble, task.schema, cores(), settings.gpu_layers, cache)
        sampling = Sampling(settings.max_tokens, settings.temperature, settings.top_p, seed)
        yield from self._answerer.complete(prompts, sampling, settings.slots)

    def close(self) -> None:
        if self._answerer is not None:
            self._answerer.close()
            self._answerer = None


def load(task: TeacherTask) -> LlamaTeacher:
    """A teacher for the task."""
    return LlamaTeacher(task)
