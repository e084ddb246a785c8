"""prompts: collect the inputs, drop those that say the same as an earlier one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import InvalidInput
from ..recipe import Recipe
from ..records import Prompt, json_lines, read_prompts
from ..run import Progress, Run, write_whole
from ..similarity import SimilarTexts

__all__ = ["prompt_row", "prompts"]


def prompts(recipe: Recipe, run: Run, out: Path, progress: Progress) -> dict[str, Any]:
    """Write `prompts.jsonl`, and `dropped.jsonl` with what each dropped prompt repeats."""
    source = recipe.file(recipe.prompts.file)
    kept: list[Prompt] = []
    dropped: list[dict[str, Any]] = []
    seen = SimilarTexts(recipe.prompts.near_duplicate)
    rows = read_prompts(source)
    for number, prompt in enumerate(rows, start=1):
        reason, twin = "exact duplicate", seen.exact(prompt.text)
        if twin is None:
            reason, twin = "near duplicate", seen.near(prompt.text)
        if twin is None:
            seen.add(prompt.id, prompt.text)
            kept.append(prompt)
        else:
            dropped.append({**prompt_row(prompt), "_ed": {"id": prompt.id, "reason": reason, "of": twin}})
        progress("reading prompts", number, len(rows))
    if not kept:
        raise InvalidInput(f"{source}: no prompts", "Write at least one row.")
    write_whole(out / "prompts.jsonl", json_lines(map(prompt_row, kept)))
    write_whole(out / "dropped.jsonl", json_lines(dropped))
    return {"kept": len(kept), "dropped": len(dropped)}


def prompt_row(prompt: Prompt) -> dict[str, Any]:
    """A prompt as a row of a prompt file."""
    row: dict[str, Any] = {"messages": [message.as_dict() for message in prompt.messages]}
    if prompt.tags:
        row["tags"] = list(prompt.tags)
    return row
