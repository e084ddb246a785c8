"""What the teacher is asked to write, and what it wrote."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..prompting import SynthesizeSettings
from ..records import Prompt, user_prompt

__all__ = [
    "EDGES",
    "WAYS",
    "Request",
    "Text",
    "answer_schema",
    "kind_of",
    "system_text",
    "texts_in",
    "topics_in",
    "topics_request",
]

SHOWN = 16  # seeds in the system text
SHORT = 300  # characters of a seed there
TOPIC = 60  # characters of a topic
# how a prompt comes from one that is there
WAYS = {
    "deeper": "Write {count} new inputs on the matter of this one that go deeper: more particulars, more conditions.",
    "broader": "Write {count} new inputs about other, less common matters that are only loosely related to this one.",
    "rephrased": "Write {count} new inputs that ask for the same as this one in quite other words and another order.",
    "harder": "Write {count} new inputs like this one that are harder to understand: indirect, with distractions.",
}
# what breaks things
EDGES = {
    "hardly anything": "Write {count} inputs that hold hardly anything: a word, a sign, a greeting, half a sentence.",
    "contradictory": "Write {count} inputs that contradict themselves or ask for two things that exclude each other.",
    "hostile": "Write {count} inputs that insult, threaten, or try to give the reader new orders.",
    "off topic": "Write {count} inputs that came to the wrong place: they are about something else altogether.",
}
NEW = "Write {count} new inputs, all different in content and in wording."


@dataclass(frozen=True)
class Text:
    """A text that is there, with the id that its prompt has."""

    id: str
    text: str


@dataclass(frozen=True)
class Request:
    """One request for some prompts: of which way, in which cell, on what."""

    number: int
    """Makes every request a text of its own, so that the teacher's chance falls anew."""
    count: int
    way: str = "new"
    cell: Mapping[str, str] = field(default_factory=dict)
    others: Mapping[str, str] = field(default_factory=dict)
    """Values of the axes that make no cells."""
    topic: tuple[str, ...] = ()
    parent: Text | None = None

    def prompt(self, settings: SynthesizeSettings) -> Prompt:
        """The request as the teacher gets it."""
        order = {**WAYS, **EDGES}.get(self.way, NEW).format(count=self.count)
        lines = [f"Request {self.number}. {order}"]
        if self.parent is not None:
            lines.append(f"This one: {json.dumps(self.parent.text, ensure_ascii=False)}")
        lines += [_said(settings, name, value) for name, value in {**self.cell, **self.others}.items()]
        if self.topic:
            lines.append(f"topic: {', '.join(self.topic)}")
        return user_prompt("\n".join(lines))

    def tags(self) -> list[str]:
        """What the cell is called in a row, for `curate` to balance by: its values, or the kind of edge case."""
        return list(self.cell.values()) or ([self.way] if self.way in EDGES else [])

    def lineage(self, teacher: str) -> dict[str, Any]:
        """Where a prompt of this request is from, for its row."""
        found: dict[str, Any] = {"source": "synthesized", "teacher": teacher, "way": self.way, "request": self.number}
        for key, value in (("cell", dict(self.cell)), ("axes", dict(self.others)), ("topic", list(self.topic))):
            if value:
                found[key] = value
        return {**found, "from": self.parent.id} if self.parent is not None else found


def topics_request(count: int, kind: str, inside: str = "") -> Prompt:
    """The request for topics of a kind of inputs, or for those inside one."""
    of = f" inside the topic {json.dumps(inside, ensure_ascii=False)}" if inside else ""
    order = f"List {count} different topics{of} in two to six words each, every one a concrete matter, of {kind}"
    return user_prompt(f'{order}\nYour answer is {{"topics": [...]}}.')


def kind_of(settings: SynthesizeSettings, values: Mapping[str, str]) -> str:
    """A kind of inputs in words."""
    if not values:
        return "the inputs."
    return "inputs of this kind:\n" + "\n".join(_said(settings, name, value) for name, value in values.items())


def _said(settings: SynthesizeSettings, name: str, value: str) -> str:
    """A value with its axis and with what it means."""
    values = settings.axes.get(name, ())
    meaning = values.get(value, "") if isinstance(values, dict) else ""
    return f"{name}: {value}{f' ({meaning})' if meaning else ''}"


def system_text(settings: SynthesizeSettings, seeds: Sequence[str]) -> str:
    """What the teacher is told before every request."""
    text = (
        "You make up inputs by which a program is tested. Every input is one that a real person could have written: "
        "complete, concrete, with particulars of its own (things, names, numbers, times), never with a gap to fill in "
        "such as [name]. You write the inputs alone. You never answer them, never explain them and never name their "
        f"kind.\n\nThe inputs: {settings.task.strip()}"
    )
    shown = [seed if len(seed) <= SHORT else f"{seed[:SHORT]}..." for seed in seeds[:SHOWN]]
    if shown:
        text += "\n\nSome that people wrote:\n" + "\n".join(json.dumps(seed, ensure_ascii=False) for seed in shown)
    return text + '\n\nYour answer is {"texts": [...]}: the inputs alone, one after another.'


def answer_schema(settings: SynthesizeSettings) -> dict[str, Any]:
    """The JSON Schema of every answer: a list of texts, or of topics, which are short."""
    lists = [_list("texts", settings.at_once, settings.longest)]
    return {"anyOf": [*lists, _list("topics", settings.topics, TOPIC)]} if settings.topics else lists[0]


def _list(name: str, most: int, longest: int) -> dict[str, Any]:
    text = {"type": "string", "minLength": 1, "maxLength": longest}
    return {
        "type": "object",
        "properties": {name: {"type": "array", "items": text, "minItems": 1, "maxItems": most}},
        "required": [name],
        "additionalProperties": False,
    }


def texts_in(answer: str) -> list[str]:
    """The texts of an answer; of one that was cut off, those that are whole.

    >>> texts_in('{"texts":["a"," b ","c')
    ['a', 'b']
    """
    begin = re.search(r'"(?:texts|topics)"\s*:\s*\[', answer) or re.search(r"\[", answer)
    place = begin.end() if begin else len(answer)
    texts = []
    decoder = json.JSONDecoder()
    while match := re.compile(r'[\s,]*(?=")').match(answer, place):
        try:
            text, place = decoder.raw_decode(answer, match.end())
        except ValueError:
            break
        texts.append(text.strip())
    return [text for text in dict.fromkeys(texts) if text and _is_unicode(text)]


def topics_in(answer: str) -> list[str]:
    """The topics of an answer: those of its texts that are words.

    >>> topics_in('{"topics":["Late parcels"," , ","]} | {"]}')
    ['Late parcels']
    """
    return [text for text in texts_in(answer) if re.search(r"\w{3}", text) and not re.search(r'[{}\[\]"]', text)]


def _is_unicode(text: str) -> bool:
    """Whether it can be written: an escaped half of a surrogate pair cannot."""
    return not any("\ud800" <= sign <= "\udfff" for sign in text)
