"""The gate for model folders: what is missing, what could run code, whose licence it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from model_bytes import WEIGHTS

from edgedistill.errors import InvalidInput, Unsafe
from edgedistill.models.intake import DENIED_KEYS, REFUSED, check_folder, folder_licence


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "student"
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "llama", "rope": {"type": "default"}}')
    (path / "tokenizer.json").write_text("{}")
    (path / "model.safetensors").write_bytes(WEIGHTS)
    return path


def test_a_sound_folder_is_accepted_with_its_config(folder: Path) -> None:
    assert check_folder(folder)["model_type"] == "llama"


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_folder_that_lacks_a_file_is_invalid_and_says_which(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(InvalidInput, match=f"{folder}: no {'safetensors' if 'safe' in name else name}") as error:
        check_folder(folder)
    assert error.value.hint


@pytest.mark.parametrize("suffix", REFUSED)
@pytest.mark.parametrize("sound_weights", [True, False])
def test_a_file_that_can_run_code_is_refused_beside_sound_weights_and_without(
    folder: Path, suffix: str, sound_weights: bool
) -> None:
    (folder / "deep").mkdir()
    (folder / "deep" / f"weights{suffix.upper()}").write_bytes(b"x")
    if not sound_weights:
        (folder / "model.safetensors").unlink()
    with pytest.raises(Unsafe, match="can run code"):
        check_folder(folder)


def test_a_pickle_under_a_safetensors_name_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00cos\nsystem\n.")
    with pytest.raises(Unsafe, match=r"model\.safetensors"):
        check_folder(folder)


@pytest.mark.parametrize("key", sorted(DENIED_KEYS))
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_a_configuration_that_asks_for_code_is_refused_at_any_depth(
    folder: Path, key: str, depth: int, name: str
) -> None:
    value: Any = {key: "evil--repo"}
    for _ in range(depth - 1):
        value = {"text_config": [value]}
    (folder / name).write_text(json.dumps(value))
    with pytest.raises(Unsafe, match=f"{name}: has the key '{key}'"):
        check_folder(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "\xff", "nul"])
def test_a_configuration_that_is_no_json_object_is_invalid(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(InvalidInput, match=r"config\.json: not "):
        check_folder(folder)


def test_an_index_must_name_files_that_are_there_and_nothing_else(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model.safetensors", "b": "model-00002.safetensors"}}))
    with pytest.raises(InvalidInput, match=r"no model-00002\.safetensors"):
        check_folder(folder)
    for name in ("../model.safetensors", "/etc/model.safetensors", "a\\model.safetensors", "pytorch_model.bin"):
        index.write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(Unsafe, match="as a weight file"):
            check_folder(folder)


def test_an_adapter_is_no_student(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "org/other"}')
    with pytest.raises(InvalidInput, match="an adapter"):
        check_folder(folder)


@pytest.mark.parametrize(
    ("front", "licence"),
    [
        ("license: apache-2.0", "apache-2.0"),
        ("language:\n- en\nlicense: 'mit' # or so", "mit"),
        ("license:\n- gemma\ntags:\n- x", "gemma"),
        ("license: other\nlicense_name: llama3\nlicense_link: LICENSE", "llama3"),
        ("license: other", "other"),
        ("tags: [license]", None),
    ],
)
def test_the_licence_of_a_folder_is_in_its_readme(folder: Path, front: str, licence: str | None) -> None:
    (folder / "README.md").write_text(f"---\n{front}\n---\nlicense: no\n")
    assert folder_licence(folder) == licence


def test_a_readme_without_front_matter_states_no_licence(folder: Path) -> None:
    assert folder_licence(folder) is None
    (folder / "README.md").write_text("license: mit\n")
    assert folder_licence(folder) is None
