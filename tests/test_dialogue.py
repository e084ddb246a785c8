"""Prompts that ask several things: answered in order, each answer stored by itself, learned as one conversation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pico import silent
from pico_recipe import EVAL, PicoModels, write_pico_recipe
from test_taught import SOFT

from edgedistill.errors import EdgeDistillError, InvalidInput
from edgedistill.messages import messages_of
from edgedistill.pipeline import RunSettings, run_recipe
from edgedistill.recipe import load_recipe
from edgedistill.records import Completion, Message, Prompt, json_lines, prompt_id, read_json, read_prompts, read_rows
from edgedistill.run import Run
from edgedistill.stages.dialogue import TOGETHER, conversed, parts, places, woven
from edgedistill.stages.rows import export_rows, export_todo, import_rows
from edgedistill.stages.taught import TaughtRows
from edgedistill.store import Store
from edgedistill.students.encode import Encoder

TURNS = st.lists(
    st.lists(st.sampled_from(["user", "assistant", "tool", "system"]), max_size=6).map(lambda roles: [*roles, "user"])
)


def asks(*texts: str) -> Prompt:
    messages = tuple(Message("user", text) for text in texts)
    return Prompt(prompt_id(messages), messages)


@dataclass
class Teacher:
    """Answers with all that it has heard, and remembers what it was asked."""

    asked: list[list[str]] = field(default_factory=list)
    mute: str = ""

    def ask(self, prompts: Iterator[Prompt]) -> Iterator[Completion]:
        unheard = 0
        for prompt in prompts:
            texts = [message.content for message in prompt.messages]
            self.asked.append(texts)
            if self.mute and self.mute in texts[-1]:
                unheard += 1
                continue
            yield Completion(prompt.id, f"<{'|'.join(texts)}>", "stop", 1, 1, 0.0)


@dataclass
class Kept:
    held: dict[tuple[str, int], Completion] = field(default_factory=dict)

    def get(self, part: Prompt, sample: int) -> Completion | None:
        return self.held.get((part.id, sample))

    def add(self, part: Prompt, completion: Completion) -> Completion:
        return self.held.setdefault((part.id, completion.sample), completion)


@given(TURNS)
def test_a_conversation_with_all_answers_waits_for_none(conversations: list[list[str]]) -> None:
    for roles in conversations:
        messages = tuple(Message(role, str(number)) for number, role in enumerate(roles))
        waiting = places(messages)
        assert waiting[-1] == len(messages) - 1
        whole = woven(messages, [Message("assistant", "x")] * len(waiting))
        assert [one for one in whole if one.content != "x"] == list(messages)
        assert all(whole[place + number + 1].content == "x" for number, place in enumerate(waiting))
        assert not [place for place in places(whole) if whole[place].role == "user"]


def test_the_parts_of_a_prompt_are_prompts_by_themselves() -> None:
    prompt = asks("a", "b", "c")
    assert [part.id for part in parts(prompt)] == [asks("a").id, asks("a", "b").id, prompt.id]
    assert parts(asks("a"))[0] == asks("a")


def test_each_question_is_asked_behind_the_teachers_own_answers() -> None:
    teacher, kept = Teacher(), Kept()
    found = list(conversed([asks("a", "b", "c"), asks("d")], 1, (teacher.ask, teacher.ask), kept))
    assert {one.prompt_id: one.text for one in found} == {
        asks("d").id: "<d>",
        asks("a", "b", "c").id: "<a|<a>|b|<a|<a>|b>|c>",
    }
    assert {key for key, _ in kept.held} == {asks("a").id, asks("a", "b").id}


def test_what_was_answered_before_is_not_asked_again() -> None:
    first, kept = Teacher(), Kept()
    answers = conversed([asks("a", "b"), asks("a", "b", "c")], 1, (first.ask, first.ask), kept)
    for one in answers:
        kept.add(replace(asks("a", "b"), id=one.prompt_id), one)
    again = Teacher()
    assert list(conversed([asks("a", "b"), asks("a", "b", "c")], 1, (again.ask, again.ask), kept)) == []
    assert again.asked == []
    longer = Teacher()
    (last,) = conversed([asks("a", "b", "c", "d")], 1, (longer.ask, longer.ask), kept)
    assert len(longer.asked) == 1
    assert longer.asked[0][-1] == "d"
    assert last.prompt_id == asks("a", "b", "c", "d").id


def test_each_sample_is_a_conversation_of_its_own() -> None:
    teacher, kept = Teacher(), Kept()
    names: dict[str, str] = {}
    found = list(conversed([asks("a", "b")], 3, (teacher.ask, teacher.ask), kept, names))
    assert sorted(one.sample for one in found) == [0, 1, 2]
    assert len(names) == 6
    assert set(names.values()) == {asks("a", "b").id}
    assert {sample for _, sample in kept.held} == {0, 1, 2}


def test_a_question_without_an_answer_ends_its_conversation_and_no_other() -> None:
    teacher = Teacher(mute="mute")
    prompts = [asks("a", "mute", "c"), asks("d", "e"), asks("f", "mute")]
    found = list(conversed(prompts, 1, (teacher.ask, teacher.ask), Kept()))
    assert [one.prompt_id for one in found] == [asks("d", "e").id]
    assert len(teacher.asked) == 6


def test_very_many_conversations_are_taken_some_at_a_time() -> None:
    teacher, taken = Teacher(), 0

    def source() -> Iterator[Prompt]:
        nonlocal taken
        for number in range(3 * TOGETHER):
            taken += 1
            yield asks(str(number), "more")

    answers = conversed(source(), 1, (teacher.ask, teacher.ask), Kept())
    next(answers)
    assert taken == TOGETHER
    assert len(list(answers)) == 3 * TOGETHER - 1


# -- through the stages


ROOM = {"max_length = 128": "max_length = 512"}
ROWS = [
    {"messages": [{"role": "user", "content": text} for text in texts]}
    for number in range(12)
    for texts in ((f"lamp {number * 7919} on", "and the hall?"), (f"heater {number * 104729}",))
]


@pytest.fixture(scope="module")
def folder(models: PicoModels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of which every second prompt and eval row asks two things; it learns softly."""
    folder = write_pico_recipe(tmp_path_factory.mktemp("dialogue") / "recipe", models, {**SOFT, **ROOM})
    (folder / "prompts.jsonl").write_bytes(json_lines(ROWS))
    expected = {"action": "on", "room": "all"}
    asked = [[text, "thank you"][: 1 + number % 2] for number, text in enumerate(EVAL)]
    rows = ([{"role": "user", "content": text} for text in texts] for texts in asked)
    (folder / "eval.jsonl").write_bytes(json_lines({"messages": row, "expected": expected} for row in rows))
    return folder


