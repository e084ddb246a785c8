"""What all prompts of a task begin with, split from what is their own, exactly at a special token."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import InvalidInput
from ..records import Message, Tool, common_length
from .vocabulary import Vocabulary

__all__ = ["SharedPrefix"]


class SharedPrefix:
    """The preamble as tokens, with the tools on offer, and every conversation as the tokens that come after these."""

    def __init__(self, vocabulary: Vocabulary, preamble: Sequence[Message], tools: Sequence[Tool] = ()) -> None:
        self._vocabulary = vocabulary
        self._tools = tuple(tools)
        self._preamble = tuple(preamble)
        one, other = (self._text((Message("user", text),)) for text in ("a", "b"))
        shared = one[: common_length(one, other)]
        self._head = shared[: vocabulary.last_special(shared)]
        self.tokens = tuple(vocabulary.ids(self._head))

    def require_tools(self, tools: Sequence[Tool]) -> None:
        """Raise InvalidInput where a conversation offers other tools than the shared text."""
        if tuple(tools) != self._tools:
            raise InvalidInput(
                "rows offer different tools, which this backend cannot share a beginning among",
                "Give all rows the same tools, or let the 'llamacpp' or the 'openai' backend teach.",
            )

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """A conversation's own tokens, up to where the answer begins.

        Raises InvalidInput where the model's template does not keep the shared text as it is.
        """
        return self._vocabulary.ids(self._own(messages))

    def tail(self, messages: Sequence[Message]) -> str:
        """What stands behind the last special token of a conversation, that token included: the answer's role."""
        text = self._own(messages)
        return text[self._vocabulary.last_special(text) :]

    def continued(self, tail: str, answers: Sequence[str]) -> list[list[int]]:
        """The tokens of each text that may follow a tail, without an end; as the model was taught to write them."""
        before = self._vocabulary.ids(tail)
        found = []
        for answer in answers:
            whole = self._vocabulary.ids(tail + answer)
            alike = whole[: len(before)] == before
            found.append(whole[len(before) :] if alike else self._vocabulary.ids(answer))
        return found

    def answered(self, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
        """The own tokens of a conversation that ends with an answer: up to it, and its own with the one that ends it.

        Raises InvalidInput where the template rewrites what came before the answer, or does not end it.
        """
        before, whole = self._own(messages[:-1]), self._own(messages, answer_next=False)
        if not whole.startswith(before):
            raise InvalidInput("the chat template rewrites the prompt behind an answer", "Use another model.")
        prompt = self._vocabulary.ids(before)
        (answer,) = self.continued(self.tail(messages[:-1]), [whole[len(before) :]])
        return prompt, answer[: self._vocabulary.answer_end(answer) + 1]

    def _own(self, messages: Sequence[Message], answer_next: bool = True) -> str:
        text = self._text(messages, answer_next)
        if not text.startswith(self._head):
            raise InvalidInput("the chat template changes the system text with the prompt", "Use another model.")
        return text[len(self._head) :]

    def _text(self, messages: Sequence[Message], answer_next: bool = True) -> str:
        return self._vocabulary.template.render((*self._preamble, *messages), answer_next, self._tools)
