"""The rows of curate in their files: to learn from, to measure on, thrown out with a reason; and their counts."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from ..curation.noise import LabelNoise, Suspect, labels_of
from ..curation.whole import Objections, Whole
from ..errors import InvalidInput
from ..messages import messages_of, with_calls
from ..recipe import CurateSettings
from ..records import Prompt
from ..run import whole_file
from ..scrub import Names

__all__ = ["SUSPECTS", "Again", "SortedRows", "is_valid_row"]

EXAMPLES = 3  # of each reason, in stats.json and in the report
SHOWN = 300  # characters of each
WAITING = "waiting.partial"  # gone once all rows have their files
SUSPECTS = "suspicious.jsonl"
DROPPED = "suspicious label"

Again = dict[str, Any] | tuple[str, str] | None
"""What came of asking again: the row with another answer; why it is thrown out, and what is wrong; nothing new."""
AskAgain = Callable[[Sequence[dict[str, Any]]], Mapping[str, Again]]


class SortedRows:
    """Takes rows as they come. Where something looks at all of them, the kept ones wait in a file until `settle`."""

    def __init__(self, settings: CurateSettings, out: Path, stack: ExitStack) -> None:
        self._settings = settings
        self._files = {
            name: stack.enter_context(whole_file(out / f"{name}.jsonl")) for name in ("train", "valid", "rejected")
        }
        stack.callback((out / WAITING).unlink)
        self._whole = Whole(settings) if Whole.is_asked(settings) else None
        self._noise = None if settings.noise is None else LabelNoise(settings.noise.times)
        self._suspects: Path = out / SUSPECTS
        self._suspects.unlink(missing_ok=True)  # of a time when it was asked for
        self._waiting: BinaryIO = stack.enter_context((out / WAITING).open("w+b"))
        self.counts: Counter[str] = Counter()
        """How many rows are in `train` and `valid`."""
        self.reasons: Counter[str] = Counter()
        self.examples: dict[str, list[dict[str, str]]] = {}
        self.noise: Counter[str] = Counter()
        """What became of the rows with a suspicious label, where they were looked for."""

    def reject(self, row: dict[str, Any]) -> None:
        """Throw out a row that has its reason, and what is wrong or which row it repeats, under `_ed`."""
        self._files["rejected"].write(_line(row))
        reason = row["_ed"]["reason"]
        self.reasons[reason] += 1
        if self.reasons[reason] <= EXAMPLES:
            self.examples.setdefault(reason, []).append(_example(row))

    def keep(self, row: dict[str, Any], prompt: Prompt, answer: str) -> None:
        """Keep a row, whose last answer this is."""
        if self._whole is None and self._noise is None:
            self._keep(row["_ed"]["id"], _line(row))
            return
        if self._whole is not None:
            self._whole.add(prompt.id, prompt.tags, answer)
        if self._noise is not None and self._settings.noise is not None:
            is_tags = self._settings.noise.label == "tags"
            self._noise.add(prompt.id, prompt.text, {"": ", ".join(prompt.tags)} if is_tags else labels_of(answer))
        self._waiting.write(_line(row))

    def settle(self, again: AskAgain) -> None:
        """Once all rows are there: throw out those to which something objects that looks at all of them.

        `again` gets the rows whose label is to be asked for again, and says by id what came of each. Raises
        InvalidInput where labels are looked for and there are none that enough rows share.
        """
        objections: Objections = {}
        changed: dict[int, dict[str, Any]] = {}
        if self._noise is not None and self._settings.noise is not None:
            objections, changed = self._suspicious(self._noise, self._settings.noise.action, again)
        if self._whole is not None:
            for number, row in changed.items():
                self._whole.change(number, row["messages"][-1]["content"])
            objections = self._whole.objections(objections)
        self._waiting.seek(0)
        for number, line in enumerate(self._waiting):
            if number in objections:
                reason, what = objections[number]
                row = json.loads(line)
                self.reject({**row, "_ed": {"id": row["_ed"]["id"], "reason": reason, "what": what}})
            elif number in changed:
                self._keep(changed[number]["_ed"]["id"], _line(changed[number]))
            else:
                self._keep(json.loads(line)["_ed"]["id"], line)

    def _suspicious(
        self, noise: LabelNoise, action: str, again: AskAgain
    ) -> tuple[Objections, dict[int, dict[str, Any]]]:
        """Rank the rows with a suspicious label; those that go, and those that have another answer now."""
        if not noise.fields():
            raise InvalidInput(
                "curate.noise: no label of which two kinds have ten rows or more",
                "It is for closed answers, JSON objects with closed fields, or tags: leave [curate.noise] out.",
            )
        suspects = noise.ranked()
        rows = self._waiting_rows({one.row for one in suspects})
        answers = again(list(rows.values())) if action == "ask again" else {}
        objections: Objections = {}
        changed: dict[int, dict[str, Any]] = {}
        with whole_file(self._suspects) as file:
            for rank, one in enumerate(suspects, start=1):
                identity = rows[one.row]["_ed"]["id"]
                what = f"{one.field + ': ' if one.field else ''}{one.label}, {one.instead} is likelier"
                found: Again = (DROPPED, what) if action == "drop" else answers.get(identity)
                outcome = "kept"
                if isinstance(found, tuple):
                    objections[one.row], outcome = found, "thrown out"
                elif found is not None:
                    changed[one.row], outcome = found, "changed"
                self.noise[outcome] += 1
                file.write(_line({"rank": rank, "id": identity, "outcome": outcome, **_shares(one)}))
        return objections, changed

    def _waiting_rows(self, numbers: set[int]) -> dict[int, dict[str, Any]]:
        """Some of the rows that wait, by number."""
        self._waiting.seek(0)
        return {number: json.loads(line) for number, line in enumerate(self._waiting) if number in numbers}

    def _keep(self, identity: str, line: bytes) -> None:
        name = "valid" if is_valid_row(identity, self._settings.valid_share) else "train"
        self._files[name].write(line)
        self.counts[name] += 1


def is_valid_row(identity: str, share: float) -> bool:
    """Whether a row measures instead of teaching: decided by its id alone, so the order does not matter."""
    return int(hashlib.sha256(identity.encode()).hexdigest()[:8], 16) < share * 2**32


def _shares(one: Suspect) -> dict[str, Any]:
    found = {name: value for name, value in asdict(one).items() if name != "row"}
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in found.items()}


def _line(row: dict[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def _example(row: dict[str, Any]) -> dict[str, str]:
    """A row that was thrown out, in short, for people who look into the report: nothing sensitive is shown there."""
    own: dict[str, str] = row["_ed"]
    *asked, answer = map(with_calls, messages_of(own["id"], row))
    shown = {"id": own["id"], "prompt": _shown("\n".join(asked)), "answer": _shown(answer)}
    return shown | {key: own[key] for key in ("what", "of") if key in own}


def _shown(text: str) -> str:
    return Names().replace(text)[:SHOWN]
