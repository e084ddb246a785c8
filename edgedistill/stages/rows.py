"""Rows of the store as files: to be read elsewhere, to be answered elsewhere, and back."""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import InvalidInput
from ..recipe import Recipe
from ..records import (
    Completion,
    Message,
    Prompt,
    chat_row,
    iter_prompts,
    messages_of,
    placed_lines,
    prompt_id,
    prompt_seed,
    row_of,
    tools_of,
)
from ..run import Progress, Run, stop_if_asked
from ..schema import load_schema
from ..store import Store
from ..targets import decode
from ..teachers import preamble
from ..teachers.identity import fetch_teacher, identify_teacher
from .dialogue import parts
from .keys import AnswerKeys, given_answers, parameters, row_key, teacher_identity
from .on_offer import goes_in_steps
from .stored_answers import READ_AT_ONCE, STORE, prompts_file
from .streams import rows_file
from .teach import row_count

__all__ = ["Imported", "asked_keys", "export_rows", "export_todo", "import_rows"]

GIVEN = -1  # in place of a sample's number: the recipe gives this answer
SEEDS = 2**31  # some servers keep a seed in 32 bits
NAMED = 20  # lines that are named one by one


def asked_keys(recipe: Recipe, run: Run, progress: Progress) -> list[AnswerKeys]:
    """The keys of each teacher's answers, as the recipe asks for them now; weights are fetched only to be hashed.

    Raises InvalidInput where tools are run or a user goes on: a row of a file holds one answer, not the way to it.
    """
    if goes_in_steps(recipe):
        what, off = ("user.turns", "turns = 0") if recipe.user.turns else ("tools.results", 'results = "none"')
        raise InvalidInput(
            f"{recipe.path}: answers are reached in steps ({what}), and what leads to one is in no file of rows",
            f"Write {off}, or let a teacher here answer.",
        )
    given = given_answers(recipe)
    keys = []
    for teacher in recipe.teachers:
        sha256 = identify_teacher(recipe, teacher, run.offline).sha256
        sha256 = sha256 or fetch_teacher(recipe, teacher, run.offline, progress).sha256
        assert sha256 is not None, "weights that were fetched have been hashed"
        keys.append(AnswerKeys(teacher_identity(recipe, teacher, sha256), recipe.teach.samples, given))
    return keys


# out


def export_rows(recipe: Recipe, run: Run, path: Path, progress: Progress) -> int:
    """Write every stored answer that the recipe asks for as a chat row; return how many there are."""
    params = parameters(recipe)
    count = 0
    with rows_file(path) as write:
        for one in _wanted(recipe, run, progress):
            if one.completion is not None:
                write(_row(one, one.completion, params))
                count += 1
    return count


def export_todo(recipe: Recipe, run: Run, path: Path, progress: Progress) -> int:
    """Write every answer that is still to be asked for as a request; return how many there are.

    Raises InvalidInput where the recipe asks for targets, which only a teacher here can tell.
    """
    if recipe.teach.targets != "none":
        raise InvalidInput(
            f"{recipe.path}: teach.targets asks for distributions, which answers from elsewhere do not have",
            'Write targets = "none", or let a local teacher answer.',
        )
    shown = [preamble(recipe, teacher) for teacher in recipe.teachers]
    schema = load_schema(recipe)
    count = 0
    with rows_file(path) as write:
        for one in _wanted(recipe, run, progress):
            if one.completion is None and one.sample != GIVEN:
                if len(parts(one.prompt)) > 1:
                    raise InvalidInput(
                        f"prompt {one.prompt.id}: several turns are answered one after another, which no file can ask",
                        "Let a teacher here answer it.",
                    )
                messages = [message.as_asked() for message in (*shown[one.teacher], *one.prompt.messages)]
                tools = {"tools": list(one.prompt.tools)} if one.prompt.tools else {}
                write({"custom_id": one.key, "messages": messages, **tools, **_request(recipe, one, schema)})
                count += 1
    return count


@dataclass(frozen=True)
class _Wanted:
    """An answer that the recipe asks for, and the completion where it is there."""

    prompt: Prompt
    teacher: int
    sample: int
    key: str
    completion: Completion | None = None


def _wanted(recipe: Recipe, run: Run, progress: Progress) -> Iterator[_Wanted]:
    """Every answer that the recipe asks for, in the order of prompts, teachers and samples."""
    teachers = asked_keys(recipe, run, progress)
    total = row_count(prompts_file(run))
    prompts = iter_prompts(prompts_file(run))
    path = run.folder("teach") / STORE
    # a journal is what a killed process left: folding it in changes the file, which only a finished stage forbids
    is_left = path.with_name(f"{STORE}-wal").exists()
    store = Store(path, read_only=not is_left) if path.is_file() else None
    done = 0
    try:
        while block := list(islice(prompts, READ_AT_ONCE)):
            wanted = [one for prompt in block for one in _of_prompt(teachers, prompt)]
            found = store.find([one.key for one in wanted]) if store else {}
            yield from (replace(one, completion=found.get(one.key)) for one in wanted)
            done += len(block)
            progress("exporting", done, total)
            stop_if_asked()
    finally:
        if store:
            store.close()


