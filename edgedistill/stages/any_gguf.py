"""Any 16-bit GGUF, without a run: its sizes, made and measured on a text or on prompts of its task."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..contract import QuantizeSettings
from ..errors import InvalidInput
from ..llamacpp.comparison import ScoredText, divergence_between, in_chunks
from ..llamacpp.model import LlamaModel
from ..records import messages_of, read_rows
from ..run import Progress, cores, write_whole
from .held_out import HELD_OUT, LEARNT, WORST, quoted
from .quantizing import Made, QuantizingTask, make, pick, require_quantizable

__all__ = ["quantize_gguf", "texts_of"]

CHUNK = 512  # tokens of a piece of a text; its second half is scored, as llama-perplexity does it
LEAST = 16  # tokens that a text must have


def quantize_gguf(
    source: Path, out: Path, settings: QuantizeSettings, texts: Sequence[ScoredText], progress: Progress
) -> dict[str, Any]:
    """Write `<name>-<QUANT>.gguf` for each type into `out`; with texts, `imatrix.gguf` and `quality.json` besides.

    Every other text tells what matters, the rest measure what is lost. Raises InvalidInput for what needs texts where
    there are none, Stopped where the disk is full, EdgeDistillError where llama.cpp fails, as for a quantized source.
    """
    require_quantizable(settings)
    learnt, held = _some(texts[::2], LEARNT), _some(texts[1::2] or texts, HELD_OUT)
    stem = source.stem.removesuffix("-f16").removesuffix("-F16")
    made = make(QuantizingTask(source, out / stem, settings, learnt, "texts of the task"), progress)
    quality: dict[str, Any] = {name: {"bytes": one.path.stat().st_size} for name, one in made.items()}
    if held:
        _measure(source, made, held, quality, progress)
        if settings.is_auto:
            made = pick(made, quality)
        write_whole(out / "quality.json", json.dumps(quality, indent=1, ensure_ascii=False).encode())
    return {"source": str(source), "files": {name: str(one.path) for name, one in made.items()}, "quality": quality}


def _measure(
    source: Path, made: dict[str, Made], held: Sequence[ScoredText], quality: dict[str, Any], progress: Progress
) -> None:
    found = divergence_between(source, [one.path for one in made.values()], held, cores(), progress)
    ids = [str(number) for number in range(len(held))]
    with LlamaModel(source, vocab_only=True) as model:

        def told(tokens: Sequence[int]) -> str:
            return model.text(tokens) or (model.name(tokens[0]) if len(tokens) == 1 else "")

        for (name, one), divergence in zip(made.items(), found, strict=True):
            quality[name]["f16_quant"] = divergence.summary()
            quality[name]["tensor_types"] = dict(one.tensor_types)
            quality[name]["worst"] = quoted(divergence, held, ids, told, WORST)


def _some(texts: Sequence[ScoredText], tokens: int) -> list[ScoredText]:
    """Texts from all over, of about so many tokens together."""
    wanted = sum(len(text.tokens) for text in texts) / tokens
    return list(texts) if wanted <= 1 else [texts[int(place * wanted)] for place in range(int(len(texts) / wanted))]


def texts_of(source: Path, text: Path | None, prompts: Path | None) -> list[ScoredText]:
    """A plain text in chunks, and chat rows as the model's own template renders them, special tokens as such.

    Of a row that ends with an answer the answer is scored, of any other all of it. Raises InvalidInput with file and
    line for what cannot be read, and where there is too little.
    """
    found: list[ScoredText] = []
    with LlamaModel(source, vocab_only=True) as model:
        if text is not None:
            found += _chunks(model, text)
        if prompts is not None:
            found += [_row(model, f"{prompts}:{number}", row) for number, row in read_rows(prompts)]
    if (text is not None or prompts is not None) and len(found) < 2:
        raise InvalidInput(f"{text or prompts}: too little text", "Give two rows, or some hundred words.")
    return found


def _chunks(model: LlamaModel, path: Path) -> list[ScoredText]:
    try:
        tokens = model.tokenize(path.read_text(encoding="utf-8"), add_bos=model.adds_bos)
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path}: {error}", "Name a text file in UTF-8.") from error
    size = min(CHUNK, len(tokens) // 2)
    return in_chunks(tokens, size, size // 2) if size >= LEAST else []


def _row(model: LlamaModel, where: str, row: dict[str, Any]) -> ScoredText:
    messages, template = messages_of(where, row), model.chat_template()

    def ids(text: str, first: bool) -> list[int]:
        text = text.removeprefix(template.bos) if first and template.bos and model.adds_bos else text
        return model.tokenize(text, add_bos=first and model.adds_bos)

    whole = template.render(messages, answer_next=False)
    if messages[-1].role != "assistant":
        return ScoredText(tuple(ids(whole, first=True)), 1)
    before = template.render(messages[:-1])
    if not whole.startswith(before):
        raise InvalidInput(f"{where}: the chat template rewrites the prompt behind an answer", "Leave the answer out.")
    prompt = ids(before, first=True)
    return ScoredText((*prompt, *ids(whole[len(before) :], first=False)), len(prompt))
