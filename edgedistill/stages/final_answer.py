"""What an answer comes to in the end: without what was thought before it, its final number, its final choice."""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

__all__ = ["THOUGHTS", "bare_text", "chosen", "concluded", "final_number", "thought_and_said", "without_trace"]

# how families of models fence what they think before they answer
THOUGHTS = (
    ("<think>", "</think>"),  # DeepSeek-R1, Qwen3, QwQ, SmolLM3, Phi-4-reasoning, Granite 3
    ("[THINK]", "[/THINK]"),  # Magistral
    ("<thought>", "</thought>"),  # EXAONE Deep
    ("<seed:think>", "</seed:think>"),  # Seed-OSS
)
# how an answer says that now comes the result: of GSM8K, of those who were asked for "Answer:", in LaTeX
MARK = re.compile(r"####|\b(?:final\s+)?answer\b[*_\"]*\s*(?:is\b[*_]*\s*:?|:)", re.IGNORECASE)
BOXED = re.compile(r"\\boxed\{((?:[^{}]|\{[^{}]*\})*)\}")
FRACTION = re.compile(r"\\[dt]?frac\{\s*([-−]?\d{1,15})\s*\}\{\s*(\d{1,15})\s*\}")
NUMBER = re.compile(
    r"(?<![\w.])([-−]?)\s?[$€£]?\s?(\d{1,3}(?:,\d{3})+(?!\d)|\d{1,40})?(\.\d{1,40})?(?<=\d)(?:\s?/\s?(\d{1,15})(?![\d.]))?"
)
CHOICE = re.compile(r"[\s*_\"'\[]*(?:option|choice)?\s*\(?([A-Za-z0-9])(?![A-Za-z0-9])[)\].:*_\"']*", re.IGNORECASE)


def thought_and_said(text: str) -> tuple[str, str]:
    """What was thought, without the model's fences, and what was then said; thoughts that do not end are all there is.

    Some templates open the thoughts themselves, so that only their end is in the text.

    >>> thought_and_said("<think>\\n2 + 2\\n</think>\\n\\n4"), thought_and_said("2 + 2</think>4"), thought_and_said("4")
    (('2 + 2', '4'), ('2 + 2', '4'), ('', '4'))
    >>> thought_and_said("<think>2 + ")
    ('2 +', '')
    """
    for begin, end in THOUGHTS:
        before, found, after = text.rpartition(end)
        if found:
            return before.strip().removeprefix(begin).strip(), after.strip()
        if text.lstrip().startswith(begin):
            return text.lstrip().removeprefix(begin).strip(), ""
    return "", text


def concluded(text: str) -> str | None:
    """What stands behind the last mark of a result: "Answer:", "the answer is", "####", in a box; None without one.

    >>> concluded("3 + 4 = 7\\nAnswer: 7 apples"), concluded("**The answer is** \\\\boxed{7}."), concluded("7 apples")
    ('7 apples', '7', None)
    """
    said = thought_and_said(text)[1]
    boxed = [(found.end(), found[1]) for found in BOXED.finditer(said)]
    marked = [(found.end(), said[found.end() :]) for found in MARK.finditer(said)]
    last = max([*boxed, *marked], default=None)
    return None if last is None else last[1].strip().removeprefix("**").strip()


def without_trace(text: str) -> str:
    """The line with the last mark of a result, and what follows it; the whole text where it has no mark.

    >>> without_trace("3 + 4 = 7\\nSo the answer is 7."), without_trace("7 apples")
    ('So the answer is 7.', '7 apples')
    """
    said = thought_and_said(text)[1]
    last = max((found.start() for form in (MARK, BOXED) for found in form.finditer(said)), default=0)
    return said[said.rfind("\n", 0, last) + 1 :].strip()


def final_number(text: str) -> Fraction | None:
    """The number that an answer comes to, exactly: the first behind its last mark, else its last one; None without any.

    Signs of currency, thousands (1,234) and a percent sign count for nothing.

    >>> texts = "6 x 7 = 42", "1 + 2 = 3. Answer: $1,234.50 for 5", "\\\\frac{3}{4}", "-.5"
    >>> [str(final_number(text)) for text in texts]
    ['42', '2469/2', '3/4', '-1/2']
    >>> final_number("Answer: none of 3? No: many"), final_number("Answer: many"), final_number("<think>5</think>none")
    (Fraction(3, 1), None, None)
    """
    last = concluded(text)
    part = thought_and_said(text)[1] if last is None else last
    found = [one for one in NUMBER.finditer(FRACTION.sub(r"\1/\2", part)) if one[2] or one[3]]
    return None if not found else _value(found[-1 if last is None else 0])


def _value(found: re.Match[str]) -> Fraction | None:
    sign, whole, decimals, below = found.groups()
    if below and not int(below):
        return None
    value = Fraction((whole or "0").replace(",", "") + (decimals or "")) / (int(below) if below else 1)
    return -value if sign else value


def chosen(text: str, choice: str) -> bool:
    """Whether an answer chooses this letter, number or label: behind its last mark, else as all that it says.

    >>> chosen("Both hold. The answer is (B).", "B"), chosen("B) Paris", "b"), chosen("**Answer:** Paris", "paris")
    (True, True, True)
    >>> chosen("A cat sat there.", "A"), chosen("Answer: a cat", "A"), chosen("not B", "B")
    (False, False, False)
    """
    last = concluded(text)
    said = thought_and_said(text)[1].strip() if last is None else last
    line = said.splitlines()[0] if said else ""
    if last is None and len(said.splitlines()) > 1:
        return False
    if bare_text(line) == bare_text(choice):
        return True
    label = CHOICE.match(line) if len(choice.strip()) == 1 else None
    if label is None or label[1].casefold() != choice.strip().casefold():
        return False
    # a letter with words behind it is a choice where a sign, or a mark before it, sets it apart: "A cat" is none
    is_set_apart = not label[0].rstrip()[-1:].isalnum() or (last is not None and not label[1].islower())
    return is_set_apart or label.end() == len(line)


def bare_text(text: str) -> str:
    """A text without case, and without signs around it.

    >>> bare_text(" **Paris**. ")
    'paris'
    """
    return re.sub(r"^[\W_]+|[\W_]+$", "", unicodedata.normalize("NFKC", text).casefold())
