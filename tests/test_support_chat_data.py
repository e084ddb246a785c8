"""The data of the support-chat recipe: enough of it, each row with goal and persona, no eval row among the prompts."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from recipe_rows import generator, pairs_of, recipe_fixture, rows_fixture

from edgedistill.recipe import Recipe
from edgedistill.records import Prompt
from edgedistill.similarity import SimilarTexts, normalised
from edgedistill.stages.simulated_user import require_user

FOLDER = Path(__file__).resolve().parents[1] / "recipes" / "support-chat"
NEAR = 0.7  # below the bars of prompts and curate

recipe = recipe_fixture(FOLDER)
prompts, evals = (rows_fixture(FOLDER / f"{name}.jsonl") for name in ("prompts", "eval"))


def test_there_is_enough_of_every_concern(prompts: list[Prompt], evals: list[Prompt]) -> None:
    assert (len(prompts), len(evals)) == (96, 30)
    for rows, least in ((prompts, 6), (evals, 1)):
        counted = Counter(tag for row in rows for tag in row.tags)
        assert len(counted) == 12
        assert min(counted.values()) >= least


def test_every_row_is_a_first_message_with_a_goal_and_a_persona(prompts: list[Prompt], evals: list[Prompt]) -> None:
    for row in (*prompts, *evals):
        assert [message.role for message in row.messages] == ["user"]
        assert re.search(r"\b[Yy]our?\b.*\. Find out ", row.goal), row.goal
        assert row.persona
        assert not re.search(r"[{}]", row.text + row.goal), row.text
    assert len({row.persona for row in evals}) == 8


def test_a_customer_knows_what_the_support_asks_for(prompts: list[Prompt], evals: list[Prompt]) -> None:
    """Who writes about an order knows its number, or the conversation could not go on."""
    for row in (*prompts, *evals):
        if row.tags[0] not in ("voucher", "postage", "advice", "account"):
            assert re.search(r"\bL-\d{5}\b", row.goal), row.text


def test_conversations_have_up_to_four_questions(recipe: Recipe) -> None:
    assert recipe.user.turns == 3
    found = require_user(recipe)
    assert found == "up to 3 messages behind those of 96 of 96 rows, 8 personas"


def test_no_message_is_there_twice_and_no_eval_row_resembles_one_that_is_shown(
    recipe: Recipe, prompts: list[Prompt], evals: list[Prompt], tmp_path: Path
) -> None:
    assert len({normalised(row.text) for row in (*prompts, *evals)}) == len(prompts) + len(evals)
    with SimilarTexts(recipe.prompts.near_duplicate, tmp_path) as seen:
        assert seen.screen([(row.id, row.text) for row in prompts]) == [None] * len(prompts)
    with SimilarTexts(NEAR, tmp_path) as seen:
        seen.add([(row.id, row.text) for row in prompts])
        seen.add(
            [(f"example {number}", asked) for number, (asked, _) in enumerate(pairs_of(FOLDER / "examples.jsonl"))]
        )
        assert seen.twins([row.text for row in evals]) == [None] * len(evals)


def test_the_script_writes_the_rows_that_are_there() -> None:
    for name, text in generator(FOLDER).written().items():
        assert (FOLDER / name).read_text(encoding="utf-8") == text
