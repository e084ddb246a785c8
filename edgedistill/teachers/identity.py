"""What a teacher is: weights in one of its backend's formats, or a model behind a server's address."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InvalidInput, Unsafe
from ..models import check_gguf, fetch, identify
from ..recipe import Recipe, TeacherSettings
from ..records import FILE_TYPES, digest
from ..run import Progress
from . import BACKENDS

__all__ = ["TeacherIdentity", "fetch_teacher", "identify_teacher", "identify_teachers"]

TYPES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}


@dataclass(frozen=True, slots=True)
class TeacherIdentity:
    """A teacher, as far as it is known without a download or a question to a server.

    `sha256` is of the weights' content, None for a hub folder that is not cached; for a server, of its address and the
    model's id, for what it runs is not known. `path` is None there, and where the weights are still to be fetched.
    """

    name: str
    sha256: str | None
    licence: str | None
    source: str
    size_bytes: int | None
    cached: bool
    path: Path | None = None
    quant: str | None = None
    """The type of the weights, where it is known."""

    def record(self) -> dict[str, Any]:
        """The teacher as it stands in a summary."""
        return {key: getattr(self, key) for key in ("name", "sha256", "source", "licence", "quant")}


def identify_teacher(recipe: Recipe, teacher: TeacherSettings, offline: bool) -> TeacherIdentity:
    """What a teacher is, without downloading weights. Raises what `models.identify` raises."""
    if teacher.url is not None:
        return _server(teacher)
    found = identify(recipe.located(teacher), BACKENDS[teacher.backend].formats, offline)
    quant = None if found.path is None else _stated_type(found.path)
    size, source = found.size_bytes, found.source
    return TeacherIdentity(found.name, found.sha256, found.licence, source, size, found.cached, found.path, quant)


def identify_teachers(recipe: Recipe, offline: bool) -> list[TeacherIdentity]:
    """What all teachers of a recipe are. Raises what `models.identify` raises."""
    return [identify_teacher(recipe, teacher, offline) for teacher in recipe.teachers]


def fetch_teacher(recipe: Recipe, teacher: TeacherSettings, offline: bool, progress: Progress) -> TeacherIdentity:
    """A teacher with its weights on this machine, downloaded where they were not. Raises what `models.fetch` raises."""
    if teacher.url is not None:
        return _server(teacher)
    weights = fetch(recipe.located(teacher), BACKENDS[teacher.backend].formats, offline, progress)
    return TeacherIdentity(
        name=weights.name,
        sha256=weights.sha256,
        licence=weights.licence,
        source=weights.source,
        size_bytes=weights.size_bytes,
        cached=True,
        path=weights.path,
        quant=weights_type(weights.path),
    )


def _server(teacher: TeacherSettings) -> TeacherIdentity:
    sha256 = digest(teacher.url, teacher.model)
    return TeacherIdentity(teacher.model, sha256, teacher.licence, f"server:{teacher.url}", None, True)


def _stated_type(path: Path) -> str | None:
    try:
        return weights_type(path)
    except (InvalidInput, Unsafe):  # a damaged file of a cache: its hash refuses it when it is fetched
        return None


def weights_type(path: Path) -> str | None:
    """The type of weights as a GGUF's header or a folder's config states it, such as "Q4_K_M", "BF16" or "4 bit"."""
    if path.is_file():
        number = check_gguf(path).file_type
        return next((name for name, known in FILE_TYPES.items() if known == number), None)
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(config, dict):
        return None
    for key in ("quantization", "quantization_config"):  # mlx-lm's key, transformers' key
        bits = config[key].get("bits") if isinstance(config.get(key), dict) else None
        if type(bits) is int:
            return f"{bits} bit"
    stated = config.get("dtype", config.get("torch_dtype"))
    return TYPES.get(stated) if isinstance(stated, str) else None
