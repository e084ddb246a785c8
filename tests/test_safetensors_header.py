"""The header of a safetensors file is read by strict rules: bounds, shapes, no overlap, no gap."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_bytes import WEIGHTS, one, safetensors_bytes, u64

from edgedistill.errors import EdgeDistillError, Unsafe
from edgedistill.models.safetensors_header import read_safetensors_header


def test_a_sound_safetensors_file_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(WEIGHTS)
    assert read_safetensors_header(path) == {"a": ("F16", (2, 3)), "b": ("F32", ())}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x02}q\x00.",
        u64(2**63) + bytes(100),
        u64(10) + b"{}",
        safetensors_bytes(None, 0, b"{" * 50_000),
        safetensors_bytes(None, 0, b"[" * 50_000),
        safetensors_bytes(None, 0, b"[1]"),
        safetensors_bytes(
            None, 12, b'{"a": {"dtype": "F16", "shape": [6], "data_offsets": [0, ' + b"9" * 5000 + b"]}}"
        ),
        safetensors_bytes(None, 24, b'{"a": %s, "a": %s}' % ((json.dumps(one()).encode(),) * 2)),
        safetensors_bytes({"a": one("F17")}, 12),
        safetensors_bytes({"a": one(["F16"])}, 12),
        safetensors_bytes({"a": 7}, 12),
        safetensors_bytes({"a": one(shape=(2, -3))}, 12),
        safetensors_bytes({"a": one(shape=(2, True, 3))}, 12),
        safetensors_bytes({"a": one(shape=(1,) * 40 + (6,))}, 12),
        safetensors_bytes({"a": one(shape=(2, 4))}, 12),
        safetensors_bytes({"a": one(extent=(0, 12, 1))}, 12),
        safetensors_bytes({"a": one(extent=(12, 0))}, 12),
        safetensors_bytes({"a": one(), "b": one(extent=(6, 18))}, 18),
        safetensors_bytes({"a": one(extent=(4, 16))}, 16),
        safetensors_bytes({"a": one()}, 11),
        safetensors_bytes({"a": one()}, 13),
    ],
    ids=range(22),
)
def test_a_hostile_safetensors_file_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(Unsafe, match=r"model\.safetensors: a corrupt or hostile"):
        read_safetensors_header(path)


@settings(max_examples=300, deadline=2000)
@given(
    edits=st.lists(st.tuples(st.integers(0, len(WEIGHTS) - 1), st.integers(0, 255)), min_size=1, max_size=4),
    length=st.one_of(st.none(), st.integers(0, len(WEIGHTS))),
)
def test_a_mutated_safetensors_file_never_crashes_the_check(
    tmp_path_factory: pytest.TempPathFactory, edits: list[tuple[int, int]], length: int | None
) -> None:
    data = bytearray(WEIGHTS)
    for position, value in edits:
        data[position] = value
    path = tmp_path_factory.getbasetemp() / "mutant.safetensors"
    path.write_bytes(data[:length])
    try:
        read_safetensors_header(path)
    except EdgeDistillError as error:
        assert "mutant.safetensors" in error.message  # noqa: PT017 - either outcome is right
