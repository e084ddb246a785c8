"""The student's base as a Hugging Face folder, whatever it came as."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..llamacpp.importer import import_gguf
from ..models import Weights, cache_root, fetch, folder_content, locked
from ..recipe import Recipe
from ..run import Progress, Run, write_whole
from .parity import prove_tokens

__all__ = ["base_folder"]

FORMAT = 1  # raised when the importer writes something else: folders that an older one wrote are then left alone


def base_folder(recipe: Recipe, run: Run, progress: Progress) -> tuple[Weights, Path]:
    """The weights that the recipe names, and their folder; a GGUF is imported once and kept in the cache by its hash.

    Raises GateMissed where the imported tokenizer does not read as the GGUF's own.
    """
    weights = fetch(recipe.reference("student"), ("hf", "gguf"), run.offline, progress)
    if weights.format == "hf":
        return weights, weights.path
    kept = cache_root() / "imported"
    folder = kept / f"{weights.sha256[:16]}-{FORMAT}"
    stated = folder.with_suffix(".sha256")
    kept.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        if not (stated.is_file() and folder.is_dir() and stated.read_text("utf-8") == folder_content(folder)):
            shutil.rmtree(folder, ignore_errors=True)
            import_gguf(weights.path, folder, progress)
            prove_tokens(folder, weights.path, ())
            write_whole(stated, folder_content(folder).encode())
    return weights, folder
