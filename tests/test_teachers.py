"""What every teacher promises, over every backend that is installed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import pytest
from opened_teachers import Open, asked, prompt, prompts
from pico_recipe import SCHEMA, PicoModels, write_pico_recipe

from edgedistill.errors import InvalidInput, MissingRequirement
from edgedistill.recipe import TeachSettings, load_recipe
from edgedistill.records import Message, Prompt
from edgedistill.schema import closed_answers
from edgedistill.teachers import preamble


@pytest.mark.parametrize("closed", [True, False])
def test_every_prompt_is_answered_once(opened: Open, closed: bool) -> None:
    teacher = opened()
    for one in asked(teacher, 20, TeachSettings(max_tokens=40, slots=4, closed=closed)).values():
        assert one.finish_reason == "stop"
        assert json.loads(one.text).keys() == {"action", "room"}
        assert one.prompt_tokens > 0
        assert 0 < one.completion_tokens <= 40
        assert one.seconds > 0
    teacher.close()


def test_greedy_answers_do_not_depend_on_how_many_are_asked_at_once(opened: Open) -> None:
    teacher = opened(schema=None)
    alone, together = (asked(teacher, 12, TeachSettings(max_tokens=8, slots=slots)) for slots in (1, 5))
    assert {k: one.text for k, one in alone.items()} == {k: one.text for k, one in together.items()}
    teacher.close()


def test_a_seed_repeats_what_was_sampled(opened: Open) -> None:
    teacher = opened(schema=None)
    settings = TeachSettings(max_tokens=8, slots=4, temperature=1.0)
    one, same, other = ({k: c.text for k, c in asked(teacher, 8, settings, seed).items()} for seed in (1, 1, 2))
    assert one == same
    assert one != other
    assert len(set(one.values())) > 4, "each prompt has a seed of its own"
    teacher.close()


def test_an_answer_that_is_cut_off_says_so(opened: Open) -> None:
    teacher = opened()
    found = asked(teacher, 4, TeachSettings(max_tokens=3, slots=2, closed=False))
    assert {one.finish_reason for one in found.values()} == {"length"}
    assert all(one.completion_tokens <= 3 for one in found.values())
    teacher.close()


def test_a_teacher_can_be_asked_again_and_closed_twice(opened: Open) -> None:
    teacher = opened()
    settings = TeachSettings(max_tokens=40, slots=2)
    first = asked(teacher, 3, settings)
    teacher.close()
    teacher.close()
    assert {k: one.text for k, one in asked(teacher, 3, settings).items()} == {k: one.text for k, one in first.items()}
    teacher.close()


def test_a_conversation_is_answered_the_same_by_a_teacher_that_knows_it_comes_back(opened: Open) -> None:
    settings = TeachSettings(max_tokens=8, slots=4)
    said: dict[bool, list[str]] = {}
    for has_turns in (False, True):
        teacher = opened(schema=None, has_turns=has_turns)
        talks, said[has_turns] = {one.id: one for one in prompts(6)}, []
        for more in ("", "And in the hall?", "Thanks, and now the kitchen"):
            if more:  # both behind the same words
                turns = Message("assistant", "It is done."), Message("user", more)
                talks = {name: replace(one, messages=(*one.messages, *turns)) for name, one in talks.items()}
            found = {one.prompt_id: one.text for one in teacher.complete(list(talks.values()), settings, 0)}
            said[has_turns] += [found[name] for name in talks]
        teacher.close()
    same = sum(one == other for one, other in zip(said[False], said[True], strict=True))
    assert same >= len(said[True]) - 2  # what is computed beside a text moves its last bits, and now and then a token


def test_no_prompts_are_no_answers(opened: Open) -> None:
    teacher = opened()
    assert asked(teacher, 0, TeachSettings()) == {}
    teacher.close()


def test_every_sample_of_every_prompt_is_given_once_and_repeats(opened: Open) -> None:
    teacher = opened(schema=None)
    settings = TeachSettings(max_tokens=6, slots=4, temperature=1.0, samples=3)
    one, same = (
        {(c.prompt_id, c.sample): c.text for c in teacher.complete(prompts(5), settings, seed=1)} for _ in range(2)
    )
    assert sorted(one) == [(prompt.id, sample) for prompt in prompts(5) for sample in range(3)]
    assert one == same
    assert len(set(one.values())) > 10, "each sample has a seed of its own"
    assert len(list(teacher.complete(prompts(5), settings, seed=1))) == 15
    teacher.close()


def test_only_the_samples_that_are_wanted_are_given_and_say_what_they_would_among_all(opened: Open) -> None:
    teacher = opened(schema=None)
    settings = TeachSettings(max_tokens=6, slots=4, temperature=1.0, samples=4)
    lacks = dict(zip((one.id for one in prompts(5)), [[0, 1, 2, 3], [3], [0, 2], [1, 2, 3], [0, 3]], strict=True))
    whole = {(c.prompt_id, c.sample): c.text for c in teacher.complete(prompts(5), settings, seed=1)}
    some = [
        ((c.prompt_id, c.sample), c.text)
        for c in teacher.complete(prompts(5), settings, seed=1, wanted=lambda prompt: lacks[prompt.id])
    ]
    assert sorted(key for key, _ in some) == [(name, sample) for name, numbers in lacks.items() for sample in numbers]
    # what is computed beside a text moves its last bits, and now and then a token
    assert sum(whole[key] == text for key, text in some) >= 0.75 * len(some)
    teacher.close()


@pytest.mark.parametrize("schema", [SCHEMA, None], ids=["closed", "open"])
def test_prompts_are_taken_only_as_there_is_room(opened: Open, schema: dict[str, Any]) -> None:
    taken = 0

    def endless() -> Iterator[Prompt]:
        nonlocal taken
        for number in count():
            taken += 1
            yield prompt(number)

    teacher = opened(schema)
    settings = TeachSettings(max_tokens=4, slots=2)
    with closing(teacher.complete(endless(), settings, 0)) as completions:  # type: ignore[type-var]
        assert len({one.prompt_id for one in islice(completions, 5)}) == 5
    assert taken < 2000
    assert len(asked(teacher, 3, settings)) == 3, "what was broken off is not in the way"
    teacher.close()


@pytest.mark.parametrize(
    "narrow", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 0.999999}], ids=["top_k", "top_p", "min_p"]
)
def test_the_narrowest_choice_is_the_greedy_one(opened: Open, narrow: dict[str, Any]) -> None:
    teacher = opened(schema=None)
    greedy = asked(teacher, 4, TeachSettings(max_tokens=6, slots=4))
    narrowed = asked(teacher, 4, TeachSettings(max_tokens=6, slots=4, temperature=2.0, **narrow))
    assert {k: one.text for k, one in narrowed.items()} == {k: one.text for k, one in greedy.items()}
    teacher.close()


@pytest.mark.parametrize("targets", ["top_k", "sampled"])
def test_what_a_server_does_not_tell_is_refused_before_anything_is_asked(mute: Open, targets: Any) -> None:
    def never() -> Iterator[Any]:
        raise AssertionError("a prompt was taken")
        yield

    teacher = mute()
    for refused in (teacher.complete, teacher.score):
        with pytest.raises(MissingRequirement, match=r"^a server's API does not tell ") as caught:
            refused(never(), TeachSettings(targets=targets), 0)
        assert caught.value.hint.startswith("Use a local teacher")
    with pytest.raises(MissingRequirement):
        teacher.score(never(), TeachSettings(), 0)
    assert len(asked(teacher, 2, TeachSettings(max_tokens=40))) == 2, "and everything else is answered as before"
    teacher.close()


def test_where_no_probabilities_are_told_a_closed_answer_is_one_of_the_set(mute: Open) -> None:
    teacher = mute()
    written, plain = (asked(teacher, 6, TeachSettings(max_tokens=40, closed=closed)) for closed in (True, False))
    allowed = [json.loads(answer) for answer in closed_answers(SCHEMA) or ()]
    for key, one in written.items():
        assert one.answers is None
        assert json.loads(one.text) in allowed
        assert one.text == plain[key].text
    teacher.close()


def test_the_preamble_is_system_text_guide_and_examples(models: PicoModels, tmp_path: Path) -> None:
    shown = preamble(load_recipe(write_pico_recipe(tmp_path, models)))
    assert shown == (
        Message("system", "You turn a command into JSON.\n\n# Guide\n\nHall is the hall, all is everything else."),
        Message("user", "hall off"),
        Message("assistant", '{"action":"off","room":"hall"}'),
    )


def test_an_example_without_an_answer_is_named_with_its_line(models: PicoModels, tmp_path: Path) -> None:
    recipe = load_recipe(write_pico_recipe(tmp_path, models))
    with (tmp_path / "examples.jsonl").open("a", encoding="utf-8") as file:
        file.write('\n{"messages": [{"role": "user", "content": "x"}]}\n')
    with pytest.raises(InvalidInput, match=r"examples\.jsonl:2: an example must end with the assistant's answer"):
        preamble(recipe)


def test_a_guide_that_is_no_text_or_not_there_is_named(models: PicoModels, tmp_path: Path) -> None:
    recipe = load_recipe(write_pico_recipe(tmp_path, models))
    for spoil in (lambda path: path.write_bytes(b"gr\xfc\xdfe"), Path.unlink):
        spoil(tmp_path / "guide.md")
        with pytest.raises(InvalidInput, match=r"guide\.md"):
            preamble(recipe)


def test_a_backend_that_is_not_installed_says_what_to_install() -> None:
    code = (
        "import sys\n"
        "sys.modules['llama_cpp'] = None\n"
        "from edgedistill.errors import MissingRequirement\n"
        "from edgedistill.recipe import TeacherSettings\n"
        "from edgedistill.teachers import require_teacher\n"
        "try:\n"
        "    require_teacher(TeacherSettings(model='x.gguf'))\n"
        "except MissingRequirement as error:\n"
        "    sys.stdout.write(f'{error.message} / {error.hint}')\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == "the 'llamacpp' teacher needs llama_cpp / pip install llama-cpp-python"
    assert MissingRequirement.exit_code == 6
