"""Why curate kept or threw out one row: what each rule says to each answer, and what became of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ..curation import RULES, Given
from ..errors import InvalidInput
from ..recipe import Recipe
from ..records import Prompt, iter_prompts, read_rows
from ..run import Run
from ..schema import load_schema, schema_validator
from ..similarity import normalised
from .combine import Answered, combined
from .rating import stored_worth
from .shortening import Looked, looked_at
from .sorting import SUSPECTS
from .stored_answers import answers, prompts_file
from .turn_rules import turns_of

__all__ = ["explained"]

FEWEST_DIGITS = 4  # of an id that is not given as a whole
FILES = ("train", "valid", "rejected")


def explained(recipe: Recipe, run: Run, row: str) -> dict[str, Any]:
    """Everything about a row, given by its id, the beginning of it, or the text of its prompt.

    `answers` has of each answer what every rule says, None where it does not object, and the same of `earlier` turns;
    `judge` is what the judge found an answer worth; `calls` is what is wrong with calls of tools; `wrong` says why the
    answer is not right; `combined` what the answers came to; `outcome` where the row is now, with reason, and whether
    its label is suspicious. Raises InvalidInput where there is no such row, or several.
    """
    wanted = _wanted(run, row)
    prompt, given = next(one for one in answers(recipe, run) if one[0].id == wanted.id)
    is_valid = schema_validator(load_schema(recipe))
    settings = recipe.curate

    def rules(turn: tuple[Given, tuple[str, str] | None]) -> dict[str, Any]:
        looked, fault = turn
        found = {
            reason: "not asked" if reason in settings.skip else rule(looked, settings) for reason, rule in RULES.items()
        }
        return {"finish_reason": looked.completion.finish_reason, "rules": found, **({"calls": fault} if fault else {})}

    def said(one: Answered) -> dict[str, Any]:
        about = {"teacher": one.teacher + 1, "sample": one.completion.sample, "text": one.completion.text}
        *earlier, last = map(rules, turns_of(prompt, one, is_valid, recipe.tools))
        texts = [turn.text for turn in one.earlier]
        before = [{"text": text, **turn} for text, turn in zip(texts, earlier, strict=True)]
        value = stored_worth(recipe, run, prompt, one)
        judged = {} if value is None else {"judge": round(value, 3)}
        return {**about, **last, **judged, **({"earlier": before} if before else {})}

    looked = looked_at([(prompt, one) for one in given], settings, recipe.path.parent)
    right = [one for one, fault in looked if fault is None]
    chosen = combined(prompt, right, settings.combining, is_valid, recipe.path.parent) if right else _none_right(looked)
    return {
        "id": prompt.id,
        "prompt": prompt.text,
        "answers": [{**said(one), **({"wrong": fault} if fault else {})} for one, fault in looked],
        "combined": chosen if isinstance(chosen, str) else [one.completion.text for one in chosen],
        "outcome": _outcome(run, prompt.id),
    }


def _none_right(looked: Sequence[Looked]) -> str:
    return next((fault[0] for _, fault in looked if fault is not None), "no answer")


def _wanted(run: Run, row: str) -> Prompt:
    text = normalised(row)
    is_id = len(row) >= FEWEST_DIGITS and all(sign in "0123456789abcdef" for sign in row)
    found = [
        prompt
        for prompt in iter_prompts(prompts_file(run))
        if (is_id and prompt.id.startswith(row)) or normalised(prompt.text) == text
    ]
    if not found:
        raise InvalidInput(
            f"{prompts_file(run)}: no row '{row}'", "Give the id of a row of prompts.jsonl, or the text of its prompt."
        )
    if len(found) > 1:
        raise InvalidInput(
            f"'{row}' is the beginning of {len(found)} ids: {', '.join(one.id for one in found[:3])}",
            "Give more of it.",
        )
    return found[0]


def _outcome(run: Run, identity: str) -> dict[str, Any]:
    """Where the row is: the file, and of a rejected one the reason; of another row that it repeats, the text too."""
    found = next(_rows(run, identity), None)
    if found is None:
        return {"file": None}
    name, own = found
    outcome: dict[str, Any] = {"file": f"{name}.jsonl"}
    outcome |= {key: own[key] for key in ("reason", "what", "of") if key in own}
    suspects = run.folder("curate") / SUSPECTS
    doubts = read_rows(suspects) if suspects.is_file() else ()
    outcome |= next(({"suspicious": row} for _, row in doubts if row["id"] == identity), {})
    if "of" in own:
        first = (prompt.text for prompt in iter_prompts(prompts_file(run)) if prompt.id == own["of"])
        outcome["of_text"] = next(first, None)
    return outcome


def _rows(run: Run, identity: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for name in FILES:
        path = run.folder("curate") / f"{name}.jsonl"
        if path.is_file():
            yield from ((name, row["_ed"]) for _, row in read_rows(path) if row["_ed"]["id"] == identity)
