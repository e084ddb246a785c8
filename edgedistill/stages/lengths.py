"""The prompts that are timed: all distinct, in random order, as they are or of a stated length."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice

from ..contract import BenchSettings
from ..errors import InvalidInput
from ..recipe import Recipe
from ..records import Prompt, iter_prompts, user_prompt
from .dialogue import parts
from .latency import FEWEST, early_stopping, usual_requests
from .prompt_source import source_prompts

__all__ = ["distinct", "made_up", "most_requests", "of_length", "recipe_prompts", "require_timed", "timed_prompts"]

Count = Callable[[Prompt], int]
"""Tokens of a whole prompt, what the chat template and the system text add included."""

WORDS = (
    "the of and to in is was he for it with as his on be at by had are but from or have an they which one you were all "
    "her she there would their we him been has when who will no more if out so up said what its about than into them "
    "can only other time new some could these two may first then do any like my now over such our man me even most made"
)
MADE_UP = 40  # words of a made-up prompt, before it has its length


def distinct(prompts: Iterable[Prompt]) -> Iterator[Prompt]:
    """Every prompt with words, once, in their order."""
    seen: set[str] = set()
    for prompt in prompts:
        if prompt.text.strip() and prompt.id not in seen:
            seen.add(prompt.id)
            yield prompt


def recipe_prompts(recipe: Recipe) -> Iterator[Prompt]:
    """A recipe's distinct prompts: those of the eval set, then the others; of several questions the first."""
    rows = chain(iter_prompts(recipe.file(recipe.evaluate.file)), source_prompts(recipe))
    return distinct(parts(prompt)[0] for prompt in rows)


def made_up(seed: int) -> Iterator[Prompt]:
    """Prompts of common words without any sense, for a length that is stated: as many as are wanted."""
    chance = random.Random(seed)
    number = 0
    while True:
        number += 1
        yield user_prompt(" ".join([f"{number}.", *chance.choices(WORDS.split(), k=MADE_UP)]))


def most_requests(settings: BenchSettings) -> int:
    """How many requests a candidate may take."""
    return settings.requests or usual_requests(settings.percentile)


def timed_prompts(source: Iterable[Prompt], settings: BenchSettings, seed: int, where: str) -> list[Prompt]:
    """The warm-up's prompts, then those that are timed, in an order of the seed.

    Raises InvalidInput that names `where` the prompts are from where they are too few for any verdict, or fewer than
    `bench.requests` states.
    """
    most = most_requests(settings)
    found = list(islice(source, most + settings.warmup))
    count = len(found) - settings.warmup
    proof = max(FEWEST, early_stopping(settings.percentile, 0))
    if settings.requests is not None and settings.requests < proof:
        raise InvalidInput(
            f"{where}: bench.requests is {settings.requests}, but to prove p{settings.percentile} takes {proof} "
            "requests, none of them over the target",
            f"Write requests = {proof} or more, or leave it out.",
        )
    if count < (settings.requests or proof):
        raise InvalidInput(
            f"{where}: bench.requests is {settings.requests or f'at least {proof} for p{settings.percentile}'} and "
            f"bench.warmup {settings.warmup}, but there are only {len(found)} distinct prompts",
            "Write more prompts, or lower bench.requests or bench.percentile.",
        )
    warmup, timed = found[count:], found[:count]
    random.Random(seed).shuffle(timed)
    return [*warmup, *timed]


def require_timed(recipe: Recipe) -> None:
    """Raise InvalidInput where the recipe's files hold too few prompts; no more of them is read than that takes."""
    timed_prompts(recipe_prompts(recipe), recipe.bench, recipe.seed, str(recipe.path))


def of_length(prompts: Sequence[Prompt], tokens: int, count: Count) -> list[Prompt]:
    """The prompts with the last turn lengthened by others' words, or cut, to at most so many tokens, and close to it.

    Each begins with a number of its own, so that all stay distinct. Raises InvalidInput where the chat template and
    the system text alone are longer.
    """
    words = [word for prompt in prompts for word in prompt.text.split()]
    found = []
    for number, prompt in enumerate(prompts):
        own = prompt.messages[-1].content.split()
        chance = random.Random(number)
        while count(_said(prompt, number, own)) < tokens:
            own = [*own, *chance.choices(words, k=max(8, len(own)))]
        low, high = 0, len(own)
        while low < high:  # the most words that fit
            middle = (low + high + 1) // 2
            low, high = (middle, high) if count(_said(prompt, number, own[:middle])) <= tokens else (low, middle - 1)
        fitted = _said(prompt, number, own[:low])
        if count(fitted) > tokens:
            raise InvalidInput(
                f"bench.prompt_tokens is {tokens}, but the chat template and the system text alone take "
                f"{count(fitted)} tokens",
                "State a longer prompt.",
            )
        found.append(fitted)
    return found


def _said(prompt: Prompt, number: int, words: Sequence[str]) -> Prompt:
    last = replace(prompt.messages[-1], content=" ".join([f"{number + 1}.", *words]))
    return replace(prompt, messages=(*prompt.messages[:-1], last))
