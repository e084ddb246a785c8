"""Texts that say nearly the same: exact by their normalised words, near by the Jaccard similarity of their shingles."""

from __future__ import annotations

from .seen import SimilarTexts, Twin, in_blocks
from .sketches import Sketcher
from .words import jaccard, normalised, shingles

__all__ = ["SimilarTexts", "Sketcher", "Twin", "in_blocks", "jaccard", "normalised", "shingles"]
