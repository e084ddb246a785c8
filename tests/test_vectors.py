"""New vectors in a GGUF: they come back to the bit, and nothing else of the file changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgedistill.errors import InvalidInput
from edgedistill.llamacpp.reader import GgufFile, dequantized_rows, read_gguf
from edgedistill.llamacpp.shapes import Shape, write_shaped
from edgedistill.llamacpp.vectors import write_vectors

pytest.importorskip("llama_cpp")  # whose ggml quantizes
NORM, MATRIX = "output_norm.weight", "blk.0.ffn_up.weight"


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> GgufFile:
    """A GGUF with a quantized matrix and a vector."""
    path = tmp_path_factory.mktemp("vectors") / "quant.gguf"
    tensors = {"token_embd.weight": (4, 1024), MATRIX: (6, 1024), NORM: (1024,)}
    types = {"token_embd.weight": "F16", MATRIX: "Q3_K", NORM: "F32"}
    write_shaped(path, Shape("noise", "llama", {"llama.block_count": 1}, tensors), types)
    return read_gguf(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_new_vectors_come_back_and_all_else_stays(gguf: GgufFile, tmp_path: Path, seed: int) -> None:
    vector = np.random.default_rng(seed).standard_normal(1024).astype(np.float32)
    out = tmp_path / "new.gguf"
    write_vectors(gguf.path, out, {NORM: vector})
    assert np.array_equal(dequantized_rows(out, read_gguf(out).tensors[NORM], 0, 1), vector)
    old, new, tensor = gguf.path.read_bytes(), out.read_bytes(), gguf.tensors[NORM]
    end = tensor.offset + tensor.size
    assert (new[: tensor.offset], new[end:]) == (old[: tensor.offset], old[end:])
    assert {path.name for path in tmp_path.iterdir()} == {"new.gguf"}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({NORM: np.full(1024, np.nan, np.float32)}, "output_norm.weight' are not finite"),
        ({NORM: np.ones(7, np.float32)}, r"is F32 of shape \(1024,\), not a vector of 7"),
        ({MATRIX: np.ones(1024, np.float32)}, r"is Q3_K of shape \(6, 1024\), not a vector of 1024"),
    ],
)
def test_numbers_that_do_not_fit_are_refused_and_leave_no_file(
    gguf: GgufFile, tmp_path: Path, changed: dict[str, np.ndarray], words: str
) -> None:
    with pytest.raises(InvalidInput, match=words):
        write_vectors(gguf.path, tmp_path / "new.gguf", changed)
    assert not list(tmp_path.iterdir())
