"""What is thrown out has a named reason, and what is kept is split by hash alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from pico import silent

from edgedistill.cli import cli
from edgedistill.errors import EdgeDistillError, InvalidInput
from edgedistill.recipe import Recipe, load_recipe
from edgedistill.records import Completion, json_lines, read_prompts, read_rows
from edgedistill.run import Run, file_sha256
from edgedistill.schema import schema_validator
from edgedistill.stages.curate import curate
from edgedistill.stages.explained import explained
from edgedistill.stages.keys import row_key
from edgedistill.stages.prompts import prompts as prompts_stage
from edgedistill.stages.sorting import _example, is_valid_row
from edgedistill.store import Store

RECIPE = """
name = "curated"
schema_file = "schema.json"
[teacher]
model = "t.gguf"
[student]
model = "s"
[curate]
valid_share = {share}
"""
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
GOOD = '{"a": 1}'
Answers = dict[str, tuple[str, str]]


def completion(text: str, finish_reason: str = "stop") -> Completion:
    return Completion("id", text, finish_reason, 1, 1, 0.1)


def taught(folder: Path, answers: Answers, evals: tuple[str, ...] = (), share: float = 0.0) -> tuple[Recipe, Run]:
    """A run whose teacher has answered: prompt -> text and finish_reason."""
    rows = [{"messages": [{"role": "user", "content": text}]} for text in answers]
    (folder / "prompts.jsonl").write_bytes(json_lines(rows))
    (folder / "eval.jsonl").write_bytes(json_lines({"messages": [{"role": "user", "content": text}]} for text in evals))
    (folder / "schema.json").write_text(json.dumps(SCHEMA), encoding="utf-8")
    (folder / "recipe.toml").write_text(RECIPE.format(share=share), encoding="utf-8")
    run = Run(folder / "run")
    (run.begin("prompts", "key", afresh=True) / "prompts.jsonl").write_bytes(json_lines(rows))
    out = run.begin("teach", "key", afresh=True)
    with Store(out / "teacher.sqlite") as store:
        for prompt in read_prompts(folder / "prompts.jsonl"):
            text, reason = answers[prompt.text]
            store.add(row_key(prompt, "identity"), Completion(prompt.id, text, reason, 1, 1, 0.1))
    run.finish("teach", "key", {"teachers": [{"identity": "identity"}], "failed": 0}, 1.0)
    return load_recipe(folder), run


def curated(recipe: Recipe, run: Run) -> tuple[dict[str, Any], dict[str, str], Path]:
    """Statistics, the reason of each rejected prompt, and the folder."""
    out = run.begin("curate", "key", afresh=True)
    stats = curate(recipe, run, out, silent)
    reasons = {row["messages"][0]["content"]: row["_ed"]["reason"] for _, row in read_rows(out / "rejected.jsonl")}
    return stats, reasons, out


def kept(out: Path, name: str = "train.jsonl") -> list[str]:
    return [row["messages"][0]["content"] for _, row in read_rows(out / name)]


def test_rejected_rows_are_kept_in_a_file_with_their_reasons(tmp_path: Path) -> None:
    recipe, run = taught(
        tmp_path,
        {
            "turn on the light in the kitchen": (GOOD, "stop"),
            "Turn on the light in the kitchen!": (GOOD, "stop"),
            "turn on the light in the kitchens": (GOOD, "stop"),
            "close the blind of the office window": (GOOD, "length"),
            "is the front door locked tonight": ("yes", "stop"),
            "play some quiet music for me": (GOOD, "stop"),
            "set the volume of the radio to nine": (GOOD, "stop"),
        },
        evals=("Play some quiet music for me.", "set the volume of the radio to nin"),
    )
    stats, reasons, out = curated(recipe, run)
    assert reasons == {
        "Turn on the light in the kitchen!": "exact duplicate",
        "turn on the light in the kitchens": "near duplicate",
        "close the blind of the office window": "cut off",
        "is the front door locked tonight": "schema",
        "play some quiet music for me": "overlap with eval",
        "set the volume of the radio to nine": "overlap with eval",
    }
    assert kept(out) == ["turn on the light in the kitchen"]
    assert stats["prompts"] == 7 == stats["train"] + stats["valid"] + sum(stats["rejected"].values())
    written = json.loads((out / "stats.json").read_text(encoding="utf-8"))
    assert {key: value for key, value in written.items() if key != "examples"} == stats
    assert {reason: len(shown) for reason, shown in written["examples"].items()} == stats["rejected"]
    assert written["examples"]["schema"][0]["answer"] == "yes"
    twins = {row["_ed"].get("of") for _, row in read_rows(out / "rejected.jsonl")}
    first = next(prompt for prompt in read_prompts(tmp_path / "prompts.jsonl"))
    assert first.id in twins


def test_a_rejected_row_does_not_push_out_a_good_one_that_resembles_it(tmp_path: Path) -> None:
    answers = {"lock the garage door now": ("", "stop"), "Lock the garage door now!": (GOOD, "stop")}
    _, reasons, out = curated(*taught(tmp_path, answers))
    assert reasons == {"lock the garage door now": "empty"}
    assert kept(out) == ["Lock the garage door now!"]


def many(count: int) -> Answers:
    return {f"{number} {number * 7919} command {number * 104729}": (GOOD, "stop") for number in range(count)}


def test_the_split_depends_on_the_rows_alone_and_not_on_their_order(tmp_path: Path) -> None:
    answers = many(80)
    splits = []
    for name, items in (("one", answers.items()), ("other", reversed(answers.items()))):
        (tmp_path / name).mkdir()
        _, _, out = curated(*taught(tmp_path / name, dict(items), share=0.25))
        splits.append((set(kept(out)), set(kept(out, "valid.jsonl"))))
    assert splits[0] == splits[1]
    assert 8 <= len(splits[0][1]) <= 35


@given(st.text(), st.floats(0, 1))
def test_a_row_that_measures_at_a_small_share_measures_at_every_larger_one(identity: str, share: float) -> None:
    assert not is_valid_row(identity, 0.0)
    assert is_valid_row(identity, 1.0)
    assert not is_valid_row(identity, share) or is_valid_row(identity, min(1.0, share * 1.5))


def test_where_nothing_is_left_the_reasons_are_named(tmp_path: Path) -> None:
    recipe, run = taught(tmp_path, {"one": ("", "stop"), "two": ("no", "stop")})
    with pytest.raises(InvalidInput, match="no row is left to learn from") as caught:
        curated(recipe, run)
    assert "rejected.jsonl" in caught.value.hint
    assert (run.folder("curate") / "rejected.jsonl").is_file()


def test_an_answer_that_is_missing_is_an_error(tmp_path: Path) -> None:
    recipe, run = taught(tmp_path, {"one": (GOOD, "stop")})
    (run.folder("prompts") / "prompts.jsonl").write_bytes(
        json_lines([{"messages": [{"role": "user", "content": "another"}]}])
    )
    with pytest.raises(EdgeDistillError, match="answers are missing"):
        curated(recipe, run)


def test_curating_leaves_the_teachers_file_as_it_was(tmp_path: Path) -> None:
    recipe, run = taught(tmp_path, many(5))
    before = (run.folder("teach") / "teacher.sqlite").read_bytes()
    curated(recipe, run)
    assert (run.folder("teach") / "teacher.sqlite").read_bytes() == before
    assert run.state("teach", "key") == "done"


def test_a_schema_that_is_none_is_refused_on_one_line() -> None:
    with pytest.raises(InvalidInput, match="schema: ") as caught:
        schema_validator({"type": 5})
    assert "\n" not in caught.value.message
    assert schema_validator(None) is None


def test_repeated_prompts_are_dropped_before_they_are_paid_for(tmp_path: Path) -> None:
    recipe, run = taught(
        tmp_path, {"Light on, please": (GOOD, "stop"), "light on please": (GOOD, "stop"), "bye": (GOOD, "stop")}
    )
    out = run.begin("prompts", "key", afresh=True)
    source_sha256 = file_sha256(tmp_path / "prompts.jsonl")
    found = prompts_stage(recipe, run, out, silent)
    assert found == {"kept": 2, "dropped": 1, "source_sha256": source_sha256}
    dropped = [row for _, row in read_rows(out / "dropped.jsonl")]
    first = read_prompts(tmp_path / "prompts.jsonl")[0]
    assert [(row["_ed"]["reason"], row["_ed"]["of"]) for row in dropped] == [("exact duplicate", first.id)]
    assert kept(out, "prompts.jsonl") == ["Light on, please", "bye"]


# -- several answers, and what is known of them


def sampled(folder: Path, answers: dict[str, list[Completion]], settings: str) -> tuple[Recipe, Run]:
    """A run whose teacher has given several answers to each prompt."""
    _, run = taught(folder, {text: ("", "stop") for text in answers})
    text = (folder / "recipe.toml").read_text(encoding="utf-8")
    count = max(map(len, answers.values()))
    (folder / "recipe.toml").write_text(f"{text}{settings}\n[teach]\ntemperature = 1.0\nsamples = {count}\n")
    (run.folder("teach") / "teacher.sqlite").unlink()
    with Store(run.folder("teach") / "teacher.sqlite") as store:
        for prompt in read_prompts(folder / "prompts.jsonl"):
            for sample, one in enumerate(answers[prompt.text]):
                store.add(row_key(prompt, "identity", sample), replace(one, prompt_id=prompt.id, sample=sample))
    run.finish("teach", "key", {"teachers": [{"identity": "identity"}], "failed": 0}, 1.0)
    return load_recipe(folder), run


def rows_of(out: Path, name: str = "train.jsonl") -> list[tuple[str, str, dict[str, Any]]]:
    """Prompt, answer and our own fields of each row."""
    return [
        (row["messages"][0]["content"], row["messages"][1]["content"], row["_ed"]) for _, row in read_rows(out / name)
    ]


def test_several_answers_become_one_by_a_vote(tmp_path: Path) -> None:
    other = '{"a": 2}'
    votes = {
        "most say one": [completion(GOOD), completion(other), completion('{"a":1}')],
        "each says something else": [completion(GOOD), completion(other), completion('{"a": 3}')],
    }
    _, reasons, out = curated(*sampled(tmp_path, votes, "agreement = 0.6"))
    assert [row[:2] for row in rows_of(out)] == [("most say one", GOOD)]
    assert reasons == {"each says something else": "teachers disagree"}


def test_a_union_keeps_every_different_answer_that_is_good(tmp_path: Path) -> None:
    several = {"say anything": [completion(GOOD), completion('{"a": 2}'), completion('{"a": 1.0}'), completion("no")]}
    recipe, run = sampled(tmp_path, several, 'combine = "union"')
    stats, _, out = curated(recipe, run)
    assert [row[1] for row in rows_of(out)] == [GOOD, '{"a": 2}']
    assert (stats["prompts"], stats["train"]) == (1, 2)


def test_an_answer_that_the_teacher_is_not_sure_of_is_rejected(tmp_path: Path) -> None:
    sure = replace(completion(GOOD), answers={GOOD: 0.9, '{"a":2}': 0.1})
    unsure = replace(completion(GOOD), answers={GOOD: 0.5, '{"a":2}': 0.5})
    _, reasons, out = curated(*sampled(tmp_path, {"surely": [sure], "maybe": [unsure]}, "confidence = 0.6"))
    assert reasons == {"maybe": "low confidence"}
    ((_, _, own),) = rows_of(out)
    assert own["answers"] == {GOOD: 0.9, '{"a":2}': 0.1}
    assert "key" not in own


def test_a_row_says_where_its_targets_are(tmp_path: Path) -> None:
    soft = replace(completion(GOOD), targets=b"blob")
    recipe, run = sampled(tmp_path, {"one": [completion('{"a": 2}'), soft, soft]}, "")
    _, _, out = curated(recipe, run)
    ((_, _, own),) = rows_of(out)
    with Store(run.folder("teach") / "teacher.sqlite", read_only=True) as store:
        found = store.get(own["key"])
    assert found is not None
    assert (found.sample, found.targets, found.text) == (1, b"blob", GOOD)


# -- why one row is where it is


def test_a_row_is_explained_by_its_id_or_its_text(tmp_path: Path) -> None:
    answers = {"lock the garage door now": ("no", "stop"), "play some quiet music": (GOOD, "stop")}
    recipe, run = taught(tmp_path, {**answers, "Play some quiet music!": (GOOD, "stop")})
    curated(recipe, run)
    locked, played, again = read_prompts(tmp_path / "prompts.jsonl")
    found = explained(recipe, run, "Lock the garage door, now!")
    assert found["id"] == locked.id
    assert found["answers"][0]["rules"]["schema"] == "it does not match the schema"
    assert found["answers"][0]["rules"]["empty"] is None
    assert found["outcome"] == {"file": "rejected.jsonl", "reason": "schema", "what": "it does not match the schema"}
    assert explained(recipe, run, played.id[:8])["outcome"] == {"file": "train.jsonl"}
    twin = explained(recipe, run, again.id)["outcome"]
    assert (twin["reason"], twin["of"], twin["of_text"]) == ("exact duplicate", played.id, played.text)


@pytest.mark.parametrize("row", ["no such prompt", "ffffffffffffffff", ""])
def test_a_row_that_is_not_there_is_not_explained(tmp_path: Path, row: str) -> None:
    recipe, run = taught(tmp_path, {"lock the garage door now": (GOOD, "stop")})
    with pytest.raises(InvalidInput, match="no row"):
        explained(recipe, run, row)


def test_the_command_prints_each_rule_and_where_the_row_is(tmp_path: Path) -> None:
    recipe, run = taught(
        tmp_path, {"mail the landlord": (GOOD, "stop"), "who is it": ('{"a": 1, "b": "<|eot_id|>"}', "stop")}
    )
    recipe_run = Run(tmp_path / "runs" / recipe.name)
    curated(recipe, run)
    recipe_run.path.parent.mkdir()
    run.path.rename(recipe_run.path)
    asked = ["curate", str(tmp_path), "--runs", str(tmp_path / "runs"), "--explain", "who is it"]
    shown = CliRunner().invoke(cli, asked)
    assert shown.exit_code == 0, shown.output
    assert "special tokens" in shown.output
    assert "now in rejected.jsonl: special tokens; <|eot_id|> is in its content" in shown.output
    document = json.loads(CliRunner().invoke(cli, [*asked, "--json"]).output)
    assert document["outcome"]["reason"] == "special tokens"


def test_a_verifier_passes_what_was_chosen_and_its_complaint_is_kept(tmp_path: Path) -> None:
    answers = {"lock the garage door now": ('{"a": 2}', "stop"), "play some quiet music": (GOOD, "stop")}
    taught(tmp_path, answers)
    told = (tmp_path / "recipe.toml").read_text(encoding="utf-8")
    checks = "sh", "-c", "grep -q a....2 && echo false || echo 1"
    (tmp_path / "recipe.toml").write_text(f"{told}verifier = {json.dumps(checks)}\n", encoding="utf-8")
    _, reasons, out = curated(load_recipe(tmp_path), Run(tmp_path / "run"))
    assert reasons == {"lock the garage door now": "verifier"}
    assert kept(out) == ["play some quiet music"]
    assert [row["_ed"]["what"] for _, row in read_rows(out / "rejected.jsonl")] == ["it printed 'false'"]


def test_answers_far_from_the_length_of_their_cell_are_thrown_out(tmp_path: Path) -> None:
    answers = many(25) | {"say very much": ('{"a": 1, "b": "' + " ".join(map(str, range(99))) + '"}', "stop")}
    taught(tmp_path, answers)
    told = (tmp_path / "recipe.toml").read_text(encoding="utf-8")
    (tmp_path / "recipe.toml").write_text(f"{told}length_factor = 10.0\n", encoding="utf-8")
    stats, reasons, out = curated(load_recipe(tmp_path), Run(tmp_path / "run"))
    assert reasons == {"say very much": "too long"}
    assert kept(out) == list(many(25))
    assert stats["rejected"] == {"too long": 1}


def test_a_cell_keeps_so_many_rows_whatever_their_order(tmp_path: Path) -> None:
    found = []
    for name, items in (("one", many(30).items()), ("other", reversed(many(30).items()))):
        (tmp_path / name).mkdir()
        taught(tmp_path / name, dict(items))
        told = (tmp_path / name / "recipe.toml").read_text(encoding="utf-8")
        (tmp_path / name / "recipe.toml").write_text(f'{told}per_cell = 7\ncell = "answer"\n', encoding="utf-8")
        stats, reasons, out = curated(load_recipe(tmp_path / name), Run(tmp_path / name / "run"))
        assert set(reasons.values()) == {"over-filled cell"}
        assert (stats["train"], len(reasons)) == (7, 23)
        found.append(set(kept(out)))
    assert found[0] == found[1]


def test_an_example_of_a_thrown_out_row_shows_the_calls_of_its_answer() -> None:
    call = {"type": "function", "function": {"name": "light", "arguments": '{"on": true}'}}
    turns = [{"role": "user", "content": "Hall on"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    assert _example({"messages": turns, "_ed": {"id": "a1", "reason": "near duplicate", "of": "b2"}}) == {
        "id": "a1",
        "prompt": "Hall on",
        "answer": '<tool_call>\n{"name": "light", "arguments": {"on": true}}\n</tool_call>',
        "of": "b2",
    }
