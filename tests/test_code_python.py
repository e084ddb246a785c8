"""The data of the code-python recipe: enough of it, its tests passed by a reference, and no eval task a prompt."""

from __future__ import annotations

import ast
import random
from collections import Counter
from itertools import product
from pathlib import Path

from recipe_rows import generator, pairs_of, recipe_fixture, rows_fixture

from edgedistill.recipe import Recipe
from edgedistill.records import Prompt
from edgedistill.similarity import SimilarTexts
from edgedistill.stages.code_runner import fault
from edgedistill.stages.passing import asserted, code_in

FOLDER = Path(__file__).resolve().parents[1] / "recipes" / "code-python"
KINDS = {"numbers", "words", "prices"}

recipe = recipe_fixture(FOLDER)
prompts, evals = (rows_fixture(FOLDER / f"{name}.jsonl") for name in ("prompts", "eval"))


def test_there_is_as_much_of_everything_as_there_should_be(prompts: list[Prompt], evals: list[Prompt]) -> None:
    assert (len(prompts), len(evals)) == (180, 72)
    for rows in (prompts, evals):
        kinds = Counter(tag for row in rows for tag in row.tags)
        assert set(kinds) == KINDS | {"nothing-left"}
        assert min(kinds.values()) >= len(rows) // 10


def test_a_reference_passes_the_tests_of_every_row_and_nothing_does_not(
    prompts: list[Prompt], evals: list[Prompt]
) -> None:
    made = generator(FOLDER)
    code = {task.asked: task.code for task in made.tasks(random.Random(made.SEED))}
    for row in (*prompts, *evals):
        tests = asserted(row.expected)
        assert tests is not None
        assert len(row.expected) == 4
        assert fault(code[row.text], tests) is None
        name = next(node.name for node in ast.walk(ast.parse(code[row.text])) if isinstance(node, ast.FunctionDef))
        assert fault(f"def {name}(given):\n    return None", tests) is not None


def test_who_counts_all_where_the_different_ones_are_asked_for_fails(
    prompts: list[Prompt], evals: list[Prompt]
) -> None:
    made = generator(FOLDER)
    code = {task.asked: task.code for task in made.tasks(random.Random(made.SEED))}
    counting = [row for row in (*prompts, *evals) if "the number of different ones" in row.text]
    assert len(counting) >= 20
    for row in counting:
        tests = asserted(row.expected)
        assert tests is not None
        assert fault(code[row.text].replace("len(set(found))", "len(found)"), tests) is not None


def test_every_kind_is_asked_for_in_every_wording(prompts: list[Prompt], evals: list[Prompt]) -> None:
    starts = ("Write", "`", "I need")
    for rows in (prompts, evals):
        found = Counter((row.tags[0], next(one for one in starts if row.text.startswith(one))) for row in rows)
        assert set(found) == set(product(KINDS, starts))
        assert min(found.values()) >= len(rows) // 30


def test_the_script_writes_the_same_files_again() -> None:
    for name, text in generator(FOLDER).written().items():
        assert (FOLDER / name).read_text(encoding="utf-8") == text


def test_neither_prompts_nor_curate_finds_anything_that_is_there_twice(
    recipe: Recipe, prompts: list[Prompt], evals: list[Prompt], tmp_path: Path
) -> None:
    threshold = min(recipe.prompts.near_duplicate, recipe.curate.near_duplicate, recipe.curate.eval_overlap)
    rows = [(row.id, row.text) for row in (*prompts, *evals)]
    with SimilarTexts(threshold, tmp_path) as seen:
        assert seen.screen(rows) == [None] * len(rows)


def test_the_examples_are_functions_that_keep_to_the_guide(recipe: Recipe, evals: list[Prompt]) -> None:
    calls = {"smallest_over_50": "[1]", "longest_with_s": "['a']", "rising_over_7_halves": "{}", "sum_odd_cubes": "[]"}
    nothing = {"smallest_over_50": None, "longest_with_s": None, "rising_over_7_halves": [], "sum_odd_cubes": 0}
    seen = set()
    for question, answer in pairs_of(FOLDER / "examples.jsonl"):
        name = ast.parse(code_in(answer)).body[0].name  # type: ignore[attr-defined]
        assert f"`{name}(" in question
        assert not any(f"`{name}(" in row.text for row in evals)
        assert fault(answer, f"assert {name}({calls[name]}) == {nothing[name]!r}") is None
        seen.add(name)
    assert seen == set(calls)
    assert recipe.curate.right_by == recipe.evaluate.scorer == "tests"
