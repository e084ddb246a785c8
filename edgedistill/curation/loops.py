"""Texts that say the same over and over."""

from __future__ import annotations

import re
import zlib

__all__ = ["repeats"]

SHORT = 200  # bytes that say nothing by how well they compress
TAIL = 300  # characters: a loop that begins late fills the end


def repeats(text: str, share: float = 0.12) -> bool:
    """Whether a text of some length says the same few words, signs or lines over and over, as a whole or at its end.

    It does where less than 0.4 of its word triples are different, or where it compresses to less than `share`.

    >>> repeats("the light " * 20), repeats("Fine. Then " + "ha" * 400)
    (True, True)
    >>> repeats("Turn on the light in the kitchen, then the one in the hall.")
    False
    """
    words = re.findall(r"\w+", text.lower())
    triples = set(zip(words, words[1:], words[2:], strict=False))
    count = len(words) - 2
    if count >= 12 and len(triples) < 0.4 * count:
        return True
    return _packs(text, share) or (len(text) > TAIL and _packs(text[-TAIL:], share))


def _packs(text: str, share: float) -> bool:
    data = text.encode("utf-8", "surrogatepass")
    return len(data) >= SHORT and len(zlib.compress(data, 1)) < share * len(data)
