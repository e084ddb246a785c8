"""The proof that a Hugging Face folder and a GGUF read alike: the same tokens, template and end of answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import GateMissed
from ..llamacpp.model import LlamaModel
from ..records import Message, common_length
from ..students.encode import Encoder

__all__ = ["probe_texts", "prove_tokens"]

PROBE_TEXTS = (
    "Hello, world!",
    "  two  spaces\tand a tab\nand lines\n\n\nthree",
    "0 1 12 123 1234 12345 3.14159 2026-11-24",
    "It's they're we've I'd don't CAN'T",
    "Ünïcödé: äöüß ñ ç é — “quotes” … €",
    "中文 日本語 한국어 العربية עברית हिन्दी ไทย",
    "emoji 😀🚀👩‍👩‍👧 and \u200b zero width",
    'def f(x):\n    return {"a": [1, 2, x]}  # code\n',
    '{"action":"turn_on","value":null}',
    "<html><|not_special|></html> [INST] <s>",
    "a" * 50 + " " * 20 + "!" * 10,
    "",
)


def prove_tokens(folder: Path, gguf: Path, conversations: Sequence[Sequence[Message]]) -> dict[str, Any]:
    """Compare token ids, chat template and end of answer of a Hugging Face folder and a GGUF.

    Raises GateMissed with the first text whose ids differ.
    """
    encoder = Encoder(folder)
    with LlamaModel(gguf, vocab_only=True) as model:
        template = model.chat_template()
        if template.source != encoder.template.source:
            raise GateMissed(f"{gguf}: its chat template is not the one of {folder}", "Export again.")
        texts = probe_texts(encoder, conversations)
        for text in texts:
            _same_ids(text, encoder.ids(text), model.tokenize(text), gguf)
        answer = encoder.ids(_answer_text(encoder))
        end = answer[encoder.end_token(answer)]
        if not model.ends(end):
            raise GateMissed(
                f"{gguf}: token {end}, which ends an answer, does not end generation", "Set its eos token."
            )
    return {"texts": len(texts), "tokens_equal": True, "end_token": end}


def _same_ids(text: str, ours: Sequence[int], theirs: Sequence[int], gguf: Path) -> None:
    if ours != theirs:
        at = common_length(ours, theirs)
        raise GateMissed(
            f"{gguf}: token {at} of {text[:60]!r} is {theirs[at : at + 1]}, in tokenizer.json {ours[at : at + 1]}",
            "The writer does not know this tokenizer; use --llama-cpp with a checkout's converter.",
        )


def probe_texts(encoder: Encoder, conversations: Sequence[Sequence[Message]]) -> list[str]:
    """Texts that a tokenizer is likely to get wrong, every special token, and rendered conversations."""
    specials = list(encoder.special_tokens().values())
    around = [f"before{name}after {name} {name}{name}" for name in specials]
    rendered = [encoder.template.render(conversation) for conversation in conversations]
    turns = (
        Message("system", "Be brief."),
        Message("user", "Hi"),
        Message("assistant", "Yes?"),
        Message("user", "Bye"),
    )
    return [*PROBE_TEXTS, *specials, *around, *rendered, encoder.template.render(turns)]


def _answer_text(encoder: Encoder) -> str:
    asked = (Message("user", "Hi"),)
    before = encoder.template.render(asked)
    whole = encoder.template.render((*asked, Message("assistant", "Yes.")), answer_next=False)
    return whole.removeprefix(before)
