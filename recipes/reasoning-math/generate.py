"""Writes prompts.jsonl, eval.jsonl and edge.jsonl: word problems with exact answers, the same ones each time.

    python recipes/reasoning-math/generate.py

Each kind of problem has a few wordings, and draws its names, things and numbers from a seed. No problem resembles
another one, of whichever file, by more than NEAR (Jaccard of character 4-grams). Answers are computed with the problem,
so they are exact. Multiplication stays in the small tables and sums below some hundreds: what is to be learned is to
put the steps one after the other.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

from edgedistill.similarity import jaccard, shingles

FOLDER = Path(__file__).parent
SEED = 20
COUNTS = {"prompts": 400, "eval": 100, "edge": 24}
NEAR = 0.75
NAMES = re.findall(
    r"\w+",
    """
Ada Ben Carla Dario Elif Femi Greta Hugo Ines Jonas Kemal Lena Milo Nadia Oskar Pia Quinn Rosa Sami Tara Umar
Vera Wim Xenia Yara Zeno Aisha Boris Chiara Dylan Emre Flora Goran Hana Ivan Jelena Kofi Lucia Marek Noor
""",
)
THINGS = re.findall(
    r"\w+",
    """
apples pencils marbles stickers cookies buttons stamps shells candles postcards tulips lemons beads nails
magnets ribbons walnuts badges batteries sponges muffins pears coins bulbs
""",
)
BOXES = ["boxes", "bags", "crates", "jars", "trays", "packs", "baskets", "tins"]
GOODS = re.findall(
    r"\w+",
    """
