"""Labels that the other rows speak against are found, and it is done with them what the recipe says."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from pico import pico_gguf, silent
from pico_right import asked, taught

from edgedistill.curation.noise import LabelNoise, labels_of
from edgedistill.errors import InvalidInput
from edgedistill.recipe import Recipe, TeachSettings
from edgedistill.records import Completion, Prompt, json_lines, read_rows
from edgedistill.run import Run
from edgedistill.stages import again
from edgedistill.stages.again import ASKED_AGAIN
from edgedistill.stages.curate import curate
from edgedistill.stages.explained import explained
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


def noisy(folder: Path, answers: list[str], noise: str, teacher: str = "t.gguf") -> tuple[Recipe, Run]:
    """A run whose teacher gave these answers to the commands."""
    enums = {"device": {"enum": list(THINGS)}, "action": {"enum": list(WAYS)}}
    schema = {"type": "object", "properties": enums, "required": list(enums), "additionalProperties": False}
    (folder / "schema.json").write_text(json.dumps(schema), encoding="utf-8")
    told = f'schema_file = "schema.json"\n[teacher]\nmodel = "{teacher}"\n[student]\nmodel = "s"\n'
    recipe = f'name = "noisy"\n{told}[teach]\nmax_tokens = 40\n[curate]\n{noise}\n'
    texts = [text for text, _ in commands(len(answers))]
    return taught(folder, recipe, {asked(text): [one] for text, one in zip(texts, answers, strict=True)})


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
    recipe, run = noisy(tmp_path, answers, f'{BARE}action = "{action}"')
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
    recipe, run = noisy(tmp_path, answers, f'{BARE}action = "drop"\nlabel = "tags"')
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
    recipe, run = noisy(tmp_path, answers, f'{BARE}action = "ask again"\nsamples = 3', str(gguf))
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
    out = run.begin("curate", "key", afresh=False)
    assert curate(recipe, run, out, lambda what, done, total: told.append(what)) == stats
    assert "asking again" not in told


@pytest.mark.parametrize("right", [3, 1])
def test_the_answer_that_wins_the_vote_becomes_the_label(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, right: int
) -> None:
    rows = commands(120)
    answers, _ = flipped(rows, 0.1)
    truth = {asked(text).id: json.dumps(answer) for text, answer in rows}
    given = dict(zip(truth, answers, strict=True))

    class Teacher:
        """A teacher that is right in so many samples, and else says once more what it said."""

        def complete(
            self, prompts: list[Prompt], how: TeachSettings, seed: int, samples: Callable[[Prompt], list[int]]
        ) -> Iterator[Completion]:
            assert seed != recipe.seed
            for prompt in prompts:
                texts = [truth[prompt.id]] * right + [given[prompt.id]] * (3 - right)
                for sample in samples(prompt):
                    yield Completion(prompt.id, texts[sample], "stop", 1, 1, 0.1, sample)

    monkeypatch.setattr(again, "opened", lambda task: nullcontext(Teacher()))
    gguf = pico_gguf(tmp_path / "teacher.gguf", "qwen2", seed=3)
    recipe, run = noisy(tmp_path, answers, f'{BARE}action = "ask again"\nsamples = 3', str(gguf))
    stats, suspects, out = curated(recipe, run)
    found = [one for one in suspects if given[one["id"]] != truth[one["id"]]]
    assert len(found) >= 3
    kept = {row["_ed"]["id"]: row for _, row in read_rows(out / "train.jsonl")}
    for one in found:
        row, won = kept[one["id"]], right == 3
        assert row["messages"][-1]["content"] == (truth if won else given)[one["id"]]
        assert row["_ed"].get("was") == (given[one["id"]] if won else None)
        assert one["outcome"] == ("changed" if won else "kept")
    assert stats["suspicious"].get("changed", 0) == (len(found) if right == 3 else 0)


def test_looking_for_labels_where_there_are_none_is_refused(tmp_path: Path) -> None:
    recipe, run = noisy(tmp_path, [json.dumps(one) for _, one in commands(12)], BARE)
    with pytest.raises(InvalidInput, match=r"curate\.noise: no label"):
        curated(recipe, run)


@pytest.mark.parametrize(
    "lines", ['combine = "union"\n[curate.noise]', '[curate.noise]\nlabel = "tags"\naction = "ask again"']
)
def test_settings_that_make_no_sense_together_are_refused(tmp_path: Path, lines: str) -> None:
    with pytest.raises(InvalidInput, match=r"curate"):
        noisy(tmp_path, [], lines)
