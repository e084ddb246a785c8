"""What every teacher promises, over every backend that is installed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from itertools import count, islice
from math import exp
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import numpy as np
import pytest
from pico_recipe import SCHEMA, PicoModels, write_pico_recipe
from required import required_or_skipped

from edgedistill.errors import InvalidInput, MissingRequirement
from edgedistill.recipe import TeacherSettings, TeachSettings, load_recipe
from edgedistill.records import Completion, Example, Message, Prompt
from edgedistill.schema import closed_answers
from edgedistill.targets import Targets, decode
from edgedistill.teachers import BACKENDS, Teacher, TeacherTask, load_teacher, preamble

ROUNDING = 0.15  # nats: what the blob rounds away, and what a batch of another shape does to 16-bit arithmetic
Open = Callable[..., Teacher]
"""Opens a backend on the pico teacher; its argument is the schema of the answers."""


@pytest.fixture(params=BACKENDS)
def opened(request: pytest.FixtureRequest, models: PicoModels) -> Open:
    """Each backend, `openai` on a real server that is started for the tests."""
    return opener(request, models)


@pytest.fixture(params=[name for name, backend in BACKENDS.items() if backend.scores])
def telling(request: pytest.FixtureRequest, models: PicoModels) -> Open:
    """Each backend that has the weights itself, and so tells how probable each token and each closed answer is."""
    return opener(request, models)


@pytest.fixture(params=[name for name, backend in BACKENDS.items() if not backend.scores])
def mute(request: pytest.FixtureRequest, models: PicoModels) -> Open:
    """Each backend that has nothing but a server's answers."""
    return opener(request, models)


def opener(request: pytest.FixtureRequest, models: PicoModels) -> Open:
    backend: str = request.param
    required_or_skipped(backend, (BACKENDS[backend].library,))
    server = None if BACKENDS[backend].formats else request.getfixturevalue("llama_server")
    return partial(teacher_of, backend, models, server=server)


def teacher_of(
    backend: str,
    models: PicoModels,
    schema: dict[str, Any] | None = SCHEMA,
    server: tuple[str, str] | None = None,
) -> Teacher:
    """The backend on one and the same model, in the format that it takes; or at a server's URL, by its id there."""
    model, where = models.teacher, {}
    if server is not None:
        where = {"url": server[0], "model": server[1]}
    elif BACKENDS[backend].formats[0] != "gguf":
        model = models.teacher.with_name(f"{models.teacher.stem}-hf")
    return load_teacher(
        TeacherTask(
            model=None if server else model,
            sha256="0" * 64,
            preamble=(Message("system", "You turn a command into JSON."),),
            schema=schema,
            scratch=models.teacher.parent / "scratch",
            settings=TeacherSettings(**{"backend": backend, "model": str(model), **where}),  # type: ignore[arg-type]
        )
    )


def prompt(number: int) -> Prompt:
    texts = ("light on", "", "\nhall off, please", "🚀", "hello " * 30)
    return Prompt(f"{number:08x}", (Message("user", f"{texts[number % 5]}{number}"),))


def prompts(number: int) -> list[Prompt]:
    return list(map(prompt, range(number)))


def asked(teacher: Teacher, number: int, settings: TeachSettings, seed: int = 0) -> dict[str, Completion]:
    found = list(teacher.complete(prompts(number), settings, seed))
    assert sorted(one.prompt_id for one in found) == [prompt.id for prompt in prompts(number)]
    assert {one.sample for one in found} <= {0}
    return {one.prompt_id: one for one in found}


def kept(targets: Targets, position: int) -> dict[int, float]:
    """The ids that are kept at a position, in order, and their log-probabilities."""
    here = slice(targets.offsets[position], targets.offsets[position + 1])
    return dict(zip(targets.ids[here].tolist(), targets.logprobs[here].tolist(), strict=True))


def targets_of(completion: Completion) -> Targets:
    assert completion.targets is not None
    return decode(completion.targets)


def answered_example(of: Completion | str, number: int) -> Example:
    text = of if isinstance(of, str) else of.text
    return Example(prompt(number).id, (*prompt(number).messages, Message("assistant", text)))


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


