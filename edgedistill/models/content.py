"""What a model file or folder holds, as one hash.

A folder's hash covers the files that change what the model does: not its README or its licence texts.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from ..records import digest
from ..run import file_sha256

__all__ = ["file_content", "folder_content", "model_files", "plain_text", "size_of"]

FOLDER_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "*.jinja",
    "*.model",
    "vocab.json",
    "merges.txt",
)
PAPERS = ("LICENSE*", "README.md")


def file_content(path: Path) -> str:
    """The sha256 of a file; read once a process, unless the file was written since."""
    seen = os.stat(path)
    return _hash(os.path.realpath(path), seen.st_ino, seen.st_size, seen.st_mtime_ns)


@lru_cache(maxsize=256)
def _hash(path: str, inode: int, size: int, written: int) -> str:
    return file_sha256(Path(path))


def folder_content(folder: Path) -> str:
    """One hash over names and content of a folder's model files."""
    return digest([(path.name, file_content(path)) for path in model_files(folder)])


def model_files(folder: Path) -> list[Path]:
    """The files of a Hugging Face folder that make the model, by name."""
    return sorted(
        path for path in folder.iterdir() if path.is_file() and any(path.match(pattern) for pattern in FOLDER_FILES)
    )


def size_of(path: Path) -> int:
    """Bytes of a file, or of a folder's model files."""
    return path.stat().st_size if path.is_file() else sum(file.stat().st_size for file in model_files(path))


def plain_text(value: object) -> str | None:
    """A short text on one line that a file states of itself; None for anything else, such as a terminal's codes."""
    return value if isinstance(value, str) and 0 < len(value) <= 200 and value.isprintable() else None
