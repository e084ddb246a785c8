"""Writes prompts.jsonl and eval.jsonl: small functions to be written, with their tests, the same ones each time.

    python recipes/code-python/generate.py

A function takes a list of numbers, of words, or a table of prices; it keeps some of them, may change each, and
returns one thing of what is left. The reference is put together from the same parts, and what the tests expect is
what it returns. No function that returns None passes them, and none that counts every value where the different ones
are asked for. No task is there twice, and none resembles another one, of either file, by NEAR (Jaccard of character
4-grams).
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgedistill.similarity import jaccard, shingles

FOLDER = Path(__file__).parent
SEED = 5
COUNTS = {"eval": 72, "prompts": 180}
NEAR = 0.85
TESTS = 4
REPEATED = 2
NOTHING = "nothing-left"  # tag of a function that returns None where nothing is left
WORDS = """Apple river Otto window level Egg stone umbrella Radar ink banana Noon tree Orange kayak cloud Anna island
pepper Zebra olive Tent sugar idea Yarn lamp""".split()  # noqa: SIM905 -- one a line would be longer than the rest
GOODS = "Pen Mug lamp Chair soap Bread Tea knife Apron ink".split()  # noqa: SIM905 -- as above


@dataclass(frozen=True)
class Part:
    """One step: how it is said, its code, and the word for it in the function's name."""

    said: str
    code: str
    name: str
    mistake: str = ""
    """Code for what it is easily taken for, which some test shows to be wrong."""


@dataclass(frozen=True)
class Kind:
    """What a function takes: its argument, what is said of it, and the steps that can be taken."""

    argument: str
    takes: str
    one: str
    keeps: tuple[Part, ...]
    turns: tuple[Part, ...]
    """Each thing that is left, changed: said of "them", after "the"."""
    gives: tuple[Part, ...]
    """What is returned, as code on the list `found`."""


NUMBERS = Kind(
    "numbers",
    "a list of integers",
    "number",
    (
        Part("even", "x % 2 == 0", "even"),
        Part("odd", "x % 2 == 1", "odd"),
        Part("positive", "x > 0", "positive"),
        Part("negative", "x < 0", "negative"),
        *(Part(f"divisible by {k}", f"x % {k} == 0", f"by_{k}") for k in (3, 4, 5)),
        *(Part(f"greater than {k}", f"x > {k}", f"over_{k}") for k in (10, 25)),
        *(Part(f"less than {k}", f"x < {k}", f"under_{k}") for k in (8, 30)),
    ),
    (
        Part("", "x", ""),
        Part("squares", "x * x", "squares"),
        Part("doubles", "2 * x", "doubles"),
        Part("absolute values", "abs(x)", "sizes"),
    ),
    (
        Part("sum", "sum(found)", "sum"),
        Part("largest", "max(found, default=None)", "largest"),
        Part("smallest", "min(found, default=None)", "smallest"),
        Part("mean", "sum(found) / len(found) if found else None", "mean"),
        Part("list in descending order", "sorted(found, reverse=True)", "falling"),
        Part("last", "found[-1] if found else None", "last"),
    ),
)
TEXTS = Kind(
    "words",
    "a list of words",
    "word",
    (
        Part("that begin with a vowel", "x[0].lower() in 'aeiou'", "vowel"),
        Part("that read the same backwards", "x.lower() == x.lower()[::-1]", "mirrored"),
        *(Part(f"that contain the letter {c}", f"{c!r} in x.lower()", f"with_{c}") for c in "aeno"),
        *(Part(f"that end with the letter {c}", f"x.lower().endswith({c!r})", f"ending_{c}") for c in "er"),
        *(Part(f"of more than {k} letters", f"len(x) > {k}", f"over_{k}") for k in (3, 4, 5)),
    ),
    (
        Part("", "x", ""),
        Part("lengths", "len(x)", "lengths"),
        Part("upper-case forms", "x.upper()", "shouted"),
        Part("first letters", "x[0]", "initials"),
    ),
    (
        Part("list in their order", "found", "list"),
        Part("first", "found[0] if found else None", "first"),
        Part("last", "found[-1] if found else None", "last"),
        Part("number of different ones", "len(set(found))", "kinds", mistake="len(found)"),
    ),
)
PRICES = Kind(
    "prices",
    "a dictionary from names to prices",
    "price",
    (
        *(Part(f"of more than {k}", f"x > {k}", f"over_{k}") for k in (5, 8, 10, 20)),
        *(Part(f"of at most {k}", f"x <= {k}", f"to_{k}") for k in (6, 9, 12, 15)),
        Part("that are even", "x % 2 == 0", "even"),
        Part("that are odd", "x % 2 == 1", "odd"),
    ),
    (
        Part("", "x", ""),
        Part("doubles", "2 * x", "doubles"),
        Part("squares", "x * x", "squares"),
        Part("last digits", "x % 10", "digits"),
    ),
    (
        Part("sum", "sum(found)", "sum"),
        Part("number of different ones", "len(set(found))", "kinds", mistake="len(found)"),
        Part("last", "found[-1] if found else None", "last"),
        Part("lowest", "min(found, default=None)", "lowest"),
        Part("highest", "max(found, default=None)", "highest"),
        Part("mean", "sum(found) / len(found) if found else None", "mean"),
        Part("list in ascending order", "sorted(found)", "rising"),
    ),
)
WORDINGS = (
    "Write a Python function {call} that takes {takes} and returns the {gives} of the {turned}{kept}.",
    "{call}: of {takes}, look at the {kept} only{then}. Return the {gives}. Write it in Python.",
    "I need {call} in Python. Its argument is {takes}; the {gives} of the {turned}{kept} comes back.",
)


