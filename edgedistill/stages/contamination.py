"""What was learnt must not be what is measured: training rows that say nearly what an eval or edge row says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ..errors import GateMissed
from ..recipe import Recipe
from ..records import Prompt, messages_of, read_rows
from ..run import Run
from ..similarity import SimilarTexts, in_blocks

__all__ = ["refuse_contamination"]

LEARNT = ("train", "valid")
SHOWN = 60


def refuse_contamination(recipe: Recipe, run: Run, sets: Mapping[str, Sequence[Prompt]], where: Path) -> int:
    """How many rows were learnt, none of which overlaps one of `sets` as `curate.eval_overlap` says; else GateMissed.

    Texts are compared as curate compares them, so only rows that changed since then, or that it never saw, are found.
    `where` is a folder for temporary files.
    """
    texts = {prompt.id: (kind, prompt.text) for kind, rows in sets.items() for prompt in rows}
    overlaps, count = 0, 0
    first = ("", "", "")
    with SimilarTexts(recipe.curate.eval_overlap, where, [text for _, text in texts.values()]) as measured:
        for block in in_blocks(texts.items(), lambda item: item[1][1]):
            measured.add([(name, text) for name, (_, text) in block])
        for rows in in_blocks(_learnt(run), lambda row: row[1]):
            for (place, text), twin in zip(rows, measured.twins([text for _, text in rows]), strict=True):
                count += 1
                if twin is not None:
                    first = first if overlaps else (place, text, twin.id)
                    overlaps += 1
    if overlaps:
        place, text, name = first
        kind, other = texts[name]
        raise GateMissed(
            f"{place}: {text[:SHOWN]!r} was learnt, and {other[:SHOWN]!r} of the {kind} set measures it; "
            f"{overlaps} of {count} rows overlap so",
            "Take such rows out of the eval and edge files, or redo the training without them: --from curate.",
        )
    return count


def _learnt(run: Run) -> Iterator[tuple[str, str]]:
    """Place and prompt text of every row that was learnt from, or by whose loss a checkpoint was chosen."""
    for name in LEARNT:
        path = run.folder("curate") / f"{name}.jsonl"
        for number, row in read_rows(path):
            where = f"{path}:{number}"
            yield where, "\n".join(message.content for message in messages_of(where, row)[:-1])
