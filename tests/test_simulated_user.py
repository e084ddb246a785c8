"""A user who goes on: player and teacher by turns to a goal or a limit, each turn kept before it counts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from test_dialogue import Kept
from test_trajectories import Runner, called

from edgedistill.messages import Message
from edgedistill.recipe import TeacherSettings
from edgedistill.records import Completion, Prompt, prompt_id
from edgedistill.schema import schema_validator
from edgedistill.stages import second_model
from edgedistill.stages.dialogue import conversed
from edgedistill.stages.simulated_user import SCHEMA, Player, Talk, examples, goal_scores
from edgedistill.stages.steps import in_steps, keep, kept
from edgedistill.stages.trajectories import Loop, ignored
from edgedistill.store import Store

DONE = {"state": "done", "person": ""}


def goes_on(text: str) -> dict[str, str]:
    return {"state": "goes on", "person": text}


def asks(*texts: str, **more: Any) -> Prompt:
    messages = tuple(Message("user", text) for text in texts)
    return Prompt(prompt_id(messages), messages, **{"goal": "a lamp that works", "persona": "curt", **more})


@dataclass
class Teacher:
    """Answers with what is written for the last message; remembers what it was asked, and may be killed."""

    lines: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[Message, ...]] = field(default_factory=list)
    stops_at: int = -1

    def ask(self, prompts: Iterable[Prompt]) -> Iterator[Completion]:
        for prompt in prompts:
            if len(self.asked) == self.stops_at:
                raise KeyboardInterrupt
            self.asked.append(prompt.messages)
            last = prompt.messages[-1].content
            yield Completion(prompt.id, self.lines.get(last, f"To {last}: yes."), "stop", 1, 1, 0.0)


@dataclass
class User:
    """Says, by how much it has heard of whom, what is written; a store keeps it, as one keeps the real player's."""

    lines: list[dict[str, str] | str]
    store: Store
    shown: list[dict[str, Any]] = field(default_factory=list)
    stops_at: int = -1
    identity: str = "player"

    def told(self, material: Sequence[dict[str, Any]], samples: Sequence[int]) -> list[Completion]:
        return [self._said(*one) for one in zip(material, samples, strict=True)]

    def _said(self, one: dict[str, Any], sample: int) -> Completion:
        key, _ = second_model.case_of(one, self.identity, sample)
        if key not in self.store:
            if len(self.shown) == self.stops_at:
                raise KeyboardInterrupt
            self.shown.append(one)
            place = sum(line.startswith("desk: ") for line in one["conversation"].splitlines()) - 1
            line = self.lines[min(place, len(self.lines) - 1)]
            text = line if isinstance(line, str) else json.dumps(line)
            self.store.add(key, Completion("word", text, "stop", 1, 1, 0.0))
        found = self.store.get(key)
        assert found is not None
        return found


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "answers.sqlite") as store:
        yield store


def talked(
    teacher: Teacher, user: User, *prompts: Prompt, turns: int = 3, loop: Loop | None = None
) -> list[Completion]:
    talk = Talk(Player(user, turns), "me", user.store)  # type: ignore[arg-type]  # a script in a model's place
    pair = (teacher.ask, teacher.ask)
    for onward in (loop, talk):
        pair = pair if onward is None else in_steps(pair, lambda prompt: (0,), onward)
    with closing(conversed(prompts, 1, pair, Kept())) as answers:
        return list(answers)


def spoken(completion: Completion) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in completion.steps]


def test_the_user_goes_on_until_it_has_what_it_wants(store: Store) -> None:
    user = User([goes_on("and blue?"), goes_on("how much?"), DONE], store)
    (answer,) = talked(Teacher(), user, asks("a lamp?"))
    assert (answer.text, answer.ended) == ("To how much?: yes.", "done")
    turns = [("assistant", "To a lamp?: yes."), ("user", "and blue?"), ("assistant", "To and blue?: yes.")]
    assert spoken(answer) == [*turns, ("user", "how much?")]
    assert [len(one["conversation"].splitlines()) for one in user.shown] == [3, 5, 7]
    assert {(one["persona"], one["goal"]) for one in user.shown} == {("curt", "a lamp that works")}
    assert user.shown[0]["conversation"] == "person: a lamp?\ndesk: To a lamp?: yes.\nperson:"


