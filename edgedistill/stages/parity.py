"""The proof that a Hugging Face folder and a GGUF read alike: the same tokens, template and end of answer."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..chat import DAY, ChatTemplate, with_system
from ..errors import GateMissed, Unsafe
from ..llamacpp.model import LlamaModel
from ..records import Message, common_length, read_json
from ..students.encode import Encoder
from .probe_corpus import Rendered, rendered
from .template_lint import content_branches

__all__ = ["day_note", "probe_texts", "prove_tokens", "require_safe_template", "template_sha256"]

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


def prove_tokens(folder: Path, gguf: Path, conversations: Sequence[Sequence[Message]] = ()) -> dict[str, Any]:
    """Compare token ids, chat template and end of answer of a Hugging Face folder and a GGUF of any quant.

    Compared are texts that tokenizers are likely to get wrong, every special token, 200 conversations that are always
    the same, and the given ones. Of the GGUF only the vocabulary is loaded. Raises GateMissed with the first text whose
    ids differ, or where a token that ends an answer does not end generation.
    """
    encoder = Encoder(folder)
    corpus = rendered(encoder.template)
    if not corpus.texts:
        raise GateMissed(f"{folder}: its template takes no conversation ({corpus.refused})", "Use an instruct model.")
    with LlamaModel(gguf, vocab_only=True) as model:
        template = model.chat_template()
        if template.source != encoder.template.source:
            raise GateMissed(f"{gguf}: its chat template is not the one of {folder}", "Export again.")
        texts = [*probe_texts(encoder, conversations), *corpus.texts]
        for text in texts:
            _same_ids(text, encoder.ids(text), model.tokenize(text), gguf)
        answer = encoder.ids(encoder.template.sample_answer())
        end = answer[encoder.end_token(answer)]
        ends = [end, *_stated_ends(folder)]
        for token in ends:
            if not model.ends(token):
                raise GateMissed(
                    f"{gguf}: token {token} ({model.name(token)}) ends an answer in {folder}, but does not end "
                    f"generation",
                    "Set its eos token.",
                )
    return {
        "texts": len(texts),
        "dated": any(map(template.shows_the_day, conversations)),
        "tokens_equal": True,
        "conversations": _told(corpus),
        "end_token": end,
        "ends": sorted(set(ends)),
        "template_sha256": template_sha256(encoder.template),
    }


def _told(corpus: Rendered) -> dict[str, Any]:
    """The conversations for the record, by kind."""
    return {"rendered": len(corpus.texts), **corpus.kinds}


def template_sha256(template: ChatTemplate) -> str:
    """The digest of a chat template's text."""
    return hashlib.sha256(template.source.encode()).hexdigest()


def require_safe_template(where: str, template: ChatTemplate, base: ChatTemplate, allowed: str | None) -> None:
    """Raise Unsafe where a template is not its base model's, or reacts to what a message says; `allowed` is a digest.

    Such a template can hide what the weights do not show: it answers a trigger in the user's text.
    """
    sha256 = template_sha256(template)
    if allowed == f"sha256:{sha256}":
        return
    hint = f'Read it; if it is meant so: [export] allow_template = "sha256:{sha256}".'
    if template.source != base.source:
        raise Unsafe(f"{where}: its chat template is not the one of its base model", hint)
    found = content_branches(template.source)
    if found:
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        raise Unsafe(f"{where}: its chat template reacts to what a message says: {found[0][:80]}{more}", hint)


def day_note(template: ChatTemplate, system: str) -> str:
    """What to know where the student's prompts have the day in them, for a line of `check`; "" where they have not."""
    if not template.shows_the_day(with_system(system, (Message("user", "Hi"),))):
        return ""
    return f"; its template writes the day, which is always {DAY.isoformat()} here, and the real one on a server"


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
    given = [encoder.template.render(conversation) for conversation in conversations]
    return [*PROBE_TEXTS, *specials, *around, *given]


def _stated_ends(folder: Path) -> list[int]:
    """The tokens that transformers ends an answer with."""
    stated = read_json(folder / "generation_config.json", required=False).get("eos_token_id")
    return [token for token in (stated if isinstance(stated, list) else [stated]) if type(token) is int]
