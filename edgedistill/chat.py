"""Chat templates: the text a model is really shown.

A template comes with a model and is a program of a stranger: it is rendered with minijinja under fuel, without a
loader, and its output is capped. Nothing else renders one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import date
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

from .errors import InvalidInput
from .messages import with_calls
from .records import Message, Tool, ToolCall, read_json

__all__ = ["DAY", "PROBE", "SAMPLE", "ChatTemplate", "answer_text", "folder_template", "json_instance", "with_system"]

FUEL = 5_000_000
LARGEST_OUTPUT = 4 << 20
DEEPEST_INDENT = 16  # of JSON that a template writes: what is indented further is meant to fill memory
SAMPLE = "Yes."
PROBE = ToolCall("probe_4711", '{"key": 4711}', "probe4711")  # Mistral's templates want ids of nine signs
GENERATION = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")
"""What marks an answer for training, and writes nothing."""
DAY = date(2024, 7, 26)
"""What day it is for a template that asks, always: a prompt, its key and a saved state must not change overnight. It is
the day that Llama 3.2's template takes where nobody tells it one."""
OTHER_DAY = date(1999, 12, 31)


class ChatTemplate:
    """A model's chat template with the special tokens that it names."""

    def __init__(self, source: str, bos: str = "", eos: str = "") -> None:
        if not source:
            raise InvalidInput("the model has no chat template", "Use an instruct model, or add a chat_template.jinja.")
        self.source = source
        self.bos = bos
        self.eos = eos

    def render(self, messages: Sequence[Message], answer_next: bool = True, tools: Sequence[Tool] = ()) -> str:
        """The text of a conversation; with `answer_next` it ends where the assistant's answer begins.

        A template that writes no calls of tools is given them as text, in Hermes' form. Raises InvalidInput where the
        template refuses the conversation or does not end within its fuel.
        """
        return self.render_turns(list(map(self._turn, messages)), answer_next, tools=list(tools) or None)

    @cached_property
    def shows_tools(self) -> bool:
        """Whether the template tells a model which tools are on offer."""
        tool = {"type": "function", "function": {"name": PROBE.name, "description": "", "parameters": {}}}
        return PROBE.name in self.render((Message("user", "Hi"),), tools=(tool,))

    @cached_property
    def _writes_calls(self) -> bool:
        turns = [message.as_turn() for message in (Message("user", "Hi"), Message("assistant", "", (PROBE,)))]
        return PROBE.name in self.render_turns(turns, answer_next=False)

    def _turn(self, message: Message) -> dict[str, Any]:
        if message.tool_calls and not self._writes_calls:
            return Message(message.role, with_calls(message), reasoning=message.reasoning).as_turn()
        return message.as_turn()

    def sample_answer(self) -> str:
        """How a short answer stands behind its question, with what the template ends it by."""
        asked = (Message("user", "Hi"),)
        whole = self.render((*asked, Message("assistant", SAMPLE)), answer_next=False)
        return whole.removeprefix(self.render(asked))

    def shows_the_day(self, messages: Sequence[Message]) -> bool:
        """Whether the text of this conversation would be another one on another day."""
        turns = [message.as_turn() for message in messages]
        return self.render_turns(turns) != self.render_turns(turns, strftime_now=partial(_written, OTHER_DAY))

    def render_turns(self, turns: Sequence[dict[str, Any]], answer_next: bool = True, **variables: Any) -> str:
        """The same for turns with more than a role and a text, and for what some templates know besides.

        `variables` are the template's own, such as `tools` and `enable_thinking`. Raises what `render` raises.
        """
        from minijinja import TemplateError

        given = {"bos_token": self.bos, "eos_token": self.eos, **variables}
        try:
            text = _environment(self.source).render_template(
                "chat", messages=list(turns), add_generation_prompt=answer_next, **given
            )
        except TemplateError as error:
            raise InvalidInput(
                f"chat template: {_one_line(str(error))}", "The model's own template does not take this."
            ) from error
        if len(text) > LARGEST_OUTPUT:
            raise InvalidInput(f"chat template: output of {len(text)} characters", "Do not use this model.")
        return str(text)


def folder_template(folder: Path) -> ChatTemplate:
    """The chat template of a Hugging Face folder: its chat_template.jinja, else the one in tokenizer_config.json.

    Raises InvalidInput where there is none, or several.
    """
    settings = read_json(folder / "tokenizer_config.json", required=False)
    file = folder / "chat_template.jinja"
    template = file.read_text(encoding="utf-8") if file.is_file() else settings.get("chat_template") or ""
    if not isinstance(template, str):
        raise InvalidInput(f"{folder}: several chat templates", "Keep the one to use in chat_template.jinja.")
    return ChatTemplate(template, _special(settings.get("bos_token")), _special(settings.get("eos_token")))


def _special(token: Any) -> str:
    """The text of a special token, in either of the forms that tokenizer_config.json knows.

    >>> _special({"content": "<s>"}), _special(None)
    ('<s>', '')
    """
    return str(token["content"]) if isinstance(token, dict) else token or ""


def answer_text(value: Any) -> str:
    """An answer as the models write it: JSON without spaces, or the text itself.

    >>> answer_text({"on": True}), answer_text("yes")
    ('{"on":true}', 'yes')
    """
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def with_system(system: str, messages: Sequence[Message]) -> tuple[Message, ...]:
    """The conversation behind a system text. An empty one is sent too: it keeps a template from adding its own."""
    return (Message("system", system), *messages)


def json_instance(text: str) -> Any:
    """The JSON value that an answer is, or None where it is no JSON.

    >>> json_instance(' {"a": 1} ')
    {'a': 1}
    >>> json_instance("NaN") is None
    True
    """
    try:
        value = json.loads(text, parse_constant=_no_json)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # an escaped half of a surrogate pair is no text
    except (ValueError, RecursionError):
        return None
    return value


def _no_json(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


@lru_cache(maxsize=8)
def _environment(source: str) -> Any:
    from minijinja import Environment

    environment = Environment(
        templates={"chat": GENERATION.sub(_neutral, source)},
        undefined_behavior="lenient",
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=False,
        auto_escape_callback=lambda name: False,
    )
    environment.fuel = FUEL
    environment.add_global("raise_exception", _refuse)
    environment.add_global("strftime_now", partial(_written, DAY))
    environment.add_filter("tojson", _as_json)
    return environment


def _neutral(tag: re.Match[str]) -> str:
    """A tag that changes as little as the other does: blanks and line ends around it."""
    return f"{{%{tag[1]} {'endif' if tag[2] else 'if true'} {tag[3]}%}}"


def _written(day: date, form: Any) -> str:
    """The day as a template asks for it."""
    try:
        return day.strftime(form)
    except (TypeError, ValueError) as error:
        raise InvalidInput(
            f"chat template: strftime_now({form!r:.40}): {error}", "The model's own template is at fault."
        ) from error


def _refuse(reason: str) -> None:
    raise InvalidInput(
        f"chat template: {_one_line(str(reason))}", "The model's own template does not take this conversation."
    )


def _as_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Sequence[str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as transformers has templates write it: with its signs as they are, where Jinja itself writes HTML's."""
    if indent is not None and not 0 <= indent <= DEEPEST_INDENT:
        _refuse(f"JSON indented by {indent}")
    pair = None if separators is None else (str(separators[0]), str(separators[1]))
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=pair, sort_keys=sort_keys)


def _one_line(text: str) -> str:
    """The first line of a stranger's text, without what could steer a terminal."""
    line = next(iter(text.strip().splitlines()), "")
    return "".join(letter if letter.isprintable() else " " for letter in line[:200])
