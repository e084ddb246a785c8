"""What holding answers to a schema takes, token by token, besides the model: measured on the recipe's right answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from ..llamacpp.grammar import Grammar
from ..llamacpp.model import LlamaModel
from ..models import Identity
from ..recipe import Recipe
from ..records import iter_prompts
from .on_offer import device_rule
from .scorers import right_text

__all__ = ["choosing_ns"]

ANSWERS = 5
CACHES = 64 << 20  # bytes: more than caches hold


def choosing_ns(recipe: Recipe, identity: Identity) -> float:
    """Nanoseconds a token, by the student's tokenizer, on this machine; 0 where answers are free or none is known."""
    schema = device_rule(recipe)
    if schema is None or identity.path is None:
        return 0.0
    rows = iter_prompts(recipe.file(recipe.evaluate.file))
    known = (right_text(recipe.evaluate.scorer, row.expected) for row in rows if row.expected is not None)
    with _opened(identity.path) as (ids, size, grammar_of):
        grammar = grammar_of(schema)
        answers = [ids(text) for text in islice(known, ANSWERS)]
        logits, weights = np.zeros(size, np.float32), np.zeros(CACHES, np.uint8)
        spent = [one for answer in answers for one in _spent(grammar, answer, logits, weights)]
    return fmean(spent) if spent else 0.0


Opened = tuple[Callable[[str], list[int]], int, Callable[[dict[str, object]], Grammar]]


@contextmanager
def _opened(path: Path) -> Iterator[Opened]:
    """How a GGUF or a Hugging Face folder splits a text, how many logits it gives, and a schema's grammar for it."""
    if path.is_dir():
        from ..teachers.vocabulary import Vocabulary

        words = Vocabulary(path)
        yield words.ids, words.size, lambda schema: words.grammar(schema, words.size)
        return
    with LlamaModel(path, vocab_only=True) as model:
        yield model.tokenize, model.vocab_size, lambda schema: Grammar(model, schema)


def _spent(
    grammar: Grammar, answer: Sequence[int], logits: NDArray[np.float32], weights: NDArray[np.uint8]
) -> list[float]:
    """Nanoseconds at each token of an answer, as far as it is written as the schema has it.

    Before each token a pass of the model goes through its weights, and leaves nothing of the grammar in the caches.
    """
    state, found = grammar.begin(), []
    for token in answer:
        weights.max()
        started = time.perf_counter_ns()
        allowed = state.allowed()
        np.argmax(logits[allowed])
        if token not in allowed:
            break
        state.accept(token)
        found.append(float(time.perf_counter_ns() - started))
    return found
