"""A run on a pruned student: made once, mended, kept apart from others, and refused early."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deep_models import deep, loaded, logits
from numpy.typing import NDArray
from pico import silent
from pico_recipe import PicoModels, write_pico_recipe

from edgedistill.errors import EdgeDistillError, InvalidInput
from edgedistill.llamacpp.writer import GgufMetadata, write_gguf
from edgedistill.models import check_folder, identify
from edgedistill.recipe import Recipe, StudentSettings, load_recipe
from edgedistill.run import Run
from edgedistill.stages.imported import base_folder, pruned, require_prunable
from edgedistill.students.encode import Encoder
from edgedistill.students.prune import (
    feed_forward_activity,
)

# -- in a run


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEDISTILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def recipe_on(student: Path, folder: Path, extra: str = "", layers: int = 3) -> Recipe:
    """A recipe whose student is pruned."""
    change = {"[student]\n": f'[student]\ninit = "prune"\nkeep_layers = {layers}\n{extra}'}
    return load_recipe(write_pico_recipe(folder, PicoModels(student, student), change))


def curated(path: Path, texts: tuple[str, ...]) -> Run:
    """A run in which a training set was made."""
    turns = [[{"role": "user", "content": text}, {"role": "assistant", "content": "on"}] for text in texts]
    (path / "curate").mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps({"messages": messages}) + "\n" for messages in turns)
    (path / "curate" / "train.jsonl").write_text(lines, encoding="utf-8")
    return Run(path, offline=True)


TEXTS = tuple(f"turn on light {number}" for number in range(12))


def test_a_pruned_base_is_made_once_and_mended(cache: Path, tmp_path: Path) -> None:
    base = deep(tmp_path / "student")
    recipe, run = recipe_on(base, tmp_path / "recipe"), curated(tmp_path / "run", TEXTS)
    weights_of, folder = base_folder(recipe, run, silent)
    assert weights_of.path == base
    assert folder.parent == cache / "pruned"
    made = os.stat(folder).st_mtime_ns
    assert base_folder(recipe, run, silent)[1] == folder
    assert os.stat(folder).st_mtime_ns == made
    note = pruned(folder)["pruned"]
    assert (note["layers"], note["of_layers"]) == ([0, 2, 4], 5)
    assert (note["feed_forward"], note["of_feed_forward"]) == (128, 128)
    before = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(before[:-1] + b"\x7f")
    assert base_folder(recipe, run, silent)[1] == folder
    assert (folder / "model.safetensors").read_bytes() == before
    assert pruned(base) == {}
    other = recipe_on(base, tmp_path / "other", layers=4)
    assert base_folder(other, run, silent)[1] != folder


def test_a_narrower_base_hangs_on_the_training_texts(cache: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    base = deep(tmp_path / "student")
    recipe = recipe_on(base, tmp_path / "recipe", "keep_feed_forward = 0.5\n")
    folder = base_folder(recipe, curated(tmp_path / "run", TEXTS), silent)[1]
    assert check_folder(folder)["intermediate_size"] == 64
    assert pruned(folder)["pruned"]["feed_forward"] == 64
    assert base_folder(recipe, curated(tmp_path / "same", TEXTS), silent)[1] == folder
    assert base_folder(recipe, curated(tmp_path / "else", (*TEXTS[1:], "tv off")), silent)[1] != folder
    assert len([path for path in folder.parent.iterdir() if path.is_dir()]) == 2
    assert Encoder(folder).ids("light") == Encoder(base).ids("light")


def test_texts_are_taken_from_all_over_the_training_set(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    measured: list[int] = []

    def counted(folder: Path, rows: list[tuple[int, ...]]) -> NDArray[np.float64]:
        measured.append(len(rows))
        return feed_forward_activity(folder, rows)

    monkeypatch.setattr("edgedistill.stages.imported.TEXTS", 5)
    monkeypatch.setattr("edgedistill.stages.imported.feed_forward_activity", counted)
    recipe = recipe_on(deep(tmp_path / "student"), tmp_path / "recipe", "keep_feed_forward = 0.5\n")
    first = base_folder(recipe, curated(tmp_path / "run", TEXTS), silent)[1]
    assert measured == [5]
    assert base_folder(recipe, curated(tmp_path / "else", (*TEXTS[:10], "tv off", "tv on")), silent)[1] == first


def test_another_pruned_base_than_the_trained_one_is_refused(cache: Path, tmp_path: Path) -> None:
    recipe = recipe_on(deep(tmp_path / "student"), tmp_path / "recipe")
    run = curated(tmp_path / "run", TEXTS)
    _, folder = base_folder(recipe, run, silent)
    run.begin("train", "key", afresh=True)
    run.finish("train", "key", {"base": {"name": "pico", **pruned(folder)}}, 1.0)
    assert base_folder(recipe, run, silent)[1] == folder
    run.finish("train", "key", {"base": {"pruned": {"sha256": "0" * 64}}}, 1.0)
    with pytest.raises(EdgeDistillError, match="not the pruned model that was trained") as caught:
        base_folder(recipe, run, silent)
    assert "--from train" in caught.value.hint
    run.begin("train", "key", afresh=True)
    assert base_folder(recipe, run, silent)[1] == folder


def test_a_gguf_is_imported_before_it_is_pruned(cache: Path, tmp_path: Path) -> None:
    gguf = tmp_path / "student.gguf"
    write_gguf(deep(tmp_path / "folder"), gguf, GgufMetadata(name="Pico", licence="apache-2.0"), silent)
    recipe = recipe_on(gguf, tmp_path / "recipe")
    weights_of, folder = base_folder(recipe, curated(tmp_path / "run", TEXTS), silent)
    assert weights_of.format == "gguf"
    assert folder.parent == cache / "pruned"
    assert len([path for path in (cache / "imported").iterdir() if path.is_dir()]) == 1
    assert check_folder(folder)["num_hidden_layers"] == 3
    assert np.isfinite(logits(loaded(folder))).all()


@pytest.mark.parametrize("is_gguf", [False, True], ids=["folder", "GGUF"])
def test_check_says_what_stays_and_refuses_more_than_there_is(tmp_path: Path, is_gguf: bool) -> None:
    path = deep(tmp_path / "student")
    if is_gguf:
        write_gguf(path, tmp_path / "student.gguf", GgufMetadata(name="Pico"), silent)
        path = tmp_path / "student.gguf"
    identity = identify(str(path), ("hf", "gguf"), True)

    def settings(**keys: Any) -> StudentSettings:
        return StudentSettings(model=str(path), init="prune", **keys)

    assert require_prunable(settings(keep_layers=3), identity) == "3 of 5 layers"
    assert require_prunable(StudentSettings(model=str(path)), identity) == ""
    with pytest.raises(InvalidInput, match=r"student\.keep_layers is 6, the model has 5 layers"):
        require_prunable(settings(keep_layers=6), identity)
    pytest.importorskip("torch")
    found = require_prunable(settings(keep_layers=4, keep_feed_forward=0.5), identity)
    assert found == "4 of 5 layers, about 50% of each feed-forward layer"
