"""The bytes of small GGUF and safetensors files, sound or not, put together piece by piece."""

from __future__ import annotations

import json
import struct
from typing import Any

UINT8, UINT32, INT32, FLOAT32, STRING, ARRAY, UINT64 = 0, 4, 5, 6, 8, 9, 10


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def text(value: str) -> bytes:
    return u64(len(value.encode())) + value.encode()


def entry(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + u32(kind) + value


def array(key: str, kind: int, count: int, items: bytes) -> bytes:
    return entry(key, ARRAY, u32(kind) + u64(count) + items)


def tensor(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    return text(name) + u32(len(shape)) + b"".join(map(u64, shape)) + u32(kind) + u64(offset)


ARCHITECTURE = entry("general.architecture", STRING, text("llama"))
VOCABULARY = [
    array("tokenizer.ggml.tokens", STRING, 3, text("a") + text("b") + text("</s>")),
    array("tokenizer.ggml.scores", FLOAT32, 3, struct.pack("<3f", 0, -1, -2)),
    array("tokenizer.ggml.token_type", INT32, 3, struct.pack("<3i", 1, 1, 3)),
]
ENTRIES = [
    ARCHITECTURE,
    entry("general.name", STRING, text("Pico")),
    entry("general.license", STRING, text("apache-2.0")),
    entry("general.file_type", UINT32, u32(1)),
    entry("llama.block_count", UINT32, u32(1)),
    *VOCABULARY,
]
TENSORS = [tensor("token_embd.weight", (8, 3), 0, 0), tensor("output_norm.weight", (8,), 0, 96)]


def gguf_bytes(
    entries: list[bytes] = ENTRIES,
    tensors: list[bytes] = TENSORS,
    version: int = 3,
    alignment: int = 32,
    data: int = 128,
) -> bytes:
    head = b"GGUF" + u32(version) + u64(len(tensors)) + u64(len(entries)) + b"".join(entries) + b"".join(tensors)
    return head + bytes(-len(head) % alignment) + bytes(data)


def safetensors_bytes(header: Any, data: int, raw: bytes | None = None) -> bytes:
    head = raw if raw is not None else json.dumps(header).encode()
    return u64(len(head)) + head + bytes(data)


def one(dtype: Any = "F16", shape: Any = (2, 3), extent: Any = (0, 12)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": extent}


WEIGHTS = safetensors_bytes({"__metadata__": {"format": "pt"}, "a": one(), "b": one("F32", (), (12, 16))}, 16)
