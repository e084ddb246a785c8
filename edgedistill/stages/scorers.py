"""How good an answer is, from 0 to 1: one function a scorer, in one table."""

from __future__ import annotations

import json
import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..chat import answer_text, json_instance
from ..errors import InvalidInput
from ..messages import with_calls
from ..recipe import EvaluateSettings, Recipe
from ..records import Message, Prompt, ToolCall
from .final_answer import bare_text, chosen, concluded, final_number, thought_and_said
from .judging import judged
from .passing import asserted, failures
from .sandbox import checked
from .scorer_desk import Desk
from .scoring import equal, same, same_calls
from .tool_calls import paired, said

__all__ = [
    "SCORERS",
    "agreed",
    "chrf",
    "fields",
    "fits_scorer",
    "label",
    "require_expected",
    "right_text",
    "scored",
    "token_f1",
    "tool_call",
]

CHRF_ORDER, CHRF_BETA = 6, 2
NO_CALLS: tuple[Any, ...] = ([], {"tool_calls": []})
IN_WORDS = "I have no tool that does this."
ARTICLES = re.compile(r"\b(a|an|the)\b")

Scores = dict[str, list[float | None]]


def scored(recipe: Recipe, prompts: Sequence[Prompt], answers: Mapping[str, Mapping[str, str]], desk: Desk) -> Scores:
    """The score of each candidate's answers by the recipe's scorer: by candidate's name, one a prompt.

    `answers` hold texts by name and prompt id, the reference first; what was thought before an answer is not scored. A
    prompt without a right answer has no score, but of a command or a judge.
    """
    if recipe.evaluate.scorer == "tests":
        return passing_scores(recipe.evaluate, prompts, answers)
    answers = {name: {key: thought_and_said(text)[1] for key, text in given.items()} for name, given in answers.items()}
    if recipe.evaluate.scorer == "command":
        return checked(recipe, prompts, answers)
    if recipe.evaluate.scorer == "judge":
        return judged(recipe, prompts, answers, desk)
    function = SCORERS[recipe.evaluate.scorer]
    return {
        name: [None if one.expected is None else function(given[one.id], one.expected) for one in prompts]
        for name, given in answers.items()
    }


def passing_scores(
    settings: EvaluateSettings, prompts: Sequence[Prompt], answers: Mapping[str, Mapping[str, str]]
) -> Scores:
    """1 for each answer whose code passes the tests of its row, else 0; their mean is pass@1 (arXiv 2107.03374)."""
    rows = [prompt for prompt in prompts if prompt.expected is not None]
    cases = [(given[one.id], one.expected) for given in answers.values() for one in rows]
    found = failures(cases, settings.command_seconds, settings.command_memory_mb)

    def score(answer: str, expected: Any) -> float | None:
        return None if expected is None else float(found[answer, json.dumps(expected)] is None)

    return {name: [score(given[one.id], one.expected) for one in prompts] for name, given in answers.items()}


def agreed(scorer: str, answer: str, other: str) -> bool:
    """Whether two answers say the same: the same in the end, where the scorer looks at that alone.

    >>> agreed("number", "2 + 2 = 4", "Answer: 4.0"), agreed("choice", "So. Answer: B", "Answer: (b)")
    (True, True)
    >>> agreed("exact", "<think>2 + 2</think>4", "4"), agreed("exact", "2 + 2 = 4", "4")
    (True, False)
    """
    if scorer == "number":
        mine, theirs = final_number(answer), final_number(other)
        return mine == theirs and (mine is not None or answer.strip() == other.strip())
    said, heard = (thought_and_said(text)[1] for text in (answer, other))
    if scorer == "choice":
        return bare_text(concluded(said) or said) == bare_text(concluded(heard) or heard)
    return equal(said, heard) or same_calls(said, heard)


def exact(answer: str, expected: Any) -> float:
    """1 where the answer says the same, as JSON values or as stripped text.

    >>> exact('{"a": 1}', {"a": 1}), exact("yes", "no")
    (1.0, 0.0)
    """
    return float(equal(answer, expected))


def fields(answer: str, expected: Any) -> float:
    """The share of an object's fields that are right, of those that either has; of other values, whether they agree.

    >>> fields('{"a": 1, "b": 2}', {"a": 1, "b": 3}), fields('{"a": 1, "c": 0}', {"a": 1}), fields("no", {"a": 1})
    (0.5, 0.5, 0.0)
    """
    value = json_instance(answer)
    if not isinstance(expected, dict) or not expected:
        return exact(answer, expected)
    if not isinstance(value, dict):
        return 0.0
    right = sum(name in value and same(value[name], expected[name]) for name in expected)
    return right / len(expected.keys() | value.keys())


