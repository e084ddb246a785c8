"""Prompts that a teacher writes: cells filled evenly, nothing twice, an end, and no answer asked for twice."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from pico import pico_gguf
from pico_recipe import PicoModels, edit, rows

from edgedistill.cli import cli
from edgedistill.errors import InvalidInput, Stopped, Unsafe
from edgedistill.pipeline import RunSettings, run_recipe, stage_keys
from edgedistill.preflight import check
from edgedistill.prompting import SynthesizeSettings
from edgedistill.recipe import load_recipe
from edgedistill.records import Prompt, read_prompts, read_rows
from edgedistill.run import Run
from edgedistill.similarity import SimilarTexts, jaccard, shingles
from edgedistill.stages import synthesis as stage
from edgedistill.stages.privacy import require_private
from edgedistill.store import Store
from edgedistill.synthesis import Growth, Screen, Written, diversity, system_text
from edgedistill.synthesis.requests import Request, texts_in

AXES = {"kind": ["bill", "bug", "praise"], "haste": {"low": "no hurry", "high": "today"}, "tone": ["curt", "kind"]}
WORDS = [f"{one}{two}{end}" for one in "bdfgklmnprst" for two in ("a", "e", "i", "o", "u", "ei") for end in "lmnrst"]


def settings(**changes: Any) -> SynthesizeSettings:
    return SynthesizeSettings.model_validate(
        {"task": "tickets", "count": 60, "axes": AXES, "cells": ("kind", "haste"), "topics": 2, **changes}
    )


def fluent(requests: Sequence[Prompt]) -> dict[str, str]:
    """A teacher that always has something new to say, and says its cell with it."""
    found = {}
    for request in requests:
        chance = random.Random(request.text)
        said = [line.partition(": ")[2] for line in request.text.splitlines() if line.startswith(("kind", "haste"))]
        texts = [" ".join([*said, *chance.choices(WORDS, k=9)]) for _ in range(3)]
        found[request.id] = json.dumps({"texts": texts})
    return found


@pytest.fixture
def grow(tmp_path: Path) -> Callable[..., tuple[Growth, list[Written]]]:
    """Grows prompts with a teacher, given as a function of the requests."""

    def grown(
        teacher: Callable[[Sequence[Prompt]], Mapping[str, str]] = fluent, held_out: str = "", **changes: Any
    ) -> tuple[Growth, list[Written]]:
        wanted = settings(**changes)
        with SimilarTexts(wanted.near_duplicate, tmp_path) as seen, SimilarTexts(0.7, tmp_path) as others:
            others.add([("eval", held_out)] if held_out else [])
            growth = Growth(wanted, [], 0, Screen(wanted, seen, others))
            return growth, [one for written in growth.rounds(teacher) for one in written]

    return grown


def kept(written: Sequence[Written]) -> list[Written]:
    return [one for one in written if not one.reason]


def test_every_cell_gets_its_share_and_so_do_the_values_of_the_other_axes(grow: Any) -> None:
    growth, written = grow()
    assert (growth.stopped, growth.kept, growth.unfilled()) == ("enough", 60, [])
    cells = Counter(tuple(one.request.cell.values()) for one in kept(written) if one.request.cell)
    assert len(cells) == 6
    assert max(cells.values()) - min(cells.values()) <= 3
    tones = Counter(one.request.others["tone"] for one in kept(written))
    assert abs(tones["curt"] - tones["kind"]) <= 6
    assert {one.request.way for one in written} >= {"new", "deeper", "broader", "rephrased", "harder", "hostile"}


def test_a_cell_whose_prompts_are_dropped_is_asked_for_again_and_one_without_any_is_given_up(grow: Any) -> None:
    def half_deaf(requests: Sequence[Prompt]) -> dict[str, str]:
        answers = fluent(requests)
        for request in requests:
            if "kind: praise" in request.text:
                answers[request.id] = json.dumps({"texts": ["Thank you."]})
            elif "kind: bug" in request.text and request.text.startswith("Request") and len(request.text) % 2:
                answers[request.id] = "no JSON at all"
        return answers

    growth, written = grow(half_deaf, edge=0.0)
    assert growth.unfilled() == ["praise, low", "praise, high"]
    assert growth.stopped == "cells are dry"
    cells = growth.cells()
    assert min(cells[name] for name in cells if not name.startswith("praise")) >= 10
    tried = Counter(one.request.cell["kind"] for one in written)
    assert tried["praise"] < tried["bill"]


def test_a_teacher_that_repeats_itself_ends_it(grow: Any) -> None:
    def dull(requests: Sequence[Prompt]) -> dict[str, str]:
        frame = "I am writing to you because of the thing number {} that I have bought in your shop some time ago."
        return {
            one.id: json.dumps({"texts": [frame.format(len(one.text) * 7 + n) for n in range(3)]}) for one in requests
        }

    growth, written = grow(dull, count=3000, novelty=0.0, near_duplicate=1.0)
    assert growth.stopped == "nothing new"
    assert growth.written < 600
    assert len(kept(written)) == growth.kept < 600


def test_what_resembles_an_earlier_one_or_an_eval_row_or_has_a_gap_is_dropped(grow: Any) -> None:
    taken = "Where is the parcel that you have sent to me on Monday morning"
    said = [
        taken,
        "Hello [Name], it is broken",
        "Kind: bug. It is broken",
        "the same again " * 20,
        "My lamp fell from the wall",
    ]

    def teacher(requests: Sequence[Prompt]) -> dict[str, str]:
        return {one.id: json.dumps({"texts": said}) for one in requests}

    growth, written = grow(teacher, held_out=f"{taken}?", at_once=5, count=12, edge=0.0, evolve=0.0)
    assert [one.reason for one in written[:5]] == [
        "overlap with eval",
        "gap to fill in",
        "names its kind",
        "repetition",
        "",
    ]
    assert {one.reason for one in written[5:] if one.prompt.text == said[-1]} == {"nothing new"}
    assert growth.kept == 1


def test_what_is_asked_follows_from_the_answers_alone(grow: Any) -> None:
    asked: list[list[str]] = [[], []]
    for list_ in asked:

        def noting(requests: Sequence[Prompt], seen: list[str] = list_) -> dict[str, str]:
            seen += [one.text for one in requests]
            return fluent(requests)

        grow(noting)
    assert asked[0] == asked[1]
    assert len(set(asked[0])) == len(asked[0])


def test_topics_of_a_task_without_axes_are_two_levels_deep(grow: Any) -> None:
    _, written = grow(axes={}, cells=(), topics=3, count=40)
    assert {len(one.request.topic) for one in written if one.request.way == "new"} == {2}
    assert max(Counter(one.request.topic for one in written if one.request.topic).values()) <= 9


@given(texts=st.lists(st.text(max_size=20)), end=st.integers(0, 200))
def test_of_an_answer_that_was_cut_off_the_whole_texts_are_read(texts: list[str], end: int) -> None:
    answer = json.dumps({"texts": texts})
    wanted = [one.strip() for one in texts]
    whole = texts_in(answer)
    assert whole == [one for one in dict.fromkeys(wanted) if one]
    cut = texts_in(answer[:end])
    assert cut == whole[: len(cut)]


@given(st.text(max_size=200))
def test_no_answer_is_too_odd_to_be_read(answer: str) -> None:
    assert all(isinstance(one, str) and one for one in texts_in(answer))


def test_diversity_knows_many_ways_to_say_something_from_one() -> None:
    chance = random.Random(1)
    varied = [" ".join(chance.choices(WORDS, k=12)) for _ in range(60)]
    dull = [f"Please tell me where my parcel number {n} is now" for n in range(60)]
    one, other = diversity(varied), diversity(dull)
    assert one["distinct_3"] > 2 * other["distinct_3"]
    assert one["compression_ratio"] < other["compression_ratio"]
    assert one["clusters"] > 20 > 3 >= other["clusters"]
    assert diversity([])["distinct_3"] is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"axes": {"kind": ["bill"]}, "cells": ()}, "axis 'kind' needs two or more values"),
        ({"axes": {"kind": ["bill", "bill"]}, "cells": ()}, "axis 'kind' needs two or more values"),
        ({"cells": ("mood",)}, "cells names 'mood', which is no axis"),
        ({"count": 11}, "the axes make 6 combinations, too many for 11 prompts"),
        ({"without": ({"kind": "love"},)}, "without: kind = 'love' is no combination"),
        ({"without": ({"tone": "curt"},)}, "is no combination of the cells' axes"),
        ({"without": ({"haste": "low"}, {"haste": "high"})}, "without leaves no combination"),
    ],
)
def test_axes_that_make_no_sense_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        settings(**changes)


def test_a_request_says_what_the_values_mean_and_a_row_where_it_is_from() -> None:
    request = Request(7, 3, "new", {"kind": "bug", "haste": "high"}, {"tone": "curt"}, ("The app", "It crashes"))
    text = request.prompt(settings()).text
    assert "haste: high (today)" in text
    assert "topic: The app, It crashes" in text
    assert request.lineage("qwen")["cell"] == {"kind": "bug", "haste": "high"}
    assert "tickets" in system_text(settings(), ["Where is it?"])


TABLE = """[prompts.synthesize]
task = "Commands for a home."
count = 30
seeds = "seeds.jsonl"
at_once = 2
longest = 40
topics = 2
novelty = 0.0
axes = { room = ["hall", "kitchen"], tone = ["curt", "kind", "long"] }
cells = ["room"]

