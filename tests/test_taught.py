"""What a curated row teaches under each loss, from a real teacher's store to the student's weights, on pico models."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from pico import silent
from pico_recipe import PicoModels, write_pico_recipe

from edgedistill.errors import InvalidInput
from edgedistill.pipeline import RunSettings, run_recipe
from edgedistill.preflight import check
from edgedistill.recipe import Recipe, load_recipe
from edgedistill.records import read_rows
from edgedistill.run import Run
from edgedistill.stages.stored_answers import STORE
from edgedistill.stages.taught import TaughtRows
from edgedistill.stages.train import train
from edgedistill.store import Store
from edgedistill.students.encode import Encoder
from edgedistill.targets import decode

SOFT = {"[train]": '[train]\nloss = "soft"', "[teach]": '[teach]\ntargets = "top_k"'}
CLOSED = {"[train]": '[train]\nloss = "soft"\nanswer_floor = 0.0'}


def run_until(folder: Path, models: PicoModels, changes: dict[str, str], last: str) -> tuple[Recipe, Run]:
    """A run of the pico recipe, each stage by itself, up to `last`."""
    path = write_pico_recipe(folder / "recipe", models, changes)
    for stage in ("prompts", "teach", "curate", "train"):
        run, _ = run_recipe(path, RunSettings(runs=folder / "runs", offline=True, only=stage), silent)
        if stage == last:
            break
    return load_recipe(path), run


@pytest.fixture(scope="module")
def soft(models: PicoModels, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Run]:
    return run_until(tmp_path_factory.mktemp("soft"), models, SOFT, "train")


@pytest.fixture(scope="module")
def closed(models: PicoModels, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Run]:
    return run_until(tmp_path_factory.mktemp("closed"), models, CLOSED, "train")


def test_a_soft_row_holds_the_teachers_distribution_at_each_of_its_tokens(
    soft: tuple[Recipe, Run], models: PicoModels
) -> None:
    recipe, run = soft
    stored = {}
    with Store(run.folder("teach") / "teacher.sqlite", read_only=True) as store:
        stored = {key: decode(completion.targets or b"") for key, completion in store.rows()}
    with TaughtRows(recipe, run, Encoder(models.student)) as rows:
        examples = rows.examples("train")
        assert len(examples) > 10
        for example in examples:
            targets, lesson = stored[example.key], rows.lesson(example)
            count = len(targets.tokens)
            assert lesson.rows.token[:count].tolist() == targets.tokens.tolist()
            assert lesson.tokens.tolist() == list(example.tokens[:-1])
            assert lesson.rows.soft[:count].tolist() == [1.0] * count
            kept = np.exp(lesson.rows.logprobs[:count]).sum(axis=1) + np.exp(lesson.rows.tail[:count])
            assert np.allclose(kept, 1.0, atol=1e-5)
            assert example.tokens[-1] == Encoder(models.student).completion("x")[-1]


def test_a_closed_row_holds_the_odds_of_every_answer(closed: tuple[Recipe, Run], models: PicoModels) -> None:
    recipe, run = closed
    encoder = Encoder(models.student)
    taught = {row["_ed"]["id"]: row["_ed"]["answers"] for _, row in read_rows(run.folder("curate") / "train.jsonl")}
    with TaughtRows(recipe, run, encoder) as rows:
        for example in rows.examples("train"):
            odds = taught[example.id]
            found = {encoder.completion(answer): share for answer, share in odds.items() if share > 0}
            assert dict(example.answers) == pytest.approx(found, abs=1e-5)
            lesson = rows.lesson(example)
            assert lesson.tokens[: example.start].tolist() == list(example.tokens[: example.start])
            assert lesson.rows.is_soft


@pytest.mark.parametrize("kind", ["soft", "closed"])
def test_what_was_learned_differs_from_what_the_text_alone_teaches(
    kind: str, models: PicoModels, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    _, run = request.getfixturevalue(kind)
    without = {"[teach]": SOFT["[teach]"]} if kind == "soft" else {}
    _, hard = run_until(tmp_path, models, without, "train")
    name = Path("adapter") / "adapter_model.safetensors"
    assert (run.folder("train") / name).read_bytes() != (hard.folder("train") / name).read_bytes()
    assert run.summary("train")["steps"] == hard.summary("train")["steps"]


def test_rows_of_which_only_the_text_is_there_are_counted(models: PicoModels, tmp_path: Path) -> None:
    recipe, run = run_until(tmp_path, models, SOFT, "curate")
    taught = [row["_ed"]["key"] for _, row in read_rows(run.folder("curate") / "train.jsonl")]
    with closing(sqlite3.connect(run.folder("teach") / STORE)) as store, store:
        # as a teacher behind a server leaves its answers, beside one that is here
        store.executemany(
            "UPDATE answers SET targets = NULL WHERE key = ?", [(bytes.fromhex(key),) for key in taught[:3]]
        )
    with TaughtRows(recipe, run, Encoder(models.student)) as rows:
        examples = rows.examples("train")
        assert [bool(example.key) for example in examples] == [False] * 3 + [True] * (len(taught) - 3)
        assert not rows.lesson(examples[0]).rows.is_soft
    summary = train(recipe, run, tmp_path / "out", silent)
    assert summary["rows_by_text"] == 3
    (warning,) = summary["warnings"]
    assert warning.startswith(f"3 of {len(taught)} rows were learned by their text alone")


def test_where_every_row_has_its_distribution_none_is_counted(
    soft: tuple[Recipe, Run], closed: tuple[Recipe, Run]
) -> None:
    for _, run in (soft, closed):
        summary = run.summary("train")
        assert (summary["rows_by_text"], summary["warnings"]) == (0, [])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"[train]": '[train]\nloss = "soft"', "[teach]": "[teach]\nclosed = false"}, "teach.targets is 'none'"),
        ({"[train]": '[train]\nloss = "soft"\ndivergence = "jsd"'}, "learned by 'forward_kl' at temperature 1"),
        (
            {
                "[train]": '[train]\nloss = "mixed"\ndivergence = "reverse_kl"',
                "[teach]": '[teach]\ntargets = "sampled"',
            },
            "unbiased for 'forward_kl' at temperature 1 alone",
        ),
    ],
)
def test_a_loss_that_has_nothing_to_learn_from_is_refused_before_anything_is_asked(
    models: PicoModels, tmp_path: Path, changes: dict[str, str], words: str
) -> None:
    recipe = load_recipe(write_pico_recipe(tmp_path / "recipe", models, changes))
    with pytest.raises(InvalidInput, match=words) as caught:
        check(recipe, Run(tmp_path / "run", offline=True))
    assert caught.value.hint


def test_of_many_prompts_a_limit_reads_some_from_all_over_the_file(models: PicoModels, tmp_path: Path) -> None:
    _, all_of_them = run_until(tmp_path / "all", models, {}, "prompts")
    _, some = run_until(tmp_path / "some", models, {"[teach]": "[prompts]\nlimit = 10\n\n[teach]"}, "prompts")
    found, whole = (
        [row["messages"][0]["content"] for _, row in read_rows(run.folder("prompts") / "prompts.jsonl")]
        for run in (some, all_of_them)
    )
    assert len(found) == 10
    assert found == whole[3::4]
