"""What is dropped as it comes: what is no prompt, what is there already, what says hardly anything new."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..curation.loops import repeats
from ..prompting import SynthesizeSettings
from ..similarity import SimilarTexts, Twin, normalised

__all__ = ["Screen", "triples"]

GAP = re.compile(
    r"\[(?:your|the|insert|customer|company|order|product|name|date|number|address|phone|email)\b[^\]\n]{0,40}\]"
    r"|\[[A-Z][A-Z_ ]{2,30}\]|\{\{?[a-z_ ]{2,30}\}?\}|<(?:your|insert)\b[^>\n]{0,40}>|\bX{3,}\b",
    re.IGNORECASE,
)
END = '"]}'  # a small model writes on behind what it takes for its end


def triples(text: str) -> list[int]:
    """A hash of each three words in a row, in small letters.

    >>> len(triples("To be or not to be")), triples("Hello there")
    (4, [])
    """
    words = normalised(text).split()
    return [hash(three) for three in zip(words, words[1:], words[2:], strict=False)]


class Screen:
    """Remembers what there is. `seen` and `held_out` are the texts before, and those that nothing may resemble."""

    def __init__(self, settings: SynthesizeSettings, seen: SimilarTexts, held_out: SimilarTexts) -> None:
        self._settings = settings
        self._seen, self._held_out = seen, held_out
        self._triples: set[int] = set()
        names = "|".join(re.escape(name) for name in (*settings.axes, "topic"))
        self._names_kind = re.compile(rf"^\W{{0,3}}(?:{names})\W{{0,3}}:", re.IGNORECASE | re.MULTILINE)

    def add(self, texts: Sequence[tuple[str, str]]) -> None:
        """Take in texts, as (id, text), that are there already."""
        self._seen.add(texts)
        for _, text in texts:
            self._triples.update(triples(text))

    def admit(self, texts: Sequence[tuple[str, str]]) -> list[Twin | None]:
        """Take in texts that people wrote, but for those that are there already; say of each what it resembles."""
        twins = self._seen.screen(texts)
        for _, text in texts:
            self._triples.update(triples(text))
        return twins

    def judge(self, texts: Sequence[tuple[str, str]]) -> list[tuple[str, float]]:
        """For each text why it is dropped, "" where it is kept, and the share of its triples that was new.

        Those before it in the list count as there. What is dropped as a twin counts as said, too.
        """
        found = [self._alone(text) for _, text in texts]
        open_ = [number for number, (reason, _) in enumerate(found) if not reason]
        for number, twin in zip(open_, self._held_out.twins([texts[number][1] for number in open_]), strict=True):
            if twin is not None:
                found[number] = ("overlap with eval", 0.0)
        open_ = [number for number in open_ if not found[number][0]]
        for number, twin in zip(open_, self._seen.screen([texts[number] for number in open_]), strict=True):
            if twin is not None:
                found[number] = (twin.reason, 0.0)
        return found

    def _alone(self, text: str) -> tuple[str, float]:
        if GAP.search(text):
            return "gap to fill in", 0.0
        if END in text:
            return "end of an answer", 0.0
        if self._names_kind.search(text):
            return "names its kind", 0.0
        if repeats(text):
            return "repetition", 0.0
        mine = triples(text)
        share = sum(one not in self._triples for one in mine) / len(mine) if mine else 1.0
        if share < self._settings.novelty:
            return "nothing new", share
        self._triples.update(mine)
        return "", share
