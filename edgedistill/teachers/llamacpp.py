"""A GGUF teacher, through llama.cpp's batch engine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing

from ..errors import InvalidInput
from ..llamacpp.answer import Answerer, AnswererSettings
from ..llamacpp.prefix import PrefixCache
from ..llamacpp.sampling import Sampling
from ..models import cache_root
from ..recipe import TeachSettings
from ..records import Completion, Example, Prompt, Wanted
from ..run import cores
from ..schema import kept_answers
from ..targets import CaptureSettings
from . import TeacherTask

__all__ = ["LlamaTeacher", "load"]


class LlamaTeacher:
    """Holds the weights from its first question to `close`."""

    def __init__(self, task: TeacherTask) -> None:
        self._task = task
        self._answerer: Answerer | None = None

    def complete(
        self, prompts: Iterable[Prompt], settings: TeachSettings, seed: int, wanted: Wanted | None = None
    ) -> Iterator[Completion]:
        """Yield the completions of each prompt, or those that are wanted, in the order they finish."""
        answerer = self._open(settings)
        answers = kept_answers(self._task.schema, settings)
        if answers is not None:
            yield from _ranked(answerer, prompts, answers, settings.closed_floor)
            return
        sampling, slots = _sampling(settings, seed), settings.slots
        with closing(answerer.complete(prompts, sampling, slots, wanted=wanted)) as completions:
            yield from completions

    def score(self, examples: Iterable[Example], settings: TeachSettings, seed: int) -> Iterator[Completion]:
        """Yield each example's answer with the distribution at every token of it."""
        with closing(self._open(settings).score(examples, _sampling(settings, seed))) as completions:
            yield from completions

    def close(self) -> None:
        if self._answerer is not None:
            self._answerer.close()
            self._answerer = None

    def _open(self, settings: TeachSettings) -> Answerer:
        if self._answerer is None:
            task = self._task
            if task.model is None:
                raise InvalidInput("the 'llamacpp' teacher needs a GGUF file", "Correct teacher.model.")
            how = AnswererSettings(
                threads=cores(),
                gpu_layers=settings.gpu_layers,
                flash_attention=settings.flash_attention,
                prefix_cache=PrefixCache(task.scratch, task.sha256),
                layouts=cache_root() / "layouts",
                keeps_turns=task.has_turns,
            )
            self._answerer = Answerer(task.model, task.preamble, task.schema, how, task.tools)
        return self._answerer


def _ranked(
    answerer: Answerer, prompts: Iterable[Prompt], answers: Sequence[str], floor: float
) -> Iterator[Completion]:
    trie = answerer.trie(answers)
    with closing(answerer.rank(prompts, trie, floor)) as ranking:
        for ranked in ranking:
            best = max(range(len(answers)), key=ranked.probabilities.__getitem__)
            yield Completion(
                prompt_id=ranked.id,
                text=answers[best],
                finish_reason="stop",
                prompt_tokens=ranked.prompt_tokens,
                completion_tokens=trie.lengths[best],
                seconds=ranked.seconds,
                answers=dict(zip(answers, ranked.probabilities, strict=True)),
            )


def _sampling(settings: TeachSettings, seed: int) -> Sampling:
    profile, mass, largest = settings.targets, settings.target_mass, settings.target_tokens
    return Sampling(
        max_tokens=settings.max_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        seed=seed,
        top_k=settings.top_k,
        min_p=settings.min_p,
        samples=settings.samples,
        capture=None if profile == "none" else CaptureSettings(profile, mass, largest, settings.target_draws),
    )


def load(task: TeacherTask) -> LlamaTeacher:
    """A teacher for the task."""
    return LlamaTeacher(task)
