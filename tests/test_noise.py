"""Labels that the other rows speak against are found, and it is done with them what the recipe says."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from pico import pico_gguf, silent

from edgedistill.curation.noise import LabelNoise, labels_of
from edgedistill.errors import InvalidInput
from edgedistill.recipe import Recipe, load_recipe
from edgedistill.records import Completion, json_lines, read_prompts, read_rows
from edgedistill.run import Run
from edgedistill.stages.again import ASKED_AGAIN
from edgedistill.stages.curate import curate
from edgedistill.stages.explained import explained
from edgedistill.stages.keys import row_key
from edgedistill.store import Store

THINGS = {
    "light": ("lamp", "bulb", "lights", "spotlight", "brightness"),
    "music": ("song", "radio", "playlist", "volume", "album"),
    "door": ("lock", "garage", "gate", "doorbell", "key"),
    "heat": ("radiator", "warmth", "thermostat", "cold", "degrees"),
}
WAYS = {"on": ("start", "begin with", "I want", "give me"), "off": ("stop", "no more", "end", "enough of")}
PLACES = ("in the kitchen", "upstairs", "for grandmother", "near the window", "in here", "at the back", "tonight")


def commands(count: int) -> list[tuple[str, dict[str, str]]]:
    """Texts with their right answers; no two texts are the same."""
    source = random.Random(4)
    found: dict[str, dict[str, str]] = {}
    while len(found) < count:
        (device, things), (action, ways) = (source.choice(list(table.items())) for table in (THINGS, WAYS))
        text = f"{source.choice(ways)} the {source.choice(things)} {source.choice(PLACES)} {source.randrange(99)}"
        found[text] = {"device": device, "action": action}
    return list(found.items())


def flipped(rows: list[tuple[str, dict[str, str]]], share: float) -> tuple[list[str], set[int]]:
    """The answers, of which this share has another device; the numbers of these."""
    source = random.Random(5)
    wrong = set(source.sample(range(len(rows)), int(share * len(rows))))
    answers = []
    for number, (_, answer) in enumerate(rows):
        others = [device for device in THINGS if device != answer["device"]]
        answers.append(json.dumps({**answer, "device": source.choice(others)} if number in wrong else answer))
    return answers, wrong


def test_flipped_labels_are_found_and_few_others() -> None:
    rows = commands(500)
    answers, wrong = flipped(rows, 0.1)
    noise = LabelNoise(5.0)
    for number, ((text, _), answer) in enumerate(zip(rows, answers, strict=True)):
        noise.add(str(number), text, labels_of(answer))
    assert set(noise.fields()) == {"device", "action"}
    suspects = noise.ranked()
    found = {one.row for one in suspects}
    assert len(found & wrong) >= 0.85 * len(wrong)  # recall
    assert len(found & wrong) >= 0.95 * len(found)  # precision
    assert [one.times for one in suspects] == sorted((one.times for one in suspects), reverse=True)
    first = suspects[0]
    assert (first.row in wrong, first.field) == (True, "device")
    assert json.loads(first.instead) == rows[first.row][1]["device"]
    assert [one.row for one in noise.ranked()] == [one.row for one in suspects]


def test_where_every_label_is_right_hardly_one_is_suspicious() -> None:
    noise = LabelNoise(5.0)
    for number, (text, answer) in enumerate(commands(400)):
        noise.add(str(number), text, labels_of(json.dumps(answer)))
    assert len(noise.ranked()) <= 4


def test_free_text_has_no_labels() -> None:
    noise = LabelNoise(5.0)
    for number, (text, _) in enumerate(commands(60)):
        noise.add(str(number), text, labels_of(f"I will {text}."))
    assert noise.fields() == {}
    assert noise.ranked() == []


def taught(folder: Path, answers: list[str], noise: str, teacher: str = "t.gguf") -> tuple[Recipe, Run]:
    """A run whose teacher gave these answers to the commands."""
    source = [{"messages": [{"role": "user", "content": text}]} for text, _ in commands(len(answers))]
    enums = {"device": {"enum": list(THINGS)}, "action": {"enum": list(WAYS)}}
    schema = {"type": "object", "properties": enums, "required": list(enums), "additionalProperties": False}
    told = f'schema_file = "schema.json"\n[teacher]\nmodel = "{teacher}"\n[student]\nmodel = "s"\n'
    (folder / "recipe.toml").write_text(f'name = "noisy"\n{told}[teach]\nmax_tokens = 40\n[curate]\n{noise}\n')
    (folder / "schema.json").write_text(json.dumps(schema), encoding="utf-8")
    for name, rows in (("prompts.jsonl", source), ("eval.jsonl", [])):
        (folder / name).write_bytes(json_lines(rows))
    run = Run(folder / "run")
    (run.begin("prompts", "key", afresh=True) / "prompts.jsonl").write_bytes(json_lines(source))
    with Store(run.begin("teach", "key", afresh=True) / "teacher.sqlite") as store:
        for prompt, text in zip(read_prompts(folder / "prompts.jsonl"), answers, strict=True):
            store.add(row_key(prompt, "identity"), Completion(prompt.id, text, "stop", 1, 1, 0.1))
    run.finish("teach", "key", {"teachers": [{"identity": "identity"}], "failed": 0}, 1.0)
    return load_recipe(folder), run


def curated(recipe: Recipe, run: Run) -> tuple[dict[str, Any], list[dict[str, Any]], Path]:
    out = run.begin("curate", "key", afresh=False)
    stats = curate(recipe, run, out, silent)
    return stats, [row for _, row in read_rows(out / "suspicious.jsonl")], out


BARE = "near_duplicate = 1.0\nvalid_share = 0.0\n[curate.noise]\ntimes = 5.0\n"


@pytest.mark.parametrize("action", ["drop", "keep"])
def test_suspicious_rows_are_ranked_in_a_file_and_thrown_out_where_the_recipe_says_so(
    tmp_path: Path, action: str
) -> None:
    answers, wrong = flipped(commands(300), 0.1)
    recipe, run = taught(tmp_path, answers, f'{BARE}action = "{action}"')
    stats, suspects, _ = curated(recipe, run)
    assert [row["rank"] for row in suspects] == list(range(1, len(suspects) + 1))
    assert len(suspects) >= 0.6 * len(wrong)
    gone = len(suspects) if action == "drop" else 0
    assert stats["rejected"] == ({"suspicious label": gone} if gone else {})
    assert stats["suspicious"] == {"thrown out" if gone else "kept": len(suspects)}
    assert stats["train"] == 300 - gone
    outcome = explained(recipe, run, suspects[0]["id"])["outcome"]
    assert outcome["suspicious"]["rank"] == 1
    assert outcome["file"] == ("rejected.jsonl" if gone else "train.jsonl")


def test_tags_are_labels_too(tmp_path: Path) -> None:
    answers, wrong = flipped(commands(300), 0.1)
    recipe, run = taught(tmp_path, answers, f'{BARE}action = "drop"\nlabel = "tags"')
    source = run.folder("prompts") / "prompts.jsonl"
    tagged = [
        {**row, "tags": [json.loads(said)["device"]]} for (_, row), said in zip(read_rows(source), answers, strict=True)
    ]
    source.write_bytes(json_lines(tagged))
    stats, suspects, _ = curated(recipe, run)
    assert stats["rejected"]["suspicious label"] == len(suspects) >= 0.6 * len(wrong)


def test_a_suspicious_label_is_asked_for_again_once_and_its_answers_vote(tmp_path: Path) -> None:
    gguf = pico_gguf(tmp_path / "teacher.gguf", "qwen2", seed=3)
    answers, _ = flipped(commands(120), 0.1)
    recipe, run = taught(tmp_path, answers, f'{BARE}action = "ask again"\nsamples = 3', str(gguf))
    stats, suspects, out = curated(recipe, run)
    assert suspects
    with Store(out / ASKED_AGAIN) as store:
        assert len(store) == 3 * len(suspects)
        votes: dict[str, list[str]] = {}
        for _, one in store.rows():
            votes.setdefault(one.prompt_id, []).append(one.text)
    assert stats["suspicious"].keys() <= {"changed", "kept"}
    kept = {row["_ed"]["id"]: row for _, row in read_rows(out / "train.jsonl")}
    assert len(kept) == 120
    for one in suspects:
        row = kept[one["id"]]
        said = row["messages"][-1]["content"]
        assert (one["outcome"] == "changed") == ("was" in row["_ed"])
        assert json.loads(said) in [json.loads(text) for text in (*votes[one["id"]], row["_ed"].get("was", said))]
    told: list[str] = []
    again = run.begin("curate", "key", afresh=False)
    assert curate(recipe, run, again, lambda what, done, total: told.append(what)) == stats
    assert "asking again" not in told


def test_looking_for_labels_where_there_are_none_is_refused(tmp_path: Path) -> None:
    recipe, run = taught(tmp_path, [json.dumps(one) for _, one in commands(12)], BARE)
    with pytest.raises(InvalidInput, match=r"curate\.noise: no label"):
        curated(recipe, run)


@pytest.mark.parametrize(
    "lines", ['combine = "union"\n[curate.noise]', '[curate.noise]\nlabel = "tags"\naction = "ask again"']
)
def test_settings_that_make_no_sense_together_are_refused(tmp_path: Path, lines: str) -> None:
    with pytest.raises(InvalidInput, match=r"curate"):
        taught(tmp_path, [], lines)
