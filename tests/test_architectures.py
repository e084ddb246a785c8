"""Every architecture of the table, as transformers writes it: into a GGUF that llama.cpp reads alike, and back."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pico import edited, silent
from tiny_models import LLAMA_3, SHAPE, TINY, Tiny, spm_tokenizer, tiny_folder, tiny_tokenizer

from edgedistill.errors import EdgeDistillError, GateMissed, InvalidInput
from edgedistill.llamacpp import reader, sentencepiece, weights, writer
from edgedistill.llamacpp.architectures import ARCHITECTURES, from_hugging_face, plain_config
from edgedistill.llamacpp.importer import import_gguf
from edgedistill.llamacpp.plain_config import exact_context
from edgedistill.llamacpp.probe import kl_divergence, next_token_logits
from edgedistill.llamacpp.vocabulary import from_folder
from edgedistill.llamacpp.writer import GgufMetadata, write_gguf
from edgedistill.stages.parity import prove_tokens

ROWS = ([300], [290, 7, 280, 12], [5 * place % 301 for place in range(40)])


def written(folder: Path, out: Path) -> reader.GgufFile:
    write_gguf(folder, out, GgufMetadata(name="Tiny"), silent)
    return reader.read_gguf(out)


@pytest.mark.parametrize("name", TINY)
def test_llama_cpp_reads_and_computes_what_transformers_does_and_the_way_back_is_the_same(
    tmp_path: Path, name: str
) -> None:
    pytest.importorskip("llama_cpp")
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = tiny_folder(tmp_path / "hf", TINY[name])
    gguf = written(folder, tmp_path / "m.gguf")
    assert gguf.metadata["general.architecture"] == TINY[name].row
    proven = prove_tokens(folder, gguf.path)
    assert proven["conversations"]["rendered"] == 200
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        ours = np.stack([model(torch.tensor([row])).logits[0, -1].numpy() for row in ROWS])
    assert kl_divergence(ours, next_token_logits(gguf.path, ROWS, threads=1)).max() < 1e-4
    from edgedistill.students.torch_streamed import streamed_logits

    assert np.abs(streamed_logits(folder, ROWS) - ours).max() < 1e-4
    back = tmp_path / "back"
    import_gguf(gguf.path, back, silent)
    again = written(back, tmp_path / "again.gguf")
    assert again.metadata == gguf.metadata
    assert again.tensors.keys() == gguf.tensors.keys()
    for key, tensor in gguf.tensors.items():
        one, other = (reader.dequantized_rows(g.path, g.tensors[key], 0, tensor.shape[0]) for g in (gguf, again))
        assert np.abs(one - other).max() <= 2**-24, key  # a norm less 1 may lie between two numbers of float16
    config = transformers.AutoConfig.from_pretrained(back)
    assert (config.model_type, config.vocab_size) == (
        model.config.model_type.replace("mistral", "llama"),
        gguf_size(gguf),
    )


def gguf_size(gguf: reader.GgufFile) -> int:
    return len(gguf.metadata["tokenizer.ggml.tokens"])


def test_every_row_has_a_tiny_model() -> None:
    assert {row.hugging_face for row in ARCHITECTURES} == {f"{tiny.model}ForCausalLM" for tiny in TINY.values()}


def plain(model: str, **settings: Any) -> dict[str, Any]:
    config = {**SHAPE, "vocab_size": 300, "rms_norm_eps": 1e-6, "norm_eps": 1e-6, "sliding_window": 8, **settings}
    return plain_config("config.json", from_hugging_face(f"{model}ForCausalLM"), config)


@pytest.mark.parametrize(
    ("model", "settings", "word"),
    [
        ("Gemma3", {"head_dim": 32, "query_pre_attn_scalar": 16}, "query_pre_attn_scalar is 16"),
        ("Gemma3", {"head_dim": 256, "layer_types": ["full_attention"] * 2}, "layer_types"),
        ("Gemma3", {"head_dim": 256, "attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ("SmolLM3", {"no_rope_layers": [1, 0]}, "no_rope_layers"),
        ("Granite", {"head_dim": 32}, "head_dim is 32"),
        ("Olmo2", {"tie_word_embeddings": True}, "tie_word_embeddings"),
        ("Qwen3", {"use_sliding_window": True}, "use_sliding_window"),
        ("Qwen3", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("Phi3", {"rope_scaling": {"type": "yarn"}}, "rope type 'yarn'"),
        ("Phi3", {"rope_scaling": {"type": "longrope", "long_factor": [1.0]}}, "short_factor"),
        ("Lfm2", {"conv_bias": True, "conv_L_cache": 3}, "conv_bias"),
        ("Lfm2", {"conv_L_cache": 3, "layer_types": ["conv", "mamba"]}, "layer_types"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(model: str, settings: dict[str, Any], word: str) -> None:
    with pytest.raises((GateMissed, InvalidInput), match=word):
        plain(model, **settings)


def test_the_context_that_is_computed_alike_is_told() -> None:
    for model, settings, expected in (
        ("Llama", {}, 512),
        ("Mistral", {"sliding_window": 128}, 128),
        ("Mistral", {"sliding_window": None}, 512),
        ("Phi3", {**TINY["phi3 longrope"].settings, "sliding_window": None}, 256),
    ):
        assert exact_context(from_hugging_face(f"{model}ForCausalLM"), plain(model, **settings)) == expected


def test_the_names_that_older_files_have_are_known() -> None:
    old = {"block_ff_dim": 96, "tie_embedding": False, "full_attn_idxs": [1], "conv_L_cache": 3, "rope_theta": 5e5}
    found = plain("Lfm2", **old)
    assert (found["intermediate_size"], found["tie_word_embeddings"]) == (256, False)  # 2/3 of 96, up to 256
    assert found["layer_types"] == ["conv", "full_attention"]
    gemma = plain("Gemma3", rope_theta=1e6, rope_local_base_freq=1e4, sliding_window_pattern=6)
    assert (gemma["tie_word_embeddings"], gemma["head_dim"], gemma["rope_local_base_freq"]) == (True, 256, 1e4)


def folder_of(path: Path, tokenizer: dict[str, Any], **settings: Any) -> Path:
    path.mkdir()
    (path / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    (path / "tokenizer_config.json").write_text(json.dumps({**tiny_tokenizer("spm")[1], **settings}), encoding="utf-8")
    return path


def test_scores_come_from_the_model_file_where_there_is_one_and_from_the_merges_elsewhere(tmp_path: Path) -> None:
    tokenizer = spm_tokenizer(True)
    folder = folder_of(tmp_path / "m", tokenizer)
    size = len(tokenizer["model"]["vocab"])
    ranked = from_folder(folder, size)
    first, last = tokenizer["model"]["merges"][0], tokenizer["model"]["merges"][-1]
    assert ranked.scores[ranked.tokens.index("".join(first))] == 0.0
    assert ranked.scores[ranked.tokens.index("".join(last))] == 1 - len(tokenizer["model"]["merges"])
    pieces = [sentencepiece.Piece(token, -number / 8) for number, token in enumerate(ranked.tokens)]
    pieces = [sentencepiece.Piece(p.text, p.score, kind) for p, kind in zip(pieces, ranked.types, strict=True)]
    (folder / "tokenizer.model").write_bytes(sentencepiece.model_file(pieces, True))
    scored = from_folder(folder, size)
    assert scored.scores[300] == -300 / 8
    assert scored.types == ranked.types
    (folder / "tokenizer.model").write_bytes(sentencepiece.model_file(pieces[:300] + pieces[301:], True))
    with pytest.raises(InvalidInput, match="token 300 is"):
        from_folder(folder, size)


@given(st.binary(max_size=60), st.integers(0, 200))
def test_a_damaged_model_file_is_refused_or_read(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, at: int
) -> None:
    path = tmp_path_factory.mktemp("spm") / "tokenizer.model"
    whole = sentencepiece.model_file(
        [sentencepiece.Piece("a", -1.0), sentencepiece.Piece("\u2581b", -2.5, 3)] * 4, True
    )
    path.write_bytes(whole[:at] + noise + whole[at + len(noise) :])
    with contextlib.suppress(EdgeDistillError):
        assert all(isinstance(piece.text, str) for piece in sentencepiece.read_pieces(path))
    path.write_bytes(whole)
    assert [piece.text for piece in sentencepiece.read_pieces(path)] == ["a", "\u2581b"] * 4


@pytest.mark.parametrize(
    ("edit", "word"),
    [
        (lambda t: t.update(normalizer={"type": "Lowercase"}), "Lowercase"),
        (lambda t: t.update(pre_tokenizer={"type": "Whitespace"}), "Whitespace"),
        (lambda t: t.update(normalizer=None, pre_tokenizer={"type": "Metaspace", "prepend_scheme": "first"}), "first"),
        (lambda t: t["model"]["vocab"].pop("<0x41>"), "1 bytes are no token"),
    ],
)
def test_a_sentencepiece_tokenizer_that_llama_cpp_would_read_otherwise_is_refused(
    tmp_path: Path, edit: Any, word: str
) -> None:
    folder = edited(folder_of(tmp_path / "m", spm_tokenizer(True)), "tokenizer.json", edit)
    with pytest.raises(GateMissed, match=word):
        from_folder(folder, 413)


def test_tokens_that_swallow_white_space_are_named_to_llama_cpp_and_proven(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    folder = tiny_folder(tmp_path / "m", Tiny("phi3", "Phi3", "spm", TINY["phi3"].settings))

    def swallow(tokenizer: dict[str, Any]) -> None:
        for entry in tokenizer["added_tokens"]:
            entry["rstrip"] = entry["content"] not in ("<unk>", "<s>", "<|endoftext|>")

    gguf = written(edited(folder, "tokenizer.json", swallow), tmp_path / "m.gguf")
    assert gguf.metadata["general.name"] == "Tiny (phi-3)"
    prove_tokens(folder, gguf.path)
    import_gguf(gguf.path, tmp_path / "back", silent)
    prove_tokens(tmp_path / "back", gguf.path)


def test_the_end_of_an_answer_is_named_where_llama_cpp_would_have_to_guess(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "m", spm_tokenizer(True))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 5, 300]}), encoding="utf-8")
    ids = from_folder(folder, 413).ids
    assert (ids["eos"], ids["eot"], ids["eom"]) == (2, 5, 300)  # <|im_end|> ends a turn, <|endoftext|> could too


def test_llama3_factors_are_those_of_transformers(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    rope_utils = pytest.importorskip("transformers.modeling_rope_utils")
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(**{**SHAPE, "head_dim": 32, "rope_parameters": LLAMA_3})
    expected, _ = rope_utils.ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain_rope = plain("Llama", head_dim=32, rope_parameters=LLAMA_3)
    factors = writer.rope_tensors("config.json", plain_rope)["rope_freqs"]
    unscaled = 500000.0 ** -(np.arange(0, 32, 2) / 32)
    assert np.allclose(unscaled / factors, expected.numpy(), rtol=1e-5)


def test_a_convolution_lies_flat_in_gguf_and_has_its_axis_back_after(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    folder = tiny_folder(tmp_path / "m", TINY["lfm2"])
    gguf = written(folder, tmp_path / "m.gguf")
    assert gguf.tensors["blk.0.shortconv.conv.weight"].shape == (64, 3)
    assert gguf.tensors["blk.0.shortconv.conv.weight"].kind == "F32"
    assert gguf.metadata["lfm2.attention.head_count_kv"] == [0, 0, 2, 0]
    import_gguf(gguf.path, tmp_path / "back", silent)
    assert weights.find_tensors(tmp_path / "back")["model.layers.0.conv.conv.weight"].shape == (64, 1, 3)