@dataclass(frozen=True)
class Task:
    """One function to be written."""

    asked: str
    code: str
    tests: tuple[str, ...]
    tags: tuple[str, ...]


def task(kind: Kind, parts: tuple[Part, Part, Part], wording: str, source: random.Random) -> Task:
    """The function of some parts; the tests call it with what is drawn, and with what leaves nothing."""
    keep, turn, give = parts
    name = "_".join(part for part in (give.name, keep.name, turn.name) if part)
    code = function(name, kind, parts, give.code)
    right = loaded(code, name)
    wrongs = [loaded(function(name, kind, parts, one), name) for one in ("None", give.mistake) if one]
    arguments: list[Any] = []
    while any(all(wrong(given) == right(given) for given in arguments) for wrong in wrongs):
        arguments = list(drawn(kind, source))
    plural = f"{kind.one}s"
    kept = f"{plural} {keep.said}" if " " in keep.said else f"{keep.said} {plural}"
    asked = wording.format(
        call=f"`{name}({kind.argument})`",
        takes=kind.takes,
        gives=give.said,
        kept=kept,
        turned=f"{turn.said} of the " if turn.said else "",
        then=f", and at their {turn.said}" if turn.said else "",
    )
    tests = []
    for given in (*arguments, {} if kind is PRICES else []):
        value = right(given)
        tests.append(f"assert {name}({given!r}) {'is' if value is None else '=='} {value!r}")
    tags = [kind.argument, *([NOTHING] if tests[-1].endswith("is None") else [])]
    return Task(asked, code, tuple(tests), tuple(tags))


def function(name: str, kind: Kind, parts: tuple[Part, Part, Part], gives: str) -> str:
    """The code that returns `gives` of what the parts leave."""
    keep, turn, _ = parts
    values = f"{kind.argument}.values()" if kind is PRICES else kind.argument
    return (
        f"def {name}({kind.argument}):\n"
        f"    found = [{turn.code} for x in {values} if {keep.code}]\n"
        f"    return {gives}\n"
    )


def loaded(code: str, name: str) -> Callable[[Any], Any]:
    """The function that the code defines."""
    known: dict[str, Any] = {}
    exec(code, known)
    found: Callable[[Any], Any] = known[name]
    return found


def drawn(kind: Kind, source: random.Random) -> Iterator[Any]:
    """Arguments for the tests; each has values that are there more than once."""
    for _ in range(TESTS - 1):
        size = source.randint(5, 8)
        if kind is TEXTS:
            values: list[Any] = source.sample(WORDS, size - REPEATED)
        else:
            low, high = (-20, 60) if kind is NUMBERS else (1, 30)
            values = [source.randint(low, high) for _ in range(size - REPEATED)]
        values += source.sample(values, REPEATED)
        source.shuffle(values)
        yield dict(zip(source.sample(GOODS, size), values, strict=True)) if kind is PRICES else values


def tasks(source: random.Random) -> Iterator[Task]:
    """Every function once, those of the three kinds in turn while they last."""
    left = {}
    for kind in (NUMBERS, TEXTS, PRICES):
        every = [(keep, turn, give) for keep in kind.keeps for turn in kind.turns for give in kind.gives]
        source.shuffle(every)
        left[kind.argument] = (kind, every)
    while any(every for _, every in left.values()):
        for kind, every in left.values():
            if every:
                yield task(kind, every.pop(), source.choice(WORDINGS), source)


def written() -> dict[str, str]:
    """The text of each file, by its name; eval comes first, so that it is the prompts that make way."""
    source = random.Random(SEED)
    seen: list[set[str]] = []
    every = tasks(source)
    files = {}
    for name, count in COUNTS.items():
        rows: list[dict[str, object]] = []
        while len(rows) < count:
            one = next(every)
            signs = shingles(one.asked)
            if all(jaccard(signs, other) < NEAR for other in seen):
                seen.append(signs)
                asked = [{"role": "user", "content": one.asked}]
                rows.append({"messages": asked, "expected": list(one.tests), "tags": list(one.tags)})
        files[f"{name}.jsonl"] = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return files


def main() -> None:
    """Write both files."""
    for name, text in written().items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
