"""GGUFs from Hugging Face folders: names, metadata, tensors, vocabulary, and everything that must be refused."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader
from hypothesis import given
from hypothesis import strategies as st
from pico import (
    Edit,
    edited,
    pico_hf_folder,
    written,
)

from edgedistill.errors import EdgeDistillError, GateMissed, InvalidInput, Stopped
from edgedistill.llamacpp import architectures, importer, reader, weights, writer
from edgedistill.llamacpp.writer import GgufMetadata, Source, gguf_file_name, write_gguf


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        (("Qwen3", "0.6B", "support", "1.0", "Q4_K_M"), "Qwen3-0.6B-support-v1.0-Q4_K_M.gguf"),
        (("Qwen2.5-Coder", "1.5B", "", "v1.0", "F16"), "Qwen2-5-Coder-1.5B-v1.0-F16.gguf"),  # no dots in a base name
        (("Smol LM", "135M", "home_commands", "2", "Q8_0"), "Smol-LM-135M-home-commands-v2-Q8_0.gguf"),
    ],
)
def test_a_file_name_follows_the_convention(parts: tuple[str, str, str, str, str], name: str) -> None:
    assert gguf_file_name(*parts) == name


@pytest.mark.parametrize(
    "parts",
    [
        ("", "0.6B", "x", "1.0", "F16"),  # no base name
        ("Qwen3", "", "x", "1.0", "F16"),  # no size
        ("Qwen3", "small", "x", "1.0", "F16"),  # a size is a number and a letter
        ("Qwen3", "0.6B", "x", "latest", "F16"),  # a version is numbers
        ("Qwen3", "0.6B", "x", "1.0", "Q4 K"),
    ],
)
def test_parts_that_make_no_valid_name_are_refused(parts: tuple[str, str, str, str, str]) -> None:
    with pytest.raises(InvalidInput):
        gguf_file_name(*parts)


@given(st.text(max_size=20), st.text(max_size=20))
def test_every_file_name_matches_the_published_pattern(basename: str, finetune: str) -> None:
    try:
        name = gguf_file_name(basename, "0.5B", finetune, "1.0", "Q4_K_M")
    except InvalidInput:
        return
    found = writer.NAME.match(name)
    assert found
    assert (found["Version"], found["Encoding"]) == ("v1.0", "Q4_K_M")
    assert "/" not in name


def test_the_metadata_has_the_conventions_keys(tmp_path: Path) -> None:
    metadata = GgufMetadata(
        name="Pico Home",
        basename="Pico",
        finetune="home",
        version="v1.0",
        licence="apache-2.0",
        licence_link="https://example.org/licence",
        tags=("a", "b"),
        languages=("en",),
        base_models=(Source("Base", "Org", repo_url="https://example.org/base"), Source("Other")),
        datasets=(Source("Rows"),),
    )
    found = written(pico_hf_folder(tmp_path / "m"), metadata).metadata
    expected = {
        "general.architecture": "llama",
        "general.type": "model",
        "general.name": "Pico Home",
        "general.basename": "Pico",
        "general.finetune": "home",
        "general.version": "v1.0",
        "general.license": "apache-2.0",
        "general.license.link": "https://example.org/licence",
        "general.tags": ["a", "b"],
        "general.languages": ["en"],
        "general.base_model.count": 2,
        "general.base_model.0.name": "Base",
        "general.base_model.0.organization": "Org",
        "general.base_model.0.repo_url": "https://example.org/base",
        "general.base_model.1.name": "Other",
        "general.dataset.count": 1,
        "general.dataset.0.name": "Rows",
        "general.file_type": 1,
        "general.quantization_version": 2,
        "llama.block_count": 2,
        "llama.context_length": 4096,
        "llama.embedding_length": 64,
        "llama.feed_forward_length": 128,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.rope.dimension_count": 16,
        "llama.rope.freq_base": 10000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
    }
    assert {key: found.get(key) for key in expected} == expected
    assert found["general.size_label"].endswith("K")
    assert "general.description" not in found


@pytest.mark.parametrize("dtype", ["F16", "F32"])
def test_the_gguf_library_reads_matrices_as_f16_and_vectors_as_f32(tmp_path: Path, dtype: str) -> None:
    folder = pico_hf_folder(tmp_path / "m", "qwen2", tied=False, dtype=dtype)
    source = weights.find_tensors(folder)
    for tensor in GGUFReader(written(folder).path).tensors:
        assert tensor.tensor_type.name == ("F32" if len(tensor.shape) == 1 else "F16"), tensor.name
        if tensor.name == "blk.1.attn_q.bias":
            expected = weights.read_rows(source["model.layers.1.self_attn.q_proj.bias"], 0, 64)
            assert np.array_equal(tensor.data, expected)
        if tensor.name == "output.weight":
            expected = weights.read_rows(source["lm_head.weight"], 0, source["lm_head.weight"].shape[0])
            assert np.array_equal(tensor.data, expected.astype(np.float16))


@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 4), st.integers(0, 2**31))
def test_pairs_and_halves_undo_each_other(heads: int, half: int, columns: int, seed: int) -> None:
    rows = np.random.default_rng(seed).standard_normal((heads * half * 2, columns)).astype(np.float32)
    assert np.array_equal(importer.in_halves(writer.pairwise(rows, heads), heads), rows)


def test_rows_of_a_head_become_pairs() -> None:
    rows = np.arange(8, dtype=np.float32)[:, None]
    assert writer.pairwise(rows, 2).ravel().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_an_unlisted_architecture_is_refused_with_the_way_out(tmp_path: Path) -> None:
    folder = edited(
        pico_hf_folder(tmp_path / "m"), "config.json", lambda c: c.update(architectures=["MambaForCausalLM"])
    )
    with pytest.raises(InvalidInput, match=r"MambaForCausalLM.*LlamaForCausalLM.*Lfm2ForCausalLM") as raised:
        written(folder)
    assert "--llama-cpp" in raised.value.hint


@pytest.mark.parametrize(
    ("edit", "error", "word"),
    [
        (lambda c: c.update(hidden_act="gelu"), GateMissed, "hidden_act"),
        (lambda c: c.update(rope_scaling={"rope_type": "yarn", "factor": 4.0}), GateMissed, "yarn"),
        (lambda c: c.update(rope_parameters={"rope_type": "dynamic"}), GateMissed, "dynamic"),
        (lambda c: c.update(rope_scaling={"type": "linear"}), InvalidInput, "factor"),
        (lambda c: c.pop("hidden_size"), InvalidInput, "hidden_size"),
        (lambda c: c.update(num_hidden_layers=3), InvalidInput, "model.layers.2"),
        (lambda c: c.update(num_hidden_layers=1), InvalidInput, "model.layers.1"),
        (lambda c: c.update(num_hidden_layers=10**9), InvalidInput, "512"),
        (lambda c: c.update(tie_word_embeddings=False), InvalidInput, "lm_head.weight"),
        (lambda c: c.update(vocab_size=5000), InvalidInput, "5000"),
        (lambda c: c.update(head_dim=8), InvalidInput, "q_proj"),
        (lambda c: c.update(rms_norm_eps=None), InvalidInput, "rms_norm_eps"),
    ],
)
def test_a_config_that_does_not_hold_is_refused(tmp_path: Path, edit: Edit, error: type[Exception], word: str) -> None:
    folder = edited(pico_hf_folder(tmp_path / "m"), "config.json", edit)
    with pytest.raises(error, match=word):
        written(folder)
    assert not list(tmp_path.glob("*.gguf*"))


@pytest.mark.parametrize("number", [math.nan, math.inf, 70000.0])
def test_a_weight_that_does_not_fit_f16_is_refused_by_name(tmp_path: Path, number: float) -> None:
    folder = pico_hf_folder(tmp_path / "m", dtype="F32")
    tensor = weights.find_tensors(folder)["model.layers.0.mlp.up_proj.weight"]
    with tensor.file.open("r+b") as file:
        file.seek(tensor.offset + 400)
        file.write(np.float32(number).tobytes())
    with pytest.raises(GateMissed, match=r"layers\.0\.mlp\.up_proj"):
        written(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_tied_models_stray_head_is_left_out(tmp_path: Path) -> None:
    folder = pico_hf_folder(tmp_path / "m", tied=False)
    edited(folder, "config.json", lambda c: c.update(tie_word_embeddings=True))
    assert "output.weight" not in written(folder).tensors


def test_both_spellings_of_rope_give_the_same_file(tmp_path: Path) -> None:
    def modern(config: dict[str, Any]) -> None:
        config["rope_parameters"] = {"rope_type": "default", "rope_theta": config.pop("rope_theta")}

    old = written(pico_hf_folder(tmp_path / "old"))
    new = written(edited(pico_hf_folder(tmp_path / "new"), "config.json", modern))
    assert old.path.read_bytes() == new.path.read_bytes()


def test_linear_rope_scaling_is_written(tmp_path: Path) -> None:
    folder = pico_hf_folder(tmp_path / "m")
    found = written(edited(folder, "config.json", lambda c: c.update(rope_scaling={"type": "linear", "factor": 2.0})))
    assert found.metadata["llama.rope.scaling.type"] == "linear"
    assert found.metadata["llama.rope.scaling.factor"] == 2.0


LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0, "factor": 32.0}


def test_llama3_rope_scaling_becomes_a_tensor(tmp_path: Path) -> None:
    rope = {**LLAMA3, "original_max_position_embeddings": 8192}
    folder = edited(
        pico_hf_folder(tmp_path / "m"), "config.json", lambda c: c.update(rope_scaling=rope, rope_theta=500000.0)
    )
    factors = reader.dequantized_rows(
        folder.with_suffix(".gguf"), written(folder).tensors["rope_freqs.weight"], 0, 1
    ).tolist()
    # head_dim 16: wavelengths 2 pi 500000^(i / 8); below 8192/4 unscaled, above 8192 by 32, smoothed between.
    lengths = [2 * math.pi * 500000 ** (i / 8) for i in range(8)]
    assert factors[:4] == [1.0] * 4
    assert lengths[3] < 2048 < lengths[4] < 8192 < lengths[5]
    smooth = (8192 / lengths[4] - 1) / 3
    assert factors[4] == pytest.approx(1 / ((1 - smooth) / 32 + smooth), rel=1e-4)
    assert factors[5:] == [32.0] * 3


def test_llama3_rope_scaling_is_refused_for_qwen2(tmp_path: Path) -> None:
    rope = {**LLAMA3, "original_max_position_embeddings": 8192}
    with pytest.raises(GateMissed, match="llama3"):
        written(edited(pico_hf_folder(tmp_path / "m", "qwen2"), "config.json", lambda c: c.update(rope_scaling=rope)))


def test_an_unknown_tensor_is_refused_by_name(tmp_path: Path) -> None:
    folder = pico_hf_folder(tmp_path / "m")
    name = "model.layers.0.self_attn.q_proj.lora_A.weight"
    weights.write_safetensors(folder / "model-2.safetensors", {name: (2, 2)}, "F16", lambda _: [np.ones((2, 2), "f4")])
    with pytest.raises(InvalidInput, match="lora_A"):
        written(folder)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="file size limits are a Linux test")
def test_a_full_disk_leaves_nothing_and_can_be_resumed(tmp_path: Path) -> None:
    folder = pico_hf_folder(tmp_path / "m")
    code = (
        "import resource, sys\nfrom pathlib import Path\n"
        "from edgedistill.llamacpp.writer import GgufMetadata, write_gguf\n"
        "from edgedistill.errors import Stopped\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100000, 100000))\n"
        "try:\n    write_gguf(Path(sys.argv[1]), Path(sys.argv[2]), GgufMetadata(name='x'), lambda *_: None)\n"
        "except Stopped as error:\n    sys.exit(error.message)\n"
    )
    child = subprocess.run([sys.executable, "-c", code, str(folder), str(tmp_path / "x.gguf")], capture_output=True)
    assert b"x.gguf: File too large" in child.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_an_earlier_file_survives_a_failure(tmp_path: Path) -> None:
    folder = pico_hf_folder(tmp_path / "m")
    before = written(folder).path.read_bytes()

    def stop(what: str, done: int, total: int) -> None:
        if done == 5:
            raise Stopped("stopped")

    with pytest.raises(Stopped):
        write_gguf(folder, tmp_path / "m.gguf", GgufMetadata(name="x"), stop)
    assert (tmp_path / "m.gguf").read_bytes() == before
    assert not list(tmp_path.glob("*.partial-*"))


def test_every_row_of_the_table_is_found_by_its_names() -> None:
    for row in architectures.ARCHITECTURES:
        assert architectures.from_hugging_face(row.hugging_face) is row
        assert architectures.from_gguf(row.gguf).gguf == row.gguf


def checkout(path: Path, code: str) -> Path:
    """A folder that looks like a llama.cpp checkout."""
    path.mkdir()
    (path / "convert_hf_to_gguf.py").write_text("import os, sys\nout = sys.argv[-1]\n" + code, encoding="utf-8")
    return path


def test_a_checkouts_converter_writes_the_file_without_the_users_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("SOME_API_KEY", "secret")
    code = "open(out, 'w').write(' '.join(sys.argv[1:4]) + ' ' + str('secret' in os.environ.values()))"
    writer.convert_with_checkout(checkout(tmp_path / "llama.cpp", code), tmp_path / "model", tmp_path / "x.gguf")
    assert (tmp_path / "x.gguf").read_text() == f"{tmp_path / 'model'} --outtype f16 False"
    assert os.environ["HF_TOKEN"] == "secret"


def test_a_checkouts_failure_shows_its_last_line(tmp_path: Path) -> None:
    llama_cpp = checkout(tmp_path / "llama.cpp", "open(out, 'w').write('half')\nraise ValueError('no such model')")
    with pytest.raises(EdgeDistillError, match="no such model"):
        writer.convert_with_checkout(llama_cpp, tmp_path / "model", tmp_path / "x.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["llama.cpp"]


def test_a_folder_that_is_no_checkout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="convert_hf_to_gguf"):
        writer.convert_with_checkout(tmp_path, tmp_path, tmp_path / "x.gguf")
