"""What holding answers to a schema takes, token by token, besides the model: measured on the recipe's right answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

from ..chat import answer_text
from ..errors import InvalidInput
from ..llamacpp.grammar import Grammar
from ..llamacpp.model import LlamaModel
from ..models import Identity
from ..recipe import Recipe
from ..records import iter_prompts
from ..schema import load_schema

__all__ = ["choosing_ns"]

ANSWERS = 8
ROUNDS = 5


def choosing_ns(recipe: Recipe, identity: Identity) -> float:
    """Nanoseconds a token, by the student's tokenizer, on this machine; 0 where answers are free or none is known."""
    schema = load_schema(recipe) if recipe.evaluate.constrained else None
    if schema is None or identity.path is None:
        return 0.0
    rows = iter_prompts(recipe.file(recipe.evaluate.file))
    known = (answer_text(row.expected) for row in rows if row.expected is not None)
    with _opened(identity.path) as (ids, size, grammar_of):
        grammar = grammar_of(schema)
        answers = [ids(text) for text in islice(known, ANSWERS)]
        logits = np.zeros(size, np.float32)
        spent = [_spent(grammar, answer, logits) for answer in answers for _ in range(ROUNDS) if answer]
    return median([one for one in spent if one is not None] or [0.0])


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


def _spent(grammar: Grammar, answer: Sequence[int], logits: NDArray[np.float32]) -> float | None:
    """Mean nanoseconds a token of one answer; None where it is written otherwise than the schema has it."""
    state = grammar.begin()
    started = time.perf_counter_ns()
    try:
        for token in answer:
            allowed = state.allowed()
            np.argmax(logits[allowed])
            state.accept(token)
    except (InvalidInput, ValueError):
        return None
    return (time.perf_counter_ns() - started) / len(answer)