@pytest.mark.parametrize("schema", [SCHEMA, None], ids=["schema", "free"])
def test_samples_of_a_prompt_begin_from_the_same_distribution(telling: Open, schema: dict[str, Any] | None) -> None:
    teacher = telling(schema)
    settings = TeachSettings(max_tokens=32, slots=3, temperature=1.0, samples=4, targets="top_k")
    first: dict[str, dict[int, float]] = {}
    for one in teacher.complete(prompts(4), settings, 0):
        targets = targets_of(one)
        assert len(targets.tokens) - one.completion_tokens == (schema is None and one.finish_reason == "stop")
        start = kept(targets, 0)
        other = first.setdefault(one.prompt_id, start)
        alike = [token for token in start if token in other]
        assert [start[token] for token in alike] == pytest.approx([other[token] for token in alike], abs=ROUNDING)
        assert len(alike) > 0.8 * len(start)
    assert len(first) == 4
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


@pytest.mark.parametrize("cut", [{"top_k": 3}, {"top_p": 0.2}, {"min_p": 0.5}], ids=["top_k", "top_p", "min_p"])
def test_only_tokens_that_are_allowed_are_drawn(telling: Open, cut: dict[str, Any]) -> None:
    teacher = telling(schema=None)
    settings = TeachSettings(
        max_tokens=12, slots=4, temperature=1.0, targets="top_k", target_mass=1.0, target_tokens=256, **cut
    )
    ranks = []
    for one in asked(teacher, 6, settings).values():
        targets = targets_of(one)
        for position, token in enumerate(targets.tokens.tolist()):
            found = kept(targets, position)
            likely = list(found.values())
            rank = list(found).index(token)
            ranks.append(rank)
            if "top_k" in cut:
                assert rank < 3
            elif "top_p" in cut:
                assert sum(map(exp, likely[:rank])) < 0.2 * exp(ROUNDING)
            else:
                assert likely[rank] > likely[0] + np.log(0.5) - ROUNDING
    assert max(ranks) > 0, "others than the most probable token are drawn"
    teacher.close()


def test_a_closed_answer_comes_with_the_probability_of_each(telling: Open) -> None:
    teacher = telling()
    greedy = asked(teacher, 10, TeachSettings(max_tokens=40, slots=4, closed=False))
    for key, one in asked(teacher, 10, TeachSettings(max_tokens=40, slots=4)).items():
        assert one.answers is not None
        assert set(one.answers) == set(closed_answers(SCHEMA) or ())
        assert sum(one.answers.values()) == pytest.approx(1)
        assert one.answers[one.text] == max(one.answers.values()) >= one.answers[greedy[key].text]
        assert greedy[key].answers is None
    teacher.close()


def test_closed_answers_do_not_depend_on_how_many_are_asked_at_once(telling: Open) -> None:
    teacher = telling()
    alone, together = (asked(teacher, 7, TeachSettings(max_tokens=40, slots=slots)) for slots in (1, 5))
    for key, one in alone.items():
        assert one.answers == pytest.approx(together[key].answers, abs=0.02)
    teacher.close()


def test_answers_behind_what_is_less_probable_than_the_floor_have_equal_parts(telling: Open) -> None:
    teacher = telling()
    whole, floored = (
        asked(teacher, 5, TeachSettings(max_tokens=40, slots=4, closed_floor=floor)) for floor in (0.0, 0.999)
    )
    for key, one in floored.items():
        exact = whole[key].answers
        assert one.answers is not None
        assert exact is not None
        for letter in ("o", "n"):  # on and off begin alike, none does not; nothing further on is asked
            behind = [text for text in exact if json.loads(text)["action"][0] == letter]
            together = sum(exact[text] for text in behind)
            assert [one.answers[text] for text in behind] == pytest.approx(
                [together / len(behind)] * len(behind), rel=0.05
            )
            assert len({round(one.answers[text], 9) for text in behind}) == 1
        assert len(set(exact.values())) == 6
    teacher.close()


def test_only_one_answer_that_is_allowed_is_certain(telling: Open) -> None:
    teacher = telling({"const": {"answer": 42}})
    (one,) = asked(teacher, 1, TeachSettings(max_tokens=40)).values()
    assert (one.text, one.answers) == ('{"answer":42}', {'{"answer":42}': 1.0})
    teacher.close()


