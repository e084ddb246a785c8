"""Conversations that a tokenizer and a chat template are tried on: always the same ones."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ..chat import ChatTemplate
from ..errors import InvalidInput

__all__ = ["CONVERSATIONS", "Rendered", "probes", "rendered"]

CONVERSATIONS = 200

FRAGMENTS = (
    "turn on the light in the kitchen",
    "What's the weather like? I'd say it's they're we've CAN'T",
    "Ünïcödé: äöüß ñ ç é \u2014 \u201cquotes\u201d \u2026 \u20ac",
    "\u4e2d\u6587 \u65e5\u672c\u8a9e \ud55c\uad6d\uc5b4 \u0627\u0644\u0639\u0631\u0628\u064a\u0629",
    "\u05e2\u05d1\u05e8\u05d9\u05ea \u0939\u093f\u0928\u094d\u0926\u0940 \u0e44\u0e17\u0e22",
    "\u0420\u0443\u0441\u0441\u043a\u0438\u0439 \u0395\u03bb\u03bb\u03b7\u03bd\u03b9\u03ba\u03ac",
    "0 1 12 123 1234 12345 3.14159 2026-11-24T08:30:00Z 1,000,000",
    'def f(x):\n    return {"a": [1, 2, x]}  # code\n\n\tif x:\n\t\tpass',
    '{"action":"turn_on","value":null,"list":[1,2.5,"x"]}',
    "<b>bold</b> & <|not_special|> [INST] {{ name }} {% if %}",
    "\U0001f600\U0001f680\U0001f469\u200d\U0001f469\u200d\U0001f467 and \u200b zero width, e\u0301 combining",
    "  leading, trailing  \n\n\n   and   many    spaces\t\ttabs\r\n",
    "https://example.org/a?b=c&d=%20#e user@example.org C:\\path\\file ~/x $HOME",
    "x" * 40 + "!" * 12 + "-" * 9,
    "\u00bd \u00b2 \u2167 \u0663 \u00a0nbsp \u2003em \u3000wide",
)
SYSTEMS = (
    "",
    "You are a helpful assistant.",
    "Answer in JSON.\nNothing else.",
    "R\u00e9ponds en fran\u00e7ais \u2014 bri\u00e8vement.",
)
TOOLS: tuple[dict[str, Any], ...] = tuple(
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"{what}.",
            "parameters": {
                "type": "object",
                "properties": {argument: {"type": "string", "description": f"The {argument}"}},
                "required": [argument],
            },
        },
    }
    for name, what, argument in (
        ("get_weather", "Tell the weather of a city", "city"),
        ("set_light", "Turn a light on or off", "room"),
    )
)


@dataclass(frozen=True, slots=True)
class Probe:
    """One conversation: its turns as templates take them, and what else they are told."""

    turns: tuple[dict[str, Any], ...]
    answer_next: bool
    tools: bool = False
    thinking: bool | None = None


@dataclass(slots=True)
class Rendered:
    """What a template made of the conversations."""

    texts: list[str] = field(default_factory=list)
    kinds: dict[str, int] = field(default_factory=dict)
    """How many of them have a system text, several turns, tools, thinking on or off, an answer to come."""
    refused: str = ""
    """Why the template did not take the last conversation that it took in no form."""


def probes(count: int = CONVERSATIONS) -> Iterator[Probe]:
    """The conversations, the same on every machine.

    >>> [probe.thinking for probe in probes(5)]
    [None, True, False, None, True]
    """
    chosen = random.Random(0)
    for number in range(count):
        tools = number % 8 in (3, 4)
        turns: list[dict[str, Any]] = []
        if number % 2:
            turns.append({"role": "system", "content": chosen.choice(SYSTEMS)})
        for _ in range(number % 3):
            turns += ({"role": "user", "content": _text(chosen)}, {"role": "assistant", "content": _text(chosen)})
        turns.append({"role": "user", "content": _text(chosen)})
        if tools:
            turns += _tool_turns(chosen, number)
        answer_next = number % 5 != 4
        if not answer_next:
            turns.append({"role": "assistant", "content": _text(chosen)})
        yield Probe(tuple(turns), answer_next, tools, (None, True, False)[number % 3])


def _text(chosen: random.Random) -> str:
    joined = chosen.choice((" ", "\n", ". "))
    return joined.join(chosen.choice(FRAGMENTS) for _ in range(chosen.randint(1, 3)))


def _tool_turns(chosen: random.Random, number: int) -> tuple[dict[str, Any], dict[str, Any]]:
    function = TOOLS[number // 4 % len(TOOLS)]["function"]
    arguments = {function["parameters"]["required"][0]: chosen.choice(FRAGMENTS)}
    name = function["name"]
    call = {"id": "a1b2c3d4e", "type": "function", "function": {"name": name, "arguments": arguments}}
    answer = json.dumps({"result": chosen.choice(FRAGMENTS)}, ensure_ascii=False)
    return (
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "a1b2c3d4e", "name": name, "content": answer},
    )


def rendered(template: ChatTemplate, count: int = CONVERSATIONS) -> Rendered:
    """The conversations as the template writes them.

    There are tools and thinking where the template knows of them. A conversation that it refuses loses its tools, then
    its system text: some templates take neither.
    """
    found = Rendered()
    knows_thinking = "enable_thinking" in template.source
    for probe in probes(count):
        for form in _forms(probe, "tools" in template.source):
            variables: dict[str, Any] = {"tools": list(TOOLS)} if form.tools else {}
            if knows_thinking and probe.thinking is not None:
                variables["enable_thinking"] = probe.thinking
            try:
                text = template.render_turns(form.turns, form.answer_next, **variables)
            except InvalidInput as error:
                found.refused = error.message
                continue
            found.texts.append(text)
            for kind, is_so in _kinds(form, variables):
                found.kinds[kind] = found.kinds.get(kind, 0) + is_so
            break
    return found


def _forms(probe: Probe, takes_tools: bool) -> Iterator[Probe]:
    """The conversation, then ever plainer ones."""
    if takes_tools or not probe.tools:
        yield probe
    plain = tuple(turn for turn in probe.turns if turn["role"] != "tool" and "tool_calls" not in turn)
    if probe.tools:
        yield Probe(plain, probe.answer_next, False, probe.thinking)
    if plain[0]["role"] == "system":
        yield Probe(plain[1:], probe.answer_next, False, probe.thinking)


def _kinds(probe: Probe, variables: dict[str, Any]) -> Iterator[tuple[str, bool]]:
    yield "system", probe.turns[0]["role"] == "system"
    yield "several turns", sum(turn["role"] == "user" for turn in probe.turns) > 1
    yield "tools", probe.tools
    yield "thinking on", variables.get("enable_thinking") is True
    yield "thinking off", variables.get("enable_thinking") is False
    yield "answer to come", probe.answer_next
