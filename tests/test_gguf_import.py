"""Hugging Face folders from GGUFs: the way back gives the same tokens and the same weights."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter, quants
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pico import byte_alphabet, pico_config, pico_gguf, pico_hf_folder, pico_tokenizer, silent, write_weights

from edgedistill.errors import EdgeDistillError, GateMissed, InvalidInput, Stopped
from edgedistill.llamacpp import pretokenizers, reader, vocabulary, weights
from edgedistill.llamacpp.architectures import ARCHITECTURES
from edgedistill.llamacpp.importer import import_gguf
from edgedistill.llamacpp.writer import GgufMetadata, write_gguf
from edgedistill.models.catalogue import CATALOGUE, Entry
from edgedistill.models.packages import cached

PROBES = (
    "",
    "hello world, turn on the kitchen light",
    "12345 3.14159 1,000 ٣ ½ Ⅷ ²",
    "Ünïcödé naïve 東京 日本語 한국어 Ελλ हिन्दी",
    "😀👍🏽 👨‍👩‍👧‍👦 🏳️‍🌈",
    "  lead\t\ttabs\n\n\n   x  \r\n y \r",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|>",
    "I'll don't WE'RE it's he'd 'Sure' l'été",
    "e\u0301 combining \u00a0nbsp\u2003em\u3000 a\u200bb\ufeff",
    "\x00\x01\x7f <|im_star|> <|im_end|",
)


def rewritten(path: Path, out: Path, **metadata: Any) -> Path:
    """Write a copy of a GGUF with other metadata; None leaves a key out."""
    gguf = reader.read_gguf(path)
    fields = {**gguf.metadata, **{key.replace("__", "."): value for key, value in metadata.items()}}
    writer = GGUFWriter(out, fields.pop("general.architecture"))
    for key, value in fields.items():
        if isinstance(value, (list, str)):
            (writer.add_array if isinstance(value, list) else writer.add_string)(key, value)
        elif value is not None:
            add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}[type(value)]
            add(key, value)
    for name, tensor in gguf.tensors.items():
        rows = reader.dequantized_rows(path, tensor, 0, tensor.shape[0])
        writer.add_tensor(name, rows if len(tensor.shape) == 1 else rows.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def imported(path: Path) -> Path:
    out = path.with_name(f"{path.stem}-back")
    import_gguf(path, out, silent)
    return out


def config_of(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config


def back_again(path: Path) -> bytes:
    """The bytes of the GGUF that is written from what was imported."""
    again = path.with_name(f"{path.stem}-again.gguf")
    name = reader.read_gguf(path).metadata["general.name"]
    write_gguf(imported(path), again, GgufMetadata(name=name, basename=name), silent)
    return again.read_bytes()


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
@pytest.mark.parametrize("tied", [True, False])
def test_there_and_back_gives_the_same_bytes(tmp_path: Path, architecture: str, tied: bool) -> None:
    path = pico_gguf(tmp_path / "Pico.gguf", architecture, tied)
    assert back_again(path) == path.read_bytes()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_any_vocabulary_and_any_size_comes_back(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("any") / "m"
    architecture = data.draw(st.sampled_from(["llama", "qwen2"]))
    row = data.draw(st.sampled_from(pretokenizers.PRE_TOKENIZERS))
    letters = st.text(st.sampled_from(byte_alphabet()), min_size=1, max_size=8)
    words = tuple(data.draw(st.lists(letters, max_size=8)))
    pico_hf_folder(folder, architecture)
    tokenizer = pico_tokenizer(row.name, words)
    config = pico_config(architecture, data.draw(st.booleans()), len(tokenizer["model"]["vocab"]), 64)
    config["num_key_value_heads"] = data.draw(st.integers(1, 3))
    config["num_attention_heads"] = config["num_key_value_heads"] * data.draw(st.integers(1, 3))
    config["head_dim"] = 2 * data.draw(st.integers(1, 9))
    config["num_hidden_layers"] = data.draw(st.integers(1, 3))
    config["vocab_size"] += data.draw(st.integers(0, 9))
    for name, content in (("config.json", config), ("tokenizer.json", tokenizer)):
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    write_weights(folder, config, seed=data.draw(st.integers(0, 9)))
    first, second = folder.with_name("a.gguf"), folder.with_name("b.gguf")
    write_gguf(folder, first, GgufMetadata(name="x"), silent)
    import_gguf(first, folder.with_name("back"), silent)
    write_gguf(folder.with_name("back"), second, GgufMetadata(name="x"), silent)
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("row", pretokenizers.PRE_TOKENIZERS, ids=lambda row: row.name)
def test_the_tokenizer_gives_llama_cpps_ids(tmp_path: Path, row: pretokenizers.PreTokenizer) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    tokenizers = pytest.importorskip("tokenizers")
    folder = pico_hf_folder(tmp_path / "m")
    (folder / "tokenizer.json").write_text(json.dumps(pico_tokenizer(row.name)), encoding="utf-8")
    write_gguf(folder, tmp_path / "m.gguf", GgufMetadata(name="x"), silent)
    model = llama_cpp.Llama(str(tmp_path / "m.gguf"), vocab_only=True, verbose=False)
    tokenizer = tokenizers.Tokenizer.from_file(str(imported(tmp_path / "m.gguf") / "tokenizer.json"))
    for text in (*PROBES, *random_texts(200)):
        assert model.tokenize(text.encode(), add_bos=False, special=True) == tokenizer.encode(text).ids, text
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def random_texts(count: int) -> list[str]:
    numbers = random.Random(0)
    letters = "abcDE 129\n\r\t'éß東😀!.,_-<>|sltvre\u0301\u00a0\u3000²½"
    return ["".join(numbers.choice(letters) for _ in range(numbers.randint(1, 40))) for _ in range(count)]


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_transformers_reads_the_folder_and_computes_what_llama_cpp_computes(tmp_path: Path, architecture: str) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    path = pico_gguf(tmp_path / "m.gguf", architecture)
    folder = imported(path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    ids = tokenizer(chat)["input_ids"]
    ours = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(torch.tensor([ids])).logits[0]
    theirs = llama_cpp.Llama(str(path), n_ctx=64, logits_all=True, verbose=False)
    assert theirs.tokenize(chat.encode(), add_bos=False, special=True) == ids
    theirs.eval(ids)
    assert np.abs(np.array(theirs.scores[: len(ids)]) - ours.detach().numpy()).max() < 0.02


KINDS = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")


@pytest.mark.parametrize("kind", KINDS)
def test_quantized_weights_become_what_they_stand_for(tmp_path: Path, kind: str) -> None:
    plain = pico_gguf(tmp_path / "plain.gguf", "qwen2")
    gguf = reader.read_gguf(plain)
    writer = GGUFWriter(tmp_path / "q.gguf", "qwen2")
    vocabulary.add_to_gguf(vocabulary.from_metadata(plain, gguf.metadata), writer)
    for key, value in gguf.metadata.items():
        if key.startswith("qwen2."):
            (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(key, value)
    expected = {}
    for name, tensor in gguf.tensors.items():
        rows = reader.dequantized_rows(plain, tensor, 0, tensor.shape[0])
        stored = GGMLQuantizationType.F32 if rows.ndim == 1 else GGMLQuantizationType[kind]
        data = quants.quantize(rows, stored)
        expected[name] = quants.dequantize(data, stored).astype(np.float16).ravel()
        writer.add_tensor(name, data, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = weights.find_tensors(imported(tmp_path / "q.gguf"))
    for name, target in (("token_embd", "model.embed_tokens"), ("blk.1.attn_k", "model.layers.1.self_attn.k_proj")):
        tensor_found = found[f"{target}.weight"]
        assert tensor_found.dtype == "F16"
        rows = weights.read_rows(tensor_found, 0, tensor_found.shape[0])
        assert np.array_equal(rows.ravel(), expected[f"{name}.weight"].astype(np.float32))


def test_a_weight_beyond_float16_makes_the_folder_float32(tmp_path: Path) -> None:
    path = pico_gguf(tmp_path / "m.gguf")
    tensor = reader.read_gguf(path).tensors["output_norm.weight"]
    with path.open("r+b") as file:
        file.seek(tensor.offset)
        file.write(struct.pack("<f", 70000.0))
    folder = imported(path)
    assert config_of(folder)["torch_dtype"] == "float32"
    assert weights.read_rows(weights.find_tensors(folder)["model.norm.weight"], 0, 64)[0] == 70000.0


def test_a_weight_that_is_nan_is_refused(tmp_path: Path) -> None:
    path = pico_gguf(tmp_path / "m.gguf")
    tensor = reader.read_gguf(path).tensors["output_norm.weight"]
    with path.open("r+b") as file:
        file.seek(tensor.offset)
        file.write(struct.pack("<f", float("nan")))
    with pytest.raises(InvalidInput, match=r"model\.norm\.weight"):
        imported(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m-hf", "m.gguf"]


def test_the_config_says_what_the_model_is(tmp_path: Path) -> None:
    config = config_of(imported(pico_gguf(tmp_path / "m.gguf", "qwen2", tied=False)))
    original = config_of(tmp_path / "m-hf")
    assert {key: config[key] for key in original} == original


def test_unused_tokens_stay_out_of_the_tokenizer(tmp_path: Path) -> None:
    folder = pico_hf_folder(tmp_path / "m")
    config = {**config_of(folder), "vocab_size": 400}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    write_weights(folder, config, seed=0)
    write_gguf(folder, tmp_path / "m.gguf", GgufMetadata(name="x"), silent)
    back = imported(tmp_path / "m.gguf")
    vocab = json.loads((back / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    assert max(vocab.values()) < 399
    assert config_of(back)["vocab_size"] == 400


def test_a_first_token_is_added_by_the_folders_tokenizer_too(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    path = rewritten(pico_gguf(tmp_path / "m.gguf"), tmp_path / "b.gguf", tokenizer__ggml__add_bos_token=True)
    tokenizer = tokenizers.Tokenizer.from_file(str(imported(path) / "tokenizer.json"))
    assert tokenizer.encode("x").ids[0] == 1
    assert 1 not in tokenizer.encode("x", add_special_tokens=False).ids


ROPE = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0, "factor": 32.0}


@pytest.mark.parametrize(("original", "known"), [(8192, True), (64, False)])
def test_llama3_rope_comes_back_where_its_figures_are_known(tmp_path: Path, original: int, known: bool) -> None:
    folder = pico_hf_folder(tmp_path / "m")
    rope = {**ROPE, "original_max_position_embeddings": original}
    config = {**config_of(folder), "rope_theta": 500000.0, "rope_scaling": rope}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    write_gguf(folder, tmp_path / "m.gguf", GgufMetadata(name="x"), silent)
    if known:
        assert config_of(imported(tmp_path / "m.gguf"))["rope_scaling"] == rope
    else:
        with pytest.raises(GateMissed, match="rope_freqs"):
            imported(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("metadata", "word"),
    [
        ({"general__architecture": "mamba"}, "mamba"),
        ({"tokenizer__ggml__pre": "tekken"}, "tekken"),
        ({"tokenizer__ggml__model": "t5"}, "'t5'"),
        ({"tokenizer__ggml__model": "llama"}, "one score each"),
        ({"tokenizer__ggml__merges": ["a zzzz"]}, "no merge"),
        ({"tokenizer__ggml__token_type": [1, 1]}, "one type each"),
        ({"llama__block_count": 3}, "blk.2"),
        ({"llama__block_count": 1}, "blk.1"),
        ({"llama__embedding_length": None}, "hidden_size"),
        ({"llama__attention__head_count": "four"}, "num_attention_heads"),
        ({"llama__rope__scaling__type": "yarn"}, "yarn"),
        ({"llama__attention__layer_norm_rms_epsilon": float("nan")}, "rms_norm_eps"),
    ],
)
def test_a_gguf_that_cannot_be_imported_is_refused(tmp_path: Path, metadata: dict[str, Any], word: str) -> None:
    path = rewritten(pico_gguf(tmp_path / "m.gguf"), tmp_path / "other.gguf", **metadata)
    with pytest.raises(EdgeDistillError, match=word):
        imported(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m-hf", "m.gguf", "other.gguf"]


def test_a_folder_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    path = pico_gguf(tmp_path / "m.gguf")
    (tmp_path / "m-back").mkdir()
    with pytest.raises(InvalidInput, match="already"):
        imported(path)


def test_a_stop_leaves_nothing_half_written(tmp_path: Path) -> None:
    def stop(what: str, done: int, total: int) -> None:
        if done == 3:
            raise Stopped("stopped")

    path = pico_gguf(tmp_path / "m.gguf")
    with pytest.raises(Stopped):
        import_gguf(path, tmp_path / "back", stop)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m-hf", "m.gguf"]


def test_a_length_beyond_the_file_is_refused_at_once(tmp_path: Path) -> None:
    key = b"a"
    header = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", len(key)) + key
    (tmp_path / "x.gguf").write_bytes(header + struct.pack("<IIQ", 9, 4, 2**63))
    with pytest.raises(InvalidInput, match=r"x\.gguf"):
        reader.read_gguf(tmp_path / "x.gguf")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"no\.gguf"):
        imported(tmp_path / "no.gguf")


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_a_damaged_gguf_is_refused_or_imported(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    content = bytearray(damaged_source(tmp_path_factory))
    header = len(content) if data.draw(st.booleans()) else 1200
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, header - 1))] = data.draw(st.sampled_from([0, 1, 2, 8, 9, 64, 127, 128, 255]))
    folder = tmp_path_factory.mktemp("damaged")
    (folder / "m.gguf").write_bytes(content[: data.draw(st.sampled_from([len(content), len(content) // 2, 300]))])
    try:
        imported(folder / "m.gguf")
    except EdgeDistillError:
        left = [path.name for path in folder.iterdir()]
    else:
        left = ["m.gguf"]
    assert left == ["m.gguf"]


def damaged_source(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    if "content" not in SOURCE:
        SOURCE["content"] = pico_gguf(tmp_path_factory.mktemp("source") / "m.gguf").read_bytes()
    return SOURCE["content"]


SOURCE: dict[str, bytes] = {}


@pytest.mark.slow
@pytest.mark.parametrize("entry", CATALOGUE, ids=lambda entry: entry.name)
def test_a_real_model_comes_back_with_llama_cpps_tokens(tmp_path: Path, entry: Entry) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    tokenizers = pytest.importorskip("tokenizers")
    path = cached(entry.gguf)
    if not path.is_file():
        pytest.skip(f"{entry.name} is not in the cache")
    if reader.read_gguf(path).metadata["general.architecture"] not in {row.gguf for row in ARCHITECTURES}:
        pytest.skip(f"{entry.name} is of an architecture that is not in the table")
    import_gguf(path, tmp_path / "hf", silent)
    write_gguf(tmp_path / "hf", tmp_path / "f16.gguf", GgufMetadata(name="x"), silent)
    before, after = reader.read_gguf(path), reader.read_gguf(tmp_path / "f16.gguf")
    assert before.tensors.keys() == after.tensors.keys()
    for name, tensor in before.tensors.items():
        last = min(tensor.shape[0], 512) if len(tensor.shape) > 1 else tensor.shape[0]
        expected = reader.dequantized_rows(path, tensor, 0, last).astype(np.float16)
        found = reader.dequantized_rows(after.path, after.tensors[name], 0, last)
        assert np.array_equal(expected, found.astype(np.float16)), name
    model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "hf" / "tokenizer.json"))
    for text in (*PROBES, *random_texts(500)):
        assert (
            model.tokenize(text.encode(), add_bos=False, special=True)
            == tokenizer.encode(text, add_special_tokens=False).ids
        ), text
