"""T7: conversations of several turns: what was computed of them is kept, against decoding them anew, and llama-server.

Real messages to a support desk, a few to a conversation, are answered turn by turn behind one system text. Ours asks
the first turn of all conversations, then the second, as teach and evaluate do; with `keeps_turns` and without, in the
same process. llama-server has as many slots and its prompt cache on, which keeps turns in memory too (`--cache-ram`, by
default); each conversation there goes on as soon as it is answered. Counted are answers per second, the model's loading
apart. The server has decoded the system text before; ours does so in each round.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import engine_work
import httpx2
import server_client
from measure import finish, median_interval, note, teacher_gguf

from edgedistill.llamacpp.answer import Answerer, AnswererSettings
from edgedistill.llamacpp.sampling import Sampling
from edgedistill.records import Message, Prompt
from edgedistill.run import cores

BARS = {"of_anew": 1.5, "of_server": 1.0}
TOKENS = 40  # of an answer


def conversations(answerer: Answerer, count: int, turns: int) -> list[list[str]]:
    """What the users say, turn by turn."""
    texts = [prompt.text for prompt in engine_work.prompts(answerer, count * turns)]
    return [texts[start : start + turns] for start in range(0, count * turns, turns)]


class Ours:
    """All conversations, round by round, in so many slots."""

    def __init__(self, model: Path, talks: Sequence[Sequence[str]], slots: int, keeps_turns: bool) -> None:
        settings = AnswererSettings(cores(), keeps_turns=keeps_turns)
        self._answerer = Answerer(model, [Message("system", engine_work.SYSTEM)], None, settings)
        self._talks, self._slots = talks, slots

    def __call__(self) -> tuple[float, list[str]]:
        """Answers per second, and the last answer of each conversation."""
        said: list[tuple[Message, ...]] = [() for _ in self._talks]
        last = [""] * len(self._talks)
        started = time.perf_counter()
        for texts in zip(*self._talks, strict=True):
            said = [(*turns, Message("user", text)) for turns, text in zip(said, texts, strict=True)]
            asked = [Prompt(f"{number:08x}", turns) for number, turns in enumerate(said)]
            for one in self._answerer.complete(asked, Sampling(TOKENS), self._slots):
                number = int(one.prompt_id, 16)
                last[number] = one.text
                said[number] = (*said[number], Message("assistant", one.text))
        return len(self._talks) * len(self._talks[0]) / (time.perf_counter() - started), last


def served(model: Path, talks: Sequence[Sequence[str]], slots: int) -> float:
    """Answers per second of llama-server."""

    async def ask(client: httpx2.AsyncClient, url: str) -> float:
        async def one(texts: Sequence[str]) -> None:
            turns = [{"role": "system", "content": engine_work.SYSTEM}]
            for text in texts:
                turns.append({"role": "user", "content": text})
                answer = await server_client.chat(client, url, turns, TOKENS)
                turns.append({"role": "assistant", "content": answer})

        started = time.perf_counter()
        await asyncio.gather(*map(one, talks))
        return len(talks) * len(talks[0]) / (time.perf_counter() - started)

    with server_client.serving(model, slots) as url:
        return asyncio.run(server_client.warmed(url, ask))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--conversations", type=int, default=24)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="qwen2.5-coder-1.5b-instruct")
    given = parser.parse_args()
    model = teacher_gguf(given.model)
    with Answerer(model, [Message("system", engine_work.SYSTEM)], None, AnswererSettings(cores())) as answerer:
        talks = conversations(answerer, given.conversations, given.turns)
    kept, anew = (Ours(model, talks, given.slots, keeps_turns) for keeps_turns in (True, False))
    rates: dict[str, list[float]] = {"kept": [], "anew": [], "server": []}
    same = 0
    for number in range(given.rounds):
        (mine, words), (other, others) = kept(), anew()
        same = sum(one == two for one, two in zip(words, others, strict=True))
        for name, rate in (("kept", mine), ("anew", other), ("server", served(model, talks, given.slots))):
            rates[name].append(rate)
        note(f"round {number + 1}: " + ", ".join(f"{name} {found[-1]:.3f}/s" for name, found in rates.items()))
    of_anew, of_server = (median_interval(rates["kept"], rates[name]) for name in ("anew", "server"))
    finish(
        "T7",
        {"of_anew": of_anew[0], "of_server": of_server[0]},
        BARS,
        of_anew[0] >= BARS["of_anew"] and of_server[0] >= BARS["of_server"],
        peer="the same engine without it; llama-server with its prompt cache",
        unit="x answers/s",
        n=len(talks),
        turns=given.turns,
        model=given.model,
        intervals={"of_anew": of_anew[1:], "of_server": of_server[1:]},
        same_last_answers=same,
        rates={name: [round(rate, 3) for rate in found] for name, found in rates.items()},
    )


if __name__ == "__main__":
    main()
