"""The data of the home-commands recipe: enough of it, right by its schema, and no eval row among the prompts."""

from __future__ import annotations

from collections import Counter
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
from recipe_rows import pairs_of, recipe_fixture, rows_fixture

from edgedistill.chat import json_instance
from edgedistill.records import Prompt
from edgedistill.schema import load_schema, schema_validator
from edgedistill.similarity import jaccard, normalised, shingles

FOLDER = Path(__file__).resolve().parents[1] / "recipes" / "home-commands"
NOTHING = {"action": "none", "device": "none", "room": "unspecified", "value": None}
NEAR = 0.8
DEVICES_OF = {
    "open": {"blind"},
    "close": {"blind"},
    "lock": {"lock"},
    "unlock": {"lock"},
    "turn_on": {"light", "thermostat", "speaker", "tv", "vacuum"},
    "turn_off": {"light", "thermostat", "speaker", "tv", "vacuum"},
    "none": {"none"},
}


recipe = recipe_fixture(FOLDER)
prompts, evals, edges = (rows_fixture(FOLDER / f"{name}.jsonl") for name in ("prompts", "eval", "edge"))


@pytest.fixture(scope="module")
def examples() -> list[tuple[str, Any]]:
    """Command and answer of each example."""
    return [(text, json_instance(answer)) for text, answer in pairs_of(FOLDER / "examples.jsonl")]


def test_there_is_enough_of_everything(prompts: list[Prompt], evals: list[Prompt], edges: list[Prompt]) -> None:
    assert len(prompts) >= 1200
    assert len(evals) >= 150
    assert len(edges) >= 30
    assert sum(prompt.must_pass for prompt in edges) >= 5


def test_prompts_have_no_answers_and_the_others_all_have_one(
    prompts: list[Prompt], evals: list[Prompt], edges: list[Prompt]
) -> None:
    assert all(prompt.expected is None for prompt in prompts)
    assert all(prompt.expected is not None for prompt in (*evals, *edges))
    assert all(prompt.tags for prompt in (*evals, *edges))
    assert all(len(prompt.messages) == 1 for prompt in (*prompts, *evals, *edges))


def test_every_answer_matches_the_schema_in_the_order_of_its_fields(
    recipe: Any, evals: list[Prompt], edges: list[Prompt], examples: list[tuple[str, Any]]
) -> None:
    schema = load_schema(recipe)
    assert schema is not None
    is_valid = schema_validator(schema)
    assert is_valid is not None
    for text, answer in [*((prompt.text, prompt.expected) for prompt in (*evals, *edges)), *examples]:
        assert is_valid(answer), text
        assert list(answer) == list(schema["properties"]), text


def test_every_answer_keeps_to_the_guide(
    evals: list[Prompt], edges: list[Prompt], examples: list[tuple[str, Any]]
) -> None:
    for text, answer in [*((prompt.text, prompt.expected) for prompt in (*evals, *edges)), *examples]:
        if answer["action"] == "none" or answer["device"] == "none":
            assert answer == NOTHING, text
        assert answer["device"] in DEVICES_OF.get(answer["action"], {answer["device"]}), text
        if answer["action"] != "set":
            assert answer["value"] is None, text


def test_about_an_eighth_of_the_eval_set_is_no_command(evals: list[Prompt]) -> None:
    share = sum(prompt.expected == NOTHING for prompt in evals) / len(evals)
    assert 0.08 <= share <= 0.16


def test_actions_devices_and_rooms_are_all_there(
    recipe: Any, evals: list[Prompt], examples: list[tuple[str, Any]]
) -> None:
    schema = load_schema(recipe)
    assert schema is not None
    for name in ("action", "device", "room"):
        for answers in ([prompt.expected for prompt in evals], [answer for _, answer in examples]):
            counted = Counter(answer[name] for answer in answers)
            assert set(counted) == set(schema["properties"][name]["enum"]), name
            assert max(counted.values()) < 0.5 * len(answers), name


def test_no_command_is_there_twice_and_none_of_one_file_resembles_one_of_another(
    prompts: list[Prompt], evals: list[Prompt], edges: list[Prompt], examples: list[tuple[str, Any]]
) -> None:
    sets = {
        "prompts": [prompt.text for prompt in prompts],
        "eval": [prompt.text for prompt in evals],
        "edge": [prompt.text for prompt in edges],
        "examples": [text for text, _ in examples],
    }
    for name, texts in sets.items():
        words = sorted(map(normalised, texts))
        assert [one for one, other in pairwise(words) if one == other] == [], name
    cut = {name: [(text, shingles(text)) for text in texts] for name, texts in sets.items()}
    alike = [
        (one, other)
        for first, second in combinations(cut, 2)
        if {first, second} != {"prompts", "examples"}
        for one, mine in cut[first]
        for other, theirs in cut[second]
        # a union is at least as large as the larger set, so that sets of unlike sizes need no comparing
        if min(len(mine), len(theirs)) >= NEAR * max(len(mine), len(theirs)) and jaccard(mine, theirs) >= NEAR
    ]
    assert alike == []


def test_the_edge_cases_hold_what_breaks_things(edges: list[Prompt]) -> None:
    texts = [prompt.text for prompt in edges]
    assert "" in texts
    assert any(text.isupper() and len(text) > 10 for text in texts)
    assert any(len(text.split()) >= 150 for text in texts)
    assert any(not text.isascii() for text in texts)
    assert any("instructions" in text.lower() for text in texts)
    assert any(len(text.split()) == 1 for text in texts)
