"""The data of the support-triage recipe: enough of it, right by its schema, and no eval row among the prompts."""

from __future__ import annotations

from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from recipe_rows import pairs_of, recipe_fixture, rows_fixture

from edgedistill.chat import json_instance
from edgedistill.recipe import Recipe
from edgedistill.records import Prompt
from edgedistill.schema import closed_answers, load_schema, schema_validator
from edgedistill.similarity import SimilarTexts, jaccard, normalised, shingles

FOLDER = Path(__file__).resolve().parents[1] / "recipes" / "support-triage"
CATEGORIES = ("billing", "bug", "account", "shipping", "other")
URGENCIES = ("low", "medium", "high")
CELLS = set(product(CATEGORIES, URGENCIES))
TAGS = {"curt", "long", "two-problems", "shouting", "calm-high", "deadline", "typos", "language", "question"}
NEAR = 0.5  # far below the bars of prompts and curate: no ticket may even be a rewording of another


recipe = recipe_fixture(FOLDER)
prompts, evals, edges = (rows_fixture(FOLDER / f"{name}.jsonl") for name in ("prompts", "eval", "edge"))


@pytest.fixture(scope="module")
def schema(recipe: Recipe) -> dict[str, Any]:
    found = load_schema(recipe)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def examples() -> list[tuple[str, str]]:
    """Ticket and answer, as it is written, of each example."""
    return pairs_of(FOLDER / "examples.jsonl")


def cell(answer: Any) -> tuple[str, str]:
    """Category and urgency of an answer."""
    return answer["category"], answer["urgency"]


def test_the_recipe_loads_and_has_no_fixed_number_of_slots(recipe: Recipe) -> None:
    assert recipe.name == FOLDER.name
    assert recipe.teach.slots == 0
    assert not recipe.accept.must_pass


def test_the_answers_are_a_closed_set_of_fifteen(schema: dict[str, Any]) -> None:
    answers = closed_answers(schema)
    assert answers is not None
    assert {cell(json_instance(answer)) for answer in answers} == CELLS
    assert len(answers) == len(CELLS)


def test_there_is_as_much_of_everything_as_there_should_be(
    prompts: list[Prompt], evals: list[Prompt], edges: list[Prompt], examples: list[tuple[str, str]]
) -> None:
    assert len(prompts) >= 520
    assert len(evals) == 120
    assert len(edges) == 24
    assert sum(prompt.must_pass for prompt in edges) == 8
    assert len(examples) == 16


def test_prompts_have_no_answers_and_the_others_all_have_one(
    prompts: list[Prompt], evals: list[Prompt], edges: list[Prompt]
) -> None:
    assert all(prompt.expected is None and not prompt.tags for prompt in prompts)
    assert all(prompt.expected is not None for prompt in (*evals, *edges))
    assert all(len(prompt.messages) == 1 for prompt in (*prompts, *evals, *edges))
    assert {tag for prompt in evals for tag in prompt.tags} == TAGS
    assert all(prompt.tags for prompt in edges)


def test_every_expected_answer_matches_the_schema_in_the_order_of_its_fields(
    schema: dict[str, Any], evals: list[Prompt], edges: list[Prompt]
) -> None:
    is_valid = schema_validator(schema)
    assert is_valid is not None
    for prompt in (*evals, *edges):
        assert is_valid(prompt.expected), prompt.text
        assert list(prompt.expected) == list(schema["properties"]), prompt.text


def test_every_example_ends_with_one_of_the_closed_answers_letter_for_letter(
    schema: dict[str, Any], examples: list[tuple[str, str]]
) -> None:
    assert {answer for _, answer in examples} <= set(closed_answers(schema) or ())


def test_all_fifteen_answers_are_in_the_eval_set_and_in_the_examples(
    evals: list[Prompt], examples: list[tuple[str, str]]
) -> None:
    counted = Counter(cell(prompt.expected) for prompt in evals)
    assert set(counted) == CELLS
    assert min(counted.values()) >= 3
    assert {cell(json_instance(answer)) for _, answer in examples} == CELLS


def test_the_eval_set_has_the_same_number_of_each_category_and_no_urgency_prevails(evals: list[Prompt]) -> None:
    assert Counter(prompt.expected["category"] for prompt in evals) == dict.fromkeys(CATEGORIES, 24)
    urgencies = Counter(prompt.expected["urgency"] for prompt in evals)
    assert max(urgencies.values()) <= 0.4 * len(evals)


def test_the_tone_of_an_eval_ticket_does_not_tell_its_urgency(evals: list[Prompt]) -> None:
    shouted = {prompt.expected["urgency"] for prompt in evals if "shouting" in prompt.tags}
    assert shouted == set(URGENCIES)
    assert {prompt.expected["urgency"] for prompt in evals if "calm-high" in prompt.tags} == {"high"}


def test_the_stage_prompts_drops_none(recipe: Recipe, prompts: list[Prompt], tmp_path: Path) -> None:
    with SimilarTexts(recipe.prompts.near_duplicate, tmp_path) as seen:
        assert seen.screen([(prompt.id, prompt.text) for prompt in prompts]) == [None] * len(prompts)


def test_the_stage_curate_finds_no_eval_or_edge_ticket_among_the_prompts(
    recipe: Recipe, prompts: list[Prompt], evals: list[Prompt], edges: list[Prompt], tmp_path: Path
) -> None:
    with SimilarTexts(recipe.curate.eval_overlap, tmp_path) as measured:
        measured.add([(prompt.id, prompt.text) for prompt in (*evals, *edges)])
        assert measured.twins([prompt.text for prompt in prompts]) == [None] * len(prompts)


def test_no_ticket_is_there_twice_or_resembles_another(
    prompts: list[Prompt], evals: list[Prompt], edges: list[Prompt], examples: list[tuple[str, str]]
) -> None:
    texts = [*(prompt.text for prompt in (*prompts, *evals, *edges)), *(text for text, _ in examples)]
    assert len(set(map(normalised, texts))) == len(texts)
    # a union is at least as large as the larger set, so that sets of unlike sizes need no comparing
    cut = sorted(((shingles(text), text) for text in texts), key=lambda pair: len(pair[0]))
    for index, (mine, text) in enumerate(cut):
        for theirs, other in cut[index + 1 :]:
            if len(mine) < NEAR * len(theirs):
                break
            assert jaccard(mine, theirs) < NEAR, (text, other)


def test_tickets_are_short_and_long(prompts: list[Prompt], evals: list[Prompt]) -> None:
    for tickets in (prompts, evals):
        lengths = [len(prompt.text.split()) for prompt in tickets]
        assert min(lengths) <= 5
        assert max(lengths) >= 70
        assert sum(15 <= length <= 50 for length in lengths) >= 0.4 * len(lengths)


def test_the_edge_cases_hold_what_breaks_things(edges: list[Prompt]) -> None:
    texts = [prompt.text for prompt in edges]
    assert "" in texts
    assert any("Ignore the guide" in text for text in texts)
    assert any('{"category"' in text for text in texts)
    assert any(text and not any(letter.isalnum() for letter in text) for text in texts)
    assert any(len(text.split()) >= 150 for text in texts)
    assert any(text.isupper() for text in texts)
    assert any(not text.isascii() for text in texts)
