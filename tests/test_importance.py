"""The importance matrix: summed as the model computes, written and read as llama.cpp's own tools do it."""

from __future__ import annotations

import importlib.util
from contextlib import suppress
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pico import pico_gguf, silent

from edgedistill.contract import NEED_IMPORTANCE, QUANT_TYPES
from edgedistill.errors import EdgeDistillError, InvalidInput
from edgedistill.llamacpp import reader
from edgedistill.llamacpp.comparison import Comparison, ScoredText, Side, compare, importance_of
from edgedistill.llamacpp.importance import (
    Importance,
    ImportanceCollector,
    as_structs,
    expert_sums,
    read_importance,
    squares,
    write_importance,
)
from edgedistill.llamacpp.quantize import TENSOR_TYPES, Mixture, quantize
from edgedistill.llamacpp.shapes import _dry_run
from edgedistill.records import FILE_TYPES

needs_llama_cpp = pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason="llama_cpp is not installed")
TEXTS = [ScoredText(tuple(range(3, 60)), 20), ScoredText(tuple(range(100, 130)), 10)]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pico_gguf(tmp_path_factory.mktemp("pico") / "pico.gguf", size=256)


@pytest.fixture(scope="module")
def importance(source: Path) -> Importance:
    pytest.importorskip("llama_cpp")
    return importance_of(source, TEXTS, 2, silent)


def tensor(path: Path, name: str) -> np.ndarray:
    found = reader.read_gguf(path).tensors[name]
    return reader.dequantized_rows(path, found, 0, found.shape[0])


@needs_llama_cpp
def test_what_is_summed_are_the_squares_of_what_a_matrix_is_multiplied_with(
    source: Path, importance: Importance
) -> None:
    tokens = [token for text in TEXTS for token in text.tokens[:-1]]
    embedded = tensor(source, "token_embd.weight")[tokens].astype(np.float64)
    normed = embedded / np.sqrt((embedded**2).mean(axis=1, keepdims=True) + 1e-5)
    inputs = normed * tensor(source, "blk.0.attn_norm.weight")
    for name in ("attn_q", "attn_k", "attn_v"):
        assert importance.counts[f"blk.0.{name}.weight"].tolist() == [len(tokens)]
        assert np.allclose(importance.sums[f"blk.0.{name}.weight"][0], (inputs**2).sum(axis=0), rtol=1e-4)
    assert np.allclose(importance.weights("blk.0.attn_q.weight"), (inputs**2).mean(axis=0), rtol=1e-4)


@needs_llama_cpp
def test_every_matrix_of_a_layer_is_seen_and_no_other(source: Path, importance: Importance) -> None:
    matrices = {
        name: one.shape[-1]
        for name, one in reader.read_gguf(source).tensors.items()
        if len(one.shape) == 2 and name.startswith("blk.")
    }
    assert {name: sums.shape[1] for name, sums in importance.sums.items()} == matrices
    answers = sum(text.scored for text in TEXTS)
    # of the last layer, what stands behind attention is computed for answers alone
    assert importance.counts["blk.1.ffn_down.weight"].tolist() == [answers]
    assert importance.rows == sum(len(text.tokens) - 1 for text in TEXTS)


@needs_llama_cpp
def test_it_is_a_by_product_of_a_comparison(source: Path, importance: Importance) -> None:
    collector = ImportanceCollector()
    sides = [Side(source, TEXTS, collector.callback), Side(source, TEXTS)]
    (found,) = compare(sides, Comparison([(0, 1)]), 2, silent).pairs
    assert found.kl.max() < 1e-6, "looking on changes nothing"
    for name, sums in importance.sums.items():
        assert np.allclose(collector.importance.sums[name], sums, rtol=1e-5)


