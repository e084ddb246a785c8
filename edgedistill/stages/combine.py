"""Several answers to one prompt, of one teacher or of several, made into what is learnt from.

The vote is self-consistency (Wang et al., arXiv 2203.11171), on whole answers or field by field; the best of several
by a verifier is best-of-n.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..chat import json_instance
from ..recipe import CurateSettings
from ..records import Completion, Message, Prompt
from .dialogue import woven
from .final_answer import thought_and_said
from .sandbox import Confined, own_command, run_confined

__all__ = ["Answered", "answer_key", "combined", "verified", "verifier_command"]

Validator = Callable[[Any], bool]

ROUNDING = 1e-9
ABSENT = "absent"  # the key of a field that an answer does not have; no JSON text is this word


@dataclass(frozen=True)
class Answered:
    """A completion, and the number of the teacher that gave it."""

    teacher: int
    completion: Completion
    earlier: tuple[Completion, ...] = ()
    """What the same teacher answered before in the conversation, where several turns were asked."""
    tried: tuple[tuple[str, str], ...] = ()
    """What it answered first, and what it was then told: tries that failed, before this completion."""
    key: str = ""
    """Where the completion is stored, where it is such a later try."""
    shorter: Completion | None = None
    """What the teacher wrote when it was asked for a shorter trace."""

    def asked(self, prompt: Prompt) -> Prompt:
        """The prompt with what the teacher answered before in its place, and the tries that failed behind it."""
        if not self.earlier and not self.completion.steps and not self.tried:
            return prompt
        said = [(*turn.steps, Message("assistant", turn.text)) for turn in self.earlier]
        behind = (*self.completion.steps, *self.failures())
        return replace(prompt, messages=(*woven(prompt.messages, said), *behind))

    def failures(self) -> tuple[Message, ...]:
        """The tries that failed and what was said to each, as turns of which none is learned."""
        found: list[Message] = []
        for text, told in self.tried:
            thought, said = thought_and_said(text)
            found += [Message("assistant", said, reasoning=thought, is_learned=False), Message("user", told)]
        return tuple(found)


def combined(
    prompt: Prompt,
    answers: Sequence[Answered],
    settings: CurateSettings,
    is_valid: Validator | None,
    folder: Path | None = None,
) -> list[Answered] | str:
    """What is learnt of the answers to a prompt, or the reason why nothing is.

    `answers` are in the order of teachers and samples: where several are as good, the first is taken. One that was cut
    off takes no part where another is whole. One that is not valid under the schema (empty, where there is none) is
    never taken, but its vote counts as one for nobody. Those that are known to be wrong are not among `answers`;
    "shortest" takes the one of the fewest tokens. A single answer passes as it is, unless a verifier judges it.
    Reasons: "cut off", "empty", "schema", "no valid answer" (of a vote on fields), "teachers disagree", "verifier".
    `folder` is where the verifier runs.
    Raises InvalidInput where the verifier cannot be started.
    """
    is_verified = settings.combine == "best" and settings.verifier is not None
    if len(answers) == 1 and not is_verified:
        return list(answers)
    whole = [one for one in answers if one.completion.finish_reason == "stop"]
    if not whole:
        return "cut off"
    usable = [one for one in whole if _is_usable(one.completion.text, is_valid)]
    if not usable:
        return "schema" if any(one.completion.text.strip() for one in whole) else "empty"
    if settings.combine == "vote":
        return _voted(usable, len(whole), settings, is_valid)
    if settings.combine == "shortest":
        return [min(usable, key=_length)]
    if settings.combine == "best":
        return [usable[0]] if not is_verified else _best(prompt, usable, settings, folder) or "verifier"
    different: dict[str, Answered] = {}
    for one in usable:
        different.setdefault(answer_key(one.completion.text), one)
    if settings.combine == "agree" and len(different) > 1:
        return "teachers disagree"
    return list(different.values())


def _length(one: Answered) -> tuple[int, int]:
    """By the teacher's tokens; of answers from elsewhere, whose tokens nobody counted, by characters."""
    return one.completion.completion_tokens, len(one.completion.text)


def answer_key(text: str) -> str:
    """A text that two answers share exactly where they are equal: as JSON values, else as texts.

    >>> answer_key('{"b": 1.0, "a": true}') == answer_key('{"a":true,"b":1}'), answer_key("1") == answer_key("true")
    (True, False)
    """
    value = json_instance(text)
    try:
        return f"text {text.strip()}" if value is None else _value_key(value)
    except RecursionError:
        return f"text {text.strip()}"


