"""Conversations as token ids, with the tokens that carry the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..chat import folder_template
from ..errors import InvalidInput
from ..records import Example, Message, digest
from ..run import file_sha256

__all__ = ["EncodedExample", "Encoder"]


@dataclass(frozen=True, slots=True)
class EncodedExample:
    """Token ids of one example; those from `start` on are the completion and carry the loss."""

    id: str
    tokens: tuple[int, ...]
    start: int
    key: str = ""
    """Where the teacher's distributions at the completion's tokens are stored, if they are."""
    answers: tuple[tuple[tuple[int, ...], float], ...] = ()
    """The teacher's probability of each answer, as token ids, where the set of answers is closed."""


class Encoder:
    """The tokenizer and chat template of a Hugging Face folder.

    Raises InvalidInput where the folder lacks one of them.
    """

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        path = folder / "tokenizer.json"
        if not path.is_file():
            raise InvalidInput(f"{folder}: no tokenizer.json", "Use a folder saved with its tokenizer.")
        self._tokenizer = Tokenizer.from_file(str(path))
        self._path = path
        self._specials = frozenset(self.special_tokens())
        self.template = folder_template(folder)
        self.eos = self.template.eos

    @property
    def identity(self) -> str:
        """A digest of all that decides the token ids of a conversation."""
        return digest(file_sha256(self._path), self.template.source, self.template.bos, self.template.eos)

    def ids(self, text: str) -> list[int]:
        """Token ids of a text in which the names of special tokens stand for these tokens."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def text(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens."""
        found: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return found

    def special_tokens(self) -> dict[int, str]:
        """Id and text of every token that was added to the vocabulary."""
        return {number: token.content for number, token in self._tokenizer.get_added_tokens_decoder().items()}

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation up to where the answer begins."""
        return self.ids(self.template.render(messages))

    def example(self, example: Example) -> EncodedExample:
        """An example with its answer, to the token that ends it.

        Raises InvalidInput where the template rewrites what came before, or the answer does not end.
        """
        before = self.template.render(example.messages[:-1])
        whole = self.template.render(example.messages, answer_next=False)
        if not whole.startswith(before):
            raise InvalidInput(f"row {example.id}: the chat template rewrites the prompt behind an answer")
        prompt, answer = self.ids(before), self.ids(whole[len(before) :])
        end = self.end_token(answer)
        return EncodedExample(example.id, tuple(prompt + answer[: end + 1]), len(prompt))

    def completion(self, answer: str) -> tuple[int, ...]:
        """Token ids of an answer, to the token that ends it, whatever it answers."""
        found = self.example(Example("", (Message("system", ""), Message("user", "-"), Message("assistant", answer))))
        return found.tokens[found.start :]

    def end_token(self, answer: Sequence[int]) -> int:
        """Index of the last special token of an answer: the one that ends it."""
        for index in range(len(answer) - 1, -1, -1):
            if answer[index] in self._specials:
                return index
        raise InvalidInput("the chat template ends an answer without a special token", "Use an instruct model.")
