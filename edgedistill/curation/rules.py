"""The rules that look at one answer, in the order in which they are asked; the first that objects names the reason.

Each is a pure function of what was asked and answered, and of the recipe's `[curate]`: it says in a few words what is
wrong, or None. What it says never repeats a secret.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ..chat import json_instance
from ..recipe import CurateSettings
from ..records import DONE, TURN_LIMIT, Completion, Message, Prompt
from ..sensitive import PERSONAL, SECRETS, Found, find
from .languages import other_language
from .loops import repeats
from .signs import invisible, special_token

__all__ = ["RULES", "Given", "Rule", "broken_rule", "said_in"]

Validator = Callable[[Any], bool]


@dataclass(frozen=True)
class Given:
    """An answer with all that rules look at. `is_valid` is None where the recipe has no schema."""

    prompt: Prompt
    completion: Completion
    is_valid: Validator | None = None

    @property
    def text(self) -> str:
        return self.completion.text

    def answers(self) -> Iterator[str]:
        """What the assistant says, turn by turn: of JSON its texts, joined by line breaks."""
        for message in (*self.prompt.messages, Message("assistant", self.text)):
            if message.role == "assistant":
                yield said_in(message.content)

    def turns(self) -> Iterator[str]:
        """What anybody says, the answer last; of JSON with escapes what these stand for, too."""
        for text in (*(message.content for message in self.prompt.messages), self.text):
            yield text
            if "\\" in text:
                yield said_in(text)


Rule = Callable[[Given, CurateSettings], str | None]


def broken_rule(given: Given, settings: CurateSettings) -> tuple[str, str] | None:
    """The reason of the first rule that objects to an answer, and what it says; or None.

    >>> asked = Prompt("1", (Message("user", "Is it on?"),))
    >>> broken_rule(Given(asked, Completion("1", "Yes, beca", "length", 5, 3, 0.1)), CurateSettings())
    ('cut off', 'it ended by length')
    """
    for reason, rule in RULES.items():
        said = rule(given, settings) if reason not in settings.skip else None
        if said is not None:
            return reason, said
    return None


def cut_off(given: Given, settings: CurateSettings) -> str | None:
    """
    >>> cut_off(_answer("Yes, beca", "length"), CurateSettings())
    'it ended by length'
    """
    reason = given.completion.finish_reason
    return None if reason == "stop" else f"it ended by {reason}"


def empty(given: Given, settings: CurateSettings) -> str | None:
    """
    >>> empty(_answer("  "), CurateSettings())
    'no text'
    """
    return None if given.text.strip() else "no text"


def schema(given: Given, settings: CurateSettings) -> str | None:
    """
    >>> from dataclasses import replace
    >>> schema(replace(_answer("yes"), is_valid=lambda value: value is not None), CurateSettings())
    'it does not match the schema'
    """
    is_fine = given.is_valid is None or given.is_valid(json_instance(given.text.strip()))
    return None if is_fine else "it does not match the schema"


def refusal(given: Given, settings: CurateSettings) -> str | None:
    """
    >>> refusal(_answer("I’m sorry, but no."), CurateSettings())
    "it begins with i'm sorry"
    """
    for answer in given.answers():
        begins = answer[:200].lstrip().lower().replace("’", "'")
        if begins.startswith(settings.refusals):
            return f"it begins with {next(one for one in settings.refusals if begins.startswith(one))}"
    return None


def repetition(given: Given, settings: CurateSettings) -> str | None:
    """
    >>> repetition(_answer("and then " * 40), CurateSettings())
    'it says the same over and over'
    """
    is_loop = any(repeats(answer, settings.repetition) for answer in given.answers())
    return "it says the same over and over" if is_loop else None


def wrong_language(given: Given, settings: CurateSettings) -> str | None:
    """
    >>> wrong_language(_answer("Das Licht in der Küche ist jetzt eingeschaltet."), CurateSettings(languages=("en",)))
    'it is in de'
    """
    if not settings.languages:
        return None
    found = (other_language(answer, settings.languages) for answer in given.answers())
    return next((f"it is in {language}" for language in found if language is not None), None)


def special_tokens(given: Given, settings: CurateSettings) -> str | None:
    """
    >>> special_tokens(_answer("Done.<|im_end|>"), CurateSettings())
    '<|im_end|> is in its content'
    """
    found = (special_token(turn) for turn in given.turns())
    return next((f"{token} is in its content" for token in found if token is not None), None)


def invisible_characters(given: Given, settings: CurateSettings) -> str | None:
    """
    >>> invisible_characters(_answer("Done\\u202e."), CurateSettings())
    'U+202E is in its content'
    """
    found = (invisible(turn) for turn in given.turns())
    return next((f"{sign} is in its content" for sign in found if sign is not None), None)


def secret(given: Given, settings: CurateSettings) -> str | None:
    """
    >>> secret(_answer("Use sk-" + "a1B2" * 8), CurateSettings())
    'API key'
    """
    return next((one.kind for turn in given.turns() for one in _found(turn) if one.kind in SECRETS), None)


def personal_data(given: Given, settings: CurateSettings) -> str | None:
    """Of the answers alone, and only what nobody has said before: an answer may repeat what it was asked about.

    >>> personal_data(_answer("Write to anna@example.com."), CurateSettings())
    'e-mail'
    >>> personal_data(_answer("Write to anna@example.com.", asked="I am anna@example.com"), CurateSettings()) is None
    True
    """
    looked_for = set(PERSONAL).difference(settings.allow)
    before = ""
    for message in (*given.prompt.messages, Message("assistant", given.text)):
        if message.role == "assistant":
            found = (one for one in _found(message.content) if one.kind in looked_for)
            new = next((one.kind for one in found if not _is_in(message.content, one, before)), None)
            if new is not None:
                return new
        before += f"\n{message.content}"
    return None


def low_confidence(given: Given, settings: CurateSettings) -> str | None:
    """
    >>> unsure = Completion("1", "a", "stop", 1, 1, 0.1, answers={"a": 0.5, "b": 0.5})
    >>> low_confidence(Given(_answer("a").prompt, unsure), CurateSettings(confidence=0.6))
    'the teacher is sure of it by 0.50'
    """
    answers = given.completion.answers
    sure = max(answers.values()) if answers else 1.0
    return f"the teacher is sure of it by {sure:.2f}" if sure < settings.confidence else None


def turn_limit(given: Given, settings: CurateSettings) -> str | None:
    """
    >>> turn_limit(_answer("And now?", ended="turn limit"), CurateSettings())
    'the user had not reached its goal'
    >>> turn_limit(_answer("It is on.", ended="done"), CurateSettings()) is None
    True
    """
    return "the user had not reached its goal" if given.completion.ended == TURN_LIMIT else None


def user_gave_up(given: Given, settings: CurateSettings) -> str | None:
    """
    >>> user_gave_up(_answer("And now?", ended="gave up"), CurateSettings())
    'the user gave up'
    >>> user_gave_up(_answer("It is on.", ended="done"), CurateSettings()) is None
    True
    """
    ended = given.completion.ended
    return None if ended in ("", DONE, TURN_LIMIT) else f"the user {ended}"


# reason -> rule
RULES: Mapping[str, Rule] = {
    "cut off": cut_off,
    "empty": empty,
    "schema": schema,
    "refusal": refusal,
    "repetition": repetition,
    "special tokens": special_tokens,
    "invisible characters": invisible_characters,
    "secret": secret,
    "personal data": personal_data,
    "wrong language": wrong_language,
    "turn limit": turn_limit,
    "user gave up": user_gave_up,
    "low confidence": low_confidence,
}


@lru_cache(maxsize=16)
def _found(text: str) -> tuple[Found, ...]:
    """What is sensitive in a text, for the two rules that ask."""
    return tuple(find(text))


def said_in(text: str) -> str:
    """The texts in a JSON answer; any other answer as it is.

    >>> said_in('{"reply": "Hello.", "tags": ["a", 1]}'), said_in("Hello.")
    ('Hello.\\na', 'Hello.')
    """
    value = json_instance(text) if text.lstrip()[:1] in ("{", "[", '"') else None
    if value is None:
        return text
    said: list[str] = []
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, str):
            said.append(one)
        else:
            inner = list(one.values()) if isinstance(one, dict) else one if isinstance(one, list) else []
            left += reversed(inner)
    return "\n".join(said)


def _is_in(text: str, one: Found, before: str) -> bool:
    plain, other = (
        "".join(sign for sign in words.lower() if sign.isalnum()) for words in (text[one.start : one.end], before)
    )
    return plain in other


def _answer(text: str, finish_reason: str = "stop", asked: str = "What?", ended: str = "") -> Given:
    """An answer by itself, for the examples above."""
    return Given(Prompt("1", (Message("user", asked),)), Completion("1", text, finish_reason, 1, 1, 0.1, ended=ended))
