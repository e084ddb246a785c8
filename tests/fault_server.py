"""A server that speaks OpenAI's API on loopback and fails in a known way: the same faults for the same seed.

Where it stands says how it behaves: `/<dialect>/<kinds>/<rate>/<seed>/<stuck>/v1`. `kinds` are names of KINDS joined by
`+`, or `all`; `rate` is the share of attempts that a fault hits, or `2x` for the first two attempts at every prompt;
`stuck` is the share of prompts that every attempt fails. `/<...>/stats` tells what was asked there. Run as a program it
prints its port.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from fault_kinds import ERROR, KINDS, MODEL, Exchange, Place


async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, places: dict[str, Place]) -> None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        path = first.split()[1]
        where, _, what = path.partition("/v1/")
        if path.startswith("/trap"):
            for place in places.values():
                place.trapped += 1
        place = places.setdefault(where.removesuffix("/stats"), made(where.removesuffix("/stats")))
        exchange = Exchange(reader, writer, place, headers, json.loads(body) if body else {})
        if path.endswith("/stats"):
            exchange.send(stats(place))
        elif what == "models":
            answer_models(exchange)
        else:
            await answer(exchange)
        await writer.drain()
    except (ConnectionError, asyncio.IncompleteReadError, TimeoutError):
        pass
    finally:
        writer.close()


def made(path: str) -> Place:
    dialect, kinds, rate, seed, stuck = path.strip("/").split("/")
    names = tuple(KINDS) if kinds == "all" else tuple(name for name in kinds.split("+") if name != "none")
    return Place(tuple(dialect.split("+")), names, rate, seed, float(stuck))


def stats(place: Place) -> dict[str, Any]:
    return {
        "requests": place.requests,
        "asked": place.asked,
        "faults": place.faults,
        "trapped": place.trapped,
        "most_under_way": place.most_under_way,
        "times": place.times,
        "away_from": place.away_from,
        "bodies": place.bodies[-100:],
        "keys": sorted(place.keys),
        "cookies": place.cookies,
    }


def answer_models(exchange: Exchange) -> None:
    dialect = exchange.place.dialect
    exchange.place.keys.add(exchange.headers.get("authorization", ""))
    if "no_models" in dialect:
        exchange.send(b"Not Found", 404)
    elif "wants_key" in dialect and exchange.headers.get("authorization") != "Bearer right-key-1234":
        exchange.send({"error": {"message": f"wrong key {exchange.headers.get('authorization')}"}}, 401)
    elif "other_models" in dialect:
        exchange.send({"data": [{"id": f"other-{number}"} for number in range(9)]})
    elif "llama_server" in dialect:
        exchange.send({"models": [{"name": MODEL, "model": MODEL}], "data": []})
    else:
        exchange.send({"object": "list", "data": [{"id": MODEL, "object": "model"}]})


REFUSALS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "lm_studio": lambda body: body.get("response_format", {}).get("type") not in (None, "json_schema", "text"),
    "no_json_schema": lambda body: body.get("response_format", {}).get("type") == "json_schema",
    "no_schema_key": lambda body: "schema" in body.get("response_format", {}),
    "no_format": lambda body: "response_format" in body,
    "no_seed": lambda body: "seed" in body,
    "no_top_k": lambda body: "top_k" in body,
    "no_min_p": lambda body: "min_p" in body,
    "no_max_tokens": lambda body: "max_tokens" in body,
    "no_temperature": lambda body: "temperature" in body,
    "only_temperature_1": lambda body: body.get("temperature", 1) != 1,
    "no_system": lambda body: body["messages"][0]["role"] == "system",
    "no_emoji": lambda body: "🚀" in body["messages"][-1]["content"],
}


async def answer(exchange: Exchange) -> None:
    place, payload = exchange.place, exchange.payload
    text = payload["messages"][-1]["content"]
    place.requests += 1
    place.cookies += "cookie" in exchange.headers
    place.times.append(asyncio.get_running_loop().time())
    place.bodies = [*place.bodies[-99:], payload]
    place.keys.add(exchange.headers.get("authorization", ""))
    refused = [name for name in place.dialect if name in REFUSALS and REFUSALS[name](payload)]
    if refused:
        exchange.send({"error": {"message": f"unsupported: {refused[0]}"}}, 400)
        return
    place.under_way += 1
    place.most_under_way = max(place.most_under_way, place.under_way)
    try:
        if "slow" in place.dialect:
            await asyncio.sleep(0.05)
        if "serial" in place.dialect:  # one answer after another, however many are asked for
            await asyncio.sleep(0.01 * place.under_way)
        if is_away(place):
            exchange.send(ERROR, 503)
            return
        kind = place.fault(text)
        if kind is None:
            place.last = json.dumps(exchange.good(**({"model": "swapped"} if swapped(place) else {}))).encode()
            exchange.send(place.last)
        else:
            place.faults[kind] += 1
            await KINDS[kind](exchange)
    finally:
        place.under_way -= 1


def swapped(place: Place) -> bool:
    """Whether the model has been changed by now, in the dialect that does so after 30 requests."""
    return "swapped" in place.dialect and place.requests > 30


def is_away(place: Place) -> bool:
    """Whether everything fails now, in the dialect that does so for 2 seconds after 30 requests."""
    now = asyncio.get_running_loop().time()
    if "away" in place.dialect and place.requests > 30:
        place.away_from = place.away_from or now
        return now < place.away_from + 2
    return False


async def serve(port: int) -> None:
    places: dict[str, Place] = {}
    server = await asyncio.start_server(lambda r, w: handle(r, w, places), "127.0.0.1", port, backlog=512)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    async with server:
        await server.serve_forever()


@contextlib.contextmanager
def fault_server(port: int = 0) -> Iterator[str]:
    """The address of a fault server in a process of its own, which ends with the block."""
    command = [sys.executable, str(Path(__file__).resolve()), str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.wait()


def stats_of(url: str) -> dict[str, Any]:
    """What was asked at a URL of the fault server."""
    with urlopen(url.removesuffix("/v1") + "/stats") as response:
        found: dict[str, Any] = json.load(response)
    return found


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
