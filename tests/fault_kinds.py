"""The ways in which the fault server fails, each a name and what is sent instead of a good answer."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import socket
import struct
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from email.utils import format_datetime
from typing import Any

MODEL = "pico"
METADATA = "http://169.254.169.254/latest/meta-data/iam/security-credentials/"
HUGE = 1 << 30


@dataclass
class Place:
    """One path of the server, and what was asked there."""

    dialect: tuple[str, ...]
    kinds: tuple[str, ...]
    rate: str
    seed: str
    stuck: float
    requests: int = 0
    asked: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    trapped: int = 0
    last: bytes = b""
    under_way: int = 0
    most_under_way: int = 0
    times: list[float] = field(default_factory=list)
    away_from: float | None = None
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    cookies: int = 0

    def fault(self, text: str) -> str | None:
        """The fault that hits this attempt at a prompt, or None."""
        number = self.asked[text]
        self.asked[text] += 1
        if not self.kinds:
            return None
        if self._share(text, "stuck") < self.stuck:
            return self._kind([kind for kind in self.kinds if kind not in HARMLESS], text, "stuck")
        if self.rate.endswith("x"):
            hit = not text.startswith("Say hello") and number < int(self.rate[:-1])
        else:
            hit = self._share(text, number) < float(self.rate)
        return self._kind(self.kinds, text, number) if hit else None

    def _share(self, *parts: Any) -> float:
        return int(hashlib.sha256(repr((self.seed, *parts)).encode()).hexdigest()[:13], 16) / 16**13

    def _kind(self, kinds: Any, *parts: Any) -> str:
        return str(kinds[int(self._share("kind", *parts) * len(kinds))])


@dataclass
class Exchange:
    """One request, its connection, and the good answer to it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    place: Place
    headers: dict[str, str]
    payload: dict[str, Any]

    def send(self, body: Any, status: int = 200, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        fields = {"Content-Type": "application/json", "Content-Length": str(len(data)), "Connection": "close"}
        fields["Set-Cookie"] = f"seen{self.place.requests}=1; Path=/"
        fields |= {name.replace("_", "-"): value for name, value in headers.items()}
        head = f"HTTP/1.1 {status} X\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        self.writer.write(head.encode() + b"\r\n" + data)

    def good(self, **changes: Any) -> dict[str, Any]:
        text = changes.pop("text", ...)
        if text is ...:
            text = answer_to(self.payload, self.place.dialect)
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        choice |= changes.pop("choice", {})
        return {
            "id": f"chatcmpl-{self.place.requests}",
            "object": "chat.completion",
            "created": 1,
            "model": MODEL,
            "choices": [choice],
            "usage": {"prompt_tokens": len(str(self.payload["messages"]).split()), "completion_tokens": 3},
            **changes,
        }


def answer_to(payload: dict[str, Any], dialect: tuple[str, ...]) -> str:
    """The text of a good answer: the smallest value of a schema that is held to, or an echo of the question."""
    form = payload.get("response_format", {})
    schema = form.get("schema") or form.get("json_schema", {}).get("schema")
    told = "JSON Schema:" in str(payload["messages"]) and "obedient" in dialect
    if told or form.get("type") == "json_object":
        return smallest(schema) if schema and "ignores_format" not in dialect else '{"action": "on", "room": "hall"}'
    if schema and "ignores_format" not in dialect:
        return smallest(schema)
    return f"answer to {payload['messages'][-1]['content']}"


def smallest(schema: dict[str, Any]) -> str:
    return json.dumps({name: inner["enum"][0] for name, inner in schema["properties"].items()})


async def silent(exchange: Exchange) -> None:
    await exchange.reader.read()


async def reset(exchange: Exchange) -> None:
    handle: socket.socket = exchange.writer.get_extra_info("socket")
    handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    exchange.writer.transport.abort()


async def closed(exchange: Exchange) -> None:
    exchange.writer.close()


async def drip(exchange: Exchange) -> None:
    """A good answer, a letter at a time."""
    data = json.dumps(exchange.good()).encode()
    exchange.send(b"", Content_Length=str(len(data)))
    for letter in data:
        exchange.writer.write(bytes([letter]))
        await exchange.writer.drain()
        await asyncio.sleep(0.05)


async def cut(exchange: Exchange) -> None:
    """Half of the bytes that were promised."""
    data = json.dumps(exchange.good()).encode()
    exchange.send(data[: len(data) // 2], Content_Length=str(len(data)))


async def huge(exchange: Exchange) -> None:
    """1 GB, in chunks."""
    exchange.writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
    piece = b"100000\r\n" + b" " * (1 << 20) + b"\r\n"
    for _ in range(HUGE >> 20):
        exchange.writer.write(piece)
        await exchange.writer.drain()


async def huge_stated(exchange: Exchange) -> None:
    exchange.send(b" " * 100, Content_Length=str(HUGE))
    await exchange.reader.read()


async def header_flood(exchange: Exchange) -> None:
    exchange.writer.write(b"HTTP/1.1 200 OK\r\n")
    for number in range(100_000):
        exchange.writer.write(b"X-%d: %s\r\n" % (number, b"x" * 1000))
        await exchange.writer.drain()


async def twice(exchange: Exchange) -> None:
    """The right answer, and the same bytes once more behind it."""
    body = exchange.good()
    exchange.send(body)
    exchange.send(body)


async def duplicate(exchange: Exchange) -> None:
    """The answer to another request."""
    exchange.send(exchange.place.last or exchange.good())


def says(make: Callable[[Exchange], Any], status: int = 200, **headers: str) -> Callable[[Exchange], Awaitable[None]]:
    """A fault that is an ordinary HTTP response."""

    async def fault(exchange: Exchange) -> None:
        exchange.send(make(exchange), status, **headers)

    return fault


async def rate_limited_until(exchange: Exchange) -> None:
    from datetime import datetime, timedelta, timezone

    date = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=2), usegmt=True)
    exchange.send({"error": {"message": "slow down"}}, 429, Retry_After=date)


def raw(data: bytes) -> Callable[[Exchange], Awaitable[None]]:
    async def fault(exchange: Exchange) -> None:
        exchange.writer.write(data)

    return fault


HTML = b"<!doctype html><html><body><h1>Please sign in</h1></body></html>"
ERROR = {"error": {"message": "the engine has stopped", "type": "internal"}}
BOMB = gzip.compress(b" " * (16 << 20))
KINDS: dict[str, Callable[[Exchange], Awaitable[None]]] = {
    "rate_limited": says(lambda exchange: {"error": {"message": "slow down"}}, 429, Retry_After="1"),
    "rate_limited_until": rate_limited_until,
    "error_500": says(lambda exchange: ERROR, 500),
    "error_502": says(lambda exchange: HTML, 502, Content_Type="text/html"),
    "error_503": says(lambda exchange: ERROR, 503),
    "reset": reset,
    "closed": closed,
    "silent": silent,
    "drip": drip,
    "cut": cut,
    "torn_json": says(lambda exchange: json.dumps(exchange.good()).encode()[:-20]),
    "html": says(lambda exchange: HTML, Content_Type="text/html"),
    "no_choices": says(lambda exchange: exchange.good(choices=[])),
    "error_in_200": says(lambda exchange: ERROR),
    "empty": says(lambda exchange: exchange.good(text="")),
    "null": says(lambda exchange: exchange.good(text=None)),
    "parts": says(lambda exchange: exchange.good(text=[{"type": "text", "text": "x"}])),
    "another_model": says(lambda exchange: exchange.good(model="impostor")),
    "filtered": says(lambda exchange: exchange.good(choice={"finish_reason": "content_filter"})),
    "tool_call": says(lambda exchange: exchange.good(choice={"finish_reason": "tool_calls"})),
    "length": says(lambda exchange: exchange.good(text="answer to", choice={"finish_reason": "length"})),
    "duplicate": duplicate,
    "twice": twice,
    "huge": huge,
    "huge_stated": huge_stated,
    "bomb": says(lambda exchange: BOMB, Content_Encoding="gzip"),
    "not_utf8": says(lambda exchange: json.dumps(exchange.good(), ensure_ascii=False).encode() + b"\xff\xfe"),
    "half_a_pair": says(lambda exchange: exchange.good(text="\ud800")),
    "nested": says(lambda exchange: b"[" * 200_000),
    "to_metadata": says(lambda exchange: b"", 302, Location=METADATA),
    "to_a_file": says(lambda exchange: b"", 307, Location="file:///etc/passwd"),
    "to_a_trap": says(lambda exchange: b"", 308, Location="/trap"),
    "event_stream": says(lambda exchange: b'data: {"choices": [{"delta": {"con', Content_Type="text/event-stream"),
    "bad_chunk": raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nxx"),
    "not_http": raw(b"SSH-2.0-OpenSSH_9.6\r\n"),
    "header_flood": header_flood,
    "echoes_key": says(lambda exchange: {"error": {"message": f"bad: {exchange.headers.get('authorization')}"}}, 500),
}
HARMLESS = ("length", "twice", "duplicate")  # these may be answers
