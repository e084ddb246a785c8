"""The rows of curate in their files: to learn from, to measure on, thrown out with a reason; and their counts."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

from ..curation.whole import Whole
from ..recipe import CurateSettings
from ..run import whole_file
from ..scrub import Names

__all__ = ["SortedRows", "is_valid_row"]

EXAMPLES = 3  # of each reason, in stats.json and in the report
SHOWN = 300  # characters of each
WAITING = "waiting.partial"  # gone once all rows have their files


class SortedRows:
    """Takes rows as they come. Where a rule looks at all of them, the kept ones wait in a file until `settle`."""

    def __init__(self, settings: CurateSettings, out: Path, stack: ExitStack) -> None:
        self._share = settings.valid_share
        self._files = {
            name: stack.enter_context(whole_file(out / f"{name}.jsonl")) for name in ("train", "valid", "rejected")
        }
        stack.callback((out / WAITING).unlink)
        self._whole = Whole(settings) if Whole.is_asked(settings) else None
        self._waiting: BinaryIO = stack.enter_context((out / WAITING).open("w+b"))
        self.counts: Counter[str] = Counter()
        """How many rows are in `train` and `valid`."""
        self.reasons: Counter[str] = Counter()
        self.examples: dict[str, list[dict[str, str]]] = {}

    def reject(self, row: dict[str, Any]) -> None:
        """Throw out a row that has its reason, and what is wrong or which row it repeats, under `_ed`."""
        self._files["rejected"].write(_line(row))
        reason = row["_ed"]["reason"]
        self.reasons[reason] += 1
        if self.reasons[reason] <= EXAMPLES:
            self.examples.setdefault(reason, []).append(_example(row))

    def keep(self, row: dict[str, Any], tags: tuple[str, ...], answer: str) -> None:
        """Keep a row, whose last answer this is."""
        if self._whole is None:
            self._keep(row["_ed"]["id"], _line(row))
            return
        self._whole.add(row["_ed"]["id"], tags, answer)
        self._waiting.write(_line(row))

    def settle(self) -> None:
        """Once all rows are there: throw out those to which a rule objects that looks at all of them."""
        if self._whole is None:
            return
        objections = self._whole.objections()
        self._waiting.seek(0)
        for number, line in enumerate(self._waiting):
            row = json.loads(line)
            if number in objections:
                reason, what = objections[number]
                self.reject({**row, "_ed": {"id": row["_ed"]["id"], "reason": reason, "what": what}})
            else:
                self._keep(row["_ed"]["id"], line)

    def _keep(self, identity: str, line: bytes) -> None:
        name = "valid" if is_valid_row(identity, self._share) else "train"
        self._files[name].write(line)
        self.counts[name] += 1


def is_valid_row(identity: str, share: float) -> bool:
    """Whether a row measures instead of teaching: decided by its id alone, so the order does not matter."""
    return int(hashlib.sha256(identity.encode()).hexdigest()[:8], 16) < share * 2**32


def _line(row: dict[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def _example(row: dict[str, Any]) -> dict[str, str]:
    """A row that was thrown out, in short, for people who look into the report: nothing sensitive is shown there."""
    *asked, answer = (turn.get("content") or "" for turn in row["messages"])
    own: dict[str, str] = row["_ed"]
    shown = {"id": own["id"], "prompt": _shown("\n".join(asked)), "answer": _shown(answer)}
    return shown | {key: own[key] for key in ("what", "of") if key in own}


def _shown(text: str) -> str:
    return Names().replace(text)[:SHOWN]
