"""prompts: collect the inputs, drop those that say the same as an earlier one."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import InvalidInput
from ..recipe import Recipe
from ..records import Prompt, iter_prompts
from ..run import Progress, Run
from ..similarity import SimilarTexts, in_blocks
from .streams import rows_file

__all__ = ["prompt_row", "prompts", "sample_of"]

SAMPLED = 4096  # prompts that the search for similar ones looks at before


def prompts(recipe: Recipe, run: Run, out: Path, progress: Progress) -> dict[str, Any]:
    """Write `prompts.jsonl`, and `dropped.jsonl` with what each dropped prompt repeats."""
    source = recipe.file(recipe.prompts.file)
    total = sum(1 for _ in iter_prompts(source))
    done = kept = 0
    with (
        SimilarTexts(recipe.prompts.near_duplicate, out, sample_of(source, total)) as seen,
        rows_file(out / "prompts.jsonl") as keep,
        rows_file(out / "dropped.jsonl") as drop,
    ):
        for block in in_blocks(iter_prompts(source), lambda prompt: prompt.text):
            for prompt, twin in zip(block, seen.screen([(one.id, one.text) for one in block]), strict=True):
                if twin is None:
                    kept += 1
                    keep(prompt_row(prompt))
                else:
                    reason = "exact duplicate" if twin.is_exact else "near duplicate"
                    drop({**prompt_row(prompt), "_ed": {"id": prompt.id, "reason": reason, "of": twin.id}})
            done += len(block)
            progress("reading prompts", done, total)
        if not kept:
            raise InvalidInput(f"{source}: no prompts", "Write at least one row.")
    return {"kept": kept, "dropped": done - kept}


def sample_of(source: Path, total: int) -> list[str]:
    """Texts of prompts from all over a file."""
    every = max(1, total // SAMPLED)
    return [prompt.text for prompt in islice(iter_prompts(source), 0, None, every)]


def prompt_row(prompt: Prompt) -> dict[str, Any]:
    """A prompt as a row of a prompt file."""
    row: dict[str, Any] = {"messages": [message.as_dict() for message in prompt.messages]}
    if prompt.tags:
        row["tags"] = list(prompt.tags)
    return row
