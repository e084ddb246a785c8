"""One record after another from lines, a JSON list, CSV or TSV, Parquet, or a folder of text files.

Memory holds one record, or one batch of Parquet. Where a record is broken, the next is looked for.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import InvalidInput, MissingRequirement
from ..records import placed_lines, row_of

__all__ = ["CONTAINERS", "Record", "container_of", "records"]

LARGEST = 64 << 20  # bytes of one record; a list that was never closed would fill memory
READ = 1 << 20
BATCH = 256  # records of Parquet at a time
TEXTS = (".txt", ".md", ".text")
PLAIN = (*TEXTS, ".log")
BOM = b"\xef\xbb\xbf"
JSON_LINES = (".jsonl", ".ndjson", ".json")
LOOKED_AT = 20  # lines by which a table is told from plain lines
OUTSIDE, INSIDE = re.compile(rb'["{}\[\]\n]'), re.compile(rb'["\\\n]')


@dataclass(frozen=True, slots=True)
class Record:
    """One record: where it stands, and its value or what is wrong with it."""

    where: str
    value: Any = None
    problem: str = ""


def container_of(path: Path) -> str:
    """What a source is kept in, by its content; a name that ends as JSON is believed where the content is none.

    Raises InvalidInput where it is not there, or compressed.
    """
    if path.is_dir():
        return "folder"
    try:
        with path.open("rb") as file:
            head = file.read(READ)
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror}", "Check the path.") from error
    if head.startswith(b"PAR1"):
        return "parquet"
    if head[:2] == b"\x1f\x8b" or head.startswith((b"PK\x03\x04", b"\x28\xb5\x2f\xfd")):
        raise InvalidInput(f"{path}: compressed", "Unpack it first.")
    text = head.removeprefix(BOM).lstrip()
    if text[:1] == b"[":
        return "json"
    if text[:1] == b"{" or path.suffix.lower() in JSON_LINES or not text:
        return "jsonl"
    return (path.suffix.lower() not in PLAIN and _delimiter(head)) or "lines"


def _delimiter(head: bytes) -> str | None:
    """The kind of table whose head has two or more columns, with most of the first rows as wide; None for plain text.

    >>> _delimiter(b"question,label\\nHow?,a\\nWhy?,b\\n"), _delimiter(b"How, then?\\nSo.\\nGood, as it is, and well.")
    ('csv', None)
    """
    lines = head.removeprefix(BOM).decode("utf-8", "replace").splitlines()
    for name, sign in DELIMITERS.items():
        rows = [row for row in islice(csv.reader(lines, delimiter=sign), LOOKED_AT) if row]
        width = len(rows[0]) if rows else 0
        as_wide = sum(len(row) == width for row in rows)
        if width > 1 and len(rows) > 1 and as_wide > len(rows) / 2 and all(cell.strip() for cell in rows[0]):
            return name
    return None


DELIMITERS = {"tsv": "\t", "csv": ",", "csv;": ";"}


Reads = Callable[[Path], Iterator[Record]]


def records(path: Path, container: str) -> Iterator[Record]:
    """The records of a source, read as they are needed.

    Raises InvalidInput where it cannot be read at all, MissingRequirement where a library is missing.
    """
    return CONTAINERS[container](path)


def _json_lines(path: Path) -> Iterator[Record]:
    for place, line in placed_lines(path):
        line = line.removeprefix(BOM) if place.line == 1 else line
        if line.strip():
            yield parsed(f"{path}:{place.line}", line)


def parsed(where: str, line: bytes) -> Record:
    """The record that a text of JSON is."""
    try:
        return Record(where, row_of(where, line))
    except InvalidInput as error:
        return Record(where, problem=error.message.removeprefix(f"{where}: "))


def _lines(path: Path) -> Iterator[Record]:
    for place, line in placed_lines(path):
        line = line.removeprefix(BOM) if place.line == 1 else line
        if not line.strip():
            continue
        try:
            yield Record(f"{path}:{place.line}", line.decode("utf-8").strip())
        except UnicodeDecodeError as error:
            yield Record(f"{path}:{place.line}", problem=f"not UTF-8 ({error.reason})")


def _json_list(path: Path) -> Iterator[Record]:
    """The objects of one JSON list. Brackets and strings are followed byte by byte, so that none is held but one."""
    with path.open("rb") as file:
        yield from _Elements(path, file).records()


class _Elements:
    """Where one is in a JSON list: in which line, how deep, whether in a string."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file = path, file
        self._line = self._first = 1
        self._depth = 0
        self._is_text = False

    def records(self) -> Iterator[Record]:
        element = bytearray()
        between = bytearray()
        while block := self._file.read(READ):
            at = 0
            while at < len(block):
                found = (INSIDE if self._is_text else OUTSIDE).search(block, at)
                end = found.end() if found else len(block)
                if found and found.group() == b"\\":  # the sign behind it is no end of the string
                    block += self._file.read(1) if end == len(block) else b""
                    end = min(end + 1, len(block))
                was = self._depth
                self._step(found.group() if found else b"")
                (element if max(was, self._depth) > 1 else between).extend(block[at:end])
                at = end
                if was == 1 and self._depth > 1 and (extra := self._extra(between)) is not None:
                    yield extra
                if was == 2 and self._depth == 1:
                    yield parsed(f"{self._path}:{self._first}", bytes(element))
                    element.clear()
                if len(element) + len(between) > LARGEST:
                    raise InvalidInput(f"{self._path}:{self._first}: a record of more than {LARGEST >> 20} MB")
        extra = self._extra(between)
        if self._depth:
            yield Record(f"{self._path}:{self._line}", problem="the list does not end")
        elif extra is not None:
            yield extra

    def _step(self, sign: bytes) -> None:
        if sign == b"\n":
            self._line += 1
        elif sign == b'"':
            self._is_text = not self._is_text
        elif sign in (b"{", b"["):
            self._depth += 1
            self._first = self._line if self._depth == 2 else self._first
        elif sign in (b"}", b"]"):
            self._depth -= 1

    def _extra(self, between: bytearray) -> Record | None:
        """What stands between two records and should not."""
        text = bytes(between).strip(b" \t\r\n,[]").removeprefix(BOM).strip(b" \t\r\n,[]")
        between.clear()
        return Record(f"{self._path}:{self._line}", problem="a record must be a JSON object") if text else None


