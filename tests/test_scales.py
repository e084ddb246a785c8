"""The scales of quantized blocks: weights are linear in them, and new ones change nothing else of a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgedistill.errors import InvalidInput
from edgedistill.llamacpp.reader import GgufFile, dequantized_rows, read_gguf
from edgedistill.llamacpp.scales import SCALES, read_blocks, write_scales
from edgedistill.llamacpp.shapes import Shape, write_shaped

pytest.importorskip("llama_cpp")  # whose ggml quantizes
NAME = "blk.0.ffn_up.weight"


def file_of(kind: str, folder: Path) -> GgufFile:
    """A GGUF with one matrix of a type and one vector."""
    tensors = {"token_embd.weight": (4, 1024), NAME: (6, 1024), "output_norm.weight": (1024,)}
    types = {"token_embd.weight": "F16", NAME: kind, "output_norm.weight": "F32"}
    write_shaped(folder / f"{kind}.gguf", Shape("noise", "llama", {"llama.block_count": 1}, tensors), types)
    return read_gguf(folder / f"{kind}.gguf")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, GgufFile]:
    folder = tmp_path_factory.mktemp("scales")
    return {kind: file_of(kind, folder) for kind in SCALES}


@pytest.mark.parametrize("kind", SCALES)
def test_a_matrix_is_the_sum_of_its_scales_times_their_units(files: dict[str, GgufFile], kind: str) -> None:
    gguf = files[kind]
    blocks = read_blocks(gguf.path, gguf.tensors[NAME])
    weights = dequantized_rows(gguf.path, gguf.tensors[NAME], 0, 6)
    count = blocks.scales.shape[2]
    assert blocks.scales.shape == (len(SCALES[kind]), 6, count)
    assert np.abs(blocks.scales).max() > 0
    made = (blocks.scales[..., None] * blocks.units.reshape(*blocks.scales.shape, -1)).sum(0).reshape(6, -1)
    assert np.allclose(made, weights, atol=1e-6 * np.abs(weights).max())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(st.sampled_from(sorted(SCALES)), st.integers(0, 2**32 - 1))
def test_new_scales_and_vectors_come_back_and_all_else_stays(
    files: dict[str, GgufFile], tmp_path: Path, kind: str, seed: int
) -> None:
    gguf, numbers = files[kind], np.random.default_rng(seed)
    before = read_blocks(gguf.path, gguf.tensors[NAME])
    scales = before.scales * numbers.uniform(0.5, 2, before.scales.shape).astype(np.float32)
    vector = numbers.standard_normal(1024).astype(np.float32)
    out = tmp_path / "new.gguf"
    write_scales(gguf.path, out, {NAME: scales, "output_norm.weight": vector})
    found = read_gguf(out)
    after = read_blocks(out, found.tensors[NAME])
    assert np.array_equal(after.scales, scales.astype(np.float16).astype(np.float32))
    assert np.array_equal(after.units, before.units)
    assert np.array_equal(dequantized_rows(out, found.tensors["output_norm.weight"], 0, 1), vector)
    old, new = gguf.path.read_bytes(), out.read_bytes()
    start = gguf.tensors[NAME].offset
    assert len(old) == len(new)
    assert old[:start] == new[:start]
    assert {path.name for path in tmp_path.iterdir()} == {"new.gguf"}


def test_the_same_scales_make_the_same_file(files: dict[str, GgufFile], tmp_path: Path) -> None:
    gguf = files["Q2_K"]
    write_scales(gguf.path, tmp_path / "same.gguf", {NAME: read_blocks(gguf.path, gguf.tensors[NAME]).scales})
    assert (tmp_path / "same.gguf").read_bytes() == gguf.path.read_bytes()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"output_norm.weight": np.full(1024, np.nan, np.float32)}, "output_norm.weight' are not finite"),
        ({NAME: np.full((1, 6, 4), 1e6, np.float32)}, "are not finite"),  # float16 ends at 65504
        ({"output_norm.weight": np.ones(7, np.float32)}, r"has the shape \(1024,\), not \(7,\)"),
        ({NAME: np.ones((2, 6, 4), np.float32)}, r"has the shape \(1, 6, 4\), not \(2, 6, 4\)"),
    ],
)
def test_numbers_that_do_not_fit_are_refused_and_leave_no_file(
    files: dict[str, GgufFile], tmp_path: Path, changed: dict[str, np.ndarray], words: str
) -> None:
    with pytest.raises(InvalidInput, match=words):
        write_scales(files["Q3_K"].path, tmp_path / "new.gguf", changed)
    assert not list(tmp_path.iterdir())


def test_a_type_without_scales_is_refused(files: dict[str, GgufFile]) -> None:
    gguf = files["Q8_0"]
    with pytest.raises(InvalidInput, match=r"'token_embd\.weight' is F16"):
        read_blocks(gguf.path, gguf.tensors["token_embd.weight"])
