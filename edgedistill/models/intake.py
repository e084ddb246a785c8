"""The gate that every model file and folder passes before a library opens it.

Formats that can run code are refused by name, configurations that ask for code are refused by key, and the headers of
weight files are checked by own code.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ..errors import InvalidInput, Unsafe
from .content import model_files, plain_text
from .gguf_header import GgufHeader, read_gguf_header
from .safetensors_header import read_safetensors_header

__all__ = ["check_folder", "check_gguf", "folder_licence"]

REFUSED = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".py", ".pyc", ".so", ".npz", ".npy")
DENIED_KEYS = {
    "auto_map",
    "trust_remote_code",
    "_attn_implementation_internal",
    "_experts_implementation_internal",
    "model_file",
    "custom_pipelines",
}
CONFIGS = ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json")
MAX_CONFIG = 16 << 20
MAX_FILES = 10_000
INDEX = "model.safetensors.index.json"


def check_gguf(path: Path) -> GgufHeader:
    """The header of a GGUF file that may be opened.

    Raises InvalidInput where there is no such file or it is no GGUF model, Unsafe where its header does not hold.
    """
    if path.is_dir():
        raise InvalidInput(f"{path}: a folder, not a GGUF file", "Name the .gguf file in it.")
    if not path.exists():
        raise InvalidInput(f"{path}: no such file", "Check the path, or give a catalogue name or org/repo:file.")
    if not path.is_file():
        raise InvalidInput(f"{path}: not a regular file", "Name a .gguf file.")
    return read_gguf_header(path)


def check_folder(folder: Path) -> dict[str, Any]:
    """The config.json of a Hugging Face folder that may be loaded.

    Raises InvalidInput where a file is missing or not valid, Unsafe where the folder holds or asks for code.
    """
    if folder.is_file():
        raise InvalidInput(f"{folder}: a file, where a Hugging Face folder is needed", "Name the folder of the model.")
    if not folder.is_dir():
        raise InvalidInput(f"{folder}: no such folder", "Check the path, or give a catalogue name or org/repo.")
    _refuse_kinds(folder)
    config = _needed_json(folder / "config.json")
    for name in CONFIGS:
        if (folder / name).exists():
            _deny_keys(folder / name, _needed_json(folder / name))
    _check_files(folder)
    return config


def _refuse_kinds(folder: Path) -> None:
    count = 0
    for root, _, names in os.walk(folder):
        count += len(names)
        if count > MAX_FILES:
            raise InvalidInput(f"{folder}: more than {MAX_FILES} files", "Give a folder that holds one model.")
        for name in names:
            if name.lower().endswith(REFUSED):
                raise Unsafe(
                    f"{Path(root, name)}: files of this kind can run code",
                    "Give a folder with safetensors alone; remove this file, or convert the model.",
                )


def _check_files(folder: Path) -> None:
    if (folder / "adapter_config.json").exists():
        raise InvalidInput(f"{folder}: an adapter, not a whole model", "Merge it into its base model first.")
    if not (folder / "tokenizer.json").is_file():
        raise InvalidInput(f"{folder}: no tokenizer.json", "Save the tokenizer in its fast form beside the model.")
    weights = [path for path in model_files(folder) if path.suffix == ".safetensors"]
    for name in _shards(folder):
        if folder / name not in weights:
            raise InvalidInput(f"{folder}: no {name}, which {INDEX} names", "Fetch the folder again, whole.")
    if not weights:
        raise InvalidInput(f"{folder}: no safetensors", "Save the model with safe_serialization=True.")
    for path in weights:
        read_safetensors_header(path)


def _shards(folder: Path) -> set[str]:
    """The weight files that the folder's index names; none where it has no index."""
    path = folder / INDEX
    if not path.exists():
        return set()
    names = _needed_json(path).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise InvalidInput(f"{path}: no weight_map", "Fetch the folder again, whole.")
    for name in set(names.values()):
        if Path(name).name != name or "\\" in name or not name.endswith(".safetensors"):
            raise Unsafe(f"{path}: names {name!r} as a weight file", "Fetch it again from a source you trust.")
    return set(names.values())


def _needed_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file."""
    if path.exists() and not path.is_file():
        raise InvalidInput(f"{path}: not a regular file", "Give a Hugging Face folder of a whole model.")
    try:
        if path.stat().st_size > MAX_CONFIG:
            raise Unsafe(f"{path}: {path.stat().st_size} bytes, more than {MAX_CONFIG}", "No model needs so much.")
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InvalidInput(f"{path.parent}: no {path.name}", "Give a Hugging Face folder of a whole model.") from error
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror or error}", "Check the path in the recipe.") from error
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{path}: not JSON ({error})", "Fetch the folder again, whole.") from error
    if not isinstance(value, dict):
        raise InvalidInput(f"{path}: not a JSON object", "Fetch the folder again, whole.")
    return value


def _deny_keys(path: Path, value: Any) -> None:
    """Raise Unsafe where a key at any depth asks for code."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            denied = DENIED_KEYS & item.keys()
            if denied:
                raise Unsafe(
                    f"{path}: has the key '{sorted(denied)[0]}', which asks for code to be run",
                    "Use a model that runs with the library's own code.",
                )
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)


def folder_licence(folder: Path) -> str | None:
    """The licence id in the front matter of the folder's README.md, or None.

    Where `license` is "other", the id is `license_name`, as the hub has it.
    """
    try:
        with (folder / "README.md").open(encoding="utf-8", errors="replace") as file:
            lines = file.read(1 << 16).splitlines()
    except OSError:
        return None
    if not lines or lines[0].strip() != "---":
        return None
    found: dict[str, str] = {}
    key = ""
    for line in lines[1:]:
        if line.strip() == "---":
            break
        if line[:1].isalpha():
            key, _, value = line.partition(":")
            found[key.strip()] = value.split(" #")[0].strip().strip("'\"")
        elif line.strip().startswith("- ") and key and not found.get(key):
            found[key] = line.strip()[2:].strip().strip("'\"")
    licence = found.get("license", "").strip("[]").strip()
    if licence.lower() == "other":
        licence = found.get("license_name") or licence
    return plain_text(licence)
