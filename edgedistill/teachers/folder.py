"""A teacher on a Hugging Face folder: all but the forward pass, which is a decoder's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import InvalidInput
from ..llamacpp.grammar import Grammar
from ..llamacpp.sampling import Sampling
from ..recipe import TeachSettings
from ..records import Completion, Example, Prompt, Wanted, prompt_seed
from ..schema import kept_answers
from ..targets import CaptureSettings
from . import TeacherTask
from .batching import Request, answered
from .decoder import Decoder, must_fit
from .shared_prefix import SharedPrefix
from .vocabulary import Vocabulary
from .weighing import Weigher

__all__ = ["FolderTeacher"]

SLOTS = 16  # answers at a time, where the settings leave it open


@dataclass(frozen=True)
class _Loaded:
    """What is in memory from the first question to `close`."""

    decoder: Decoder
    vocabulary: Vocabulary
    prefix: SharedPrefix
    grammar: Grammar | None


class FolderTeacher:
    """Holds the weights from its first question to `close`; `open_decoder` loads them, `give_back` clears up."""

    def __init__(
        self, task: TeacherTask, open_decoder: Callable[[Path], Decoder], give_back: Callable[[], None]
    ) -> None:
        if task.model is None:
            raise InvalidInput("the teacher has no weights here", "Name a Hugging Face folder as teacher.model.")
        self._task = task
        self._folder = task.model
        self._open_decoder = open_decoder
        self._give_back = give_back
        self._loaded: _Loaded | None = None

    def complete(
        self, prompts: Iterable[Prompt], settings: TeachSettings, seed: int, wanted: Wanted | None = None
    ) -> Iterator[Completion]:
        """Yield `settings.samples` completions per prompt, or those that are wanted, in the order they finish."""
        loaded, slots = self._load(), settings.slots or SLOTS
        answers = kept_answers(self._task.schema, settings)
        if answers is not None:
            ends, floor = loaded.vocabulary.ends, settings.closed_floor
            weigher = Weigher(loaded.decoder, loaded.prefix, answers, ends, floor)
            yield from weigher.completions(prompts, slots)
        else:
            asked = ((prompt, wanted(prompt) if wanted else range(settings.samples)) for prompt in prompts)
            yield from self._answers(self._requests(asked, settings, seed), slots, loaded.grammar)

    def score(self, examples: Iterable[Example], settings: TeachSettings, seed: int) -> Iterator[Completion]:
        """Yield each example's answer with the distribution at its tokens and at the one that ends it."""
        self._load()
        yield from self._answers(self._given(examples, settings, seed), settings.slots or SLOTS, None)

    def close(self) -> None:
        if self._loaded is not None:
            self._loaded = None
            self._give_back()

    def _load(self) -> _Loaded:
        if self._loaded is None:
            vocabulary = Vocabulary(self._folder)
            prefix = SharedPrefix(vocabulary, self._task.preamble, self._task.tools)
            decoder = self._open_decoder(self._folder)
            must_fit(decoder, len(prefix.tokens))
            schema = self._task.schema
            grammar = vocabulary.grammar(schema, decoder.vocab_size) if schema else None
            decoder.start(prefix.tokens)
            self._loaded = _Loaded(decoder, vocabulary, prefix, grammar)
        return self._loaded

    def _requests(
        self, asked: Iterable[tuple[Prompt, Sequence[int]]], settings: TeachSettings, seed: int
    ) -> Iterator[Request]:
        loaded = self._load()
        sampling = Sampling(
            settings.max_tokens,
            settings.temperature,
            settings.top_p,
            top_k=settings.top_k,
            min_p=settings.min_p,
            capture=_capture(settings) if settings.targets != "none" else None,
        )
        for prompt, samples in asked:
            loaded.prefix.require_tools(prompt.tools)
            tokens = loaded.prefix.prompt(prompt.messages)
            must_fit(loaded.decoder, len(loaded.prefix.tokens) + len(tokens) + settings.max_tokens)
            for sample in samples:
                own = replace(sampling, seed=prompt_seed(seed, prompt.id, sample))
                yield Request(prompt.id, tokens, own, sample, (sample == samples[0], sample == samples[-1]))

    def _given(self, examples: Iterable[Example], settings: TeachSettings, seed: int) -> Iterator[Request]:
        loaded = self._load()
        for example in examples:
            loaded.prefix.require_tools(example.tools)
            tokens, answer = loaded.prefix.answered(example.messages)
            must_fit(loaded.decoder, len(loaded.prefix.tokens) + len(tokens) + len(answer))
            sampling = Sampling(len(answer), seed=prompt_seed(seed, example.id, 0), capture=_capture(settings))
            yield Request(example.id, tokens, sampling, given=answer, text=example.messages[-1].content)

    def _answers(self, requests: Iterator[Request], slots: int, grammar: Grammar | None) -> Iterator[Completion]:
        loaded = self._load()
        for answer in answered(loaded.decoder, requests, slots, grammar, loaded.vocabulary.ends):
            request = answer.request
            yield Completion(
                prompt_id=request.id,
                text=request.text if request.given else loaded.vocabulary.text(answer.tokens),
                finish_reason="stop" if answer.whole else "length",
                prompt_tokens=len(loaded.prefix.tokens) + len(request.tokens),
                completion_tokens=len(answer.tokens),
                seconds=answer.seconds,
                sample=request.sample,
                targets=answer.targets,
            )


def _capture(settings: TeachSettings) -> CaptureSettings:
    """What is kept of a distribution; given answers are scored for its sake alone, so that something always is."""
    profile = "top_k" if settings.targets == "none" else settings.targets
    return CaptureSettings(profile, settings.target_mass, settings.target_tokens, settings.target_draws)
