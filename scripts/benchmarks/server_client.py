"""llama-server with 16 slots and its prompt cache, asked by an async client that keeps all slots busy."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from socket import socket
from typing import TypeVar

import engine_work
import httpx2
import llama_tools

from edgedistill.records import Prompt
from edgedistill.run import cores

__all__ = ["answers", "chat", "requests_per_second", "serving", "warmed"]

SLOTS = 16
SYSTEM = {"role": "system", "content": engine_work.SYSTEM}
Found = TypeVar("Found")


def requests_per_second(model: Path, prompts: list[Prompt]) -> float:
    """Answered requests per second, the server's start not counted."""
    seconds, _ = answers(model, prompts, SLOTS)
    return len(prompts) / seconds


def answers(model: Path, prompts: list[Prompt], slots: int) -> tuple[float, list[str]]:
    """Seconds for all prompts, and their answers in order."""

    async def ask(client: httpx2.AsyncClient, url: str) -> tuple[float, list[str]]:
        started = time.perf_counter()
        gate = asyncio.Semaphore(2 * slots)

        async def one(prompt: Prompt) -> str:
            async with gate:
                return await chat(client, url, [SYSTEM, {"role": "user", "content": prompt.text}])

        found = await asyncio.gather(*map(one, prompts))
        return time.perf_counter() - started, list(found)

    with serving(model, slots) as url:
        return asyncio.run(warmed(url, ask))


@contextmanager
def serving(model: Path, slots: int) -> Iterator[str]:
    """The server's address; it is stopped behind the block."""
    with closing(socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [llama_tools.tool("llama-server"), "-m", str(model), "-t", str(cores()), "-np", str(slots)]
    sizes = ["-c", str(512 * slots), "--cont-batching", "--port", str(port), "--host", "127.0.0.1"]
    with subprocess.Popen([*command, *sizes], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


async def warmed(url: str, ask: Callable[[httpx2.AsyncClient, str], Awaitable[Found]]) -> Found:
    """What comes of asking a server that is up, and has the shared prefix in its cache as ours has after a decode."""
    async with httpx2.AsyncClient(timeout=600, trust_env=False) as client:
        await _ready(client, url)
        await chat(client, url, [SYSTEM, {"role": "user", "content": "Hello"}])
        return await ask(client, url)


async def _ready(client: httpx2.AsyncClient, url: str) -> None:
    for _ in range(600):
        try:
            if (await client.get(f"{url}/health")).status_code == 200:
                return
        except httpx2.HTTPError:
            pass
        await asyncio.sleep(0.2)
    raise SystemExit("llama-server does not come up")


async def chat(
    client: httpx2.AsyncClient, url: str, turns: list[dict[str, str]], max_tokens: int = engine_work.MAX_TOKENS
) -> str:
    """The answer to a conversation."""
    body = {"messages": turns, "max_tokens": max_tokens, "temperature": 0.0, "cache_prompt": True}
    answer = await client.post(f"{url}/v1/chat/completions", json=body)
    answer.raise_for_status()
    return str(answer.json()["choices"][0]["message"]["content"])
