"""prompts: collect the inputs, drop those that say the same as an earlier one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from ..errors import InvalidInput
from ..recipe import Recipe
from ..records import iter_prompts, placed_lines, sample_of
from ..run import Progress, Run
from ..similarity import SimilarTexts, in_blocks
from ..sources import content, is_own
from .on_offer import offered
from .prompt_source import Reading, own_rows, prompt_row, prompt_source, scrubs
from .streams import Write, rows_file
from .synthesis import DIVERSITY, add_synthesized

__all__ = ["SAMPLED", "prompts", "prompts_read", "spread"]

Row = TypeVar("Row")
SAMPLED = 4096  # prompts that the search for similar ones looks at before


def prompts(recipe: Recipe, run: Run, out: Path, progress: Progress) -> dict[str, Any]:
    """Write `prompts.jsonl`, and `dropped.jsonl` with the reason of each dropped prompt.

    The file's prompts come first, then those that the teacher writes; `diversity.json` says what became of these.
    """
    summary: dict[str, Any] = {"kept": 0, "dropped": 0}
    (out / DIVERSITY).unlink(missing_ok=True)  # of a time when prompts were written
    with rows_file(out / "prompts.jsonl") as keep, rows_file(out / "dropped.jsonl") as drop:
        if recipe.prompts.file is not None:
            summary = _of_file(recipe, out, (keep, drop), progress)
        if recipe.prompts.synthesize is not None:
            made = add_synthesized(recipe, run, out, (keep, drop), progress)
            summary |= {"read": summary["kept"] + summary["dropped"], "synthesized": made}
            summary["kept"] += made["kept"] + made["seeds"]
            summary["dropped"] += sum(made["dropped"].values())
        if not summary["kept"]:
            raise InvalidInput(f"{recipe.path}: no prompts", "Write at least one row.")
    return summary


def _of_file(recipe: Recipe, out: Path, rows: tuple[Write, Write], progress: Progress) -> dict[str, Any]:
    """Those of the recipe's file that do not say what an earlier one says."""
    found = prompt_source(recipe)
    assert found is not None
    reading = Reading(found, scrubs(recipe))
    sha256 = content(found.path)
    keep, drop = rows
    done = kept = 0
    with (
        own_rows(reading, out) as source,
        SimilarTexts(recipe.prompts.near_duplicate, out, sample_of(source, SAMPLED)) as seen,
    ):
        total = sum(1 for _, line in placed_lines(source) if line.strip())
        limit = min(recipe.prompts.limit or total, total)
        found_rows = offered(recipe, spread(iter_prompts(source), total, limit))
        for block in in_blocks(found_rows, lambda prompt: prompt.text):
            for prompt, twin in zip(block, seen.screen([(one.id, one.text) for one in block]), strict=True):
                if twin is None:
                    kept += 1
                    keep(prompt_row(prompt))
                else:
                    drop({**prompt_row(prompt), "_ed": {"id": prompt.id, "reason": twin.reason, "of": twin.id}})
            done += len(block)
            progress("reading prompts", done, limit)
    if not kept and recipe.prompts.synthesize is None:
        raise InvalidInput(f"{found.path}: no prompts", "Write at least one row.")
    summary: dict[str, Any] = {"kept": kept, "dropped": done - kept, "source_sha256": sha256}
    if not is_own(reading.source):
        summary |= {"format": reading.source.format, "skipped": reading.skipped}
    if reading.scrubs:
        summary |= {"replaced": dict(reading.replaced), "prompts_with_replacements": reading.touched}
    return summary


def spread(rows: Iterable[Row], total: int, count: int) -> Iterator[Row]:
    """`count` of `total` rows, evenly from all over them, in their order.

    >>> list(spread(range(10), 10, 4))
    [2, 4, 7, 9]
    """
    for number, row in enumerate(rows):
        if (number + 1) * count // total > number * count // total:
            yield row


def prompts_read(recipe: Recipe, run: Run) -> int | None:
    """How many prompts the recipe's file has, if the stage has read just this content to its end; else None."""
    record = run.record("prompts")
    if record is None or not record["finished"] or recipe.prompts.file is None:
        return None
    summary = record["summary"]
    is_same = summary.get("source_sha256") == content(recipe.file(recipe.prompts.file))
    return summary.get("read", summary["kept"] + summary["dropped"]) if is_same else None
