"""Conversations as token ids, with the tokens that carry the loss.

One rule for all of them: what an assistant says and the token that ends its turn carry loss, in the context in which
the model will say it; nothing else does. A turn is found by rendering the conversation up to it and to its end, so no
template needs marks for it. Turns that follow each other in one text are one example. Where the template writes an
earlier turn otherwise afterwards, such as without its reasoning, the turns are examples of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from ..chat import SAMPLE, folder_template
from ..errors import InvalidInput
from ..records import Example, Message, Tool, digest
from ..run import file_sha256

__all__ = ["EncodedExample", "Encoder", "joined"]

THOUGHT = "Hm, let me see."  # that no template has words for


@dataclass(frozen=True, slots=True)
class EncodedExample:
    """Token ids of one example; those from `start` on, but for the `gaps`, are the assistant's and carry the loss."""

    id: str
    tokens: tuple[int, ...]
    start: int
    key: str = ""
    """Where the teacher's distributions at the completion's tokens are stored, if they are."""
    answers: tuple[tuple[tuple[int, ...], float], ...] = ()
    """The teacher's probability of each answer, as token ids, where the set of answers is closed."""
    gaps: tuple[tuple[int, int], ...] = ()
    """Ranges behind `start`, rising, whose tokens carry no loss: what others say between the assistant's turns."""

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """Ranges of tokens that carry the loss, one an assistant's turn.

        >>> EncodedExample("a", (0,) * 9, 2, gaps=((4, 7),)).spans
        ((2, 4), (7, 9))
        """
        bounds = (self.start, *(place for gap in self.gaps for place in gap), len(self.tokens))
        return tuple(zip(bounds[::2], bounds[1::2], strict=True))


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

    def prompt(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> list[int]:
        """Token ids of a conversation up to where the answer begins."""
        return self.ids(self.template.render(messages, tools=tools))

    def example(self, example: Example) -> EncodedExample:
        """An example's last turn, which is the assistant's, to the token that ends it.

        Raises InvalidInput where the template rewrites what came before, or the answer does not end.
        """
        before = self.template.render(example.messages[:-1], tools=example.tools)
        whole = self.template.render(example.messages, answer_next=False, tools=example.tools)
        if not whole.startswith(before):
            raise InvalidInput(f"row {example.id}: the chat template rewrites the prompt behind an answer")
        prompt, together = self.ids(before), self.ids(whole)
        # where a token reaches across the border, the answer is spelled by itself, as it will be written
        is_apart = together[: len(prompt)] == prompt
        answer = together[len(prompt) :] if is_apart else self.ids(whole[len(before) :])
        end = self.end_token(answer)
        return EncodedExample(example.id, tuple(prompt + answer[: end + 1]), len(prompt))

    def turns(self, example: Example) -> list[EncodedExample]:
        """Each of the assistant's turns that is learned as an example of its own, in order, behind all before it.

        Where there are several, the number of the turn, from 1, is in the id. Raises what `example` raises, and
        InvalidInput where no turn is learned.
        """
        places = [
            at for at, message in enumerate(example.messages) if message.role == "assistant" and message.is_learned
        ]
        if not places:
            raise InvalidInput(f"row {example.id}: no turn of the assistant is to be learned", "Drop the row.")
        found = [self.example(replace(example, messages=example.messages[: place + 1])) for place in places]
        if len(found) == 1:
            return found
        return [replace(turn, id=f"{turn.id}.{number}") for number, turn in enumerate(found, start=1)]

    def completion(self, answer: str) -> tuple[int, ...]:
        """Token ids of an answer, to the token that ends it, whatever it answers."""
        found = self.example(Example("", (Message("system", ""), Message("user", "-"), Message("assistant", answer))))
        return found.tokens[found.start :]

    def end_token(self, answer: Sequence[int]) -> int:
        """Index of the token that ends an answer: its last special token, but for what stands behind every answer."""
        specials = [index for index, token in enumerate(answer) if token in self._specials]
        if len(specials) <= self._behind:
            raise InvalidInput("the chat template ends an answer without a special token", "Use an instruct model.")
        return specials[-1 - self._behind]

    @cached_property
    def writes_reasoning(self) -> bool:
        """Whether the template writes what an answer's message has as reasoning."""
        thought = replace(Message("assistant", SAMPLE), reasoning=THOUGHT)
        return THOUGHT in self.template.render((Message("user", "Hi"), thought), answer_next=False)

    @cached_property
    def _behind(self) -> int:
        """How many special tokens the template writes behind the one that ends the last answer of a text.

        Some close the text too: `<|end|>` and then `<|endoftext|>`. The model is to stop at the first.
        """
        behind = self.ids(self.template.sample_answer().rpartition(SAMPLE)[2])
        return max(0, sum(token in self._specials for token in behind) - 1)


def joined(turns: Sequence[EncodedExample]) -> list[EncodedExample]:
    """Turns as `Encoder.turns` gives them, those that go on one text made one example.

    A turn of which the teacher tells more than its text stays by itself.
    """
    found: list[EncodedExample] = []
    for turn in turns:
        is_text = found and not any((turn.key, turn.answers, found[-1].key, found[-1].answers))
        before = found[-1].tokens if is_text else ()
        if before and len(before) <= turn.start and turn.tokens[: len(before)] == before:
            gaps = (*found[-1].gaps, (len(before), turn.start))
            found[-1] = replace(found[-1], tokens=turn.tokens, gaps=gaps)
        else:
            found.append(turn)
    return found