notebook umbrella mug scarf lamp brush wallet cap kettle towel frame pillow vase mirror belt clock basket
blanket
""",
)
JOBS = [
    "walking dogs",
    "mowing lawns",
    "washing cars",
    "selling lemonade",
    "tutoring",
    "delivering papers",
    "babysitting",
]
PLANTS = ["tomato", "cabbage", "rose", "strawberry", "lettuce", "pepper", "sunflower", "bean"]
READS = ["novel", "comic", "atlas", "diary", "cookbook", "biography", "thriller"]
WORDS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 7: "seven", 8: "eight", 9: "nine", 10: "ten"}


SCENES = """It is a rainy Monday. / The market opens at dawn. / School is over for today. / The holidays have begun. /
Snow lies on the roofs. / A train whistles far away. / The kitchen smells of bread. / Nobody else is at home. / The fair
is in town again. / It is a windy afternoon. / The radio plays an old song. / Grandmother has come to visit. / The river
is high this spring. / Everybody is in a hurry. / The library is quiet. / A new shop has opened. / The bus is late once
more. / Lunch was very good. / The dog sleeps under the table. / It is the first warm day. / The lights go on in the
street. / A letter came this morning. / The club meets on Fridays. / There is music in the park.""".replace(
    "\n", " "
).split(" / ")


@dataclass
class Draw:
    """What a problem is filled with."""

    source: random.Random
    names: list[str] = field(default_factory=list)

    def name(self) -> str:
        """A name that this problem does not have yet."""
        found = self.source.choice([one for one in NAMES if one not in self.names])
        self.names.append(found)
        return found

    def of(self, words: list[str]) -> str:
        return self.source.choice(words)

    def between(self, low: int, high: int) -> int:
        return self.source.randint(low, high)


Problem = tuple[str, int]


def single(thing: str) -> str:
    """The thing behind its article."""
    return f"{'an' if thing[0] in 'aeiou' else 'a'} {thing}"


def packs(draw: Draw) -> Problem:
    who, thing, box = draw.name(), draw.of(THINGS), draw.of(BOXES)
    count, each = draw.between(3, 9), draw.between(4, 12)
    gone = draw.between(2, count * each - 3)
    return draw.of(
        [
            f"{who} has {count} {box} with {each} {thing} in each. {gone} {thing} are given away. How many "
            f"{thing} are left?",
            f"There are {count} {box} on {who}'s shelf, and each holds {each} {thing}. {who} uses {gone} of them. "
            f"How many {thing} does {who} still have?",
            f"A shop sells {thing} in {box} of {each}. {who} buys {count} {box} and drops {gone} {thing} on the "
            "way home. "
            "How many arrive?",
        ]
    ), count * each - gone


def change(draw: Draw) -> Problem:
    who, good = draw.name(), draw.of(GOODS)
    price, count = draw.between(3, 12), draw.between(2, 8)
    bill = next(note for note in (20, 50, 100) if note > price * count)
    return draw.of(
        [
            f"{single(good).capitalize()} costs {price} dollars. {who} buys {count} of them and pays with a {bill} "
            "dollar bill. How many dollars does the cashier give back?",
            f"{who} takes {count} items called {good} to the till, at {price} dollars each, and hands over {bill} "
            "dollars. "
            "How much change is due, in dollars?",
            f"With {bill} dollars in the purse, {who} pays for {count} times one {good} at {price} dollars. "
            "What is left in the purse, in dollars?",
        ]
    ), bill - price * count


def basket(draw: Draw) -> Problem:
    who, one, other = draw.name(), *draw.source.sample(GOODS, 2)
    (a, p), (b, q) = ((draw.between(2, 6), draw.between(3, 11)) for _ in range(2))
    return draw.of(
        [
            f"At the market {single(one)} is {p} dollars and {single(other)} is {q} dollars. {who} buys {a} of the "
            f"first and {b} of the second. How many dollars is that together?",
            f"{who} orders {a} x {one} for {p} dollars each, and {b} x {other} for {q} dollars each. What does "
            "the order "
            "cost in dollars?",
            f"For a fair, {who} needs {b} pieces of {other} ({q} dollars a piece) and {a} pieces of {one} ({p} "
            "dollars a "
            "piece). How many dollars are needed?",
        ]
    ), a * p + b * q


def shares(draw: Draw) -> Problem:
    who, thing, box = draw.name(), draw.of(THINGS), draw.of(BOXES)
    counts: list[int] = []
    while not counts:  # several boxes with several things in each
        friends, part = draw.between(3, 8), draw.between(3, 12)
        total = friends * part
        counts = [number for number in range(2, 10) if total % number == 0 and number not in (friends, total)]
    count = draw.source.choice(counts)
    each = total // count
    return draw.of(
        [
            f"{who} opens {count} {box} of {each} {thing} and shares all of them equally among {friends} children. "
            f"How many {thing} does each child get?",
            f"{friends} neighbours split {count} {box} evenly. Every one of the {box} contains {each} {thing}. "
            f"How many {thing} are there for each neighbour?",
        ]
    ), part


def savings(draw: Draw) -> Problem:
    who, good, job = draw.name(), draw.of(GOODS), draw.of(JOBS)
    start, weekly, weeks = draw.between(5, 60), draw.between(4, 12), draw.between(3, 9)
    return draw.of(
        [
            f"{who} has {start} dollars and earns {weekly} dollars a week by {job}. How many dollars does {who} "
            "have after "
            f"{weeks} weeks?",
            f"By {job}, {who} puts {weekly} dollars aside every week, for {weeks} weeks. Before that there were "
            f"{start} "
            f"dollars in the tin, meant for {single(good)}. How many dollars are in the tin now?",
        ]
    ), start + weekly * weeks


def trips(draw: Draw) -> Problem:
    who, what = draw.name(), draw.of(["cycles", "walks", "rides", "paddles", "skates", "runs"])
    speed, hours, more = draw.between(3, 12), draw.between(2, 7), draw.between(2, 30)
    return draw.of(
        [
            f"{who} {what} {speed} km an hour for {hours} hours, rests, and then goes {more} km further. "
            "How many km is that in all?",
            f"Each hour, {who} {what} {speed} km. After {hours} hours there are still {more} km to go. How long "
            "is the whole "
            "way in km?",
        ]
    ), speed * hours + more


def ages(draw: Draw) -> Problem:
    one, other = draw.name(), draw.name()
    age, times, years = draw.between(4, 12), draw.between(2, 5), draw.between(2, 9)
    return draw.of(
        [
            f"{one} is {age} years old. {other} is {times} times as old. How old will {other} be in {years} years?",
            f"In {years} years, how old is {other}, who is now {times} times as old as {one}? {one} is {age} today.",
        ]
    ), age * times + years


def garden(draw: Draw) -> Problem:
    who, plant = draw.name(), draw.of(PLANTS)
    rows, each, lost, new = draw.between(3, 9), draw.between(4, 11), draw.between(2, 9), draw.between(2, 12)
    return draw.of(
        [
            f"{who} plants {rows} rows of {each} {plant} seedlings. Frost kills {lost} of them, and {who} adds "
            f"{new} new ones. "
            f"How many {plant} seedlings are there now?",
            f"In {who}'s garden stand {rows} rows with {each} {plant} plants each. Snails eat {lost}; a friend "
            f"brings {new} "
            f"more. How many {plant} plants are in the garden then?",
        ]
    ), rows * each - lost + new


def reading(draw: Draw) -> Problem:
    who, book = draw.name(), draw.of(READS)
    daily, days, left = draw.between(6, 12), draw.between(3, 9), draw.between(5, 70)
    total = daily * days + left
    return draw.of(
        [
            f"{single(book).capitalize()} has {total} pages. {who} reads {daily} pages a day. How many pages are left "
            f"after {days} days?",
            f"{who} has been reading {single(book)} for {days} days, {daily} pages each day. Of its {total} pages, how "
            "many has "
            f"{who} not read yet?",
        ]
    ), left


def halves(draw: Draw) -> Problem:
    who, friend, thing = draw.name(), draw.name(), draw.of(THINGS)
    parts, part = draw.of([(2, "half"), (3, "a third"), (4, "a quarter"), (5, "a fifth")])  # type: ignore[list-item]
    each, found = draw.between(3, 12), draw.between(2, 15)
    total = int(parts) * each
    return draw.of(
        [
            f"{who} owns {total} {thing}, gives {part} of them to {friend}, and later finds {found} more. "
            f"How many {thing} does {who} have in the end?",
            f"Of {total} {thing}, {friend} takes {part}. {who} keeps the rest and buys {found} more. How many "
            f"{thing} does {who} "
            "have?",
        ]
    ), total - each + found


def sessions(draw: Draw) -> Problem:
    who, what = draw.name(), draw.of(["piano", "chess", "judo", "spelling", "drawing", "swimming", "violin"])
    minutes, days = draw.source.choice([10, 15, 20, 25, 30, 40]), draw.between(3, 7)
    off = min(draw.source.choice([5, 10, 15, 20]), minutes - 5)  # less than the session has
    return draw.of(
        [
            f"{who} practises {what} {minutes} minutes on each of {days} days, but stops {off} minutes early on "
            "the last one. "
            "How many minutes is that altogether?",
            f"{days} lessons of {what} take {minutes} minutes each. {who} is {off} minutes late for one of them. "
            "For how many "
            f"minutes was {who} there?",
        ]
    ), minutes * days - off


KINDS: dict[str, Callable[[Draw], Problem]] = {
    "packs": packs,
    "change": change,
    "basket": basket,
    "shares": shares,
    "savings": savings,
    "trips": trips,
    "ages": ages,
    "garden": garden,
    "reading": reading,
    "halves": halves,
    "sessions": sessions,
}


# what makes a problem an edge case: each takes one and changes it


def distracted(draw: Draw, problem: Problem) -> Problem:
    """With a number that has nothing to do with it."""
    text, answer = problem
    number = draw.between(3, 40)
    first = draw.of(
        [
            f"It is {number} degrees outside. ",
            f"The bus has the number {number}. ",
            f"{draw.name()} lives at number {number} of the same street. ",
        ]
    )
    return first + text, answer


def in_words(draw: Draw, problem: Problem) -> Problem:
    """With its small numbers in words."""
    text, answer = problem
    return " ".join(WORDS.get(int(word), word) if word.isdigit() else word for word in text.split(" ")), answer


def nothing_left(draw: Draw, problem: Problem) -> Problem:
    """With 0 as its answer."""
    who, thing, box = draw.name(), draw.of(THINGS), draw.of(BOXES)
    count, each = draw.between(3, 9), draw.between(3, 9)
    return (
        f"{who} had {count} {box} of {each} {thing}. All {count * each} {thing} were sold. How many are there now?"
    ), 0


def one_step(draw: Draw, problem: Problem) -> Problem:
    """With a single step."""
    who, thing = draw.name(), draw.of(THINGS)
    one, other = draw.between(10, 60), draw.between(10, 39)
    return f"{who} counts {one} red and {other} green {thing}. How many {thing} are there together?", one + other


EDGES: dict[str, Callable[[Draw, Problem], Problem]] = {
    "distractor": distracted,
    "number-words": in_words,
    "zero": nothing_left,
    "one-step": one_step,
}


def with_scene(draw: Draw, problem: Problem) -> Problem:
    """Behind a sentence that sets the scene, more often than not."""
    text, answer = problem
    return f"{draw.of(SCENES)} {text}" if draw.between(1, 3) > 1 else text, answer


def unlike(source: random.Random, seen: list[set[str]], edge: str | None, kind: str) -> Problem:
    """A problem of a kind that resembles none that was seen; it is then seen too."""
    while True:
        draw = Draw(source)
        problem = KINDS[kind](draw)
        problem = with_scene(draw, problem) if edge is None else EDGES[edge](draw, problem)
        signs = shingles(problem[0])
        if all(jaccard(signs, other) < NEAR for other in seen):
            seen.append(signs)
            return problem


def written() -> dict[str, str]:
    """The text of each file, by its name; edge and eval come first, so that it is the prompts that make way."""
    source = random.Random(SEED)
    seen: list[set[str]] = []
    kinds, edges = cycle(KINDS), cycle(EDGES)
    files = {}
    for name in ("edge", "eval", "prompts"):
        rows: list[dict[str, object]] = []
        for _ in range(COUNTS[name]):
            kind, edge = next(kinds), next(edges) if name == "edge" else None
            text, answer = unlike(source, seen, edge, kind)
            rows.append({"messages": [{"role": "user", "content": text}], "expected": answer, "tags": [edge or kind]})
        files[f"{name}.jsonl"] = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return files


def main() -> None:
    """Write the three files."""
    for name, text in written().items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