@needs_llama_cpp
def test_what_goes_wrong_while_llama_cpp_computes_is_raised_afterwards(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collector = ImportanceCollector()
    monkeypatch.setattr(collector, "_take", lambda *_: 1 / 0)
    compare([Side(source, TEXTS, collector.callback)], Comparison(()), 1, silent)
    with pytest.raises(ZeroDivisionError):
        _ = collector.importance


@needs_llama_cpp
def test_a_quantizer_is_given_the_mean_squares_a_little_sharpened() -> None:
    import llama_cpp

    found = Importance()
    found.add("a", np.array([[2.0, 32.0, 0.0]]), np.array([2]))
    rows, _kept = as_structs(llama_cpp, found)
    assert (rows[0].name, rows[0].size, rows[1].name) == (b"a", 3, None)
    assert np.ctypeslib.as_array(rows[0].data, (3,)) == pytest.approx([1.0, 32.0, 0.0])


@needs_llama_cpp
@pytest.mark.parametrize("name", ["IQ2_XS", "IQ4_XS", "Q2_K_S"])
def test_small_types_are_made_with_an_importance_matrix(
    tmp_path: Path, source: Path, importance: Importance, name: str
) -> None:
    write_importance(importance, tmp_path / "imatrix.gguf", "test")
    quantize(source, tmp_path / "q.gguf", name, 2, Mixture(tmp_path / "imatrix.gguf"))
    found = reader.read_gguf(tmp_path / "q.gguf").metadata
    assert found["general.file_type"] == FILE_TYPES[name]
    assert found["quantize.imatrix.entries_count"] == len(importance.sums)
    assert found["quantize.imatrix.chunks_count"] == 1


@pytest.mark.parametrize("name", NEED_IMPORTANCE)
def test_they_are_refused_without_one(tmp_path: Path, source: Path, name: str) -> None:
    with pytest.raises(InvalidInput, match=f"{name} needs an importance matrix"):
        quantize(source, tmp_path / "q.gguf", name, 1)


@needs_llama_cpp
@pytest.mark.parametrize("name", QUANT_TYPES)
def test_the_types_that_need_one_are_those_of_llama_cpp(source: Path, name: str) -> None:
    assert ("will require an imatrix" in _dry_run(source, FILE_TYPES[name])) == (name in NEED_IMPORTANCE)


@needs_llama_cpp
def test_single_tensors_have_the_types_that_are_asked_for(tmp_path: Path, source: Path) -> None:
    types = {r"blk\.1\.ffn_down": "Q8_0", "attn_v": "Q6_K", "token_embd": "Q5_K"}
    quantize(source, tmp_path / "q.gguf", "Q4_K_S", 2, Mixture(tensor_types=types))
    kinds = {name: one.kind for name, one in reader.read_gguf(tmp_path / "q.gguf").tensors.items()}
    assert kinds["blk.1.ffn_down.weight"] == "Q8_0"
    assert kinds["blk.0.attn_v.weight"] == kinds["blk.1.attn_v.weight"] == "Q6_K"
    assert kinds["token_embd.weight"] == "Q5_K"
    assert kinds["blk.0.attn_q.weight"] == "Q4_K"


def test_a_tensor_type_that_is_none_is_refused(tmp_path: Path, source: Path) -> None:
    with pytest.raises(InvalidInput, match="'attn_v': unknown tensor type 'Q4_K_M'"):
        quantize(source, tmp_path / "q.gguf", "Q8_0", 1, Mixture(tensor_types={"attn_v": "Q4_K_M"}))
    with pytest.raises(InvalidInput, match="IQ2_XS needs an importance matrix"):
        quantize(source, tmp_path / "q.gguf", "Q8_0", 1, Mixture(tensor_types={"attn_v": "IQ2_XS"}))


def test_tensor_types_have_ggmls_numbers() -> None:
    assert {name: gguf.GGMLQuantizationType[name].value for name in TENSOR_TYPES} == TENSOR_TYPES


@needs_llama_cpp
def test_an_importance_matrix_of_another_model_is_refused(tmp_path: Path, source: Path) -> None:
    other = Importance()
    other.add("blk.0.attn_q.weight", np.ones((1, 64)), np.array([1]))
    write_importance(other, tmp_path / "imatrix.gguf", "test")
    with pytest.raises(EdgeDistillError, match="imatrix size 64 is different from tensor size 256"):
        quantize(source, tmp_path / "q.gguf", "Q4_K_M", 1, Mixture(tmp_path / "imatrix.gguf"))


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20)


@st.composite
def importances(draw: Any) -> Importance:
    found = Importance()
    for name in draw(st.sets(NAMES, min_size=1, max_size=4)):
        matrices, columns = draw(st.integers(1, 3)), draw(st.integers(1, 9))
        numbers = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        sums = numbers.random((matrices, columns)).astype(np.float32) * np.float32(10.0 ** draw(st.integers(-20, 20)))
        found.add(name, sums, numbers.integers(0, 2**24, matrices))
    return found


