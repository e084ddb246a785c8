"""What every teacher that has the weights tells: the probability of each token and of each closed answer."""

from __future__ import annotations

import json
from itertools import islice
from math import exp
from string import ascii_lowercase
from typing import Any

import numpy as np
import pytest
from opened_teachers import ROUNDING, Open, answered_example, asked, kept, prompt, prompts, targets_of
from pico_recipe import SCHEMA

from edgedistill.recipe import TeachSettings
from edgedistill.schema import closed_answers
from edgedistill.targets import Targets


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