def test_one_answer_may_begin_another(telling: Open) -> None:
    teacher = telling({"enum": [1, 12, 123, 2]})
    for one in asked(teacher, 3, TeachSettings(max_tokens=40)).values():
        assert one.answers is not None
        assert set(one.answers) == {"1", "12", "123", "2"}
        assert sum(one.answers.values()) == pytest.approx(1)
        assert min(one.answers.values()) > 0
    teacher.close()


def test_the_probability_of_a_closed_answer_is_the_product_of_its_choices(telling: Open) -> None:
    teacher = telling()
    settings = TeachSettings(targets="top_k", target_mass=1.0, target_tokens=256, slots=4)
    examples = [answered_example(f'"{letter}{letter}"', 0) for letter in ascii_lowercase]
    scored = {one.text[1]: targets_of(one) for one in teacher.score(examples, settings, 0)}
    teacher.close()
    token = {letter: int(targets.tokens[1]) for letter, targets in scored.items()}

    def shares(targets: Targets, position: int) -> dict[str, float]:
        """The first letters that are kept at a position, and their shares of each other's probability."""
        found = kept(targets, position)
        weights = {letter: exp(found[number]) for letter, number in token.items() if number in found}
        first = dict(islice(weights.items(), 3))
        return {letter: weight / sum(first.values()) for letter, weight in first.items()}

    expected = {
        f'"{one}{two}"': share * other
        for one, share in shares(scored["a"], 1).items()
        for two, other in shares(scored[one], 2).items()
    }
    assert len(expected) > 4
    teacher = telling({"enum": [json.loads(text) for text in expected]})
    (answered,) = asked(teacher, 1, TeachSettings(max_tokens=40)).values()
    assert answered.answers == pytest.approx(expected, rel=0.15)
    teacher.close()


@pytest.mark.parametrize("schema", [SCHEMA, None], ids=["schema", "free"])
@pytest.mark.parametrize("profile", ["top_k", "sampled"])
def test_the_distribution_at_each_token_is_kept(telling: Open, profile: Any, schema: dict[str, Any] | None) -> None:
    teacher = telling(schema)
    settings = TeachSettings(max_tokens=32, slots=3, targets=profile, target_tokens=256)
    for one in asked(teacher, 5, settings).values():
        targets = targets_of(one)
        assert targets.profile == profile
        assert one.answers is None
        assert len(targets.tokens) - one.completion_tokens == (schema is None and one.finish_reason == "stop")
        for position, token in enumerate(targets.tokens.tolist()):
            found = kept(targets, position)
            assert sum(map(exp, found.values())) + targets.tail[position] == pytest.approx(1, abs=1e-3)
            if profile == "top_k" and schema is None:
                assert next(iter(found)) == token, "the greedy token is the most probable one"
    teacher.close()


def test_targets_of_an_answer_that_is_cut_off_end_with_it(telling: Open) -> None:
    teacher = telling()
    for one in asked(teacher, 4, TeachSettings(max_tokens=5, slots=2, targets="top_k")).values():
        assert one.finish_reason == "length"
        assert len(targets_of(one).tokens) == one.completion_tokens == 5
    teacher.close()


def test_a_given_text_scores_as_it_did_when_it_was_written(telling: Open) -> None:
    teacher = telling()
    settings = TeachSettings(max_tokens=40, slots=3, targets="top_k", target_tokens=256)
    written = asked(teacher, 7, settings)
    examples = [answered_example(written[prompt(number).id], number) for number in range(7)]
    scored = list(teacher.score(iter(examples), settings, 0))
    assert sorted(one.prompt_id for one in scored) == sorted(written)
    for one in scored:
        other = written[one.prompt_id]
        assert (one.text, one.finish_reason, one.prompt_tokens) == (other.text, "stop", other.prompt_tokens)
        mine, theirs = targets_of(one), targets_of(other)
        assert len(mine.tokens) == len(theirs.tokens) + 1, "the token that ends the answer comes on top"
        assert len(mine.tokens) - one.completion_tokens in (0, 1)
        assert mine.tokens[:-1].tolist() == theirs.tokens.tolist()
        for position in range(len(theirs.tokens)):
            found = kept(mine, position)
            for token, logprob in kept(theirs, position).items():
                if logprob > -5:
                    assert found[token] == pytest.approx(logprob, abs=ROUNDING)
    teacher.close()


def test_nothing_given_is_nothing_scored(telling: Open) -> None:
    teacher = telling()
    assert list(teacher.score([], TeachSettings(), 0)) == []
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
