"""Prompts from nothing but a description: a teacher writes them, cell by cell, until there are enough or no new ones.

A request names what a prompt shall be: a combination of the axes' values (a cell), a topic, a way. Cells with few
prompts are asked for first. What comes is screened at once: near-duplicates, what says hardly anything new, what is no
prompt. Every answer of the teacher is stored, and the next requests follow from the answers before alone: so a run that
was killed goes on where it was.

The ways are those of Evol-Instruct (Xu et al., arXiv 2304.12244), seeds and the screen those of Self-Instruct (Wang et
al., arXiv 2212.10560), the tree of topics that of GLAN (Li et al., arXiv 2402.13064).
"""

from __future__ import annotations

from .diversity import diversity
from .growth import Growth, Written
from .requests import answer_schema, system_text
from .screen import Screen
from .writer import Writer, writing

__all__ = ["Growth", "Screen", "Writer", "Written", "answer_schema", "diversity", "system_text", "writing"]
