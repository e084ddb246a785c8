"""Answers held to a JSON Schema, or to the tools on offer, while they are decoded.

llguidance keeps the state: which tokens may come next, and which must. JSON is written without spaces, in the order of
the schema's properties, so that an answer is as short as it can be.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..chat import ChatTemplate
from ..errors import InvalidInput
from .call_grammar import CALLS, FORMS, call_grammar, form_of
from .model import LlamaModel

__all__ = ["Grammar", "GrammarState", "Words", "require_decodable"]


@dataclass(frozen=True)
class Words:
    """A vocabulary as a grammar needs it."""

    tokenizer: Any
    """An llguidance.LLTokenizer."""
    size: int
    """How many logits the model gives."""
    template: Callable[[], ChatTemplate]
    token_of: Callable[[str], int | None]
    """The single token that a text is, such as a mark of the model's family; None where it is none."""


class Grammar:
    """A JSON Schema, or a rule for calls of tools (`call_grammar.calls_rule`), compiled for one model's vocabulary.

    Raises InvalidInput where the schema is not one that can be decoded under.
    """

    def __init__(self, model: LlamaModel, schema: dict[str, Any]) -> None:
        from llguidance.llamacpp import lltokenizer_from_vocab

        def token_of(text: str) -> int | None:
            tokens = model.tokenize(text)
            return tokens[0] if len(tokens) == 1 else None

        # words, and calls of which more may follow, end where the model ends its turn
        ends = model.ends_of_answers if CALLS in schema else None
        tokenizer = lltokenizer_from_vocab(model.vocab, eos_token=ends)
        self._compile(Words(tokenizer, model.vocab_size, model.chat_template, token_of), schema)

    @classmethod
    def of_words(cls, words: Words, schema: dict[str, Any]) -> Grammar:
        """The same for any vocabulary."""
        grammar = cls.__new__(cls)
        grammar._compile(words, schema)
        return grammar

    def _compile(self, words: Words, schema: dict[str, Any]) -> None:
        from llguidance import LLMatcher

        self._vocab_size = words.size
        is_calls = CALLS in schema
        text = call_grammar(schema[CALLS], form_of(words.template()), words.token_of) if is_calls else _compact(schema)
        self._start = LLMatcher(words.tokenizer, text)
        if self._start.is_error():
            reason = " ".join(self._start.get_error().split())
            what = "tools" if is_calls else "schema"
            raise InvalidInput(f"{what}: {reason}", "Use a JSON Schema of types, enums and properties.")

    def begin(self) -> GrammarState:
        """The state before an answer's first token."""
        return GrammarState(self._start.deep_copy(), self._vocab_size)


def require_decodable(schema: dict[str, Any]) -> None:
    """Raise InvalidInput where no answer can be decoded under the schema, as far as that shows without a vocabulary."""
    from llguidance import LLMatcher

    is_calls = CALLS in schema
    text = call_grammar(schema[CALLS], FORMS["hermes"], lambda mark: None) if is_calls else _compact(schema)
    problem = LLMatcher.validate_grammar(text)
    if problem and not LLMatcher.is_validate_warning(problem):
        what = "tools" if is_calls else "schema"
        raise InvalidInput(f"{what}: {' '.join(problem.split())}", "Use a JSON Schema of types, enums and properties.")


def _compact(schema: dict[str, Any]) -> str:
    from llguidance import LLMatcher

    written = {"item_separator": ",", "key_separator": ":", "whitespace_flexible": False}
    return str(LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=written))


class GrammarState:
    """How far one answer has come."""

    def __init__(self, matcher: Any, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size

    def allowed(self) -> NDArray[np.intp]:
        """Ids of the tokens that may come next."""
        mask = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        some = np.flatnonzero(mask)  # most of the time few tokens may come: only their bytes are looked into
        places, bits = np.nonzero(np.unpackbits(mask[some], bitorder="little").reshape(-1, 8))
        ids = some[places] * 8 + bits
        return ids[: np.searchsorted(ids, self._vocab_size)]

    def accept(self, token: int) -> None:
        if not self._matcher.consume_token(token):
            raise InvalidInput(f"grammar: {self._matcher.get_error()}", "Simplify the schema.")

    def forced(self) -> list[int]:
        """Tokens that must come next, already accepted; the model's own tokenization of that text."""
        tokens: list[int] = self._matcher.compute_ff_tokens()
        if tokens and not self._matcher.consume_tokens(tokens):
            raise InvalidInput(f"grammar: {self._matcher.get_error()}", "Simplify the schema.")
        return tokens

    @property
    def finished(self) -> bool:
        """Whether nothing but the end may follow."""
        return bool(self._matcher.is_stopped())