def _value_key(value: Any) -> str:
    return json.dumps(_plain(value), sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def _plain(value: Any) -> Any:
    """The value with whole floats as integers: in JSON, 1 and 1.0 are the same number."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _is_usable(text: str, is_valid: Validator | None) -> bool:
    return bool(text.strip()) if is_valid is None else is_valid(json_instance(text))


# Voting. A completion has one vote; where its answers are closed, it is shared out among them by probability.


def _voted(
    usable: Sequence[Answered], voters: int, settings: CurateSettings, is_valid: Validator | None
) -> list[Answered] | str:
    ballots = [(text, weight) for one in usable for text, weight in _votes(one.completion)]
    objects = [json_instance(text) for text, _ in ballots]
    if settings.vote_by == "field" and all(isinstance(value, dict) for value in objects):
        weighted = [(value, weight) for value, (_, weight) in zip(objects, ballots, strict=True)]
        text, share = _by_field(weighted, voters)
    else:
        text, share = _most_voted(((answer_key(text), text, weight) for text, weight in ballots), voters)
    if share + ROUNDING < settings.agreement:
        return "teachers disagree"
    if not _is_usable(text, is_valid):
        return "no valid answer"  # fields of different answers need not go together
    return [_as_answered(text, usable)]


def _votes(completion: Completion) -> list[tuple[str, float]]:
    """The completion's own text first, so that it wins a tie."""
    if completion.answers is None:
        return [(completion.text, 1.0)]
    own = completion.answers.get(completion.text, 0.0)
    return [(completion.text, own), *(pair for pair in completion.answers.items() if pair[0] != completion.text)]


def _most_voted(votes: Iterable[tuple[str, Any, float]], voters: int) -> tuple[Any, float]:
    """The value whose key has the most votes, the first of several, and its share; `votes` are key, value, weight."""
    totals: dict[str, float] = defaultdict(float)
    values: dict[str, Any] = {}
    for key, value, weight in votes:
        totals[key] += weight
        values.setdefault(key, value)
    most = max(totals.values())
    first = next(key for key, total in totals.items() if total + ROUNDING >= most)
    return values[first], totals[first] / voters


def _by_field(objects: Sequence[tuple[dict[str, Any], float]], voters: int) -> tuple[str, float]:
    """The object whose every field has the most votes, and the least share that one of them has.

    A field that most do not have is left out; the order of the fields is the first object's, then as they come.
    """
    found: dict[str, Any] = {}
    least = sum(weight for _, weight in objects) / voters
    for name in dict.fromkeys(name for value, _ in objects for name in value):
        votes = (
            (_value_key(value[name]), (value[name],), weight) if name in value else (ABSENT, (), weight)
            for value, weight in objects
        )
        winner, share = _most_voted(votes, voters)
        least = min(least, share)
        if winner:
            found[name] = winner[0]
    return json.dumps(found, ensure_ascii=False, separators=(",", ":")), least


def _as_answered(text: str, usable: Sequence[Answered]) -> Answered:
    """The first answer that says this; or the first one with this as its text, and no targets: they were another's.

    Closed answers become their mean over all that are usable.
    """
    key = answer_key(text)
    found = next((one for one in usable if answer_key(one.completion.text) == key), None)
    chosen = found or replace(usable[0], completion=replace(usable[0].completion, text=text, targets=None))
    if all(one.completion.answers is None for one in usable):
        return chosen
    mean = _mean(usable, chosen.completion.text)
    # a vote on fields may choose another answer than the most probable one: no distribution says that
    is_likeliest = mean[chosen.completion.text] + ROUNDING >= max(mean.values())
    return replace(chosen, completion=replace(chosen.completion, answers=mean if is_likeliest else None))


def _mean(usable: Sequence[Answered], text: str) -> dict[str, float]:
    """The mean distribution over the answers, `text` among them; a completion without one is sure of its text."""
    texts = {answer_key(text): text}
    mean = {text: 0.0}
    for one in usable:
        for other, weight in _votes(one.completion):
            spelled = texts.setdefault(answer_key(other), other)
            mean[spelled] = mean.get(spelled, 0.0) + weight / len(usable)
    return mean


# A verifier: the user's own command, which scores an answer.


def verifier_command(settings: CurateSettings, folder: Path | None) -> list[str]:
    """The verifier's arguments; each that names a file of `folder` is that file.

    Raises InvalidInput where there is no such command, MissingRequirement where the system has no POSIX limits.
    """
    assert settings.verifier is not None
    return own_command("curate.verifier", settings.verifier, [folder or Path()], '["python", "verify.py"]')


def verified(prompt: Prompt, answer: str, settings: CurateSettings, folder: Path | None) -> tuple[float | None, str]:
    """The score that the verifier prints; None, with what it did, where that is "false" or no number, or it fails."""
    command, own = verifier_command(settings, folder), folder or Path()
    memory = settings.verifier_memory_mb << 20
    confined = Confined(command, settings.verifier_seconds, memory, (own,), runs_in=own)
    question = {"messages": [message.as_dict() for message in prompt.messages], "answer": answer}
    said = run_confined(confined, json.dumps(question, ensure_ascii=False))
    score = None if said.text is None else _number(said.text)
    return score, "" if score is not None else said.complaint or f"it printed {(said.text or '')[:60]!r}"


def _best(prompt: Prompt, usable: Sequence[Answered], settings: CurateSettings, folder: Path | None) -> list[Answered]:
    """The first of the answers with the highest score; none, where the verifier passes none."""
    best: tuple[float, Answered] | None = None
    for one in usable:
        value, _ = verified(one.asked(prompt), one.completion.text, settings, folder)
        if value is not None and (best is None or value > best[0]):
            best = value, one
    return [] if best is None else [best[1]]


def _number(text: str) -> float | None:
    """A score as printed.

    >>> _number("0.25"), _number("true"), _number("false"), _number("nan"), _number("fine")
    (0.25, 1.0, None, None, None)
    """
    if text in ("true", "false"):
        return 1.0 if text == "true" else None
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
