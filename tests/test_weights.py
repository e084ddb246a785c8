"""Safetensors files: found, read row by row, and refused where they do not hold."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pico import (
    pico_hf_folder,
    written,
)

from edgedistill.errors import InvalidInput
from edgedistill.llamacpp import weights


def test_a_bfloat16_number_keeps_its_value(tmp_path: Path) -> None:
    numbers = np.array([[1.0, -2.5, 3.140625, 0.0], [65280.0, 1e-3, -0.15625, 2.0**-14]], dtype=np.float32)
    stored = (numbers.view(np.uint32) >> 16).astype("<u2")
    header = {"a": {"dtype": "BF16", "shape": [2, 4], "data_offsets": [0, 16]}}
    text = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + stored.tobytes())
    found = weights.read_rows(weights.find_tensors(tmp_path)["a"], 0, 2)
    assert np.array_equal(found, (stored.astype(np.uint32) << 16).view(np.float32))
    assert np.allclose(found, numbers, rtol=2**-7)


@pytest.mark.parametrize("shape", [(3,), (7, 5), (10, 4 * 2**20), (1, 1)])
def test_the_pieces_of_a_tensor_cover_its_rows_once(shape: tuple[int, ...]) -> None:
    steps = list(weights.row_steps(shape))
    assert [row for first, last in steps for row in range(first, last)] == list(range(shape[0]))


def test_arrays_that_are_written_behind_come_in_their_order(tmp_path: Path) -> None:
    arrays = [np.full(size, size, np.uint16) for size in (5, 60_000, 0, 1, 9_000)] * 3
    with (tmp_path / "f").open("wb") as file, weights.written_behind(file) as write:
        for array in arrays:
            write(array)
        write(np.arange(6, dtype=np.uint16).reshape(2, 3).T)
    whole = np.concatenate([*arrays, [0, 3, 1, 4, 2, 5]]).astype(np.uint16)
    assert (tmp_path / "f").read_bytes() == whole.tobytes()


@pytest.mark.parametrize("count", [1, 20])
def test_a_write_that_fails_behind_is_raised(tmp_path: Path, count: int) -> None:
    def written(file: BinaryIO) -> None:
        with weights.written_behind(file) as write:
            for _ in range(count):
                write(np.zeros(100_000))

    (tmp_path / "f").touch()
    with (tmp_path / "f").open("rb") as file, pytest.raises(OSError, match="write"):
        written(file)


def test_weights_in_several_files_are_found(tmp_path: Path) -> None:
    whole = written(pico_hf_folder(tmp_path / "whole"))
    folder = pico_hf_folder(tmp_path / "parts")
    found = weights.find_tensors(folder)
    names = list(found)
    for number, part in enumerate((names[:7], names[7:])):
        shapes = {name: found[name].shape for name in part}
        weights.write_safetensors(
            folder / f"model-{number}.safetensors",
            shapes,
            "F16",
            lambda name: [weights.read_rows(found[name], 0, found[name].shape[0])],
        )
    (folder / "model.safetensors").unlink()
    assert written(folder).path.read_bytes() == whole.path.read_bytes()


def test_another_type_of_numbers_is_refused(tmp_path: Path) -> None:
    folder = pico_hf_folder(tmp_path / "m")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes().replace(b'"dtype":"F16"', b'"dtype":"I16"'))
    with pytest.raises(InvalidInput, match="I16"):
        written(folder)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_damaged_safetensors_header_is_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    shapes = {"a": (2, 3), "b": (4,)}
    weights.write_safetensors(folder / "model.safetensors", shapes, "F16", lambda name: [np.ones(shapes[name], "f4")])
    content = bytearray((folder / "model.safetensors").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (folder / "model.safetensors").write_bytes(content[: data.draw(st.integers(0, len(content)))])
    with contextlib.suppress(InvalidInput):
        for tensor in weights.find_tensors(folder).values():
            assert weights.read_rows(tensor, 0, tensor.shape[0] if tensor.shape else 1).shape == tensor.shape