[teach]"""


@pytest.fixture
def recipe(pico_recipe: Path) -> Path:
    """A recipe whose prompts the pico teacher writes: nonsense, but as JSON."""
    (pico_recipe / "prompts.jsonl").unlink()
    (pico_recipe / "seeds.jsonl").write_bytes(rows(("Switch on the hall lamp", "It is too dark", "Open the door")))
    edit(pico_recipe / "recipe.toml", "[teach]", TABLE)
    return pico_recipe


def prompts_of(recipe: Path, runs: Path) -> tuple[Run, list[str]]:
    run, _ = run_recipe(recipe, RunSettings(runs=runs, offline=True, only="prompts"), lambda what, done, total: None)
    return run, [prompt.text for prompt in read_prompts(run.folder("prompts") / "prompts.jsonl")]


def test_a_real_teacher_writes_the_prompts_of_a_run(recipe: Path, tmp_path: Path) -> None:
    run, texts = prompts_of(recipe, tmp_path / "runs")
    summary = run.summary("prompts")["synthesized"]
    assert texts[:3] == ["Switch on the hall lamp", "It is too dark", "Open the door"]
    assert summary["kept"] == 30 == len(texts) - 3
    assert set(summary["cells"]) == {"hall", "kitchen", "hardly anything", "contradictory", "hostile", "off topic"}
    assert {row["tags"][0] for _, row in read_rows(run.folder("prompts") / "prompts.jsonl") if "tags" in row} >= {
        "hall"
    }
    lineages = [row["_ed"] for _, row in read_rows(run.folder("prompts") / "prompts.jsonl")][3:]
    assert all(one["source"] == "synthesized" and one["teacher"] == "teacher" for one in lineages)
    assert {one["cell"]["room"] for one in lineages if "cell" in one} == {"hall", "kitchen"}
    cut = [shingles(text) for text in texts[3:]]
    assert all(jaccard(one, other) < 0.7 for number, one in enumerate(cut) for other in cut[:number])


def test_a_writer_that_was_stopped_goes_on_without_asking_anything_twice(
    recipe: Path, tmp_path: Path, ask_to_stop: Callable[[], None]
) -> None:
    _, whole = prompts_of(recipe, tmp_path / "whole")
    added: list[str] = []
    add = Store.add

    def noting(store: Store, key: str, *more: Any) -> bool:
        added.append(key)
        if len(added) in (3, 9):
            ask_to_stop()
        return add(store, key, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "add", noting)
        for _ in range(2):
            with pytest.raises(Stopped):
                prompts_of(recipe, tmp_path / "stopped")
        _, resumed = prompts_of(recipe, tmp_path / "stopped")
    assert len(added) == len(set(added))
    assert resumed == whole


def test_what_is_written_and_the_seeds_offer_the_tools_of_the_recipe(recipe: Path, tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}
    (recipe / "tools.json").write_text(json.dumps([tool]), encoding="utf-8")
    text = (recipe / "recipe.toml").read_text(encoding="utf-8").replace('schema_file = "schema.json"\n', "")
    (recipe / "recipe.toml").write_text(f'{text}\n[tools]\nfile = "tools.json"\nstudent = false\n', encoding="utf-8")
    run, _ = prompts_of(recipe, tmp_path / "runs")
    path = run.folder("prompts") / "prompts.jsonl"
    assert all(prompt.tools == (tool,) for prompt in read_prompts(path))
    ids = [row["_ed"]["id"] for _, row in read_rows(path)]
    assert ids == [prompt.id for prompt in read_prompts(path)]
    parents = {row["_ed"]["from"] for _, row in read_rows(path) if "from" in row["_ed"]}
    assert parents <= set(ids)


def test_a_seed_that_is_there_already_is_dropped_with_its_reason(recipe: Path, tmp_path: Path) -> None:
    (recipe / "seeds.jsonl").write_bytes(rows(("Open the door", "open the door!")))
    run, texts = prompts_of(recipe, tmp_path / "runs")
    assert texts[0] == "Open the door"
    (first,) = [row for _, row in read_rows(run.folder("prompts") / "dropped.jsonl") if row["_ed"]["source"] == "seed"]
    assert first["_ed"]["reason"] == "exact duplicate"
    summary = run.summary("prompts")
    assert summary["dropped"] == sum(1 for _ in read_rows(run.folder("prompts") / "dropped.jsonl"))


def test_personal_data_in_seeds_does_not_leave_the_machine_unasked(recipe: Path, tmp_path: Path) -> None:
    (recipe / "prompts.jsonl").write_bytes(rows(("Open the door",)))
    (recipe / "seeds.jsonl").write_bytes(rows(("Write to anna.berger@example.org",)))
    loaded = load_recipe(recipe)
    far = loaded.teacher.model_copy(update={"backend": "openai", "url": "https://models.example.org/v1"})
    with pytest.raises(Unsafe, match="looks like personal data"):
        require_private(loaded.model_copy(update={"teacher": far, "teachers": (far,)}), Run(tmp_path / "run"))


def test_check_tells_what_will_be_written_and_reads_the_seeds(recipe: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "run", offline=True)
    found = {one.what: one.found for one in check(load_recipe(recipe), run)}
    assert found["synthesis"].startswith("30 prompts by ")
    assert found["synthesis"].endswith("2 combinations of room, 3 seeds")
    (recipe / "seeds.jsonl").write_bytes(b"")
    with pytest.raises(InvalidInput, match=r"seeds\.jsonl: no seeds"):
        check(load_recipe(recipe), run)


def test_seeds_teacher_and_eval_rows_are_part_of_the_key(recipe: Path, models: PicoModels, tmp_path: Path) -> None:
    run = Run(tmp_path / "run", offline=True)
    before = stage_keys(load_recipe(recipe), run)["prompts"]
    (recipe / "seeds.jsonl").write_bytes(rows(("Something else",)))
    after = stage_keys(load_recipe(recipe), run)["prompts"]
    assert after != before
    (recipe / "eval.jsonl").write_bytes((recipe / "eval.jsonl").read_bytes()[:-1])
    key = stage_keys(load_recipe(recipe), run)["prompts"]
    assert key != after
    edit(recipe / "recipe.toml", 'system = "You turn a command into JSON."', 'system = "Answer."')
    assert stage_keys(load_recipe(recipe), run)["prompts"] == key  # the writer has a system text of its own
    edit(recipe / "recipe.toml", "[curate]\n", "[curate]\neval_overlap = 0.3\n")
    narrow = stage_keys(load_recipe(recipe), run)["prompts"]
    assert narrow != key
    edit(recipe / "recipe.toml", str(models.teacher), str(pico_gguf(tmp_path / "other.gguf", "qwen2", seed=4)))
    assert stage_keys(load_recipe(recipe), run)["prompts"] != narrow


def test_a_dry_run_counts_the_prompts_that_are_still_to_be_written(recipe: Path, tmp_path: Path) -> None:
    arguments = ["teach", str(recipe), "--dry-run", "--json", "-q", "--offline", "--runs", str(tmp_path / "runs")]
    told = json.loads(CliRunner().invoke(cli, arguments).stdout)
    assert [(one["rows"], one["tried"]) for one in told["teachers"]] == [(3 + 30, 3)]
    edit(recipe / "recipe.toml", 'seeds = "seeds.jsonl"\n', "")
    refused = CliRunner().invoke(cli, arguments)
    assert refused.exit_code == 3
    assert "the prompts are still to be written, and there are no seeds to try" in refused.stderr


def test_the_stage_stays_as_it_was_without_the_table(pico_recipe: Path, tmp_path: Path) -> None:
    run, _ = prompts_of(pico_recipe, tmp_path / "runs")
    assert "synthesized" not in run.summary("prompts")
    assert not (run.folder("prompts") / stage.STORE).exists()
