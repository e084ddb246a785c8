"""export: merge the adapter into its base, write the GGUF, and prove that both read and answer alike."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..chat import with_system
from ..errors import GateMissed
from ..llamacpp.model import LlamaModel
from ..llamacpp.probe import kl_divergence, next_token_logits
from ..llamacpp.writer import GgufMetadata, convert_with_checkout, write_gguf
from ..recipe import Recipe
from ..records import Message, common_length, read_prompts
from ..run import Progress, Run, cores, write_whole
from ..students import load_student
from ..students.encode import Encoder
from .train import base_folder

__all__ = ["F16_NAME", "export", "probe_texts", "prove_tokens", "to_gguf"]

F16_NAME = "student-f16.gguf"
PROBES = 16  # prompts whose next-token distributions are compared

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


def export(recipe: Recipe, run: Run, out: Path, progress: Progress) -> dict[str, Any]:
    """Write `student/` (a Hugging Face folder), `student-f16.gguf` and `parity.json`.

    Raises GateMissed at the first token or distribution in which the two differ.
    """
    weights, base = base_folder(recipe, run, progress)
    folder = out / "student"
    partial = out / f"student.partial-{os.getpid()}"
    progress("merging", 0, 1)
    student = load_student(recipe.student, base)
    student.merge(run.folder("train") / "adapter", partial)
    os.replace(partial, folder)
    progress("merging", 1, 1)
    metadata = GgufMetadata(
        name=recipe.name,
        basename=weights.name,
        finetune=recipe.name,
        version=recipe.package.version,
        licence=weights.licence,
    )
    to_gguf(folder, out / F16_NAME, metadata, run, progress)
    prompts = read_prompts(run.folder("prompts") / "prompts.jsonl")[:PROBES]
    conversations = [with_system(recipe.student.system, prompt.messages) for prompt in prompts]
    progress("proving", 0, 2)
    parity = prove_tokens(folder, out / F16_NAME, conversations)
    progress("proving", 1, 2)
    rows = [Encoder(folder).prompt(conversation) for conversation in conversations]
    divergence = kl_divergence(student.logits(folder, rows), next_token_logits(out / F16_NAME, rows, cores()))
    parity |= {"kl_mean": float(divergence.mean()), "kl_max": float(divergence.max()), "max_kl": recipe.export.max_kl}
    progress("proving", 2, 2)
    write_whole(out / "parity.json", json.dumps(parity, indent=1).encode())
    if not parity["kl_mean"] <= recipe.export.max_kl:  # NaN is no proof either
        worst = int(divergence.argmax())
        raise GateMissed(
            f"{out / F16_NAME}: answers differ from the Hugging Face side, KL {parity['kl_mean']:.2g} nats; "
            f"most for {prompts[worst].text[:60]!r}",
            "This is a fault of the export; please report it with the model's config.json.",
        )
    return parity | {"bytes": (out / F16_NAME).stat().st_size}


def to_gguf(folder: Path, out: Path, metadata: GgufMetadata, run: Run, progress: Progress) -> None:
    """Write a Hugging Face folder as a 16-bit GGUF: by the converter of the run's llama.cpp checkout, or by our own."""
    if run.llama_cpp is not None:
        convert_with_checkout(run.llama_cpp, folder, out)
    else:
        write_gguf(folder, out, metadata, progress)


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
