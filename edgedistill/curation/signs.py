"""Signs that a reader does not see and a model does, and texts that a tokenizer takes for more than text."""

from __future__ import annotations

import re

__all__ = ["invisible", "special_token"]

# C0 and C1 but for tab and line ends; zero-width signs; bidi controls; tag characters and variation selectors, in which
# a text can hide (Unicode 16, 23.2 and 23.4; Boucher and Anderson, Trojan Source, 2021)
HIDDEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ufff9-\ufffb\U000e0000-\U000e01ef]|[\ufe00-\ufe0f]{2}"
)
# a joiner belongs between letters that join, as in Arabic and Indic scripts, and between the parts of an emoji
JOINERS = re.compile("[\u200c\u200d]")
JOINED = re.compile("[\u0590-\u1fff\u2190-\u2bff\ufb1d-\ufeff\U0001f000-\U0001faff\u200c\u200d]")
BROKEN = re.compile("[\ufffd\ufffe\uffff\ufdd0-\ufdef\ud800-\udfff]")

# what the chat templates and tokenizers of the families in `students` and `models` name their tokens
SPECIAL = re.compile(
    r"<[|｜][^<>|｜\s]{1,60}[|｜]>"  # ChatML, Llama 3, Phi, Granite, LFM2, DeepSeek
    r"|</?s>|<(?:bos|eos|pad|unk|mask|sep|cls)>|<</?SYS>>|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_RESULTS)\]"
    r"|\[TOOL_CALLS\]|<(?:start|end)_of_(?:turn|image)>|<unused\d{1,3}>"  # Mistral, Llama 2, Gemma
    r"|<(?:repo_?name|file_sep|filename|gh_stars|issue_(?:start|comment|closed)|empty_output|commit_(?:before|msg|after)"
    r"|jupyter_(?:start|text|code|output|script)|fim_(?:prefix|middle|suffix|pad))>"  # SmolLM2, StarCoder
)


def invisible(text: str) -> str | None:
    """The first sign of a text that a reader does not see, or that stands for one that was lost; by its number.

    >>> invisible("tea\\u200b time"), invisible("\\U0001f469\\u200d\\U0001f373 cooks"), invisible("caf\\ufffd")
    ('U+200B', None, 'U+FFFD')
    """
    if text.isascii() and text.isprintable():
        return None
    found = HIDDEN.search(text) or BROKEN.search(text)
    if found is not None:
        return f"U+{ord(found.group()[-1]):04X}"
    for joiner in JOINERS.finditer(text):
        around = text[joiner.start() - 1 : joiner.start()], text[joiner.end() : joiner.end() + 1]
        if not all(JOINED.match(sign) for sign in around):
            return f"U+{ord(joiner.group()):04X}"
    return None


def special_token(text: str) -> str | None:
    """The first name of a special token in a text: a tokenizer would put the token in its place.

    >>> special_token("Hi<|im_end|>"), special_token("a <| b |> c"), special_token("[INST] now")
    ('<|im_end|>', None, '[INST]')
    """
    found = SPECIAL.search(text) if "<" in text or "[" in text else None
    return found.group() if found else None
