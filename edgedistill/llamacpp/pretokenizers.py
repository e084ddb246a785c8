"""How text is split before byte pairs are merged: llama.cpp's names for it, and tokenizer.json's structures.

llama.cpp knows a pre-tokenizer by name only (`tokenizer.ggml.pre`) and has each one's rules built in. Its converter
finds the name by the ids that a probe text gets, which needs a list of every vocabulary there is; here the name follows
from the rules themselves, so a vocabulary of one's own is as good as a known one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from ..errors import GateMissed, InvalidInput
from .places import CHECKOUT
from .sentencepiece import SPACE

__all__ = ["SENTENCEPIECE", "PreTokenizer", "by_name", "by_structure", "space_prefix"]


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """One row: the name in GGUF, other names of the same rules, and the rules as tokenizer.json has them."""

    name: str
    steps: tuple[dict[str, Any], ...]
    also: tuple[str, ...] = ()
    ignore_merges: bool = False
    """Whether a piece that is itself a token is taken whole, without merging."""
    adds_bos: bool = False
    """Whether llama.cpp adds the first token by itself where the GGUF does not say."""

    def as_json(self) -> dict[str, Any]:
        """The `pre_tokenizer` of tokenizer.json."""
        if len(self.steps) == 1:
            return dict(self.steps[0])
        return {"type": "Sequence", "pretokenizers": [dict(step) for step in self.steps]}


def _byte_level(use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


DIGITS = {"type": "Digits", "individual_digits": True}
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA_3 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + SPACES
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
GPT_4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{CONTRACTIONS}?|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{CONTRACTIONS}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + SPACES
)

# Patterns as in the tokenizer.json of each family; llama.cpp's src/llama-vocab.cpp holds the same ones under the name.
PRE_TOKENIZERS = (
    PreTokenizer("gpt-2", (_byte_level(True),), also=("phi-2",)),
    PreTokenizer("smollm", (DIGITS, _byte_level(True)), also=("starcoder", "refact", "command-r")),
    PreTokenizer(
        "qwen2",
        (
            _split(CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + SPACES),
            _byte_level(False),
        ),
        also=("deepseek-r1-qwen",),
    ),
    PreTokenizer(
        "qwen35",
        (
            _split(CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|" + SPACES),
            _byte_level(False),
        ),
    ),
    PreTokenizer(
        "llama-bpe",
        (
            _split(LLAMA_3),
            _byte_level(False),
        ),
        also=("llama3", "llama-v3", "lfm2", "falcon3"),
        ignore_merges=True,
        adds_bos=True,
    ),
    PreTokenizer("dbrx", (_split(LLAMA_3), _byte_level(False)), also=("smaug-bpe",)),
    PreTokenizer("gpt-4o", (_split(GPT_4O), _byte_level(False)), also=("llama4",)),
)

SENTENCEPIECE = PreTokenizer("default", (), adds_bos=True)
"""Text is not split at all."""


def by_name(name: str) -> PreTokenizer:
    """The row of a GGUF's `tokenizer.ggml.pre`.

    Raises InvalidInput where it is not in the table.
    """
    for row in PRE_TOKENIZERS:
        if name == row.name or name in row.also:
            return row
    raise InvalidInput(
        f"no importer for pre-tokenizer '{name}'; there is one for {', '.join(row.name for row in PRE_TOKENIZERS)}",
        "Use the model's Hugging Face folder instead.",
    )


def by_structure(tokenizer: dict[str, Any]) -> PreTokenizer:
    """The row whose rules a tokenizer.json has.

    Raises GateMissed where llama.cpp would split in another way, or where that is not known.
    """
    steps = _steps(tokenizer.get("pre_tokenizer"))
    ignore_merges = bool(tokenizer["model"].get("ignore_merges"))
    for row in PRE_TOKENIZERS:
        if steps == [_canonical(step) for step in row.steps] and ignore_merges == row.ignore_merges:
            return row
    raise GateMissed(
        f"tokenizer.json: no name in llama.cpp is known for this pre_tokenizer (ignore_merges "
        f"{str(ignore_merges).lower()}): {json.dumps(tokenizer.get('pre_tokenizer'))[:400]}",
        CHECKOUT,
    )


def _steps(structure: Any) -> list[tuple[Any, ...]]:
    if isinstance(structure, dict) and structure.get("type") == "Sequence":
        return [step for inner in structure.get("pretokenizers", []) for step in _steps(inner)]
    return [_canonical(structure)]


def _canonical(step: Any) -> tuple[Any, ...]:
    """What of a step decides how text is split; `trim_offsets` does not, and absent keys have their default."""
    if not isinstance(step, dict):
        return (step,)
    match step.get("type"):
        case "ByteLevel":
            return ("ByteLevel", step.get("add_prefix_space", True), step.get("use_regex", True))
        case "Digits":
            return ("Digits", step.get("individual_digits", False))
        case "Split":
            pattern = step.get("pattern", {})
            return ("Split", pattern.get("Regex"), step.get("behavior"), step.get("invert", False))
        case other:
            return (other, json.dumps(step, sort_keys=True))


def space_prefix(tokenizer: dict[str, Any]) -> bool:
    """Whether a SentencePiece tokenizer.json puts a space before every text between special tokens.

    Raises GateMissed where it prepares the text in a way that llama.cpp does not.
    """
    steps = _normalizers(tokenizer.get("normalizer"))
    spaces = ("Replace", {"String": " "}, SPACE)
    pre = tokenizer.get("pre_tokenizer") or {}
    if pre.get("type") == "Split" and pre.get("pattern") == {"String": " "}:  # there is none left to split at
        pre = {}
    if steps in ([spaces], [("Prepend", SPACE), spaces]) and not pre:
        return len(steps) == 2
    plain = pre.get("type") == "Metaspace" and pre.get("replacement") == SPACE and not pre.get("split", True)
    scheme = {"always": True, "never": False}.get(str(pre.get("prepend_scheme")))
    if not steps and plain and scheme is not None:
        return scheme
    raise GateMissed(
        f"tokenizer.json: llama.cpp does not prepare text as this normalizer and pre_tokenizer: "
        f"{json.dumps([tokenizer.get('normalizer'), tokenizer.get('pre_tokenizer')])[:400]}",
        CHECKOUT,
    )


def _normalizers(structure: Any) -> list[tuple[Any, ...]]:
    if not isinstance(structure, dict):
        return []
    match structure.get("type"):
        case "Sequence":
            return [step for inner in structure.get("normalizers", []) for step in _normalizers(inner)]
        case "Prepend":
            return [("Prepend", structure.get("prepend"))]
        case "Replace":
            return [("Replace", structure.get("pattern"), structure.get("content"))]
        case other:
            return [(other,)]
