"""Conversations go on from what was computed of them, and are answered as if they had been read anew."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from opened_teachers import teacher_of
from pico import pico_gguf, silent
from pico_recipe import PicoModels
from test_engine import PREFIX, SCHEMA, answers, assert_same, chat, some_texts
from tiny_models import TINY, tiny_folder

from edgedistill.llamacpp.answer import Answerer, AnswererSettings
from edgedistill.llamacpp.context import State
from edgedistill.llamacpp.engine import BatchEngine, EngineSettings
from edgedistill.llamacpp.grammar import Grammar
from edgedistill.llamacpp.kept_turns import LIVES, SHORTEST, KeptTurns
from edgedistill.llamacpp.model import LlamaModel
from edgedistill.llamacpp.requests import Answer, Request
from edgedistill.llamacpp.sampling import Sampling
from edgedistill.llamacpp.writer import GgufMetadata, write_gguf
from edgedistill.recipe import TeachSettings
from edgedistill.records import Message, Prompt
from edgedistill.teachers.llamacpp import LlamaTeacher

MUCH = 1 << 30
TURNS, TALKS = 3, 10


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaModel]:
    with LlamaModel(pico_gguf(tmp_path_factory.mktemp("turns") / "pico.gguf", "qwen2", tied=False, seed=3)) as model:
        yield model


def asked(model: LlamaModel, said: Sequence[str], shared: int, samples: int = 1) -> list[Request]:
    """What is asked next in each conversation."""
    return [
        Request(str(number), shared, model.tokenize(text), Sampling(12, samples=samples))
        for number, text in enumerate(said)
    ]


def rounds(
    model: LlamaModel, turns: KeptTurns | None, grammar: Grammar | None = None, slots: int = 4
) -> Iterator[tuple[list[Request], dict[str, Answer], int]]:
    """What is asked in each round of some conversations, what is answered, and how many rows were computed for that.

    Each round has an engine of its own. All conversations go on as those did that were read anew.
    """
    prefix = model.tokenize(PREFIX)
    settings = EngineSettings(slots, context=2048, threads=1, turns=turns)
    said = [chat(text) for text in some_texts(TALKS, seed=5)]
    for number in range(TURNS):
        if turns is not None:
            turns.next_round()
        requests = asked(model, said, len(prefix))
        with BatchEngine(model, settings, prefix, grammar) as engine:
            before = engine.decoded_tokens
            found = answers(engine, requests)
            yield requests, found, engine.decoded_tokens - before
        following = some_texts(TALKS, seed=50 + number)
        said = [
            f"{text}Well, {place}.<|im_end|>\n<|im_start|>{chat(more)}"
            for place, (text, more) in enumerate(zip(said, following, strict=True))
        ]


@pytest.mark.parametrize("slots", [1, 4])
@pytest.mark.parametrize("schema", [None, SCHEMA], ids=["free", "schema"])
def test_the_next_turn_is_answered_the_same_and_only_what_is_new_is_computed(
    model: LlamaModel, schema: dict[str, object] | None, slots: int
) -> None:
    grammar = Grammar(model, schema) if schema else None
    turns = KeptTurns(MUCH)
    kept, anew = list(rounds(model, turns, grammar, slots)), list(rounds(model, None, grammar, slots))
    saved = sum(rows for *_, rows in anew) - sum(rows for *_, rows in kept)
    was_asked = 0
    for (requests, found, _), (_, expected, _) in zip(kept, anew, strict=True):
        assert_same(model, requests, found, expected)
        was_asked += sum(len(request.tokens) for request in requests)
    was_asked -= sum(len(request.tokens) for request in kept[-1][0])
    assert turns.resumed_tokens == pytest.approx(was_asked, rel=0.05)
    assert saved == pytest.approx(turns.resumed_tokens, abs=12 * TURNS)  # near ties change lengths


def test_further_samples_go_on_from_the_same_turn(model: LlamaModel) -> None:
    prefix = model.tokenize(PREFIX)
    turns = KeptTurns(MUCH)
    settings = EngineSettings(4, context=2048, threads=1, turns=turns)
    first = chat("turn on the light in the kitchen and the hall")
    second = f"{first}Done.<|im_end|>\n<|im_start|>{chat('and now off')}"
    with BatchEngine(model, settings, prefix) as engine:
        answers(engine, asked(model, [first], len(prefix)))
        found = list(engine.run(asked(model, [second], len(prefix), samples=3)))
    assert turns.resumed_tokens >= len(model.tokenize(first)) - 1
    assert len({one.text for one in found}) == 1
    assert sorted(one.sample for one in found) == [0, 1, 2]


def talked(path: Path, keeps_turns: bool) -> tuple[list[str], int]:
    """All answers in some conversations, and how many tokens were not computed again."""
    talks = [Prompt(f"{number:08x}", (Message("user", text),)) for number, text in enumerate(some_texts(6, seed=2))]
    answers: list[str] = []
    with Answerer(path, (), None, AnswererSettings(1, keeps_turns=keeps_turns)) as answerer:
        for _ in range(TURNS):
            said = {found.prompt_id: found.text for found in answerer.complete(talks, Sampling(40), slots=4)}
            answers += [said[talk.id] for talk in talks]
            more = Message("assistant", "Very well, it is done."), Message("user", "And the hall?")
            talks = [replace(talk, messages=(*talk.messages, *more)) for talk in talks]
        return answers, answerer.turns.resumed_tokens if answerer.turns is not None else 0


@pytest.mark.parametrize(
    ("name", "changes", "keeps"),
    [
        pytest.param("llama", {}, True, id="full attention"),
        pytest.param("gemma3", {"sliding_window": 8}, False, id="a window that slid"),
        pytest.param("gemma3", {"sliding_window": 120}, True, id="a window that slides in some"),
        pytest.param("lfm2", {}, False, id="recurrent"),
    ],
)
def test_turns_are_kept_where_they_can_be_cut_back(
    name: str, changes: dict[str, int], keeps: bool, tmp_path: Path
) -> None:
    tiny = replace(TINY[name], settings={**TINY[name].settings, **changes})
    write_gguf(tiny_folder(tmp_path / "hf", tiny), tmp_path / "a.gguf", GgufMetadata(name="Tiny"), silent)
    (kept, resumed), (anew, none) = (talked(tmp_path / "a.gguf", keeps_turns) for keeps_turns in (True, False))
    assert sum(one == other for one, other in zip(kept, anew, strict=True)) >= len(kept) - 1
    assert (resumed > 0) is keeps
    assert none == 0


@pytest.mark.parametrize("has_turns", [True, False])
def test_a_teacher_keeps_turns_where_it_is_told_that_they_come_back(models: PicoModels, has_turns: bool) -> None:
    teacher = teacher_of("llamacpp", models, schema=None, has_turns=has_turns)
    assert isinstance(teacher, LlamaTeacher)
    turns = Message("user", "turn on the light in the hall"), Message("assistant", "Done."), Message("user", "Thanks")
    for messages in (turns[:1], turns):
        list(teacher.complete([Prompt("0000000a", messages)], TeachSettings(max_tokens=4, slots=2), 0))
    assert teacher._answerer is not None
    kept = teacher._answerer.turns
    assert (kept is not None and kept.resumed_tokens > 0) is has_turns
    teacher.close()


def test_what_has_no_room_is_computed_again(model: LlamaModel) -> None:
    whole = KeptTurns(MUCH)
    list(rounds(model, whole))
    some = KeptTurns(whole.held_bytes // 3)
    none = KeptTurns(0)
    for requests, found, _ in rounds(model, some):
        assert 0 < some.held_bytes <= whole.held_bytes // 3
        assert len(found) == len(requests)
    list(rounds(model, none))
    assert none.held_bytes == none.resumed_tokens == 0
    assert 0 < some.resumed_tokens < whole.resumed_tokens


def state() -> State:
    return (ctypes.c_uint8 * 8)()


def asked_of(number: int, *more: int) -> Request:
    return Request(str(number), 0, [*range(1000 * number, 1000 * number + 100), *more], Sampling(1))


def test_what_does_not_come_back_gives_way_where_room_is_short() -> None:
    turns = KeptTurns(16)
    for number in (1, 2, 3):  # the third one has no room
        turns.keep(asked_of(number), asked_of(number).tokens, state())
    assert turns.held_bytes == 16
    assert turns.room < 8
    for _ in range(LIVES):
        turns.next_round()
    assert turns.held_bytes == 16, "as long as nobody needs the room"
    assert turns.room == 16
    turns.keep(asked_of(3), asked_of(3).tokens, state())
    assert turns.held_bytes == 16
    assert [turns.take(asked_of(number, 1)) is not None for number in (1, 2, 3)] == [False, True, True]


def test_a_conversation_is_not_robbed_by_one_that_begins_alike() -> None:
    turns = KeptTurns(MUCH)
    opening = list(range(SHORTEST))
    long = Request("long", 0, [*opening, *range(100, 200)], Sampling(1))
    turns.keep(long, long.tokens, state())
    assert turns.take(Request("other", 0, [*opening, *range(300, 400)], Sampling(1))) is None
    assert turns.take(Request("elsewhere", 4, [*long.tokens, 1], Sampling(1))) is None
    twin = turns.take(Request("twin", 0, [*long.tokens[:-9], 1], Sampling(1)))
    assert twin is not None
    assert twin[0] == len(long.tokens) - 9
    turns.next_round()
    found = turns.take(Request("long", 0, [*long.tokens, 1, 2], Sampling(1)))
    assert found is not None
    assert found[0] == len(long.tokens)
    assert turns.take(long) is None
