"""llama-server with 16 slots and its prompt cache, asked by an async client that keeps all slots busy."""

from __future__ import annotations

import asyncio
import subprocess
import time
from contextlib import closing
from pathlib import Path
from socket import socket

import engine_work
import httpx2
import llama_tools

from edgedistill.records import Prompt
from edgedistill.run import cores

__all__ = ["answers", "requests_per_second"]

SLOTS = 16


def requests_per_second(model: Path, prompts: list[Prompt]) -> float:
    """Answered requests per second, the server's start not counted."""
    seconds, _ = answers(model, prompts, SLOTS)
    return len(prompts) / seconds


def answers(model: Path, prompts: list[Prompt], slots: int) -> tuple[float, list[str]]:
    """Seconds for all prompts, and their answers in order."""
    with closing(socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [llama_tools.tool("llama-server"), "-m", str(model), "-t", str(cores()), "-np", str(slots)]
    sizes = ["-c", str(512 * slots), "--cont-batching", "--port", str(port), "--host", "127.0.0.1"]
    with subprocess.Popen([*command, *sizes], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            return asyncio.run(_ask_all(f"http://127.0.0.1:{port}", prompts, slots))
        finally:
            server.terminate()


async def _ask_all(url: str, prompts: list[Prompt], slots: int) -> tuple[float, list[str]]:
    async with httpx2.AsyncClient(timeout=600, trust_env=False) as client:
        await _ready(client, url)
        await _ask(client, url, prompts[0])  # the shared prefix is in the cache, as ours is after its first decode
        started = time.perf_counter()
        gate = asyncio.Semaphore(2 * slots)

        async def one(prompt: Prompt) -> str:
            async with gate:
                return await _ask(client, url, prompt)

        found = await asyncio.gather(*map(one, prompts))
        return time.perf_counter() - started, list(found)


async def _ready(client: httpx2.AsyncClient, url: str) -> None:
    for _ in range(600):
        try:
            if (await client.get(f"{url}/health")).status_code == 200:
                return
        except httpx2.HTTPError:
            pass
        await asyncio.sleep(0.2)
    raise SystemExit("llama-server does not come up")


async def _ask(client: httpx2.AsyncClient, url: str, prompt: Prompt) -> str:
    turns = [{"role": "system", "content": engine_work.SYSTEM}, {"role": "user", "content": prompt.text}]
    body = {"messages": turns, "max_tokens": engine_work.MAX_TOKENS, "temperature": 0.0, "cache_prompt": True}
    answer = await client.post(f"{url}/v1/chat/completions", json=body)
    answer.raise_for_status()
    return str(answer.json()["choices"][0]["message"]["content"])