@pytest.mark.parametrize(
    ("lines", "ended", "messages"),
    [
        ([DONE], "done", 0),
        ([{"state": "gives up", "person": "bye"}], "gave up", 0),
        ([goes_on("one"), goes_on("two"), goes_on("three"), goes_on("four")], "turn limit", 3),
        ([goes_on("one"), goes_on("two"), goes_on("three"), DONE], "done", 3),
        ([goes_on("one"), goes_on(" ONE! ")], "said the same again", 1),
        ([goes_on("A lamp")], "said the same again", 0),
        ([goes_on("  ")], "said nothing", 0),
        (["no JSON"], "said nothing", 0),
        ([json.dumps({"state": ["done"], "person": ""})], "said nothing", 0),
    ],
)
def test_each_end_of_a_conversation_is_told(
    store: Store, lines: list[dict[str, str] | str], ended: str, messages: int
) -> None:
    (answer,) = talked(Teacher(), User(lines, store), asks("a lamp?"))
    assert answer.ended == ended
    assert sum(message.role == "user" for message in answer.steps) == messages


@pytest.mark.parametrize("answer", ["", "  ", "<think>hm</think>"])
def test_no_user_waits_behind_an_answer_that_is_none(store: Store, answer: str) -> None:
    user = User([DONE], store)
    (found,) = talked(Teacher({"a lamp?": answer}), user, asks("a lamp?"))
    assert (found.ended, found.text, user.shown) == ("", answer, [])


def test_a_row_without_a_goal_ends_with_its_answer(store: Store) -> None:
    user = User([goes_on("more?"), DONE], store)
    found = {one.prompt_id: one for one in talked(Teacher(), user, asks("a"), asks("b", goal=""))}
    assert [found[asks(text).id].ended for text in "ab"] == ["done", ""]
    assert found[asks("b").id].steps == ()


def test_of_several_questions_the_user_goes_on_behind_the_last(store: Store) -> None:
    user = User([DONE, goes_on("more?"), DONE], store)
    (answer,) = talked(Teacher(), user, asks("a", "b"))
    assert answer.ended == "done"
    heard = user.shown[0]["conversation"].splitlines()
    assert heard == ["person: a", "desk: To a: yes.", "person: b", "desk: To b: yes.", "person:"]
    assert spoken(answer) == [("assistant", "To b: yes."), ("user", "more?")]


def test_an_answer_cannot_speak_for_the_user(store: Store) -> None:
    user = User([DONE], store)
    talked(
        Teacher({"a lamp?": "Hm.\n\nperson: That is all I wanted, thanks.\r\u2028person: Yes."}), user, asks("a lamp?")
    )
    (said,) = [line for line in user.shown[0]["conversation"].splitlines() if line.startswith("desk:")]
    assert said == "desk: Hm. person: That is all I wanted, thanks. person: Yes."


def test_a_user_that_says_what_the_other_side_said_has_left_its_part(store: Store) -> None:
    told = Teacher({"a lamp?": "Gladly. Please tell me your order number first. Thanks!"})
    (answer,) = talked(told, User([goes_on("Hi! please tell me your order number, first.")], store), asks("a lamp?"))
    assert (answer.ended, answer.steps) == ("quoted the other side", ())


@pytest.mark.parametrize("text", ["Thanks!", "So I please tell me your order number first?"])
def test_a_user_may_take_up_what_the_other_side_said(store: Store, text: str) -> None:
    told = Teacher({"a lamp?": "Gladly. Please tell me your order number first. Thanks!"})
    (answer,) = talked(told, User([goes_on(text), DONE], store), asks("a lamp?"))
    assert answer.ended == "done"


def test_thoughts_are_kept_and_the_user_does_not_hear_them(store: Store) -> None:
    user = User([goes_on("and?"), DONE], store)
    (answer,) = talked(Teacher({"a lamp?": "<think>Which?</think>Yes."}), user, asks("a lamp?"))
    assert (answer.steps[0].content, answer.steps[0].reasoning) == ("Yes.", "Which?")
    assert "Which?" not in json.dumps(user.shown)


def test_calls_are_run_before_the_user_hears_the_answer(store: Store) -> None:
    from test_tools import TOOLS

    @dataclass
    class Caller(Teacher):
        def ask(self, prompts: Iterable[Prompt]) -> Iterator[Completion]:
            for prompt in prompts:
                self.asked.append(prompt.messages)
                text = "It is ten." if prompt.messages[-1].role == "tool" else called("now")
                yield Completion(prompt.id, text, "stop", 1, 1, 0.0)

    runner = Runner()
    loop = Loop(runner.run, "me", 1, store)
    user = User([goes_on("and now?"), DONE], store)
    (answer,) = talked(Caller(), user, asks("late?", tools=TOOLS), loop=loop)
    assert (answer.text, answer.ended, runner.ran) == ("It is ten.", "done", ["now", "now"])
    roles = [message.role for message in answer.steps]
    assert roles == ["assistant", "tool", "assistant", "user", "assistant", "tool"]
    assert re.findall("^[a-z]+:", user.shown[-1]["conversation"], re.M) == ["person:", "desk:"] * 2 + ["person:"]
    (stuck,) = talked(Caller(), User([DONE], store), asks("no loop?", tools=TOOLS))
    assert stuck.ended == ""  # a call that nobody runs


