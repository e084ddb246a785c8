"""Traces that are longer than the recipe's budget, said again by the teacher in fewer words.

The shorter one is learned where it fits the budget and still comes to the same; else the original, or nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import islice
from pathlib import Path

from ..recipe import CurateSettings, Recipe
from ..records import Completion, Message, Prompt, digest
from ..run import stop_if_asked
from ..teachers import ending
from .asking import Asking
from .combine import Answered
from .final_answer import THOUGHTS, concluded, final_number, thought_and_said
from .retries import AT_ONCE, Complete
from .rightness import Fault, faults

__all__ = ["Looked", "is_too_long", "looked_at", "question", "shorten"]

WORDS_PER_TOKEN = 0.6  # of plain English with figures in it, and a little room: models count words better than tokens
REASON = "trace too long"

Row = tuple[Prompt, Answered]
Looked = tuple[Answered, Fault | None]
"""An answer, and why it is not learned from."""


def is_too_long(one: Answered, settings: CurateSettings) -> bool:
    """Whether an answer that was not cut off has more of the teacher's tokens than the recipe allows."""
    is_asked = settings.reasoning == "shorten" and one.completion.finish_reason == "stop"
    return is_asked and one.completion.completion_tokens > settings.reasoning_tokens


def question(prompt: Prompt, one: Answered, settings: CurateSettings) -> Prompt:
    """What the teacher is asked, to have an answer said in fewer words: a question of its own, behind what came before.

    >>> one = Answered(0, Completion("1", "<think>So 6 * 7 = 42.</think>42", "stop", 9, 99, 0.1))
    >>> print(question(Prompt("1", (Message("user", "6 * 7?"),)), one, CurateSettings()).text)
    6 * 7?
    <BLANKLINE>
    A solution:
    <BLANKLINE>
    So 6 * 7 = 42.
    <BLANKLINE>
    Write this solution again in at most 60 words, with the same result at the end: only the steps that matter.
    """
    *before, last = one.asked(prompt).messages
    thought, said = thought_and_said(one.completion.text)
    words = int(settings.reasoning_tokens * WORDS_PER_TOKEN)
    text = (
        f"{last.content}\n\nA solution:\n\n{thought or said}\n\nWrite this solution again in at most {words} words, "
        "with the same result at the end: only the steps that matter."
    )
    name = digest("shorter", prompt.id, one.teacher, one.completion.sample, one.completion.text)[:16]
    return Prompt(name, (*before, Message(last.role, text)), tools=prompt.tools)


def shorten(recipe: Recipe, asking: Asking, rows: Iterable[tuple[Prompt, list[Answered]]], complete: Complete) -> None:
    """Have one teacher say again what is right and too long; the shorter ones are stored."""
    settings, source = recipe.curate, iter(rows)
    single = recipe.teach.model_copy(update={"samples": 1, "targets": "none"})
    while block := list(islice(source, AT_ONCE)):
        long = [(prompt, one) for prompt, many in block for one in many if is_too_long(one, settings)]
        wrong = faults(long, settings, recipe.path.parent, verifies=True)
        asked = [question(prompt, one, settings) for (prompt, one), fault in zip(long, wrong, strict=True) if not fault]
        keys = {one.id: asking.keys.part(one, 0) for one in asked}
        held = asking.store.held(list(keys.values()))
        todo = [one for one in asked if keys[one.id] not in held]
        with ending(complete(iter(todo), single, recipe.seed) if todo else ()) as answers:
            for answer in answers:
                asking.store.add(keys[answer.prompt_id], replace(answer, sample=0), asking.number)
                asking.tally.know(0, answer.completion_tokens)
                stop_if_asked()


def with_shorter(one: Answered, shorter: Completion) -> Answered:
    """The answer with its trace replaced by the shorter one; what was said behind a fenced one stays."""
    thought, said = thought_and_said(one.completion.text)
    text = thought_and_said(shorter.text)[1].strip()
    begin, end = next((pair for pair in THOUGHTS if pair[1] in one.completion.text), THOUGHTS[0])
    whole = f"{begin}\n{text}\n{end}\n\n{said}" if thought else text
    made = replace(shorter, prompt_id=one.completion.prompt_id, sample=one.completion.sample, text=whole, targets=None)
    return replace(one, completion=made)


def looked_at(rows: Sequence[Row], settings: CurateSettings, folder: Path | None) -> list[Looked]:
    """Each answer as it is learned, its trace shortened where it may be; or, with it, the reason why nothing is.

    The verifier is asked only where it decides which answers are combined.
    """
    wrong = faults(rows, settings, folder, verifies=settings.combine == "shortest")
    right = iter(_settled([row for row, fault in zip(rows, wrong, strict=True) if fault is None], settings, folder))
    return [next(right) if fault is None else (one, fault) for (_, one), fault in zip(rows, wrong, strict=True)]


def _settled(rows: Sequence[Row], settings: CurateSettings, folder: Path | None) -> list[Looked]:
    """Each right answer as it is learned: itself or its shorter trace; or, with it, the reason why nothing is."""
    shorter = {
        number: with_shorter(one, one.shorter) for number, (_, one) in enumerate(rows) if one.shorter is not None
    }
    wrong = faults([(rows[number][0], made) for number, made in shorter.items()], settings, folder, verifies=True)
    holding = {
        number: made
        for (number, made), fault in zip(shorter.items(), wrong, strict=True)
        if fault is None and _holds(rows[number][1], made, settings)
    }
    found: list[Looked] = []
    for number, (_, one) in enumerate(rows):
        if number in holding or settings.reasoning_over == "keep" or not is_too_long(one, settings):
            found.append((holding.get(number, one), None))
        else:
            said = f"{one.completion.completion_tokens} tokens, {settings.reasoning_tokens} are allowed"
            found.append((one, (REASON, said)))
    return found


def _holds(one: Answered, made: Answered, settings: CurateSettings) -> bool:
    """Whether a shorter trace is whole, fits the budget, and comes to what the longer one came to."""
    if made.completion.finish_reason != "stop" or made.completion.completion_tokens > settings.reasoning_tokens:
        return False
    traces = (thought_and_said(text)[0] or text for text in (one.completion.text, made.completion.text))
    before, after = (_end(text) for text in traces)
    return before is not None and before == after


def _end(text: str) -> Fraction | str | None:
    number = final_number(text)
    return concluded(text) if number is None else number