def _of_prompt(teachers: Sequence[AnswerKeys], prompt: Prompt) -> Iterator[_Wanted]:
    for number, keys in enumerate(teachers):
        is_given = keys.given(prompt) is not None
        for sample, key in enumerate(keys.of(prompt)):
            for part in parts(prompt)[:-1]:
                yield _Wanted(part, number, sample, keys.part(part, sample))
            yield _Wanted(prompt, number, GIVEN if is_given else sample, key)


def _row(one: _Wanted, completion: Completion, params: dict[str, Any]) -> dict[str, Any]:
    turns = (*one.prompt.messages, Message("assistant", completion.text))
    own: dict[str, Any] = {
        "id": one.prompt.id,
        "teacher": one.teacher,
        "sha": one.key,
        "sample": completion.sample,
        "params": params,
        "finish_reason": completion.finish_reason,
        "usage": {"prompt_tokens": completion.prompt_tokens, "completion_tokens": completion.completion_tokens},
        "seconds": completion.seconds,
    }
    if completion.answers is not None:
        own["answers"] = completion.answers
    if completion.targets is not None:
        own["targets"] = base64.b64encode(completion.targets).decode()
    return {**chat_row(turns, one.prompt.tools), "_ed": own}


def _request(recipe: Recipe, one: _Wanted, schema: dict[str, Any] | None) -> dict[str, Any]:
    """A request without its messages, in OpenAI's words; `top_k` and `min_p` in those of most servers."""
    found = {name: value for name, value in parameters(recipe).items() if name != "closed"}
    if "seed" in found:
        found["seed"] = prompt_seed(recipe.seed, one.prompt.id, one.sample) % SEEDS
    if schema is not None:
        found["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    return {"model": recipe.teachers[one.teacher].model, **found}


# in


@dataclass
class Imported:
    """What came of the lines of a file."""

    new: int = 0
    known: int = 0
    bad: int = 0
    named: list[str] = field(default_factory=list)
    """The first bad lines: file:line, and what is wrong with it."""
    torn: bool = False
    """Whether the last line ended in its middle, and was left out."""


def import_rows(recipe: Recipe, run: Run, source: Path, store: Store | None, progress: Progress) -> Imported:
    """Take in the answers of a file, each as soon as it is read; bad lines go to `quarantine.jsonl` with the reason.

    Without a store to write to (all answers are there) the lines are only looked at. Raises InvalidInput where the file
    cannot be read.
    """
    found = Imported()
    total = row_count(source) if source.is_file() else 0
    quarantine = run.folder("teach") / "quarantine.jsonl"
    reader = _Reader(recipe, asked_keys(recipe, run, progress))
    with Store(run.folder("teach") / STORE, read_only=True) if store is None else nullcontext(store) as rows:
        rows.expect(reader.expected(iter_prompts(prompts_file(run))))
        with rows_file(quarantine) as put_aside:
            for place, line in placed_lines(source):
                if not line.strip():
                    continue
                if _is_torn(line):
                    found.torn = True
                    break
                where = f"{source}:{place.line}"
                try:
                    key, teacher, completion = reader.read(where, line, rows)
                except InvalidInput as error:
                    found.bad += 1
                    if len(found.named) < NAMED:
                        found.named.append(error.message)
                    put_aside({"reason": error.message, "line": line.decode("utf-8", "replace").rstrip("\n")})
                    continue
                is_new = store is not None and store.add(key, completion, teacher)
                found.new, found.known = found.new + is_new, found.known + (not is_new)
                progress("importing", place.line, max(total, place.line))
                stop_if_asked()
    if not found.bad:
        quarantine.unlink()
    return found


def _is_torn(line: bytes) -> bool:
    """Whether a line is the beginning of one, as a writer that was stopped leaves it."""
    if line.endswith(b"\n"):
        return False
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return True
    return False


class _Reader:
    """Reads the answers of one recipe from lines, ours or others'."""

    def __init__(self, recipe: Recipe, keys: Sequence[AnswerKeys]) -> None:
        self._needs_targets = recipe.teach.targets != "none"
        self._keys = keys

    def expected(self, prompts: Iterator[Prompt]) -> Iterator[tuple[str, str, int, int]]:
        """Key, prompt id, teacher and sample of every answer that is asked for."""
        for prompt in prompts:
            for one in _of_prompt(self._keys, prompt):
                yield one.key, one.prompt.id, one.teacher, one.sample

    def read(self, where: str, line: bytes, store: Store) -> tuple[str, int, Completion]:
        """Key, teacher and completion of a line, or InvalidInput that says where and what."""
        row = row_of(where, line)
        own = row.get("_ed", {})
        if not isinstance(own, dict):
            raise InvalidInput(f"{where}: _ed must be an object")
        key = own.get("sha", row.get("custom_id"))
        if not isinstance(key, str) or not re.fullmatch("[0-9a-f]{64}", key):
            raise InvalidInput(f"{where}: no custom_id or _ed.sha of 64 hex digits")
        messages = messages_of(where, row)
        if messages[-1].role != "assistant":
            raise InvalidInput(f"{where}: the last message must be the assistant's answer")
        asked = store.expected(key)
        if asked is None:
            raise InvalidInput(f"{where}: {key[:12]}... is no answer that this recipe asks for")
        identity, teacher, sample = asked
        prompt = _asked(where, row, messages)
        self._same_question(where, (key, asked), (prompt, messages[-1].content), "sha" in own)
        completion = _completion(where, (identity, max(sample, 0)), messages[-1].content, own)
        if self._needs_targets and completion.targets is None:
            raise InvalidInput(f"{where}: no targets, which teach.targets asks for")
        return key, teacher, completion

    def _same_question(
        self, where: str, known: tuple[str, tuple[str, int, int]], row: tuple[Prompt, str], is_ours: bool
    ) -> None:
        """Raise InvalidInput where the key is not one of this row, as far as it tells what was asked."""
        key, (identity, teacher, sample) = known
        prompt, answer = row
        given = answer if sample == GIVEN else None
        if is_ours and row_key(prompt, self._keys[teacher].identity, max(sample, 0), given) != key:
            raise InvalidInput(f"{where}: its messages are not those of {key[:12]}...")
        if not is_ours and sample == GIVEN:
            raise InvalidInput(f"{where}: prompt {identity} has an answer that the recipe gives")


def _asked(where: str, row: dict[str, Any], messages: Sequence[Message]) -> Prompt:
    """What a row answers."""
    tools = tools_of(where, row.get("tools"))
    return Prompt(prompt_id(messages[:-1], tools), tuple(messages[:-1]), tools=tools)


def _completion(where: str, asked: tuple[str, int], text: str, own: dict[str, Any]) -> Completion:
    """A completion from an answer and what stands under `_ed`."""
    usage = own.get("usage", {})
    if not isinstance(usage, dict):
        raise InvalidInput(f"{where}: usage must be an object")
    finish_reason = own.get("finish_reason", "stop")
    if finish_reason not in ("stop", "length"):
        raise InvalidInput(f'{where}: finish_reason must be "stop" or "length"')
    seconds = own.get("seconds", 0.0)
    if type(seconds) not in (int, float) or not 0 <= seconds < math.inf:
        raise InvalidInput(f"{where}: seconds must be a number, 0 or more")
    return Completion(
        prompt_id=asked[0],
        text=text,
        finish_reason=finish_reason,
        prompt_tokens=_count(where, usage, "prompt_tokens"),
        completion_tokens=_count(where, usage, "completion_tokens"),
        seconds=float(seconds),
        sample=asked[1],
        targets=_targets(where, own.get("targets")),
        answers=_answers(where, text, own.get("answers")),
    )


def _count(where: str, usage: dict[str, Any], name: str) -> int:
    value = usage.get(name, 0)
    if type(value) is not int or not 0 <= value < 2**63:
        raise InvalidInput(f"{where}: usage.{name} must be a whole number, 0 or more")
    return value


def _answers(where: str, text: str, answers: Any) -> dict[str, float] | None:
    if answers is None:
        return None
    values = list(answers.values()) if isinstance(answers, dict) else []
    if not values or not all(type(value) in (int, float) and 0 <= value <= 1 for value in values):
        raise InvalidInput(f"{where}: answers must be probabilities by answer")
    if text not in answers or abs(sum(values) - 1) > 1e-3:
        raise InvalidInput(f"{where}: answers must have the answer among them, and sum to 1")
    return {answer: float(value) for answer, value in answers.items()}


def _targets(where: str, targets: Any) -> bytes | None:
    if targets is None:
        return None
    try:
        data = base64.b64decode(targets, validate=True)
        decode(data)
    except (TypeError, binascii.Error, ValueError) as error:
        raise InvalidInput(f"{where}: targets must be base64") from error
    except InvalidInput as error:
        raise InvalidInput(f"{where}: {error.message}") from error
    return data
