"""Tiny models of every architecture in the table, with random weights, as transformers writes them."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pico import CHAT_TEMPLATE, SPECIAL, WORDS, pico_tokenizer

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
LLAMA_3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_theta": 500000.0,
}


@dataclass(frozen=True)
class Tiny:
    """One model: transformers' names of it, its settings, and its tokenizer (`spm`, or a name of `pretokenizers`)."""

    row: str
    model: str
    tokenizer: str
    settings: dict[str, Any] = field(default_factory=dict)
    padded: int = 0
    """Rows of the embedding without a token."""


def _longrope(pairs: int) -> dict[str, Any]:
    factors = [1.0 + place / 8 for place in range(pairs)]
    return {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": factors,
        "long_factor": [2 * one for one in factors],
    }


TINY = {
    "llama": Tiny("llama", "Llama", "smollm", {"tie_word_embeddings": True}, padded=5),
    "llama 3": Tiny("llama", "Llama", "llama-bpe", {"rope_parameters": LLAMA_3, "head_dim": 32}),
    "tinyllama": Tiny("llama", "Llama", "spm", {"attention_bias": True, "mlp_bias": True}),
    "mistral": Tiny("llama", "Mistral", "spm", {"sliding_window": None, "head_dim": 32}),
    "smollm3": Tiny("smollm3", "SmolLM3", "llama-bpe", {"num_hidden_layers": 5}),
    "qwen2": Tiny("qwen2", "Qwen2", "qwen2", {"tie_word_embeddings": True}, padded=7),
    "qwen3": Tiny("qwen3", "Qwen3", "qwen2", {"head_dim": 32}),
    "gemma3": Tiny(
        "gemma3",
        "Gemma3",
        "spm without prefix",
        {"num_hidden_layers": 7, "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 8},
        padded=3,
    ),
    "phi3": Tiny("phi3", "Phi3", "spm", {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}),
    "phi3 longrope": Tiny(
        "phi3",
        "Phi3",
        "llama-bpe",
        {
            "rope_parameters": _longrope(8),
            "tie_word_embeddings": True,
            "original_max_position_embeddings": 256,
        },
    ),
    "phi4": Tiny(
        "phi3",
        "Phi3",
        "llama-bpe",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.75}},
    ),
    "granite": Tiny(
        "granite",
        "Granite",
        "smollm",
        {
            "attention_multiplier": 0.1,
            "embedding_multiplier": 6.0,
            "residual_multiplier": 0.4,
            "logits_scaling": 2.0,
            "tie_word_embeddings": True,
        },
    ),
    "olmo2": Tiny("olmo2", "Olmo2", "dbrx"),
    "lfm2": Tiny(
        "lfm2",
        "Lfm2",
        "llama-bpe",
        {"num_hidden_layers": 4, "layer_types": ["conv", "conv", "full_attention", "conv"], "block_multiple_of": 32},
    ),
}


def spm_tokenizer(space_prefix: bool) -> dict[str, Any]:
    """A tokenizer.json as transformers converts one from SentencePiece, with ChatML's special tokens."""
    mark = "\u2581"
    tokens = ["<unk>", "<s>", "</s>", *SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), mark]
    tokens += [chr(code) for code in range(33, 127)]
    merges: list[list[str]] = []
    for word in (*WORDS, mark, "n't"):
        spelled = word if word == "n't" else mark + word
        for end in range(1, len(spelled)):
            merge = [spelled[:end], spelled[end]]
            if merge not in merges:
                merges.append(merge)
                tokens.append(spelled[: end + 1])
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    normalizers: list[Any] = [{"type": "Replace", "pattern": {"String": " "}, "content": mark}]
    if space_prefix:
        normalizers.insert(0, {"type": "Prepend", "prepend": mark})
    bos = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    decoders = [{"type": "Replace", "pattern": {"String": mark}, "content": " "}, {"type": "ByteFallback"}]
    return {
        "version": "1.0",
        "added_tokens": [{"id": number, "content": token, **flags} for number, token in enumerate(tokens[:6])],
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [bos, {"Sequence": {"id": "A", "type_id": 0}}, bos, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {"type": "Sequence", "decoders": [*decoders, {"type": "Fuse"}]},
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": merges,
        },
    }


def tiny_tokenizer(kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """tokenizer.json and tokenizer_config.json."""
    spm = kind.startswith("spm")
    names = ("<s>", "</s>", "<unk>") if spm else (SPECIAL[1], SPECIAL[2], SPECIAL[0])
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **dict(zip(("bos_token", "eos_token", "unk_token"), names, strict=True)),
        "pad_token": SPECIAL[0],
        "add_bos_token": spm,
        "add_eos_token": False,
        "chat_template": CHAT_TEMPLATE,
    }
    return (spm_tokenizer(kind == "spm") if spm else pico_tokenizer(kind)), settings


def tiny_folder(folder: Path, tiny: Tiny, dtype: str = "bfloat16") -> Path:
    """Write the model's Hugging Face folder. Returns `folder`."""
    tokenizer, settings = tiny_tokenizer(tiny.tokenizer)
    folder.mkdir(parents=True)
    for name, content in (("tokenizer.json", tokenizer), ("tokenizer_config.json", settings)):
        (folder / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    ids = {token: number for token, number in tokenizer["model"]["vocab"].items()}
    special = {f"{role}_token_id": ids[settings[f"{role}_token"]] for role in ("bos", "eos", "pad")}
    write_model(folder, tiny, {"vocab_size": len(ids) + tiny.padded, **special}, dtype)
    return folder


def write_model(folder: Path, tiny: Tiny, vocabulary: dict[str, Any], dtype: str = "bfloat16") -> None:
    """Write config.json and random weights that make every tensor matter, through transformers."""
    import torch
    import transformers

    config_class: Callable[..., Any] = getattr(
        transformers, f"{tiny.model}TextConfig" if tiny.model == "Gemma3" else f"{tiny.model}Config"
    )
    config = config_class(**copy.deepcopy({**SHAPE, **tiny.settings, **vocabulary}))
    config.architectures = [f"{tiny.model}ForCausalLM"]
    model = getattr(transformers, f"{tiny.model}ForCausalLM")(config)
    numbers = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, values in model.named_parameters():
            noise = torch.randn(values.shape, generator=numbers)
            if values.ndim > 1:
                values.copy_(noise * 1.5 * values.shape[-1] ** -0.5)
            else:
                values.copy_(noise * 0.2 + (0.0 if tiny.model == "Gemma3" or name.endswith("bias") else 1.0))
    model.to(getattr(torch, dtype)).save_pretrained(folder)
