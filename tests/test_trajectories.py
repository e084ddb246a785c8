"""Calls that are run: teacher, call, result, teacher, to a final answer; each step kept before it counts."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from pico import silent
from pico_recipe import PicoModels, edit, own_copy
from test_dialogue import Kept
from test_tools import TOOLS
from test_tools_of_recipe import write_tools_recipe

from edgedistill.errors import InvalidInput
from edgedistill.messages import Message
from edgedistill.pipeline import RunSettings, run_recipe
from edgedistill.prompting import ToolsSettings
from edgedistill.recipe import CurateSettings, Recipe, load_recipe
from edgedistill.records import Completion, Prompt, json_lines, prompt_id, read_rows
from edgedistill.run import Run
from edgedistill.stages import teach
from edgedistill.stages.combine import Answered
from edgedistill.stages.dialogue import conversed
from edgedistill.stages.rightness import faults
from edgedistill.stages.steps import in_steps, keep, kept
from edgedistill.stages.tool_calls import said
from edgedistill.stages.tool_results import loop_of, recorded, require_results
from edgedistill.stages.trajectories import Call, Loop, all_calls, scored_text
from edgedistill.stages.turn_rules import turns_of
from edgedistill.store import Store

HALL = '{"room": "hall", "on": true}'


def called(name: str, arguments: str = "{}") -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def asks(*texts: str) -> Prompt:
    messages = tuple(Message("user", text) for text in texts)
    return Prompt(prompt_id(messages, TOOLS), messages, tools=TOOLS)


@dataclass
class Script:
    """A teacher that says, to each question, what is written for it; and what it was asked."""

    lines: dict[str, list[str]]
    asked: list[tuple[Message, ...]] = field(default_factory=list)
    stops_at: int = -1

    def ask(self, prompts: Iterator[Prompt]) -> Iterator[Completion]:
        for prompt in prompts:
            if len(self.asked) == self.stops_at:
                raise KeyboardInterrupt
            self.asked.append(prompt.messages)
            place = max(place for place, message in enumerate(prompt.messages) if message.role == "user")
            done = sum(message.role == "assistant" for message in prompt.messages[place:])
            text = self.lines[prompt.messages[place].content][done]
            yield Completion(prompt.id, text, "stop", 1, 1, 0.0)


@dataclass
class Runner:
    """Runs calls, and counts them."""

    results: dict[str, str] = field(default_factory=dict)
    ran: list[str] = field(default_factory=list)

    def run(self, calls: Sequence[Call]) -> list[str]:
        self.ran += [call.name for call in calls]
        return [self.results.get(call.name, '"10:00"') for call in calls]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "answers.sqlite") as store:
        yield store


def run_through(script: Script, runner: Runner, store: Store, *prompts: Prompt, steps: int = 3) -> list[Completion]:
    loop = Loop(runner.run, "me", steps, store)
    pair = in_steps((script.ask, script.ask), lambda prompt: (0,), loop)
    with closing(conversed(prompts, 1, pair, Kept())) as answers:
        return list(answers)


def test_calls_are_run_and_the_final_answer_brings_them_along(store: Store) -> None:
    script = Script(
        {"late?": [called("now") + "\n" + called("light", HALL), called("now"), "It is ten."], "hi": ["Hi."]}
    )
    runner = Runner({"light": '{"on": true}'})
    found = {one.prompt_id: one for one in run_through(script, runner, store, asks("late?"), asks("hi"))}
    answer, plain = found[asks("late?").id], found[asks("hi").id]
    assert (answer.text, plain.text, plain.steps) == ("It is ten.", "Hi.", ())
    assert [message.role for message in answer.steps] == ["assistant", "tool", "tool", "assistant", "tool"]
    first, one, other = answer.steps[:3]
    assert [call.id for call in first.tool_calls] == [one.tool_call_id, other.tool_call_id]
    assert len({one.tool_call_id, other.tool_call_id}) == 2
    assert (one.name, one.content, other.content) == ("now", '"10:00"', '{"on": true}')
    assert sorted(runner.ran) == ["light", "now", "now"]
    assert all_calls(answer).count("<tool_call>") == 3


def test_a_killed_run_goes_on_behind_the_last_step(store: Store) -> None:
    lines = {"late?": [called("now"), called("now"), "It is ten."]}
    runner = Runner()
    with pytest.raises(KeyboardInterrupt):
        run_through(Script(lines, stops_at=2), runner, store, asks("late?"))
    assert runner.ran == ["now", "now"]
    again = Script(lines)
    (answer,) = run_through(again, runner, store, asks("late?"))
    assert answer.text == "It is ten."
    assert len(again.asked) == 1, "two answers with calls were there"
    assert runner.ran == ["now", "now"], "and so were their results"


def test_only_the_samples_that_are_wanted_go_on(store: Store) -> None:
    script, loop = Script({"late?": [called("now"), "It is ten."]}), Loop(Runner().run, "me", 3, store)

    def second(prompts: Iterator[Prompt]) -> Iterator[Completion]:
        return (replace(one, sample=1) for one in script.ask(prompts))

    ask, _ = in_steps((second, script.ask), lambda prompt: (1,), loop)
    assert [(one.text, one.sample) for one in ask(iter([asks("late?")]))] == [("It is ten.", 1)]
    assert len(script.asked) == 2
    ask, _ = in_steps((second, script.ask), lambda prompt: (), loop)
    assert not list(ask(iter([asks("late?")])))
    assert len(script.asked) == 2, "what is there is not asked again"


def test_what_was_thought_on_the_way_is_no_call_and_no_text(store: Store) -> None:
    thought = f"<think>\nFirst {called('light', HALL)}? No.\n</think>\n\n"
    lines = {"late?": [thought + called("now"), "<think>\n10:00\n</think>\n\nIt is ten."]}
    runner = Runner()
    (answer,) = run_through(Script(lines), runner, store, asks("late?"))
    assert runner.ran == ["now"]
    assert answer.steps[0].content == ""
    assert answer.steps[0].reasoning == thought.removeprefix("<think>").partition("</think>")[0].strip()
    assert said(all_calls(answer)).calls == (("now", {}),)
    assert scored_text("tool", answer) == all_calls(answer)
    assert scored_text("exact", answer) == answer.text


def test_a_trajectory_is_right_by_the_calls_on_the_way(store: Store) -> None:
    (answer,) = run_through(Script({"late?": [called("now"), "It is ten."]}), Runner(), store, asks("late?"))
    settings = CurateSettings(right_by="tool")
    for name, fault in (("now", None), ("light", "wrong answer")):
        row = replace(asks("late?"), expected=[{"name": name, "arguments": {}}])
        (found,) = faults([(row, Answered(0, answer))], settings, None, verifies=False)
        assert (found and found[0]) == fault


@pytest.mark.parametrize(
    ("lines", "results", "reason"),
    [
        ([called("now"), "It is ten."], {}, None),
        (["It is late."], {}, None),
        ([called("door")], {}, "unknown tool"),
        ([called("now"), called("light", '{"room": "attic", "on": true}')], {}, "invalid call"),
        ([called("now")] * 9, {}, "step limit"),
        ([called("now"), "  "], {}, "no final answer"),
        ([called("now"), "It is ten."], {"now": '{"error": "no clock"}'}, "failure ignored"),
        ([called("now"), "I could not look at the clock."], {"now": '{"error": "no clock"}'}, None),
    ],
)
def test_a_trajectory_that_teaches_the_wrong_thing_has_its_reason(
    store: Store, lines: list[str], results: dict[str, str], reason: str | None
) -> None:
    (answer,) = run_through(Script({"late?": lines}), Runner(results), store, asks("late?"))
    settings = ToolsSettings(file="tools.json", results="teacher", steps=3)
    ((given, found),) = turns_of(asks("late?"), Answered(0, answer), None, settings)
    assert (found and found[0]) == reason
    assert given.prompt.messages == (*asks("late?").messages, *answer.steps)


def test_a_tool_that_failed_and_then_worked_is_not_ignored(store: Store) -> None:
    calls = iter(['{"error": "busy"}', '"10:00"'])
    runner = Runner()
    loop = Loop(lambda some: [next(calls) for _ in some], "me", 3, store)
    script = Script({"late?": [called("now"), called("now"), "It is ten."]})
    (answer,) = in_steps((script.ask, script.ask), lambda prompt: (0,), loop)[0](iter([asks("late?")]))
    settings = ToolsSettings(file="tools.json", results="teacher", steps=3)
    assert [found for _, found in turns_of(asks("late?"), Answered(0, answer), None, settings)] == [None]
    assert runner.ran == []


def test_what_was_called_before_stands_before_the_next_question(store: Store) -> None:
    script = Script({"late?": [called("now"), "It is ten."], "really?": ["Yes."]})
    (answer,) = run_through(script, Runner(), store, asks("late?", "really?"))
    assert answer.text == "Yes."
    roles = [message.role for message in script.asked[-1]]
    assert roles == ["user", "assistant", "tool", "assistant", "user"]


def test_steps_are_stored_with_their_answer(store: Store) -> None:
    (answer,) = run_through(Script({"late?": [called("now"), "Ten."]}), Runner(), store, asks("late?"))
    assert keep(store, "ab" * 32, answer)
    assert kept(store, "ab" * 32) == answer
    plain = replace(answer, steps=())
    assert keep(store, "cd" * 32, plain)
    assert kept(store, "cd" * 32) == plain
    assert kept(store, "ef" * 32) is None


# -- where results come from


@pytest.fixture
def folder(models: PicoModels, tmp_path: Path) -> Path:
    return write_tools_recipe(tmp_path / "recipe", own_copy(models, tmp_path / "models"))


def results_of(recipe: Recipe, tmp_path: Path, *calls: tuple[str, str]) -> list[Any]:
    tools = {tool["function"]["name"]: tool for tool in TOOLS}
    run = Run(tmp_path / "run", offline=True)
    with Store(tmp_path / "loop.sqlite") as store:
        place = store, run, tmp_path, silent
        with loop_of(recipe, recipe.teacher, "me", place) as loop:
            assert loop is not None
            return [json.loads(one) for one in loop.run([Call(tools[name], name, text) for name, text in calls])]


def test_results_are_read_from_a_table(folder: Path, tmp_path: Path) -> None:
    edit(folder / "recipe.toml", "student = false\n", 'student = false\nresults = "table"\ntable = "results.jsonl"\n')
    table = [{"name": "now", "result": "10:00"}, {"name": "light", "arguments": json.loads(HALL), "result": {"ok": 1}}]
    (folder / "results.jsonl").write_bytes(json_lines(table))
    recipe = load_recipe(folder)
    assert require_results(recipe) == "results of 2 calls from results.jsonl"
    other = '{"on": true, "room": "hall"}', '{"room": "all", "on": true}'
    found = results_of(recipe, tmp_path, ("now", "{}"), ("light", other[0]), ("light", other[1]))
    assert found == ["10:00", {"ok": 1}, {"error": "no result is recorded for this call"}]
    for rows, problem in (([{"name": "now"}], "1: not a call"), ([table[0], {**table[0], "result": 1}], "2: another")):
        (folder / "results.jsonl").write_bytes(json_lines(rows))
        with pytest.raises(InvalidInput, match=rf"results\.jsonl:{problem}"):
            recorded(folder / "results.jsonl")


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX limits")
def test_results_are_printed_by_a_confined_command(folder: Path, tmp_path: Path) -> None:
    program = "import json, sys\ncall = json.load(sys.stdin)\n"
    program += "print({'now': '\"10:00\"', 'light': 'on!'}[call['name']] if not call['arguments'] else 1 // 0)\n"
    (folder / "run.py").write_text(program, encoding="utf-8")
    command = f'results = "command"\ncommand = [{json.dumps(sys.executable)}, "run.py"]\n'
    edit(folder / "recipe.toml", "student = false\n", f"student = false\n{command}")
    recipe = load_recipe(folder)
    assert "run.py" in require_results(recipe)
    time, no_json, crash = results_of(recipe, tmp_path, ("now", "{}"), ("light", "{}"), ("light", HALL))
    assert time == "10:00"
    assert no_json == {"error": "it printed no JSON: 'on!'"}
    assert "ZeroDivisionError" in crash["error"]


def test_a_teacher_plays_the_tools_in_json(folder: Path, tmp_path: Path) -> None:
    edit(folder / "recipe.toml", "student = false\n", 'student = false\nresults = "teacher"\n')
    found = results_of(load_recipe(folder), tmp_path, ("now", "{}"), ("light", HALL), ("now", "{}"))
    assert all(isinstance(one, dict) and one for one in found)
    assert found[0] == found[2]


def test_a_source_of_results_needs_its_key_and_no_other(folder: Path) -> None:
    edit(folder / "recipe.toml", "student = false\n", 'student = false\nresults = "table"\n')
    with pytest.raises(InvalidInput, match="table belongs to results = 'table'"):
        load_recipe(folder)


# -- through the stages


def test_rows_hold_the_calls_their_results_and_the_answer(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The teacher is a script, so that it does call; all else is a run."""
    texts = ["Is it late by now?", "Put the light in the hall on", "Open that door for grandmother", "What is love?"]
    (folder / "prompts.jsonl").write_bytes(json_lines({"messages": [{"role": "user", "content": t}]} for t in texts))
    (folder / "results.jsonl").write_bytes(json_lines([{"name": "now", "result": "10:00"}]))
    results = 'student = false\nresults = "table"\ntable = "results.jsonl"\nsteps = 2\n'
    edit(folder / "recipe.toml", "student = false\n", results)
    edit(folder / "recipe.toml", "valid_share = 0.2", "valid_share = 0.0")
    lines = [[called("now"), "It is ten."], [called("light", HALL), "Done."], [called("door")], [called("now")] * 3]
    script = Script(dict(zip(texts, lines, strict=True)))

    class Teacher:
        def complete(self, prompts: Iterator[Prompt], settings: Any, seed: int, wanted: Any) -> Iterator[Completion]:
            return script.ask(prompts)

        def close(self) -> None: ...

    monkeypatch.setattr(teach, "load_teacher", lambda task: Teacher())
    for stage in ("prompts", "teach", "curate"):
        run, _ = run_recipe(folder, RunSettings(runs=tmp_path / "runs", offline=True, only=stage), silent)
    (row,) = [row for _, row in read_rows(run.folder("curate") / "train.jsonl")]
    assert [message["role"] for message in row["messages"]] == ["user", "assistant", "tool", "assistant"]
    assert row["messages"][1]["tool_calls"][0]["function"]["name"] == "now"
    assert row["messages"][2]["content"] == '"10:00"'
    assert "tools" not in row
    rejected = {row["messages"][0]["content"]: row["_ed"]["reason"] for row in rejected_rows(run)}
    assert rejected == dict(zip(texts[1:], ["failure ignored", "unknown tool", "step limit"], strict=True))
    asked = len(script.asked)
    recorded_now = {"name": "light", "arguments": json.loads(HALL), "result": {"ok": True}}
    (folder / "results.jsonl").write_bytes(json_lines([{"name": "now", "result": "10:00"}, recorded_now]))
    for stage in ("prompts", "teach", "curate"):
        again = RunSettings(runs=tmp_path / "runs", offline=True, only=stage, redo_from=stage)
        run, _ = run_recipe(folder, again, silent)
    assert len(script.asked) == 2 * asked, "other results may make other answers"
    learned = [row["messages"][0]["content"] for _, row in read_rows(run.folder("curate") / "train.jsonl")]
    assert learned == texts[:2]


def rejected_rows(run: Run) -> list[dict[str, Any]]:
    return [row for _, row in read_rows(run.folder("curate") / "rejected.jsonl")]
