"""Answers held to a JSON Schema while they are decoded.

llguidance keeps the state: which tokens may come next, and which must. JSON is written without spaces, in the order of
the schema's properties, so that an answer is as short as it can be.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidInput
from .model import LlamaModel

__all__ = ["Grammar", "GrammarState", "require_decodable"]


class Grammar:
    """A JSON Schema, compiled for one model's vocabulary.

    Raises InvalidInput where the schema is not one that can be decoded under.
    """

    def __init__(self, model: LlamaModel, schema: dict[str, Any]) -> None:
        from llguidance.llamacpp import lltokenizer_from_vocab

        self._compile(lltokenizer_from_vocab(model.vocab), model.vocab_size, schema)

    @classmethod
    def of_tokenizer(cls, tokenizer: Any, vocab_size: int, schema: dict[str, Any]) -> Grammar:
        """The same for an llguidance.LLTokenizer; `vocab_size` is how many logits its model gives."""
        grammar = cls.__new__(cls)
        grammar._compile(tokenizer, vocab_size, schema)
        return grammar

    def _compile(self, tokenizer: Any, vocab_size: int, schema: dict[str, Any]) -> None:
        from llguidance import LLMatcher

        self._vocab_size = vocab_size
        self._start = LLMatcher(tokenizer, _compact(schema))
        if self._start.is_error():
            reason = " ".join(self._start.get_error().split())
            raise InvalidInput(f"schema: {reason}", "Use a JSON Schema of types, enums and properties.")

    def begin(self) -> GrammarState:
        """The state before an answer's first token."""
        return GrammarState(self._start.deep_copy(), self._vocab_size)


def require_decodable(schema: dict[str, Any]) -> None:
    """Raise InvalidInput where no answer can be decoded under the schema, as far as that shows without a vocabulary."""
    from llguidance import LLMatcher

    problem = LLMatcher.validate_grammar(_compact(schema))
    if problem and not LLMatcher.is_validate_warning(problem):
        raise InvalidInput(f"schema: {' '.join(problem.split())}", "Use a JSON Schema of types, enums and properties.")


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