def _table(sign: str) -> Reads:
    """Reads a table with a head: each row as an object of texts."""

    def rows(path: Path) -> Iterator[Record]:
        csv.field_size_limit(LARGEST)  # the library's own is 128 KB, less than a long document
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.reader(file, delimiter=sign, strict=True)
            head: list[str] | None = None
            while True:
                line = reader.line_num + 1
                try:
                    cells = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    yield Record(f"{path}:{line}", problem=f"not a row of a table ({error})")
                    continue
                if not any(cells):
                    continue
                if head is None:
                    head = cells
                    if len(set(head)) < len(head):
                        raise InvalidInput(f"{path}:{line}: two columns have one name", "Give each its own.")
                    continue
                yield _row(f"{path}:{line}", head, cells)

    return rows


def _row(where: str, head: list[str], cells: list[str]) -> Record:
    if len(cells) != len(head):
        return Record(where, problem=f"{len(cells)} columns where the head has {len(head)}")
    try:
        "".join(cells).encode()
    except UnicodeEncodeError:
        return Record(where, problem="not UTF-8")
    return Record(where, dict(zip(head, cells, strict=True)))


def _parquet(path: Path) -> Iterator[Record]:
    """The rows of a Parquet file, batch by batch; the number is the row's."""
    try:
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise MissingRequirement(f"{path}: Parquet needs pyarrow", "pip install 'edgedistill[parquet]'") from error
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=BATCH):
                for row in batch.to_pylist():
                    number += 1
                    yield Record(f"{path}:{number}", {key: value for key, value in row.items() if value is not None})
    except (OSError, pyarrow.ArrowException) as error:
        raise InvalidInput(f"{path}: row {number + 1}: {str(error).splitlines()[0]}", "Write the file anew.") from error


def _folder(path: Path) -> Iterator[Record]:
    """Each text file of a folder and the folders in it, by name, as one record."""
    for file in text_files(path):
        try:
            text = file.read_text(encoding="utf-8-sig").strip()
        except (OSError, UnicodeDecodeError) as error:
            yield Record(f"{file}:1", problem=f"not a text in UTF-8 ({error})")
            continue
        yield Record(f"{file}:1", text) if text else Record(f"{file}:1", problem="no text")


def text_files(folder: Path) -> list[Path]:
    """The text files below a folder, by name."""
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in TEXTS and file.is_file())


CONTAINERS: dict[str, Reads] = {
    "jsonl": _json_lines,
    "json": _json_list,
    "lines": _lines,
    **{name: _table(sign) for name, sign in DELIMITERS.items()},
    "parquet": _parquet,
    "folder": _folder,
}
