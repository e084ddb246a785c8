"""The data of the tool-calls recipe: enough of it, right by its tools, and no eval row among the prompts."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from recipe_rows import generator, recipe_fixture, rows_fixture

from edgedistill.messages import messages_of, with_calls
from edgedistill.recipe import Recipe
from edgedistill.records import Prompt, read_rows
from edgedistill.similarity import SimilarTexts, normalised
from edgedistill.stages.on_offer import recipe_tools
from edgedistill.stages.scorers import right_text, tool_call
from edgedistill.stages.tool_calls import fault, said

FOLDER = Path(__file__).resolve().parents[1] / "recipes" / "tool-calls"
NEAR = 0.6  # well below the bar of curate

recipe = recipe_fixture(FOLDER)
prompts, evals = (rows_fixture(FOLDER / f"{name}.jsonl") for name in ("prompts", "eval"))


def examples() -> list[tuple[str, str]]:
    """Request and answer of each example."""
    found = [messages_of("example", row) for _, row in read_rows(FOLDER / "examples.jsonl")]
    return [(asked.content, with_calls(answer)) for asked, answer in found]


def test_there_is_enough_of_everything(recipe: Recipe, prompts: list[Prompt], evals: list[Prompt]) -> None:
    assert len(recipe_tools(recipe)) >= 12
    assert len(prompts) >= 1200
    assert len(evals) == 100
    counted = Counter(row.tags[0] for row in evals)
    assert (counted["no tool"], counted["parallel"]) == (20, 15)
    assert not any(row.expected for row in prompts)


def test_the_tools_have_arguments_of_every_kind(recipe: Recipe) -> None:
    schemas = [tool["function"]["parameters"] for tool in recipe_tools(recipe)]
    properties = [inner for schema in schemas for inner in schema["properties"].values()]
    assert {inner.get("type") for inner in properties} >= {"string", "integer", "number", "boolean"}
    assert any("enum" in inner for inner in properties)
    assert any(set(schema["properties"]) - set(schema.get("required", ())) for schema in schemas)


def test_every_right_answer_is_of_its_tools_and_has_all_points(recipe: Recipe, evals: list[Prompt]) -> None:
    tools = recipe_tools(recipe)
    for row in evals:
        text = right_text("tool", row.expected)
        assert fault(text, tools) is None, row.text
        assert tool_call(text, row.expected) == 1.0, row.text
    for asked, answer in examples():
        assert fault(answer, tools) is None, asked


def test_every_tool_is_asked_for_in_examples_and_eval(recipe: Recipe, evals: list[Prompt]) -> None:
    names = {tool["function"]["name"] for tool in recipe_tools(recipe)}
    for answers in ([right_text("tool", row.expected) for row in evals], [answer for _, answer in examples()]):
        counted = Counter(name for answer in answers for name, _ in said(answer).calls)
        assert set(counted) == names
        assert max(counted.values()) < 0.25 * len(answers)


def test_no_request_is_there_twice_and_no_eval_row_resembles_one_that_is_shown(
    prompts: list[Prompt], evals: list[Prompt], tmp_path: Path
) -> None:
    assert len({normalised(row.text) for row in prompts}) > 0.99 * len(prompts)
    with SimilarTexts(NEAR, tmp_path) as seen:
        seen.add([(row.id, row.text) for row in prompts])
        seen.add([(f"example {number}", asked) for number, (asked, _) in enumerate(examples())])
        alike = [(row.text, twin) for row in evals for twin in seen.twins([row.text]) if twin is not None]
    assert alike == []


def test_the_script_writes_the_prompts_that_are_there(prompts: list[Prompt]) -> None:
    assert generator(FOLDER).written() == [row.text for row in prompts]
    assert json.loads((FOLDER / "tools.json").read_text(encoding="utf-8"))
