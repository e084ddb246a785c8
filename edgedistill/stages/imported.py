"""The student's base as a Hugging Face folder, whatever it came as: a GGUF is imported, a larger model pruned.

Both are done once, and kept in the cache by the content of what they were made from.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..chat import with_system
from ..errors import EdgeDistillError, InvalidInput
from ..llamacpp.importer import import_gguf
from ..models import Identity, Weights, cache_root, check_gguf, fetch, folder_content, locked
from ..recipe import Recipe, StudentSettings
from ..records import Example, digest, messages_of, placed_lines, read_json, read_rows, tools_of
from ..run import Progress, Run, write_whole
from ..students.encode import Encoder
from ..students.prune import (
    feed_forward_activity,
    kept_layers,
    kept_width,
    most_active,
    prune,
    require_layers_alike,
    require_statistics,
)
from .parity import prove_tokens
from .thinking import switched

__all__ = ["base_folder", "pruned", "require_prunable"]

FORMAT = 1  # raised when the importer writes something else: folders that an older one wrote are then left alone
PRUNING = 1  # the same, of what prunes
NOTE = "pruned.json"
TEXTS = 256  # of the training set, on which the feed-forward layers are measured


def base_folder(recipe: Recipe, run: Run, progress: Progress) -> tuple[Weights, Path]:
    """The weights that the recipe names, and the folder of what is trained.

    A GGUF is imported; with `student.init = "prune"` layers are then taken out; with `student.thinking` its template's
    switch is set. Raises GateMissed where the imported
    tokenizer does not read as the GGUF's own, InvalidInput where the model cannot be pruned as asked, EdgeDistillError
    where the pruned model is not the one that the run has trained.
    """
    weights = fetch(recipe.reference("student"), ("hf", "gguf"), run.offline, progress)
    folder = weights.path if weights.format == "hf" else _imported(weights, progress)
    found = folder if recipe.student.init == "model" else _pruned(recipe, run, folder, progress)
    return weights, found if recipe.student.thinking is None else switched(found, recipe.student.thinking)


def require_prunable(settings: StudentSettings, identity: Identity) -> str:
    """What of a model on this machine stays, as found: "15 of 30 layers", or "" where it is not pruned.

    Raises InvalidInput where it cannot be pruned as the settings say, MissingRequirement where a library is missing.
    """
    if settings.keep_layers is None or identity.path is None:
        return ""
    if identity.format == "gguf":
        metadata = check_gguf(identity.path).metadata
        layers: Any = metadata.get(f"{metadata.get('general.architecture')}.block_count")
        if type(layers) is not int:
            raise InvalidInput(f"{identity.path}: it does not say how many layers it has", "Fetch it again.")
    else:
        path = identity.path / "config.json"
        layers = require_layers_alike(str(path), read_json(path))
    found = f"{len(kept_layers(layers, settings.keep_layers))} of {layers} layers"
    if settings.keep_feed_forward == 1.0:
        return found
    require_statistics()
    return f"{found}, about {settings.keep_feed_forward:.0%} of each feed-forward layer"


def pruned(base: Path) -> dict[str, Any]:
    """What was left of a base that was pruned, for the record, as {"pruned": ...}; empty for any other."""
    note = read_json(base / NOTE, required=False)
    return {"pruned": note} if note else {}


def _imported(weights: Weights, progress: Progress) -> Path:
    def make(folder: Path) -> None:
        import_gguf(weights.path, folder, progress)
        prove_tokens(folder, weights.path)

    return _kept(cache_root() / "imported" / f"{weights.sha256[:16]}-{FORMAT}", make)


def _pruned(recipe: Recipe, run: Run, base: Path, progress: Progress) -> Path:
    settings = recipe.student
    config = read_json(base / "config.json")
    layers = kept_layers(require_layers_alike(str(base / "config.json"), config), settings.keep_layers or 0)
    texts = _texts(recipe, run, base) if settings.keep_feed_forward < 1.0 else []
    key = digest(PRUNING, folder_content(base), layers, settings.keep_feed_forward, texts)

    def make(folder: Path) -> None:
        progress("pruning", 0, 1)
        inner = config.get("intermediate_size")
        note: dict[str, Any] = {"layers": layers, "of_layers": config["num_hidden_layers"], "of_feed_forward": inner}
        channels = None
        if texts:
            width = kept_width(int(config["intermediate_size"]), settings.keep_feed_forward)
            channels = most_active(feed_forward_activity(base, texts)[np.array(layers)], width)
        prune(base, folder, layers, channels)
        note["feed_forward"] = inner if channels is None else channels.shape[1]
        write_whole(folder / NOTE, json.dumps({**note, "sha256": folder_content(folder)}).encode())
        progress("pruning", 1, 1)

    found = _kept(cache_root() / "pruned" / f"{key[:16]}-{PRUNING}", make)
    _must_be_trained_one(run, found)
    return found


def _texts(recipe: Recipe, run: Run, base: Path) -> list[tuple[int, ...]]:
    """Token ids of some rows from all over the training set, with the student's system text and their answers."""
    path = run.folder("curate") / "train.jsonl"
    every = max(1, sum(1 for _ in placed_lines(path)) // TEXTS)
    encoder = Encoder(base)
    found = []
    for number, row in read_rows(path):
        if number % every == 0:
            where = f"{path}:{number}"
            messages = with_system(recipe.student.system, messages_of(where, row))
            found.append(encoder.example(Example(str(number), messages, tools_of(where, row.get("tools")))).tokens)
    return found[:TEXTS]


def _must_be_trained_one(run: Run, folder: Path) -> None:
    """Raise EdgeDistillError where the run was trained on another pruned base: its adapter would not fit this one.

    Which channels stay hangs on sums that another machine may round another way.
    """
    summary = (run.record("train") or {}).get("summary") or {}
    trained = summary.get("base", {}).get("pruned")
    if trained is not None and trained["sha256"] != pruned(folder)["pruned"]["sha256"]:
        raise EdgeDistillError(f"{folder}: not the pruned model that was trained", "Redo with --from train.")


def _kept(folder: Path, make: Callable[[Path], None]) -> Path:
    """The folder in the cache, made where it is not there or not as it was made."""
    stated = folder.with_suffix(".sha256")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        if not (stated.is_file() and folder.is_dir() and stated.read_text("utf-8") == folder_content(folder)):
            shutil.rmtree(folder, ignore_errors=True)
            make(folder)
            write_whole(stated, folder_content(folder).encode())
    return folder
