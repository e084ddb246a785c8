"""The student's base as a Hugging Face folder, whatever it came as."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from ..llamacpp.importer import import_gguf
from ..models import Weights, cache_root, fetch
from ..recipe import Recipe
from ..run import Progress, Run, sweep
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
    if not folder.is_dir():  # it is renamed to this name only when it is whole and proven
        kept.mkdir(parents=True, exist_ok=True)
        sweep(kept)
        partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
        shutil.rmtree(partial, ignore_errors=True)
        import_gguf(weights.path, partial, progress)
        prove_tokens(partial, weights.path, ())
        os.replace(partial, folder)
    return weights, folder
