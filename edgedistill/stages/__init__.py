"""The stages: one module a stage, each reads the folders before it and writes only its own."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["STAGES", "Stage"]


@dataclass(frozen=True)
class Stage:
    """A stage: its name in five places, what it does, and what its key is made of."""

    name: str
    help: str
    reads: tuple[str, ...]
    """Tables of the recipe, with the files and models that they name."""
    files_of: tuple[str, ...] = ()
    """Tables of which only the files that they name are read."""
    resumes: bool = False
    """Whether a stopped one goes on where it was; the others start over in an empty folder."""
    keeps: bool = False
    """Whether its rows outlive even a redo: each has a key of its own that says whether it still holds."""


STAGES = (
    Stage("prompts", "Collect the prompts, drop near-duplicates.", ("prompts", "tools"), keeps=True),
    Stage("teach", "Every teacher answers every prompt once.", ("teachers", "user", "teach"), resumes=True, keeps=True),
    Stage("curate", "Throw out answers that teach the wrong thing.", ("curate",), files_of=("evaluate",), keeps=True),
    Stage("train", "The student learns what is left.", ("student", "train"), resumes=True),
    Stage("export", "Merge, write the GGUF, prove that it answers alike.", ("export",)),
    Stage("quantize", "Make the smaller sizes, measure what was lost.", ("quantize",)),
    Stage("evaluate", "Everybody answers the eval set, side by side.", ("evaluate",), resumes=True, keeps=True),
    Stage("bench", "Measure latency against the target.", ("bench",)),
    Stage("package", "Pack the smallest that passes, for the device.", ("package", "accept")),
)
