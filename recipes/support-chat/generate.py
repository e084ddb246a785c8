"""Writes prompts.jsonl and eval.jsonl: first messages to a shop's support, with persona and goal, the same each time.

    python recipes/support-chat/generate.py

A concern is a thing that customers write for, with what they know and want. Its first messages are put together from
how one begins, what is the matter and what is said besides; those of the eval rows begin and are said otherwise. No
message is there twice, and none resembles another one, of either file, by NEAR (Jaccard of character 4-grams).
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgedistill.similarity import jaccard, shingles

FOLDER = Path(__file__).parent
SEED = 11
COUNTS = {"eval": 30, "prompts": 96}
NEAR = 0.7
ARTICLES = (
    *("hedge shears", "pruning saw", "watering can", "wheelbarrow", "hand fork", "garden hose", "raised bed kit"),
    *("potting bench", "cordless trimmer", "leaf rake", "rain gauge", "cold frame"),
)
SEEDS = ("basil", "carrot", "tomato", "sweet pea", "lettuce", "sunflower", "radish", "parsley")
PERSONAS = (
    "Friendly and a little long-winded; thanks for everything.",
    "In a hurry: fragments, no greeting, wants the answer first.",
    "Annoyed, because it is not the first time; stays polite as long as the answers are to the point.",
    "Elderly, new to buying online; asks back when a word is not plain.",
    "Matter-of-fact; one question at a time.",
    "Distrustful: wants to know what it costs and who pays before anything else.",
    "Cheerful beginner in the garden, with little idea of tools.",
    "Writes in short sentences; English is not the first language.",
)
BEGINNINGS = {
    "prompts": ("Hello, ", "Hi there! ", "Good morning. ", "", "", "Dear Larkfield team, ", "Quick one: "),
    "eval": ("Good evening, ", "", "Hey, ", "To whom it may concern: ", "Sorry to bother you. "),
}


@dataclass(frozen=True)
class Concern:
    """What a customer writes for. Texts have slots: `{article}`, `{seed}`, `{order}`, `{days}`, `{months}`."""

    name: str
    goal: str
    matter: dict[str, tuple[str, ...]]
    besides: tuple[str, ...] = ("",)


CONCERNS = (
    Concern(
        "return",
        "You want to send back the {article} that came {days} days ago, unused. Find out whether you may, who pays the "
        "postage, and when you get your money. Your order is {order}.",
        {
            "prompts": (
                "can I send the {article} back?",
                "I ordered a {article} and it is not what I thought.",
                "the {article} is too big for my shed, I'd rather return it.",
            ),
            "eval": (
                "my husband bought the same {article} on the same day. What now?",
                "I changed my mind about the {article}.",
            ),
        },
        ("", " It is still in its box.", " I have not used it."),
    ),
    Concern(
        "late parcel",
        "Your {article}, order {order}, was sent {days} days ago and has not come. Find out what Larkfield does about "
        "it, and by when you will hear.",
        {
            "prompts": (
                "where is my {article}?",
                "I am still waiting for a {article}.",
                "the tracking of my parcel with the {article} has not moved for days.",
            ),
            "eval": ("nothing has come yet, and I need the {article} on Saturday.", "has the {article} gone missing?"),
        },
        ("", " It should have been here last week.", " Nobody has rung at my door."),
    ),
    Concern(
        "damaged",
        "The {article} of order {order} came {days} days ago with a crack. You have a photo. Find out what to send, "
        "and whether you get a new one for free.",
        {
            "prompts": (
                "my {article} arrived broken.",
                "I opened the box and the {article} has a crack in it.",
                "the {article} came damaged, the box was dented.",
            ),
            "eval": (
                "unpacked the {article} and there's a split down one side.",
                "this {article} can't be used as it is.",
            ),
        },
        ("", " What do you need from me?", " I could take a picture."),
    ),
    Concern(
        "warranty",
        "Your {article} broke after {months} months of normal use. Find out whether the warranty still covers it, and "
        "what you have to do. Your order was {order}.",
        {
            "prompts": (
                "the {article} from you has broken.",
                "after {months} months my {article} has given up.",
                "is there still a warranty on a {article}?",
            ),
            "eval": (
                "a {article} should last longer than {months} months, shouldn't it?",
                "my {article} fell apart in my hands.",
            ),
        },
        ("", " I took good care of it.", " I have the invoice."),
    ),
    Concern(
        "address",
        "You ordered a {article} today, order {order}, to your old address by mistake. You want it sent to 14 Mill "
        "Lane. Find out whether that can still be changed.",
        {
            "prompts": (
                "I gave you the wrong address for the {article}.",
                "can the address of an order be changed? It's a {article}.",
                "we have moved, and I forgot to change it when I ordered the {article}.",
            ),
            "eval": ("the {article} is on its way to a flat where I don't live any more, I fear.",),
        },
        ("", " I ordered an hour ago.", " I noticed just now."),
    ),
    Concern(
        "cancel",
        "You ordered two of the {article} instead of one, order {order}, this morning. You want one of them cancelled. "
        "Find out whether that works before it is sent, and when the money comes back.",
        {
            "prompts": (
                "I ordered the {article} twice by accident.",
                "please cancel one {article} of my order.",
                "there are two of the {article} in my order, I only want one.",
            ),
            "eval": ("my finger slipped: it's one {article} too many.", "one {article} would have been enough."),
        },
        ("", " It was this morning.", " Is it too late?"),
    ),
    Concern(
        "invoice",
        "You need an invoice for the {article}, order {order}, with the name of your firm, Birch & Sons. Find out how "
        "you get one.",
        {
            "prompts": (
                "I need an invoice for the {article}.",
                "there was no invoice in the parcel with the {article}.",
                "can you make out the invoice for my {article} to my firm?",
            ),
            "eval": ("our bookkeeper asks for papers on a {article}.",),
        },
        ("", " It's for the tax office.", " By e-mail is fine."),
    ),
    Concern(
        "no seedlings",
        "You sowed the {seed} seeds {days} days ago as the packet says, and nothing came up. Find out whether "
        "Larkfield does anything about it. Your order was {order}.",
        {
            "prompts": (
                "your {seed} seeds don't come up.",
                "I have sown {seed} and there is nothing to be seen.",
                "not one of the {seed} seeds has sprouted.",
            ),
            "eval": ("my tray of {seed} stays bare.", "what am I doing wrong with the {seed}?"),
        },
        ("", " I watered them every day.", " It says ten days on the packet."),
    ),
    Concern(
        "voucher",
        "You have a voucher of 25 pounds from {months} months ago and want a {article}. Find out whether the voucher "
        "is still valid, and whether it pays for the postage too.",
        {
            "prompts": (
                "can I pay for a {article} with a voucher?",
                "I found an old voucher and would like a {article}.",
                "how long is a voucher valid? I want a {article}.",
            ),
            "eval": ("there's a gift card in my drawer; does it buy a {article}?",),
        },
        ("", " It is worth 25 pounds.", " It was a birthday present."),
    ),
    Concern(
        "postage",
        "You live on an island, in Orkney, and want a {article}. Find out what the delivery costs there and how long "
        "it takes.",
        {
            "prompts": (
                "do you deliver a {article} to the islands?",
                "what does it cost to have a {article} sent to Orkney?",
                "how long does a {article} take to reach an island?",
            ),
            "eval": ("we're on Orkney. Any chance of a {article}?",),
        },
        ("", " I could not find it on your site.", " Is there a surcharge?"),
    ),
    Concern(
        "advice",
        "You want to cut back {plant}, and don't know which tool to take. Find out which one Larkfield names for it, "
        "and whether you can send it back if it doesn't suit you.",
        {
            "prompts": (
                "which tool do I need for {plant}?",
                "I want to cut back {plant}. What do you recommend?",
                "what is best for {plant}?",
            ),
            "eval": ("my neighbour says I need something proper for {plant}.",),
        },
        ("", " I have never done it before.", " Nothing too heavy, please."),
    ),
    Concern(
        "account",
        "You want no more newsletters, and your account deleted. Find out how to do both, and what becomes of the "
        "warranty on your {article}.",
        {
            "prompts": (
                "I want my account deleted.",
                "please stop sending me newsletters.",
                "I get a newsletter every day since I bought the {article}.",
            ),
            "eval": ("how do I get off your mailing list? I only bought a {article} once.",),
        },
        ("", " I have asked before.", " How do I do that?", " I bought a {article} from you."),
    ),
)
PLANTS = ("a box hedge", "an old apple tree", "roses", "branches as thick as my wrist", "long grass", "ivy on a wall")


@dataclass(frozen=True)
class Talk:
    """The first message of a conversation, who writes it, and for what."""

    text: str
    persona: str
    goal: str
    concern: str

    def row(self) -> dict[str, object]:
        asked = [{"role": "user", "content": self.text}]
        return {"messages": asked, "goal": self.goal, "persona": self.persona, "tags": [self.concern]}


def talks(name: str, source: random.Random) -> Iterator[Talk]:
    """First messages for a file without end, of each concern in turn."""
    while True:
        for concern in CONCERNS:
            slots = {
                "article": source.choice(ARTICLES),
                "seed": source.choice(SEEDS),
                "plant": source.choice(PLANTS),
                "order": f"L-{source.randint(20000, 89999)}",
                "days": source.randint(6, 26),
                "months": source.randint(4, 30),
            }
            begins, matter = source.choice(BEGINNINGS[name]), source.choice(concern.matter[name])
            said = f"{begins}{matter if begins.endswith((', ', ': ')) else matter[0].upper() + matter[1:]}"
            text = f"{said}{source.choice(concern.besides)}".format(**slots)
            yield Talk(text, source.choice(PERSONAS), concern.goal.format(**slots), concern.name)


def written() -> dict[str, str]:
    """The text of each file, by its name; eval comes first, so that it is the prompts that make way."""
    source = random.Random(SEED)
    seen: list[set[str]] = []
    files = {}
    for name, count in COUNTS.items():
        rows: list[dict[str, object]] = []
        every = talks(name, source)
        while len(rows) < count:
            one = next(every)
            signs = shingles(one.text)
            if all(jaccard(signs, other) < NEAR for other in seen):
                seen.append(signs)
                rows.append(one.row())
        files[f"{name}.jsonl"] = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return files


def main() -> None:
    """Write both files."""
    for name, text in written().items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