@settings(max_examples=40, deadline=None)
@given(importances())
def test_what_is_written_is_read_again(tmp_path_factory: pytest.TempPathFactory, written: Importance) -> None:
    path = tmp_path_factory.mktemp("i") / "imatrix.gguf"
    write_importance(written, path, "test")
    found = read_importance(path)
    assert found.sums.keys() == written.sums.keys()
    for name, sums in written.sums.items():
        assert (found.sums[name] == sums).all()
        assert (found.counts[name] == written.counts[name]).all()
        assert (found.weights(name) == written.weights(name)).all()


@settings(max_examples=40, deadline=None)
@given(importances(), st.data())
def test_a_damaged_file_is_refused_or_read_never_more(
    tmp_path_factory: pytest.TempPathFactory, written: Importance, data: Any
) -> None:
    path = tmp_path_factory.mktemp("i") / "imatrix.gguf"
    write_importance(written, path, "test")
    whole = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    found = None
    with suppress(InvalidInput):
        found = read_importance(path)
    assert found is None or found.sums


def test_the_file_is_of_llama_imatrix_s_form(tmp_path: Path) -> None:
    found = Importance()
    found.add("blk.0.attn_q.weight", np.full((1, 4), 2.0), np.array([1025]))
    write_importance(found, tmp_path / "imatrix.gguf", "the task's rows")
    gguf_file = reader.read_gguf(tmp_path / "imatrix.gguf")
    assert gguf_file.metadata == {
        "general.type": "imatrix",
        "imatrix.datasets": ["the task's rows"],
        "imatrix.chunk_count": 3,
        "imatrix.chunk_size": 512,
    }
    assert {name: one.shape for name, one in gguf_file.tensors.items()} == {
        "blk.0.attn_q.weight.in_sum2": (1, 4),
        "blk.0.attn_q.weight.counts": (1, 1),
    }


def test_vectors_as_llama_imatrix_writes_them_are_read(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "imatrix.gguf", "none")
    writer.add_tensor("a.in_sum2", np.array([1.0, 4.0], np.float32))
    writer.add_tensor("a.counts", np.array([2.0], np.float32))
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    assert read_importance(tmp_path / "imatrix.gguf").weights("a").tolist() == [0.5, 2.0]


def test_a_model_is_no_importance_matrix(source: Path) -> None:
    with pytest.raises(InvalidInput, match="no importance matrix"):
        read_importance(source)


def test_each_expert_has_the_rows_that_came_to_it() -> None:
    random = np.random.default_rng(0)
    inputs = random.standard_normal((5, 2, 3)).astype(np.float32)
    chosen = np.array([[0, 1], [1, 3], [0, 1], [1, 0], [3, 0]], np.int32)
    sums, counts = expert_sums(inputs, chosen, 4)
    assert counts.tolist() == [4, 4, 0, 2]
    for expert in range(4):
        rows = [inputs[token, place] for token in range(5) for place in range(2) if chosen[token, place] == expert]
        assert np.allclose(sums[expert], np.square(rows).sum(axis=0) if rows else 0)
    shared, _ = expert_sums(inputs[:, :1], chosen, 4)
    assert np.allclose(shared[3], np.square(inputs[[1, 4], 0]).sum(axis=0))


def test_a_matrix_that_no_row_came_to_weighs_all_alike() -> None:
    found = Importance()
    found.add("a", np.array([[1.0, 3.0], [0.0, 0.0]]), np.array([2, 0]))
    assert found.weights("a").tolist() == [0.5, 1.5, 1.0, 1.0]


def test_inputs_that_are_not_finite_or_of_another_model_are_refused() -> None:
    found = Importance()
    found.add("a", np.ones((1, 2)), np.array([1]))
    with pytest.raises(InvalidInput, match="not finite"):
        found.add("a", np.array([[np.inf, 1.0]]), np.array([1]))
    with pytest.raises(InvalidInput, match=r"\(1, 2\) and \(1, 3\)"):
        found.add("a", np.ones((1, 3)), np.array([1]))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 200), st.integers(1, 5))
def test_squares_are_summed_whatever_the_blocks(rows: int, columns: int) -> None:
    values = np.random.default_rng(rows).standard_normal((rows, columns)).astype(np.float32)
    assert np.allclose(squares(values), np.square(values, dtype=np.float64).sum(axis=0), rtol=1e-5)
