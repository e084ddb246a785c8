"""The data of the reasoning-math recipe: enough of it, exactly right, and no eval problem among the prompts."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from recipe_rows import generator, pairs_of, recipe_fixture, rows_fixture

from edgedistill.recipe import Recipe
from edgedistill.records import Prompt
from edgedistill.similarity import SimilarTexts
from edgedistill.stages.final_answer import concluded, final_number
from edgedistill.stages.scorers import fits_scorer

FOLDER = Path(__file__).resolve().parents[1] / "recipes" / "reasoning-math"
EDGES = {"distractor", "number-words", "zero", "one-step"}
SOLVED_BY_HAND = [53, 11, 88, 55, 36, 48, 26, 24, 70, 27, 30]  # the first eval rows, one of each kind

recipe = recipe_fixture(FOLDER)
prompts, evals, edges = (rows_fixture(FOLDER / f"{name}.jsonl") for name in ("prompts", "eval", "edge"))


def test_there_is_as_much_of_everything_as_there_should_be(
    prompts: list[Prompt], evals: list[Prompt], edges: list[Prompt]
) -> None:
    assert (len(prompts), len(evals), len(edges)) == (400, 100, 24)
    for rows in (prompts, evals):
        kinds = Counter(tag for row in rows for tag in row.tags)
        assert set(kinds) == set(generator(FOLDER).KINDS)
        assert min(kinds.values()) >= 0.9 * len(rows) / len(kinds)
    assert {tag for row in edges for tag in row.tags} == EDGES


def test_every_problem_has_a_whole_number_that_is_not_negative(
    prompts: list[Prompt], evals: list[Prompt], edges: list[Prompt]
) -> None:
    for row in (*prompts, *evals, *edges):
        assert isinstance(row.expected, int)
        assert 0 <= row.expected < 1000
        assert fits_scorer("number", row.expected) is None


def test_the_answers_are_those_that_a_person_finds(evals: list[Prompt]) -> None:
    first = evals[: len(SOLVED_BY_HAND)]
    assert {tag for row in first for tag in row.tags} == set(generator(FOLDER).KINDS)
    assert [row.expected for row in first] == SOLVED_BY_HAND


def test_nobody_misses_more_of_a_lesson_than_it_has(prompts: list[Prompt], evals: list[Prompt]) -> None:
    lessons = [row for row in (*prompts, *evals) if "sessions" in row.tags]
    for row in lessons:
        first, second, off = map(int, re.findall(r"\d+", row.text))
        minutes, days = (second, first) if "lessons" in row.text else (first, second)
        assert off < minutes, row.text
        assert row.expected == minutes * days - off, row.text


def test_things_have_the_right_article_and_number(
    prompts: list[Prompt], evals: list[Prompt], edges: list[Prompt]
) -> None:
    for row in (*prompts, *evals, *edges):
        assert not re.search(r"\b([Aa] [aeiou]|[Aa]n (?!hour)[^aeiou]|1 \w+s\b)", row.text), row.text


def test_the_script_writes_the_same_files_again() -> None:
    for name, text in generator(FOLDER).written().items():
        assert (FOLDER / name).read_text(encoding="utf-8") == text


def test_neither_prompts_nor_curate_finds_anything_that_is_there_twice(
    recipe: Recipe, prompts: list[Prompt], evals: list[Prompt], edges: list[Prompt], tmp_path: Path
) -> None:
    threshold = min(recipe.prompts.near_duplicate, recipe.curate.near_duplicate, recipe.curate.eval_overlap)
    rows = [(row.id, row.text) for row in (*prompts, *evals, *edges)]
    with SimilarTexts(threshold, tmp_path) as seen:
        assert seen.screen(rows) == [None] * len(rows)


def test_the_examples_are_right_and_end_as_the_teacher_is_told_to(recipe: Recipe) -> None:
    for _, answer in pairs_of(FOLDER / "examples.jsonl"):
        *steps, last = answer.splitlines()
        assert last == f"Answer: {concluded(answer)}"
        for step in steps:
            left, _, right = step.partition(" = ")
            assert eval(left) == int(right)
        assert final_number(answer) == int(steps[-1].partition(" = ")[2])
    assert recipe.curate.right_by == recipe.evaluate.scorer == "number"
