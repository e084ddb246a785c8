"""Models of two layers with random weights, made on the spot: real files for real tools, without torch.

The vocabulary is byte-level BPE with all 256 bytes, so every text can be encoded, and ChatML's special tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edgedistill.llamacpp import architectures, pretokenizers, reader, weights, writer

Edit = Callable[[dict[str, Any]], Any]

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
WORDS = ("the", "and", "user", "assistant", "system", "light", "kitchen", "turn", "on", "off", "hello", "world")
MODEL_TYPES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}
PRE_TOKENIZERS = {"llama": "smollm", "qwen2": "qwen2"}


def byte_alphabet() -> list[str]:
    """GPT-2's printable character for each byte, in the order of the bytes."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return [chr(byte) if byte in plain else chr(256 + others.index(byte)) for byte in range(256)]


def pico_tokenizer(pre: str = "smollm", words: tuple[str, ...] = WORDS) -> dict[str, Any]:
    """A tokenizer.json: the special tokens, the 256 bytes, then what merging spells `words` with a space before."""
    tokens = [*SPECIAL, *byte_alphabet()]
    merges: list[list[str]] = []
    for word in words:
        spelled = "Ġ" + word
        for end in range(1, len(spelled)):
            merge = [spelled[:end], spelled[end]]
            if merge not in merges:
                merges.append(merge)
                tokens.append(spelled[: end + 1])
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    rules = pretokenizers.by_name(pre)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, "content": token, **flags} for number, token in enumerate(SPECIAL)],
        "normalizer": None,
        "pre_tokenizer": rules.as_json(),
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": rules.ignore_merges,
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": merges,
        },
    }


def pico_config(architecture: str, tied: bool, vocab_size: int, size: int) -> dict[str, Any]:
    """A config.json of two layers, with four query heads to two key heads."""
    return {
        "architectures": [MODEL_TYPES[architecture]],
        "model_type": architecture,
        "vocab_size": vocab_size,
        "hidden_size": size,
        "intermediate_size": 2 * size,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": size // 4,
        "hidden_act": "silu",
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "tie_word_embeddings": tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "torch_dtype": "float16",
    }


def pico_hf_folder(
    path: Path, architecture: str = "llama", tied: bool = True, seed: int = 0, *, size: int = 64, dtype: str = "F16"
) -> Path:
    """Write a complete Hugging Face folder, some 300 KB at size 64; K-quants need size 256. Returns `path`."""
    path.mkdir(parents=True, exist_ok=True)
    tokenizer = pico_tokenizer(PRE_TOKENIZERS[architecture])
    config = pico_config(architecture, tied, len(tokenizer["model"]["vocab"]), size)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 512,
        "chat_template": CHAT_TEMPLATE,
    }
    generation = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    for name, content in (
        ("config.json", config),
        ("generation_config.json", generation),
        ("tokenizer.json", tokenizer),
        ("tokenizer_config.json", settings),
    ):
        (path / name).write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
    write_weights(path, config, seed, dtype)
    return path


def write_weights(path: Path, config: dict[str, Any], seed: int, dtype: str = "F16") -> None:
    """Write model.safetensors with random weights for a config."""
    shapes = pico_shapes(config)
    numbers = np.random.default_rng(seed)

    def pieces(name: str) -> list[Any]:
        shape = shapes[name]
        if name.endswith("norm.weight"):
            return [1 + 0.1 * numbers.standard_normal(shape, dtype=np.float32)]
        return [numbers.standard_normal(shape, dtype=np.float32) * np.float32(shape[-1] ** -0.5)]

    weights.write_safetensors(path / "model.safetensors", shapes, dtype, pieces)


def pico_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors of a model with this config, as transformers names and shapes them."""
    row = architectures.from_hugging_face(config["architectures"][0])
    config = architectures.plain_config("config.json", row, config)
    return {place.hugging_face: place.shape for place in row.places(config) if place.required}


def silent(what: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


def pico_gguf(path: Path, architecture: str = "llama", tied: bool = True, seed: int = 0, *, size: int = 64) -> Path:
    """Write an F16 GGUF of the same model as `pico_hf_folder`, through edgedistill's own writer. Returns `path`."""
    folder = path.with_name(f"{path.stem}-hf")
    pico_hf_folder(folder, architecture, tied, seed, size=size)
    writer.write_gguf(folder, path, writer.GgufMetadata(name="Pico", basename="Pico"), silent)
    return path


def edited(folder: Path, name: str, edit: Edit) -> Path:
    """The folder, after a change to one of its JSON files."""
    data = json.loads((folder / name).read_text(encoding="utf-8"))
    edit(data)
    (folder / name).write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
    return folder


def reconfigured(folder: Path, edit: Edit) -> Path:
    """The folder, after a change to its config.json, with weights that fit it."""
    edited(folder, "config.json", edit)
    write_weights(folder, json.loads((folder / "config.json").read_text(encoding="utf-8")), seed=1)
    return folder


def written(folder: Path, metadata: writer.GgufMetadata | None = None) -> reader.GgufFile:
    """The GGUF that is made from the folder, beside it."""
    out = folder.with_suffix(".gguf")
    writer.write_gguf(folder, out, metadata or writer.GgufMetadata(name="Pico"), silent)
    return reader.read_gguf(out)
