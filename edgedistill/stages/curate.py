"""curate: throw out what would teach the wrong thing, each row with a named reason."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..chat import json_instance
from ..errors import InvalidInput
from ..recipe import CurateSettings, Recipe, load_schema
from ..records import Completion, Example, Message, Prompt, json_lines, read_prompts
from ..run import Progress, Run, write_whole
from ..similarity import SimilarTexts
from .teach import answers

__all__ = ["curate", "is_valid_row", "reject", "repeats"]

Validator = Callable[[Any], bool]


def curate(recipe: Recipe, run: Run, out: Path, progress: Progress) -> dict[str, Any]:
    """Write `train.jsonl`, `valid.jsonl`, `rejected.jsonl` (with reasons) and `stats.json`."""
    prompts = read_prompts(run.folder("prompts") / "prompts.jsonl")
    screen = _Screen(recipe)
    kept: list[Example] = []
    rejected: list[dict[str, Any]] = []
    for number, (prompt, completion) in enumerate(zip(prompts, answers(run, prompts), strict=True), start=1):
        example = Example(prompt.id, (*prompt.messages, Message("assistant", completion.text)))
        reason = screen.reject(prompt, completion)
        if reason is None:
            kept.append(example)
        else:
            rejected.append({**example.as_row(), "_ed": {"id": prompt.id, **reason}})
        progress("curating", number, len(prompts))
    train = [example for example in kept if not is_valid_row(example.id, recipe.curate.valid_share)]
    valid = [example for example in kept if is_valid_row(example.id, recipe.curate.valid_share)]
    reasons = Counter(row["_ed"]["reason"] for row in rejected)
    stats = {"prompts": len(prompts), "train": len(train), "valid": len(valid), "rejected": dict(reasons)}
    write_whole(out / "train.jsonl", json_lines(example.as_row() for example in train))
    write_whole(out / "valid.jsonl", json_lines(example.as_row() for example in valid))
    write_whole(out / "rejected.jsonl", json_lines(rejected))
    if not train:
        raise InvalidInput("no row is left to learn from", f"Read the reasons in {out / 'rejected.jsonl'}.")
    write_whole(out / "stats.json", json_lines([stats]))
    return stats


class _Screen:
    """All rules of a recipe, with what they remember of the rows before."""

    def __init__(self, recipe: Recipe) -> None:
        self._settings = recipe.curate
        self._is_valid = schema_validator(load_schema(recipe))
        self._seen = SimilarTexts(recipe.curate.near_duplicate)
        self._eval = SimilarTexts(recipe.curate.eval_overlap)
        for path in recipe.files("evaluate").values():
            for prompt in read_prompts(path):
                self._eval.add(prompt.id, prompt.text)

    def reject(self, prompt: Prompt, completion: Completion) -> dict[str, str] | None:
        """The reason, and where there is one the id of the row that it repeats; None for a good row."""
        reason = reject(completion, self._settings, self._is_valid)
        if reason is not None:
            return {"reason": reason}
        for name, twin in (
            ("overlap with eval", self._eval.exact(prompt.text) or self._eval.near(prompt.text)),
            ("exact duplicate", self._seen.exact(prompt.text)),
            ("near duplicate", self._seen.near(prompt.text)),
        ):
            if twin is not None:
                return {"reason": name, "of": twin}
        self._seen.add(prompt.id, prompt.text)
        return None


def reject(completion: Completion, settings: CurateSettings, is_valid: Validator | None) -> str | None:
    """Why this completion is no use, or None.

    >>> reject(Completion("1", "Yes, beca", "length", 5, 3, 0.1), CurateSettings(), None)
    'cut off'
    >>> reject(Completion("1", "I'm sorry, but no.", "stop", 5, 3, 0.1), CurateSettings(), None)
    'refusal'
    """
    text = completion.text.strip()
    if completion.finish_reason != "stop":
        return "cut off"
    if not text:
        return "empty"
    if is_valid is not None and not is_valid(json_instance(text)):
        return "schema"
    if text.lower().startswith(settings.refusals):
        return "refusal"
    if repeats(text):
        return "repetition"
    return None


def repeats(text: str) -> bool:
    """Whether a text of some length says the same few words over and over.

    >>> repeats("the light " * 20)
    True
    >>> repeats("Turn on the light in the kitchen, then the one in the hall.")
    False
    """
    words = re.findall(r"\w+", text.lower())
    triples = list(zip(words, words[1:], words[2:], strict=False))
    return len(triples) >= 12 and len(set(triples)) < 0.4 * len(triples)


def is_valid_row(identity: str, share: float) -> bool:
    """Whether a row measures instead of teaching: decided by its id alone, so the order does not matter."""
    return int(hashlib.sha256(identity.encode()).hexdigest()[:8], 16) < share * 2**32


def schema_validator(schema: dict[str, Any] | None) -> Validator | None:
    """A check of JSON values against the schema; None where there is no schema."""
    if schema is None:
        return None
    import jsonschema_rs

    try:
        validator = jsonschema_rs.validator_for(schema)
    except (ValueError, jsonschema_rs.ValidationError) as error:
        raise InvalidInput(f"schema: {str(error).splitlines()[0]}", "Mend the schema.") from error
    return validator.is_valid