def label(answer: str, expected: Any) -> float:
    """1 where the answer is the label, or one of several, whatever its case and the signs around it.

    >>> label(" **Positive**. ", "positive"), label("not positive", "positive"), label("B)", ["b", "c"])
    (1.0, 0.0, 1.0)
    """
    return float(any(bare_text(answer) == bare_text(one) for one in _texts(expected)))


def regex(answer: str, expected: Any) -> float:
    r"""1 where the pattern, or one of several, is found in the answer (Python's `re`).

    >>> regex("It is 21.50 EUR.", r"\b21\.50?\b"), regex("It is 2150.", r"\b21\.50?\b")
    (1.0, 0.0)
    """
    return float(any(re.search(pattern, answer) for pattern in _texts(expected)))


def chrf(answer: str, expected: Any) -> float:
    """chrF2 of the answer against the best of the texts (Popović, WMT 2015), as sacreBLEU computes it, over 100.

    >>> round(chrf("the cat sat on the mat", "the cat is on the mat"), 6)
    0.645779
    >>> round(chrf("hello", "hello world"), 6), chrf("abc", "xyz"), chrf("ab cd", "abcd")
    (0.406908, 0.0, 1.0)
    """
    return max((_chrf("".join(answer.split()), "".join(one.split())) for one in _texts(expected)), default=0.0)


def token_f1(answer: str, expected: Any) -> float:
    """F1 of the words shared with the best of the texts, as in SQuAD (Rajpurkar et al., arXiv 1606.05250).

    >>> token_f1("The Eiffel Tower!", "eiffel tower"), round(token_f1("tower in Paris", ["Eiffel Tower", "Rome"]), 3)
    (1.0, 0.4)
    """
    return max((_f1(_words(answer), _words(one)) for one in _texts(expected)), default=0.0)


def tool_call(answer: str, expected: Any) -> float:
    """The share of arguments that are right, of those that either call has; 0 where another tool is called.

    Calls are `{"name", "arguments"}`, an OpenAI message with `tool_calls`, or in one of `tool_calls.FORMS`; arguments
    are compared by type and value. Of several calls it is the mean, whatever their order; one too many or too few is
    wrong. Where no tool fits, `expected` is an empty list: right is an answer in words.

    >>> right = {"name": "light", "arguments": {"room": "hall", "on": True}}
    >>> tool_call('<tool_call>{"name": "light", "arguments": {"room": "hall", "on": false}}</tool_call>', right)
    0.5
    >>> tool_call('{"tool_calls": [{"function": {"name": "light", "arguments": {"room": "hall"}}}]}', right)
    0.5
    >>> tool_call('{"name": "door", "arguments": {"room": "hall", "on": true}}', right), tool_call("hello", right)
    (0.0, 0.0)
    >>> tool_call("I cannot open doors.", []), tool_call('{"name": "light", "arguments": {}}', [])
    (1.0, 0.0)
    """
    wanted, given = _calls(expected), _calls(answer)
    if not wanted:
        return float(not given and not said(answer).is_broken and bool(answer.strip()))
    return paired([[_same_call(mine, theirs) for theirs in wanted] for mine in given]) / max(len(wanted), len(given))


def number(answer: str, expected: Any) -> float:
    """1 where the number that the answer comes to is the right one, or one of several; 1,000 and 1000.0 are the same.

    >>> number("12 x 3 = 36, and 36 + 4 = 40.\\nAnswer: 40", 40), number("40 or 41", 40), number("none", 0)
    (1.0, 0.0, 0.0)
    """
    found = final_number(answer)
    return float(found is not None and any(found == final_number(text) for text in _texts(expected)))


def choice(answer: str, expected: Any) -> float:
    """1 where the answer chooses, in the end, the right letter or label, or one of several.

    >>> choice("A is too small. The answer is (B).", "B"), choice("B) Paris", ["B", "Paris"]), choice("Not B", "B")
    (1.0, 1.0, 0.0)
    """
    return float(any(chosen(answer, one) for one in _texts(expected)))


SCORERS: dict[str, Callable[[str, Any], float]] = {
    "exact": exact,
    "json": fields,
    "label": label,
    "regex": regex,
    "chrf": chrf,
    "f1": token_f1,
    "tool": tool_call,
    "number": number,
    "choice": choice,
}


def require_expected(scorer: str, prompt: Prompt, where: str) -> None:
    """Raise InvalidInput where a row's right answer is none for the scorer."""
    problem = None if prompt.expected is None else fits_scorer(scorer, prompt.expected)
    if problem:
        raise InvalidInput(
            f"{where}: the expected answer of {prompt.text[:60]!r} is not {problem}",
            f"The scorer '{scorer}' needs it so.",
        )


