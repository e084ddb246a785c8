"""A GGUF file, loaded: its weights, its tokenizer and its chat template."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..chat import ChatTemplate
from ..errors import EdgeDistillError, MissingRequirement

__all__ = ["LlamaModel", "load_llama_cpp"]


def load_llama_cpp() -> Any:
    """The low-level bindings of llama-cpp-python, with llama.cpp's log turned to its errors.

    Raises MissingRequirement where the library is not installed.
    """
    try:
        from llama_cpp import llama_cpp
    except ImportError as error:
        raise MissingRequirement("this needs llama_cpp", "pip install llama-cpp-python") from error
    global _ready
    if not _ready:
        llama_cpp.llama_log_set(_quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        _ready = True
    return llama_cpp


_ready = False
_last_error = b""
ERROR_LEVEL = 4


def _note(level: int, text: bytes, _: Any) -> None:
    global _last_error
    if level == ERROR_LEVEL:
        _last_error = text
        if os.environ.get("EDGEDISTILL_DEBUG"):
            os.write(2, text)


_quiet = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(_note)


def last_error() -> str:
    """The last line that llama.cpp logged as an error."""
    return _last_error.decode(errors="replace").strip()


class LlamaModel:
    """Weights and vocabulary of one GGUF file. Close it, or use it as a context manager."""

    def __init__(self, path: Path, gpu_layers: int = -1, vocab_only: bool = False) -> None:
        self.path = path
        self._lib = load_llama_cpp()
        settings = self._lib.llama_model_default_params()
        settings.n_gpu_layers = gpu_layers
        settings.vocab_only = vocab_only
        self.handle = self._lib.llama_model_load_from_file(os.fsencode(path), settings)
        if not self.handle:
            raise EdgeDistillError(f"{path}: llama.cpp cannot load it ({last_error()})", "Check the file's source.")
        self.vocab = self._lib.llama_model_get_vocab(self.handle)
        self.vocab_size: int = self._lib.llama_vocab_n_tokens(self.vocab)

    def __enter__(self) -> LlamaModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self.handle:
            self._lib.llama_model_free(self.handle)
            self.handle = None

    @property
    def adds_bos(self) -> bool:
        return bool(self._lib.llama_vocab_get_add_bos(self.vocab))

    @property
    def context_limit(self) -> int:
        """The longest context, in tokens, that the model was trained on."""
        return int(self._lib.llama_model_n_ctx_train(self.handle))

    @property
    def can_step_back(self) -> bool:
        """Whether the end of a sequence can be forgotten: a recurrent state holds all that was read, or nothing."""
        lib, handle = self._lib, self.handle
        return not (lib.llama_model_is_recurrent(handle) or lib.llama_model_is_hybrid(handle))

    @property
    def window(self) -> int:
        """Tokens that layers with a sliding window look back; 0 where none has one."""
        return int(self._lib.llama_model_n_swa(self.handle))

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values that one token takes in a context of 16-bit cells."""
        lib, handle = self._lib, self.handle
        width = lib.llama_model_n_embd(handle) // max(1, lib.llama_model_n_head(handle))
        return int(4 * lib.llama_model_n_layer(handle) * lib.llama_model_n_head_kv(handle) * width)

    def tokenize(self, text: str, special: bool = True, add_bos: bool = False) -> list[int]:
        """Token ids of a text; with `special`, the names of special tokens stand for these tokens."""
        data = text.encode()
        size = len(data) + 8
        while True:
            buffer = (ctypes.c_int32 * size)()
            count = self._lib.llama_tokenize(self.vocab, data, len(data), buffer, size, add_bos, special)
            if count >= 0:
                return list(buffer[:count])
            size = -count

    def piece(self, token: int) -> bytes:
        """The bytes of a token; nothing for a special one."""
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            count = self._lib.llama_token_to_piece(self.vocab, token, buffer, size, 0, False)
            if count >= 0:
                return buffer.raw[:count]
            size = -count

    def name(self, token: int) -> str:
        """The token's entry in the vocabulary; for a special token, the text that stands for it."""
        return str(self._lib.llama_vocab_get_text(self.vocab, token).decode(errors="replace"))

    def text(self, tokens: Sequence[int]) -> str:
        """The text of tokens, special ones left out."""
        return b"".join(map(self.piece, tokens)).decode(errors="replace")

    def ends(self, token: int) -> bool:
        """Whether the model ends its answer with this token."""
        return bool(self._lib.llama_vocab_is_eog(self.vocab, token))

    @property
    def end_of_turn(self) -> int:
        """The token that ends an answer: end of turn where the vocabulary has one, else end of sequence."""
        turn: int = self._lib.llama_vocab_eot(self.vocab)
        return turn if turn >= 0 else int(self._lib.llama_vocab_eos(self.vocab))

    @property
    def ends_of_answers(self) -> list[int]:
        """End of sequence and end of turn, as far as the vocabulary has them."""
        return sorted({int(self._lib.llama_vocab_eos(self.vocab)), self.end_of_turn} - {-1})

    def metadata(self, key: str) -> str:
        """A value of the file's metadata as text, or ""."""
        size = 1 << 20
        buffer = ctypes.create_string_buffer(size)
        count = self._lib.llama_model_meta_val_str(self.handle, key.encode(), buffer, size)
        return buffer.value.decode(errors="replace") if count >= 0 else ""

    def chat_template(self) -> ChatTemplate:
        """The file's chat template.

        Raises InvalidInput where it has none.
        """
        source = self._lib.llama_model_chat_template(self.handle, None)
        return ChatTemplate(source.decode() if source else "", self._special("bos"), self._special("eos"))

    def _special(self, which: str) -> str:
        token = getattr(self._lib, f"llama_vocab_{which}")(self.vocab)
        return self.name(token) if token >= 0 else ""