@pytest.fixture(scope="module")
def finished(folder: Path) -> Run:
    run, _ = run_recipe(folder, RunSettings(runs=folder.parent / "runs", offline=True), silent)
    return run


def test_a_conversation_is_taught_curated_learned_and_evaluated(
    finished: Run, folder: Path, models: PicoModels
) -> None:
    recipe = load_recipe(folder)
    rows = [row for name in ("train", "valid") for _, row in read_rows(finished.folder("curate") / f"{name}.jsonl")]
    long = [row for row in rows if len(row["messages"]) == 4]
    assert len(long) >= 10
    turns = len(rows) + len(long)
    encoder = Encoder(models.student)
    stored: dict[str, Any] = {}
    with Store(finished.folder("teach") / "teacher.sqlite", read_only=True) as store:
        stored = dict(store.rows())
    for row in long:
        messages = messages_of("row", row)
        assert [message.role for message in messages] == ["user", "assistant"] * 2
        assert [stored[key].text for key in row["_ed"]["keys"]] == [messages[1].content, messages[3].content]
    assert len(stored) >= turns
    with TaughtRows(recipe, finished, encoder) as taught:
        examples = [*taught.examples("train"), *taught.examples("valid")]
        lessons = [taught.lesson(example) for example in examples]
    assert len(examples) == turns
    assert all(lesson.rows.is_soft for lesson in lessons)
    evaluation = read_json(finished.folder("evaluate") / "evaluation.json")
    assert evaluation["files"]["eval"]["n"] == len(EVAL)


def test_stored_conversations_go_out_and_come_back(finished: Run, folder: Path, tmp_path: Path) -> None:
    recipe = load_recipe(folder)
    path = tmp_path / "rows.jsonl"
    asked = read_prompts(finished.folder("prompts") / "prompts.jsonl")
    turns = sum(len(parts(prompt)) for prompt in asked)
    assert export_rows(recipe, finished, path, silent) == turns > len(asked) + 10
    found = import_rows(recipe, finished, path, None, silent)
    assert (found.known, found.bad) == (turns, 0)


def test_questions_that_need_answers_before_them_are_not_asked_elsewhere(models: PicoModels, tmp_path: Path) -> None:
    folder = write_pico_recipe(tmp_path / "recipe", models, ROOM)
    (folder / "prompts.jsonl").write_bytes(json_lines(ROWS))
    run, _ = run_recipe(folder, RunSettings(runs=tmp_path / "runs", offline=True, only="prompts"), silent)
    with pytest.raises(InvalidInput, match="several turns are answered one after another"):
        export_todo(load_recipe(folder), run, tmp_path / "todo.jsonl", silent)


def test_check_counts_the_answers_of_the_longest_conversation(models: PicoModels, tmp_path: Path) -> None:
    from edgedistill.preflight import check

    folder = write_pico_recipe(tmp_path / "recipe", models, {"max_length = 128": "max_length = 100"})
    (folder / "prompts.jsonl").write_bytes(json_lines(ROWS))
    assert len(read_prompts(folder / "prompts.jsonl")) == len(ROWS)
    with pytest.raises(EdgeDistillError, match=r"and 2 x teach\.max_tokens"):
        check(load_recipe(folder), Run(tmp_path / "run", offline=True))