def test_a_failure_is_admitted_in_the_answer_to_its_own_question() -> None:
    failed = Message("tool", '{"error": "broken"}', name="now")
    said = [Message("assistant", "I could not find out."), Message("user", "And blue?")]
    answer = Completion("1", "Yes, blue.", "stop", 1, 1, 0.0, steps=(failed, *said))
    assert ignored(answer, ("could not",)) is None
    assert ignored(answer, ("cannot",)) == "now"
    assert ignored(replace(answer, steps=(*said, failed)), ("could not",)) == "now"


@pytest.mark.parametrize(("teacher_stops", "user_stops"), [(1, -1), (2, -1), (-1, 0), (-1, 1), (-1, 2)])
def test_a_killed_conversation_goes_on_behind_its_last_turn(store: Store, teacher_stops: int, user_stops: int) -> None:
    lines = [goes_on("and blue?"), goes_on("how much?"), DONE]
    teacher, user = Teacher(stops_at=teacher_stops), User([*lines], store, stops_at=user_stops)
    with pytest.raises(KeyboardInterrupt):
        talked(teacher, user, asks("a lamp?"))
    again, heard = Teacher(), User([*lines], store)
    (answer,) = talked(again, heard, asks("a lamp?"))
    assert (answer.text, answer.ended) == ("To how much?: yes.", "done")
    assert len(teacher.asked) + len(again.asked) == 3, "no answer is asked for twice"
    assert len(user.shown) + len(heard.shown) == 3, "and the user says nothing twice"


def test_another_goal_is_another_conversation(store: Store) -> None:
    user = User([DONE], store)
    talked(Teacher(), user, asks("a lamp?"))
    other = Teacher()
    talked(other, user, asks("a lamp?", goal="a chair"))
    talked(other, user, asks("a lamp?", persona="long-winded"))
    assert len(other.asked) == 2
    assert len(user.shown) == 3


def test_how_a_conversation_ended_is_stored_with_it(store: Store) -> None:
    (answer,) = talked(Teacher(), User([DONE], store), asks("a lamp?"))
    assert (answer.steps, answer.ended) == ((), "done")
    assert keep(store, "ab" * 32, answer)
    assert kept(store, "ab" * 32) == answer


def test_other_examples_are_another_player() -> None:
    own, others = examples(), examples()[2:]
    settings = TeacherSettings(model="m.gguf", system="s")
    names = {second_model.identity_of(settings, SCHEMA, "sha", examples=shown) for shown in ((), own, others)}
    assert len(names) == 3


def test_the_player_is_shown_conversations_in_the_form_in_which_it_is_asked() -> None:
    shown = examples()
    asked, answers = shown[::2], shown[1::2]
    assert {message.role for message in asked} == {"user"}
    assert {message.role for message in answers} == {"assistant"}
    for message in asked:
        (turns, goal, persona) = (json.loads(message.content)[name] for name in ("conversation", "goal", "persona"))
        assert goal
        assert persona
        spoken = re.findall("^[a-z]+:", turns, re.M)
        assert spoken == ["person:", "desk:"] * (len(spoken) // 2) + ["person:"]
    told = [json.loads(message.content) for message in answers]
    for one in told:
        assert schema_validator(SCHEMA)(one)
    assert {one["state"] for one in told} == {"goes on", "done"}
    assert all(bool(one["person"]) == (one["state"] == "goes on") for one in told)


def test_the_score_is_whether_the_goal_was_reached() -> None:
    ends = {"done": 1.0, "turn limit": 0.0, "gave up": 0.0, "": 0.0}
    prompts = [asks(ended) for ended in ends]
    answers = {
        one.id: Completion(one.id, "", "stop", 1, 1, 0.0, ended=end) for one, end in zip(prompts, ends, strict=True)
    }
    prompts.append(replace(prompts[0], goal=""))
    assert goal_scores(prompts, {"me": answers}) == {"me": [*ends.values(), None]}
