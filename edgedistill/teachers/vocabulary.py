"""The words of a Hugging Face folder: its tokenizer, its chat template, and the tokens that end an answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..chat import folder_template
from ..errors import InvalidInput
from ..llamacpp.grammar import Grammar, Words
from ..records import Message, read_json

__all__ = ["Vocabulary"]


class Vocabulary:
    """Texts as token ids and back.

    Raises InvalidInput where the folder has no tokenizer.json, no chat template, or several.
    """

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        path = folder / "tokenizer.json"
        if not path.is_file():
            raise InvalidInput(f"{folder}: no tokenizer.json", "Use a folder saved with its tokenizer.")
        self._tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.size: int = self._tokenizer.get_vocab_size()
        added = self._tokenizer.get_added_tokens_decoder()
        self._added = frozenset(added)
        self.template = folder_template(folder)
        self.ends = self._ends(folder)

    def ids(self, text: str) -> list[int]:
        """Token ids of a text in which the names of special tokens stand for these tokens."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def text(self, ids: Sequence[int]) -> str:
        """The text of tokens, special ones left out; bytes that are no UTF-8 become U+FFFD."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def last_special(self, text: str) -> int:
        """Where in a text its last special token begins, or 0.

        A special token is always a boundary for the tokenizer: what is before and what begins with it, tokenized
        apart, are the tokens of the whole.
        """
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        pairs = zip(reversed(encoding.ids), reversed(encoding.offsets), strict=True)
        return next((start for token, (start, _) in pairs if token in self._added), 0)

    def answer_end(self, ids: Sequence[int]) -> int:
        """Index of the token that ends the answer with which a text begins.

        Raises InvalidInput where no special token ends it.
        """
        for number, token in enumerate(ids):
            if token in self.ends:
                return number
        raise InvalidInput("the chat template ends an answer without a special token", "Use an instruct model.")

    def grammar(self, schema: dict[str, Any], vocab_size: int) -> Grammar:
        """The grammar of a schema or of calls; `vocab_size` is how many logits the model gives."""
        from llguidance import LLTokenizer

        size = max(vocab_size, self.size)
        tokenizer = LLTokenizer(self._tokenizer.to_str(), n_vocab=size, eos_token=sorted(self.ends))
        words = Words(tokenizer, vocab_size, lambda: self.template, self._tokenizer.token_to_id)
        return Grammar.of_words(words, schema)

    def _ends(self, folder: Path) -> frozenset[int]:
        """Tokens that end an answer: what the folder's files call end of sequence, and what the template puts there."""
        eos = self.template.eos
        found = {self._tokenizer.token_to_id(eos)} if eos else set()
        for name in ("generation_config.json", "config.json"):
            stated = read_json(folder / name, required=False).get("eos_token_id")
            found.update(stated if isinstance(stated, list) else [stated])
        turns = (Message("user", "4710"), Message("assistant", "4711"))
        after = self.template.render(turns, answer_next=False).rpartition("4711")[2]
        found.add(next((token for token in self.ids(after) if token in self._added), None))
        ends = frozenset(token for token in found if type(token) is int and token >= 0)
        if not ends:
            raise InvalidInput(f"{folder}: no token ends an answer", "Use an instruct model.")
        return ends
