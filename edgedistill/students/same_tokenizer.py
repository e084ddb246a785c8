"""Are two tokenizers the same? They are if equal texts have equal ids, whatever the vocabularies' sizes.

A vocabulary is padded to a size that suits the hardware: 151,936 and 152,064 entries may be one tokenizer. And two of
one size may be different ones. So both are shown a corpus in which tokenizers are known to differ, the recipe's own
prompts, and what ends the student's answer.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ..chat import ChatTemplate
from ..records import Message, common_length

__all__ = ["PROBES", "Difference", "answer_end", "difference", "probe_texts"]

MOST_PROMPTS = 200
LONGEST = 2000  # characters of a prompt that are compared
SHOWN_TEXT, SHOWN_IDS = 40, 8

# From short to long within each kind. In Unicode's composed form (NFC): some tokenizer.json compose a text first, where
# llama.cpp reads the same vocabulary without; that makes no other tokenizer.
PROBES = (
    # digits: alone, in pairs, in threes, from the left or the right
    "7",
    "42",
    " 42",
    "2026",
    "12345",
    "1234567890",
    "3.14159 1,000,000 1e-05 0x1F",
    "٣٤٥ ४५६ ²³ ½",
    # whitespace: runs before a word, alone, mixed, and other spaces than the ASCII one
    "  42",
    "   three",
    "a    b",
    "a \t b\t\tc",
    "end   ",
    " " * 37 + "x",
    "a\u00a0b\u2003c\u3000d",
    # line breaks
    "a\nb",
    "a\n\nb",
    "a\n\n\n    b",
    "a\r\nb\r\n\r\nc",
    " \n \n",
    "!\n\n?\n",
    # contractions and apostrophes
    "it's we've I'd don't",
    "IT'S WE'VE I'D DON'T",
    "l'été d’accord 'twas",
    # capitals, long words, joined words
    "camelCaseName HTTPServer2Go",
    "snake_case_name kebab-case-name",
    "Donaudampfschifffahrtsgesellschaft",
    "pneumonoultramicroscopicsilicovolcanoconiosis",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    # punctuation
    "...",
    "--- === ***",
    "(a) [b] {c} <d>",
    '"quoted" “quoted” «quoted» „quoted“',
    "wait—what?! … ok.",
    "100% $5 €5 #1 @me a&b ~",
    # code and markup
    "x+=1;y!=z&&!w",
    "#include <stdio.h>\nint main() { return 0; }\n",
    "def f(x):\n    return {'a': [1, 2, x]}  # code\n",
    "\tif (a[i] == NULL) {\n\t\tgoto fail;\n\t}\n",
    "SELECT name, count(*) FROM t WHERE id >= 10;",
    '<html><body class="x">&nbsp;</body></html>',
    "# Title\n\n- one\n- two\n\n```python\nprint(1)\n```\n",
    # JSON
    "{}",
    '{"a":1}',
    '{"action":"turn_on","device":"light","room":"living_room","value":null}',
    '{\n  "a": [true, false, null],\n  "b": {"c": -1.5e3}\n}',
    # addresses
    "https://example.org/a/b?c=d&e=%20f#g",
    "some.one+tag@example.co.uk C:\\Users\\me /usr/bin/env 192.168.0.1",
    # scripts
    "Ünïcödé äöüß ñ ç ø å ł ğ",
    "Привет, как дела?",
    "Καλημέρα κόσμε",
    "שלום עולם שָׁלוֹם",
    "مرحبا بالعالم مَرْحَبًا",
    "नमस्ते दुनिया क्षत्रिय",
    "สวัสดีชาวโลก",
    "你好,世界。我们在这里。",
    "こんにちは世界カタカナ",
    "안녕하세요 세계",
    "ᚠᛇᚻ ꙮ 𐍈 𝔘𝔫𝔦𝔠𝔬𝔡𝔢",
    # emoji, joined and modified; combining marks with no composed form; what is not seen; control characters
    "😀 🚀🚀",
    "👩‍👩‍👧 👍🏽 🇩🇪 ❤️",
    "x̌ q̃ m̀ x̌́",
    "a\u200bb\u200dc\u00add\ufeffe",
    "a\x00b\x01c\x07d\x1be\x7ff",
)


@dataclass(frozen=True, slots=True)
class Difference:
    """A text, and the token ids that two tokenizers give it."""

    text: str
    one: tuple[int, ...]
    other: tuple[int, ...]

    def __str__(self) -> str:
        """In a few words; of a long text, where the ids begin to differ.

        >>> str(Difference("  42", (220, 19, 17), (256, 2983)))
        "'  42' is [220, 19, 17] and [256, 2983]"
        """
        text = self.text if len(self.text) <= SHOWN_TEXT else self.text[: SHOWN_TEXT - 3] + "..."
        start = max(0, common_length(self.one, self.other) - 1) if len(self.one) > SHOWN_IDS else 0
        return f"{text!r} is {_shown(self.one, start)} and {_shown(self.other, start)}"


def _shown(ids: tuple[int, ...], start: int) -> str:
    part = ids[start : start + SHOWN_IDS]
    before, after = "..., " if start else "", ", ..." if start + SHOWN_IDS < len(ids) else ""
    return f"[{before}{', '.join(map(str, part))}{after}]"


def difference(
    one: Callable[[str], list[int]], other: Callable[[str], list[int]], texts: Iterable[str]
) -> Difference | None:
    """The first text to which two tokenizers give different ids, or None.

    >>> difference(lambda text: [len(text)], lambda text: [len(text.strip())], ["a", " b"])
    Difference(text=' b', one=(2,), other=(1,))
    """
    for text in texts:
        mine, theirs = one(text), other(text)
        if mine != theirs:
            return Difference(text, tuple(mine), tuple(theirs))
    return None


def probe_texts(template: ChatTemplate, prompts: Iterable[str]) -> list[str]:
    """What both tokenizers are shown: the corpus, the first of a recipe's prompts, an answer's end by this template."""
    own = [unicodedata.normalize("NFC", text)[:LONGEST] for _, text in zip(range(MOST_PROMPTS), prompts, strict=False)]
    return [*PROBES, *own, f"Yes.{answer_end(template)}"]


def answer_end(template: ChatTemplate) -> str:
    """What a template puts behind an answer, the name of the token that ends it first."""
    turns = (Message("system", ""), Message("user", "4710"), Message("assistant", "4711"))
    return template.render(turns, answer_next=False).rpartition("4711")[2]