def right_text(scorer: str, expected: Any) -> str:
    """A right answer as a model writes it, for its length: calls in Hermes' form, JSON without spaces, or the text.

    >>> right_text("tool", {"name": "now", "arguments": {}})
    '<tool_call>\\n{"name": "now", "arguments": {}}\\n</tool_call>'
    """
    if scorer != "tool":
        return answer_text(expected)
    calls = [ToolCall(name, json.dumps(arguments, ensure_ascii=False)) for name, arguments in _calls(expected)]
    return with_calls(Message("assistant", "" if calls else IN_WORDS, tuple(calls)))


def fits_scorer(scorer: str, expected: Any) -> str | None:
    """What a right answer has to be for the scorer, in a few words; None where it is.

    >>> fits_scorer("number", "1,200 EUR"), fits_scorer("number", "many"), fits_scorer("tests", "assert f(")
    (None, 'a number, or a list of numbers', 'Python statements that test the answer, or a list of such texts')
    """
    texts = _texts(expected)
    if scorer in ("label", "regex", "chrf", "f1", "choice") and not texts:
        return "a text, or a list of texts, that are not empty"
    if scorer == "tool" and not _calls(expected) and expected not in NO_CALLS:
        return 'a call: {"name": ..., "arguments": {...}}, or [] where no tool fits'
    if scorer == "number" and (not texts or any(final_number(text) is None for text in texts)):
        return "a number, or a list of numbers"
    if scorer == "tests" and asserted(expected) is None:
        return "Python statements that test the answer, or a list of such texts"
    for pattern in texts if scorer == "regex" else ():
        try:
            re.compile(pattern)
        except re.error as error:
            return f"a pattern ({error})"
    return None


def _texts(expected: Any) -> list[str]:
    """The right answers of a row: one text or several, without empty ones; other values in JSON."""
    if isinstance(expected, list):
        return [text for one in expected for text in _texts(one)]
    text = expected if isinstance(expected, str) else json.dumps(expected, ensure_ascii=False)
    return [text] if text.strip() else []


def _chrf(answer: str, reference: str) -> float:
    precision = recall = 0.0
    orders = 0
    for size in range(1, CHRF_ORDER + 1):
        mine, theirs = _grams(answer, size), _grams(reference, size)
        if mine and theirs:
            shared = (mine & theirs).total()
            precision, recall, orders = precision + shared / mine.total(), recall + shared / theirs.total(), orders + 1
    if not precision + recall:
        return 0.0
    precision, recall, factor = precision / orders, recall / orders, CHRF_BETA**2
    return (1 + factor) * precision * recall / (factor * precision + recall)


def _grams(text: str, size: int) -> Counter[str]:
    return Counter(text[i : i + size] for i in range(len(text) - size + 1))


def _words(text: str) -> list[str]:
    bare = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return ARTICLES.sub(" ", bare).split()


def _f1(mine: list[str], theirs: list[str]) -> float:
    if not mine or not theirs:
        return float(mine == theirs)
    shared = (Counter(mine) & Counter(theirs)).total()
    return 2 * shared / (len(mine) + len(theirs))


def _calls(value: Any) -> list[tuple[str, Any]]:
    """Name and arguments of each call in an answer, in any of the forms that are known."""
    if isinstance(value, str):
        found = said(value)
        plain = () if found.calls or found.is_broken else _calls_of(json_instance(value))
        return [*found.calls, *plain]
    return _calls_of(value)


def _calls_of(value: Any) -> list[tuple[str, Any]]:
    """The same of a JSON value, of which a text is none."""
    if isinstance(value, list):
        return [call for one in value for call in _calls_of(one)]
    if not isinstance(value, dict):
        return []
    if "tool_calls" in value:
        return _calls_of(value["tool_calls"])
    inner = value.get("function", value)
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
        return []
    arguments = inner.get("arguments", inner.get("parameters", {}))
    return [(inner["name"], json_instance(arguments) if isinstance(arguments, str) else arguments)]


def _same_call(mine: tuple[str, Any], theirs: tuple[str, Any]) -> float:
    if mine[0] != theirs[0]:
        return 0.0
    if mine[1] == theirs[1] == {}:
        return 1.0
    if not isinstance(theirs[1], dict) or not isinstance(mine[1], dict):
        return float(same(mine[1], theirs[1]))
    return fields(json.dumps(mine[1]), theirs[1]) if theirs[1] else 0.0
