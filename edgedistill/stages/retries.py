"""Answers that are wrong, tried again by the teacher with what is wrong shown; each try is a turn of the conversation.

The failures are seen by the student and not learned (`weight` 0). What was wrong with each is kept in `tries.jsonl`, so
that the conversation is the same whenever it is put together: a program may say something else the second time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from ..recipe import CurateSettings, Recipe, TeachSettings
from ..records import Completion, Prompt, digest, json_lines, read_rows
from ..run import stop_if_asked, write_whole
from ..teachers import ending
from .asking import Asking
from .combine import Answered
from .keys import retry_temperature
from .rightness import Fault, faults

__all__ = ["TOLD", "TRIES", "Tries", "checks", "retry", "write_tries"]

TRIES = "tries.jsonl"
AT_ONCE = 256  # prompts whose failures are asked about side by side
TOLD = 200  # tokens of what is said to a try that failed, and a little room
SHOWN = ("tests failed", "verifier")
"""Reasons of which the teacher is told what is wrong; it is never told what is expected of it."""

Complete = Callable[[Iterator[Prompt], TeachSettings, int], Iterable[Completion]]


def checks(settings: CurateSettings) -> dict[str, Any]:
    """What decides whether an answer is asked for again, as JSON: for the key of the stage."""
    names = {"right_by", "verifier", "verifier_seconds", "verifier_memory_mb", "reasoning", "reasoning_tokens"}
    return settings.model_dump(mode="json", include=names)


def complained(fault: Fault) -> str:
    """What the teacher is told of a wrong answer.

    >>> complained(("tests failed", "assert f(1) == 2"))
    'That is not right:\\n\\nassert f(1) == 2\\n\\nWrite the whole answer again.'
    >>> complained(("wrong answer", "expected is 42"))
    'That is not right. Write the whole answer again.'
    """
    reason, what = fault
    if reason not in SHOWN or not what:
        return "That is not right. Write the whole answer again."
    return f"That is not right:\n\n{what}\n\nWrite the whole answer again."


def tried(prompt: Prompt, one: Answered) -> Prompt:
    """What is asked once all tries so far have failed, under an id of its own."""
    asked = one.asked(prompt)
    return replace(asked, id=digest(prompt.id, one.teacher, one.completion.sample, len(one.tried))[:16])


def retry(
    recipe: Recipe, asking: Asking, first: Iterable[tuple[Prompt, list[Answered]]], complete: Complete
) -> list[dict[str, Any]]:
    """Have one teacher try again what is wrong, `teach.retries` times at most; return what was told to it.

    `first` are the prompts with this teacher's own answers. A try that gets no answer is the last one.
    """
    told: list[dict[str, Any]] = []
    source = iter(first)
    while block := list(islice(source, AT_ONCE)):
        open_now = [(prompt, one) for prompt, many in block for one in many]
        words: dict[tuple[str, int], list[str]] = {}
        for _ in range(recipe.teach.retries):
            open_now = _round(recipe, asking, open_now, complete, words)
        number = asking.number
        told += [{"id": key[0], "teacher": number, "sample": key[1], "told": said} for key, said in words.items()]
    return told


def _round(
    recipe: Recipe,
    asking: Asking,
    rows: Sequence[tuple[Prompt, Answered]],
    complete: Complete,
    words: dict[tuple[str, int], list[str]],
) -> list[tuple[Prompt, Answered]]:
    """Those of the rows that are wrong, each with its next try, which is stored."""
    found = faults(rows, recipe.curate, recipe.path.parent, verifies=True)
    again: dict[str, tuple[Prompt, Answered, Prompt]] = {}
    for (prompt, one), fault in zip(rows, found, strict=True):
        if fault is not None:
            said = complained(fault)
            failed = replace(one, tried=(*one.tried, (one.completion.text, said)))
            words.setdefault((prompt.id, one.completion.sample), []).append(said)
            question = tried(prompt, failed)
            again[question.id] = prompt, failed, question
    keys = {
        name: asking.keys.again(question, failed.completion.sample) for name, (_, failed, question) in again.items()
    }
    held = asking.store.held(list(keys.values()))
    todo = [question for name, (_, _, question) in again.items() if keys[name] not in held]
    if todo:
        changes = {"samples": 1, "temperature": retry_temperature(recipe.teach)}
        single = recipe.teach.model_copy(update=changes)
        with ending(complete(iter(todo), single, recipe.seed)) as answers:
            for answer in answers:
                prompt, failed, _ = again[answer.prompt_id]
                own = replace(answer, prompt_id=prompt.id, sample=failed.completion.sample)
                asking.store.add(keys[answer.prompt_id], own, asking.number)
                asking.tally.know(0, own.completion_tokens)
                stop_if_asked()
    there = asking.store.find(list(keys.values()))
    return [
        (prompt, replace(failed, completion=there[keys[name]]))
        for name, (prompt, failed, _) in again.items()
        if keys[name] in there
    ]


@dataclass(frozen=True)
class Tries:
    """What a finished stage told its teachers, by teacher, prompt and sample."""

    told: dict[tuple[int, str, int], list[str]]

    @classmethod
    def read(cls, folder: Path) -> Tries:
        """Those of a run's folder; none, where nothing was tried again."""
        path = folder / TRIES
        return cls.of((row for _, row in read_rows(path)) if path.is_file() else ())

    @classmethod
    def of(cls, rows: Iterable[dict[str, Any]]) -> Tries:
        """Those that `retry` returned."""
        return cls({(row["teacher"], row["id"], row["sample"]): row["told"] for row in rows})

    def last(
        self, prompt: Prompt, one: Answered, get: Callable[[Prompt, int], tuple[str, Completion | None]]
    ) -> Answered:
        """An answer's last try, with those that failed before it; `get` finds a question's key and completion."""
        for said in self.told.get((one.teacher, prompt.id, one.completion.sample), ()):
            failed = replace(one, tried=(*one.tried, (one.completion.text, said)))
            key, found = get(tried(prompt, failed), one.completion.sample)
            if found is None:
                return one
            one = replace(failed, completion=found, key=key)
        return one


def write_tries(folder: Path, told: Sequence[dict[str, Any]]) -> None:
    """Keep what the teachers were told; no file, where they were told nothing."""
    if told:
        write_whole(folder / TRIES, json_lines(told))
    else:
        (folder / TRIES).unlink(missing_ok=True)
