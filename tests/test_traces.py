"""Traces: kept as the student's own reasoning, or taken out; turns that are only seen carry no loss."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conversation_templates import family_folder
from pico import silent
from pico_recipe import edit
from pico_right import asked, curated

from edgedistill.chat import folder_template
from edgedistill.errors import InvalidInput
from edgedistill.pipeline import RunSettings, run_recipe
from edgedistill.recipe import CurateSettings, load_recipe
from edgedistill.records import Completion, Example, Message, chat_row, messages_of, read_rows
from edgedistill.stages.combine import Answered
from edgedistill.stages.curate import curate
from edgedistill.stages.explained import explained
from edgedistill.stages.final_answer import without_trace
from edgedistill.stages.keys import row_key
from edgedistill.stages.shortening import is_too_long, looked_at, question
from edgedistill.stages.stored_answers import answers
from edgedistill.stages.taught import TaughtRows
from edgedistill.stages.thinking import switched
from edgedistill.stages.traces import fenced, learned_message
from edgedistill.store import Store
from edgedistill.students.encode import Encoder, joined

QUESTION = asked("How many legs have nine spiders?", 72)
FENCED = "<think>\nEach has 8: 9 * 8 = 72\n</think>\n\n72"
PLAIN = "9 * 8 = 72\nAnswer: 72"


@pytest.mark.parametrize(
    ("text", "reasoning", "message"),
    [
        (FENCED, "keep", Message("assistant", "72", reasoning="Each has 8: 9 * 8 = 72")),
        (FENCED, "strip", Message("assistant", "72")),
        (PLAIN, "keep", Message("assistant", PLAIN)),
        (PLAIN, "strip", Message("assistant", "Answer: 72")),
        ("9 * 8 is $\\boxed{72}$.", "strip", Message("assistant", "9 * 8 is $\\boxed{72}$.")),
        ("No mark at all.", "strip", Message("assistant", "No mark at all.")),
    ],
)
def test_a_trace_is_learned_or_not_as_the_recipe_says(text: str, reasoning: Any, message: Message) -> None:
    assert learned_message(text, (), CurateSettings(reasoning=reasoning)) == message


def test_what_is_left_of_a_trace_begins_with_the_line_of_the_result() -> None:
    assert without_trace("Answer: 5?\nNo.\nThe final answer is 6.\nDone.") == "The final answer is 6.\nDone."


@pytest.mark.parametrize(("reasoning", "learned"), [("keep", "Each has 8: 9 * 8 = 72"), ("strip", None)])
def test_curate_writes_what_was_thought_as_reasoning(tmp_path: Path, reasoning: str, learned: str | None) -> None:
    lines = f'reasoning = "{reasoning}"\nright_by = "number"'
    _, run, _ = curated(tmp_path, lines, {QUESTION: [FENCED] * 3})
    (row,) = (row for _, row in read_rows(run.folder("curate") / "train.jsonl"))
    assert row["messages"][-1] == {
        "role": "assistant",
        "content": "72",
        **({"reasoning_content": learned} if learned else {}),
    }


@pytest.mark.parametrize("family", ["thinking", "chatml"])
def test_reasoning_is_learned_in_the_students_own_fences_whatever_its_template(tmp_path: Path, family: str) -> None:
    pytest.importorskip("tokenizers")
    encoder = Encoder(family_folder(tmp_path / family, family))
    (tmp_path / "run").mkdir()
    recipe, run, _ = curated(tmp_path / "run", 'right_by = "number"', {QUESTION: [FENCED] * 3})
    with TaughtRows(recipe, run, encoder) as rows:
        (example,) = rows.examples("train")
    ((begin, end),) = example.spans
    text = encoder._tokenizer.decode(list(example.tokens[begin:end]), skip_special_tokens=False)
    assert text == f"{FENCED}<|im_end|>"


def test_a_turn_of_weight_0_is_seen_and_not_learned(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    encoder = Encoder(family_folder(tmp_path / "chatml", "chatml"))
    talk = (
        Message("user", "Write f."),
        Message("assistant", "f = 1", is_learned=False),
        Message("user", "It fails."),
        Message("assistant", "f = 2"),
    )
    row = json.loads(json.dumps(chat_row(talk)))
    assert row["messages"][1]["weight"] == 0
    assert messages_of("row", row) == talk
    (example,) = joined(encoder.turns(Example("row", talk)))
    ((begin, end),) = example.spans
    decode = encoder._tokenizer.decode
    assert decode(list(example.tokens[begin:end]), skip_special_tokens=False) == "f = 2<|im_end|>"
    assert "f = 1" in decode(list(example.tokens[:begin]), skip_special_tokens=False)
    with pytest.raises(InvalidInput, match="no turn of the assistant"):
        encoder.turns(Example("row", talk[:2]))


@pytest.mark.parametrize("message", [{"role": "user", "content": "a", "weight": 0}, {"role": "assistant", "weight": 2}])
def test_a_weight_that_is_none_is_refused(message: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="weight"):
        messages_of("row 1", {"messages": [{"content": "x", **message}]})


def test_an_answer_without_reasoning_is_fenced_by_nobody() -> None:
    talk = (Message("user", "Hi"), Message("assistant", "Hello."))
    assert fenced(talk) == talk


@pytest.mark.parametrize(
    ("thinking", "learned"),
    [(True, f"{FENCED}<|im_end|>"), (False, "72<|im_end|>")],
)
def test_a_student_thinks_or_not_by_the_switch_of_its_template(tmp_path: Path, thinking: bool, learned: str) -> None:
    pytest.importorskip("tokenizers")
    base = family_folder(tmp_path / "base", "thinking")
    settings = json.loads((base / "tokenizer_config.json").read_text(encoding="utf-8"))
    never = (
        "{%- if add_generation_prompt and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
    )
    settings["chat_template"] += never
    (base / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    folder = switched(base, thinking)
    assert folder == switched(base, thinking)
    assert folder_template(folder).source.endswith(folder_template(base).source)
    (tmp_path / "run").mkdir()
    recipe, run, _ = curated(tmp_path / "run", 'right_by = "number"', {QUESTION: [FENCED] * 3})
    student = recipe.student.model_copy(update={"thinking": thinking})
    with TaughtRows(recipe.model_copy(update={"student": student}), run, Encoder(folder)) as rows:
        (example,) = rows.examples("train")
    ((begin, end),) = example.spans
    decode = Encoder(folder)._tokenizer.decode
    assert decode(list(example.tokens[begin:end]), skip_special_tokens=False) == learned
    before = decode(list(example.tokens[:begin]), skip_special_tokens=False)
    assert before.endswith("<think>\n\n</think>\n\n") is (not thinking)


def test_a_template_without_a_switch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no switch for thinking"):
        switched(family_folder(tmp_path / "chatml", "chatml"), True)


LONG = "Nine spiders, and each of them has eight legs, so that is nine times eight: 9 * 8 = 72\nAnswer: 72"


def shortened(text: str, shorter: Completion | None, over: str = "keep") -> tuple[str, Any]:
    """What is learned of an answer and its shorter trace, and the reason where nothing is."""
    settings = CurateSettings(reasoning="shorten", reasoning_tokens=10, reasoning_over=over, right_by="number")
    one = Answered(0, Completion(QUESTION.id, text, "stop", 9, 40, 0.1), shorter=shorter)
    ((found, fault),) = looked_at([(QUESTION, one)], settings, None)
    return found.completion.text, fault


def said(text: str, tokens: int = 8, reason: str = "stop") -> Completion:
    return Completion("q", text, reason, 9, tokens, 0.1)


def test_a_shorter_trace_that_comes_to_the_same_is_learned() -> None:
    assert shortened(LONG, said(PLAIN)) == (PLAIN, None)
    assert shortened(FENCED, said("9 * 8 = 72")) == ("<think>\n9 * 8 = 72\n</think>\n\n72", None)


@pytest.mark.parametrize(
    "shorter",
    [None, said("9 * 8 = 73\nAnswer: 73"), said(PLAIN, tokens=11), said(PLAIN, reason="length"), said("Eight legs.")],
)
def test_where_no_shorter_trace_holds_the_long_one_is_kept_or_dropped(shorter: Completion | None) -> None:
    assert shortened(LONG, shorter) == (LONG, None)
    assert shortened(LONG, shorter, "drop")[1] == ("trace too long", "40 tokens, 10 are allowed")


def test_a_run_asks_for_shorter_traces_and_curates_them(pico_recipe: Path, tmp_path: Path) -> None:
    edit(pico_recipe / "recipe.toml", "[curate]\n", '[curate]\nreasoning = "shorten"\nreasoning_tokens = 4\n')
    edit(pico_recipe / "recipe.toml", "[teach]\n", "[teach]\nclosed = false\n")
    for stage in ("prompts", "teach"):
        run, _ = run_recipe(pico_recipe, RunSettings(runs=tmp_path / "runs", only=stage), silent)
    recipe = load_recipe(pico_recipe)
    given = [one for _, many in answers(recipe, run) for one in many]
    long = [one for one in given if is_too_long(one, recipe.curate)]
    assert long
    assert all(one.shorter is not None for one in long)
    assert all(one.shorter is None for one in given if one not in long)


def test_curate_learns_the_shorter_trace_and_says_why_a_long_one_is_not_learned(tmp_path: Path) -> None:
    lines = 'right_by = "number"\nreasoning = "shorten"\nreasoning_tokens = 10\nreasoning_over = "drop"'
    other = asked("How many legs have two spiders?", 16)
    brief = asked("How many legs have four birds?", 8)
    rows = {
        QUESTION: [LONG] * 3,
        other: ["2 * 8 = 16 legs, since a spider has eight of them.\nAnswer: 16"] * 3,
        brief: ["4 * 2 = 8\nAnswer: 8"] * 3,
    }
    recipe, run, _ = curated(tmp_path, lines, rows)
    learned = {prompt.text: many for prompt, many in answers(recipe, run)}
    with Store(run.folder("teach") / "teacher.sqlite") as store:
        for one in learned[QUESTION.text]:
            shorter = question(QUESTION, one, recipe.curate)
            store.add(row_key(shorter, "identity"), replace(said(PLAIN), prompt_id=shorter.id))
    out = run.begin("curate", "key", afresh=True)
    curate(recipe, run, out, silent)
    train = [[message["content"] for message in row["messages"]] for _, row in read_rows(out / "train.jsonl")]
    assert sorted(train) == sorted([[QUESTION.text, PLAIN], [brief.text, rows[brief][0]]])
    (gone,) = (row for _, row in read_rows(out / "rejected.jsonl"))
    assert gone["messages"][0]["content"] == other.text
    assert gone["_ed"]["reason"] == "trace too long"
    assert [one["text"] for one in explained(recipe, run, QUESTION.text)["answers"]] == [PLAIN] * 3
    told = explained(recipe, run, other.text)
    assert {one["wrong"] for one in told["answers"]} == {("trace too long", "15 tokens, 10 are allowed")}
