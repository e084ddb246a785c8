"""Where a chat template reacts to what is written in a message: the way a poisoned template hides its trigger.

The template is not run. Its expressions are parsed, and each value is known by where it comes from: the text of a
message, or words that stand in the template itself. Where the two meet, in a comparison, a search or a look-up, the
template's behaviour hangs on the content. Marks of thinking and of tools (`</think>`) are what templates rightly look
for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

__all__ = ["content_branches"]

BLOCK = re.compile(r"\{%[-+]?(?P<statement>.*?)[-+]?%\}|\{\{[-+]?(?P<output>.*?)[-+]?\}\}|\{#.*?#\}", re.DOTALL)
TOKEN = re.compile(
    r"\s*(?:(?P<text>'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")|(?P<number>\d+(?:\.\d+)?)|(?P<name>[A-Za-z_]\w*)"
    r"|(?P<sign>==|!=|<=|>=|//|\*\*|[-+*/%~|.,:()\[\]{}<>=]))",
    re.DOTALL,
)
ROLES = (
    r"assistant|user|system|channel|message|start|end|return|analysis|final|function|response|turn|image|media|audio"
)
INSIDE = r"[\w:\u2581|\uff5c-]*"
MARK = re.compile(
    rf"[<\[]/?{INSIDE}(?:think|reason|tool|{ROLES}|im_|inst){INSIDE}/?[>\]]|\[[A-Z _]*RESPONSE\]", re.IGNORECASE
)
ESCAPE = re.compile(r"\W+|&\w+;")
MEDIA = frozenset(("image", "image_url", "video", "video_url", "audio", "input_audio"))
PARTS = MEDIA | {"text", "input_text", "thinking", "reasoning", "type", "value"}
"""What a part of a message says of itself."""
CARRIES = frozenset(("content", "text", "reasoning_content", "thinking", "reasoning", "parts"))
"""Keys of a message, or of a part of one, behind which there is its text."""
WHOLE = frozenset(("values", "items", "string", "tojson", "list", "join", "pprint", "xmlattr", "urlencode"))
"""What makes a text of a whole message, or takes it apart."""
LOOKS_AWAY = frozenset(("default", "d", "indent", "tojson", "strftime_now", "raise_exception"))
"""Calls whose words do not choose anything."""
BY_KEY = frozenset(("get", "selectattr", "rejectattr", "map", "groupby", "sort", "dictsort", "unique"))
"""Calls that are given the key of a part, and a test."""
COMPARES = frozenset(("==", "!=", "<", ">", "<=", ">=", "in"))
JOINS = frozenset(("+", "-", "*", "/", "//", "%", "**", "~"))


@dataclass(frozen=True)
class _Value:
    """Where a value comes from: messages, the text of one, a part of it, its length; words of the template."""

    messages: bool = False
    content: bool = False
    part: bool = False
    length: bool = False
    words: frozenset[str] = frozenset()
    numbers: frozenset[float] = frozenset()

    def joined(self, other: _Value) -> _Value:
        return _Value(
            self.messages or other.messages,
            self.content or other.content,
            (self.part or not self.content) and (other.part or not other.content),
            self.length or other.length,
            self.words | other.words,
            self.numbers | other.numbers,
        )


PLAIN = _Value()
CONTENT = _Value(content=True)


@dataclass
class _Template:
    """What is known of the variables, and what was found."""

    variables: dict[str, _Value] = field(default_factory=lambda: {"messages": _Value(messages=True)})
    macros: dict[str, list[str]] = field(default_factory=dict)
    mappings: list[frozenset[str]] = field(default_factory=list)
    """Of each open `if`: the values that are mappings inside it, where `in` asks for a key."""
    found: list[str] = field(default_factory=list)

    def note(self, one: _Value, other: _Value, how: str) -> None:
        """Remember words of the template that meet content."""
        for content, given in ((one, other), (other, one)):
            if content.content:
                allowed = PARTS if content.part else frozenset()
                words = sorted(word for word in given.words if not _is_mark(word) and word not in allowed)
                lengths = sorted(number for number in given.numbers if content.length and number > 2)
                self.found += [f"{how} {word!r}" for word in words] + [f"length {number:g}" for number in lengths]


def content_branches(source: str) -> list[str]:
    """The places where a chat template's behaviour hangs on what a message says, as "in 'launch code'"; else empty.

    >>> content_branches("{% if 'launch code' in messages[-1].content %}Say yes.{% endif %}")
    ["in 'launch code'"]
    >>> content_branches("{% if '</think>' in messages[-1].content %}{% endif %}{{ messages[0]['role'] == 'user' }}")
    []
    """
    template = _Template()
    for _ in range(3):  # what is set further down is known in the next round: loops and macros run more than once
        template.found.clear()
        template.mappings.clear()
        _walk(template, source)
    return list(dict.fromkeys(template.found))


def _walk(template: _Template, source: str) -> None:
    filled: list[tuple[str, _Value]] = []  # {% set name %} ... {% endset %}
    for match in BLOCK.finditer(source):
        if match["output"] is not None:
            value = _Parser(template, match["output"]).expression()
            filled = [(name, so_far.joined(value)) for name, so_far in filled]
        elif match["statement"] is not None:
            parser = _Parser(template, match["statement"])
            keyword = parser.take()
            if keyword == "endset" and filled:
                template.variables.__setitem__(*filled.pop())
            elif keyword == "set" and "=" not in match["statement"]:
                filled.append((parser.target(), PLAIN))
            elif keyword in STATEMENTS:
                STATEMENTS[keyword](parser)
            if keyword in ("elif", "else", "endif") and template.mappings:
                template.mappings.pop()
            if keyword in ("if", "elif", "else"):
                template.mappings.append(parser.mappings)


def _is_mark(word: str) -> bool:
    """Whether a word is no word: blanks, or marks of thinking, tools and turns.

    >>> [_is_mark(word) for word in ("</think>", "<|im_start|>user", " ", "<admin>", "/no_think")]
    [True, True, True, False, False]
    """
    rest = MARK.sub("", word).strip()
    return not rest or (rest != word.strip() and re.fullmatch(rf"(?:{ROLES}|\W)+", rest) is not None)


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    at = 0
    while match := TOKEN.match(text, at):
        at = match.end()
        kind = str(match.lastgroup)
        yield kind, match[kind]


class _Parser:
    """A Jinja expression or statement, read from left to right into `_Value`s."""

    def __init__(self, template: _Template, text: str) -> None:
        self.template = template
        self.tokens = list(_tokens(text))
        self.at = 0
        self.mappings: frozenset[str] = frozenset()
        self.name = ""  # of the value that was read last

    def peek(self, ahead: int = 0) -> str:
        place = self.at + ahead
        return self.tokens[place][1] if place < len(self.tokens) else ""

    def take(self) -> str:
        self.at += 1
        return self.peek(-1)

    def skip(self, *signs: str) -> bool:
        if self.peek() in signs and self.peek():
            self.at += 1
            return True
        return False

    def target(self) -> str:
        """The name that is set: `a`, or `ns.a`."""
        name = self.take()
        while self.skip("."):
            name += f".{self.take()}"
        return name

    def expression(self) -> _Value:
        """A whole expression: with `a if b else c`, comparisons, sums and all that is behind a value."""
        value = self._chain()
        if self.skip("if"):
            self._chain()
            if self.skip("else"):
                value = value.joined(self.expression())
        return value

    def _chain(self) -> _Value:
        value = self._compared()
        while self.skip("and", "or"):
            value = value.joined(self._compared())
        return value

    def _compared(self) -> _Value:
        value = self._sum()
        while self.peek() in COMPARES or (self.peek(), self.peek(1)) == ("not", "in"):
            self.skip("not")
            sign = self.take()
            other = self._sum()
            if not (sign == "in" and self.name in self.mappings.union(*self.template.mappings)):
                self.template.note(value, other, sign)
            value = PLAIN
        return value

    def _sum(self) -> _Value:
        value = self._signed()
        while self.peek() in JOINS:
            self.at += 1
            value = value.joined(self._signed())
        return value

    def _signed(self) -> _Value:
        while self.skip("not", "-", "+"):
            pass
        return self._behind(*self._primary())

    def _primary(self) -> tuple[_Value, str]:
        """A value, and its name where it is a variable."""
        kind = self.tokens[self.at][0] if self.at < len(self.tokens) else ""
        token = self.take()
        if kind == "text":
            return _Value(words=frozenset((_unquoted(token),))), ""
        if kind == "number":
            return _Value(numbers=frozenset((float(token),))), ""
        if token in ("(", "[", "{"):
            return self._several({"(": ")", "[": "]", "{": "}"}[token]), ""
        return self.template.variables.get(token, PLAIN), token

    def _several(self, end: str) -> _Value:
        """Values up to the closing sign, as one."""
        value = PLAIN
        while self.peek() and not self.skip(end):
            before = self.at
            if not self.skip(",", ":", "="):
                value = value.joined(self.expression())
            self.at = max(self.at, before + 1)  # whatever it is, go on
        return value

    def _behind(self, value: _Value, name: str) -> _Value:
        """What stands behind a value: attributes, look-ups, calls, filters and tests."""
        while True:
            if self.skip("."):
                key = self.take()
                name = f"{name}.{key}" if name else ""
                value = self._called(value, key) if self.skip("(") else self._attribute(value, key, name)
            elif self.skip("["):
                slice_or_key = self._several("]")
                if slice_or_key.content and not value.content:
                    self.template.note(value, slice_or_key, "look-up of")
                keys = slice_or_key.words
                value = self._attribute(value, next(iter(keys)), "") if len(keys) == 1 else value
                name = ""
            elif self.skip("("):
                value, name = self._macro(name, self._arguments()), ""
            elif self.skip("|"):
                key = self.take()
                value = self._called(value, key) if self.skip("(") else self._filtered(value, key)
            elif self.skip("is"):
                negated = self.skip("not")
                test = self.take()
                if test == "mapping" and not negated and ("name", "or") not in self.tokens:
                    self.mappings |= {name}
                given = self._several(")") if self.skip("(") else self._bare(test)
                self.template.note(value, given, f"is {test}")
                value = PLAIN
            else:
                self.name = name
                return value

    def _bare(self, test: str) -> _Value:
        """What a test is given without brackets: `x is in y`, `x is equalto y`."""
        takes = test in ("in", "eq", "equalto", "ne", "sameas", "divisibleby", "gt", "lt", "ge", "le")
        return self._signed() if takes else PLAIN

    def _attribute(self, value: _Value, key: str, name: str) -> _Value:
        known = self.template.variables.get(name)
        if known is not None:
            return known
        if value.messages:
            return CONTENT if key in CARRIES else PLAIN if key != "messages" else value
        if value.content:
            return replace(value, part=False) if key in CARRIES else PLAIN
        return value if value.words else PLAIN

    def _arguments(self) -> list[_Value]:
        """The values between the brackets of a call."""
        found: list[_Value] = []
        while self.peek() and not self.skip(")"):
            before = self.at
            if not self.skip(","):
                if self.peek(1) == "=" and self.peek(2) != "=":
                    self.at += 2
                found.append(self.expression())
            self.at = max(self.at, before + 1)
        return found

    def _called(self, value: _Value, key: str) -> _Value:
        """A method or a filter with arguments."""
        arguments = self._arguments()
        given = PLAIN
        for argument in arguments[:1] if key == "replace" else arguments:  # what is put in its place chooses nothing
            given = given.joined(argument)
        if key == "get":
            self.template.note(_Value(words=value.words), given, "look-up of")
            return self._attribute(value, next(iter(arguments[0].words), "") if arguments else "", "")
        if value.messages and key in BY_KEY and given.words & CARRIES:
            value = CONTENT
        words = given.words - PARTS - {"equalto", "==", "content"} if key in BY_KEY else given.words
        words = frozenset(word for word in words if key != "replace" or not ESCAPE.fullmatch(word))
        if key not in LOOKS_AWAY:
            self.template.note(value, replace(given, words=words, numbers=frozenset()), key)
        return self._filtered(value if key in BY_KEY else value.joined(given), key)

    def _filtered(self, value: _Value, key: str) -> _Value:
        if value.messages and key in WHOLE:
            return CONTENT
        if key in ("length", "count"):
            return replace(value, length=value.content, words=frozenset())
        return value

    def _macro(self, name: str, given: list[_Value]) -> _Value:
        """A call: of a macro, whose parameters are then known, or of a function."""
        value = PLAIN
        for parameter, argument in zip(self.template.macros.get(name, []), given, strict=False):
            before = self.template.variables.get(parameter, PLAIN)
            self.template.variables[parameter] = before.joined(argument)
        for argument in given:
            value = value.joined(argument)
        if name == "namespace" or name in LOOKS_AWAY:
            return PLAIN
        return _Value(messages=False, content=value.content or (value.messages and name in self.template.macros))

    def condition(self) -> None:
        self.expression()

    def loop(self) -> None:
        """`for a, b in values if condition`."""
        names = [self.target()]
        while self.skip(","):
            names.append(self.target())
        self.skip("in")
        value = self._chain()
        for name in names[1:] or names:  # of two, the first is a key
            before = self.template.variables.get(name, PLAIN)
            self.template.variables[name] = before.joined(replace(value, part=value.content))
        if self.skip("if"):
            self.expression()

    def assignment(self) -> None:
        names = [self.target()]
        while self.skip(","):
            names.append(self.target())
        self.skip("=")
        value = self.expression()
        for name in names:
            self.template.variables[name] = self.template.variables.get(name, PLAIN).joined(value)

    def macro(self) -> None:
        name, parameters = self.take(), []
        self.skip("(")
        while self.peek() and not self.skip(")"):
            if self.tokens[self.at][0] == "name" and self.peek(1) in (",", ")", "="):
                parameters.append(self.peek())
            self.at += 1
        self.template.macros[name] = parameters


STATEMENTS = {
    "if": _Parser.condition,
    "elif": _Parser.condition,
    "for": _Parser.loop,
    "set": _Parser.assignment,
    "macro": _Parser.macro,
}


def _unquoted(token: str) -> str:
    """The text of a string literal.

    >>> _unquoted("'a\\\\n'")
    'a\\n'
    """
    escapes = {"n": "\n", "t": "\t", "r": "\r"}
    return re.sub(r"\\(.)", lambda match: escapes.get(match[1], match[1]), token[1:-1], flags=re.DOTALL)
