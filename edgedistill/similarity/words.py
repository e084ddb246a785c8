"""What two texts are compared by."""

from __future__ import annotations

import re
import unicodedata

__all__ = ["SHINGLE", "jaccard", "normalised", "shingles", "shingles_of"]

SHINGLE = 4
SIGN = r"[^\w\s.,;:!?'\"’“”…]"
SPACES = str.maketrans(dict.fromkeys(".,;:!?'\"", " "))


def normalised(text: str) -> str:
    """Lower-case words and symbols in Unicode NFKC, without punctuation; a text of punctuation alone as it is.

    >>> normalised("  Turn ON,  the light! "), normalised("3+4 = ?")
    ('turn on the light', '3 + 4 =')
    """
    if text.isascii() and re.search(SIGN, text) is None:  # most texts, in a third of the time
        text = text.lower()
        return " ".join(text.translate(SPACES).split() or text.split())
    text = unicodedata.normalize("NFKC", text).lower()
    return " ".join(re.findall(rf"\w+|{SIGN}", text) or text.split())


def shingles(text: str) -> set[str]:
    """Character 4-grams of the normalised text.

    >>> sorted(shingles("Hello!"))
    ['ello', 'hell']
    """
    return shingles_of(normalised(text))


def shingles_of(words: str) -> set[str]:
    """Character 4-grams of a text that is normalised already."""
    return {words[i : i + SHINGLE] for i in range(max(1, len(words) - SHINGLE + 1))}


def jaccard(one: set[str], other: set[str]) -> float:
    """Size of the intersection over size of the union.

    >>> jaccard({"a", "b"}, {"b", "c"})
    0.3333333333333333
    """
    return len(one & other) / (len(one | other) or 1)
