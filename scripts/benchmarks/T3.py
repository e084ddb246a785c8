"""T3: the prompts of T1 against llama-server -np 16, its prompt cache on."""

from __future__ import annotations

import engine_work
import server_client
from measure import finish, median_interval, pairs, teacher_gguf
from T1 import Ours


def main() -> None:
    model = teacher_gguf()
    answerer = engine_work.answerer(model)
    prompts = engine_work.prompts(answerer)
    ours = Ours(answerer, prompts)
    mine, theirs = pairs(ours, lambda: server_client.requests_per_second(model, prompts))
    value, low, high = median_interval(mine, theirs)
    peer = "llama-server -np 16, its prompt cache on, async client"
    finish("T3", value, 1.05, value >= 1.05, peer=peer, unit="x requests/s", n=len(prompts), interval=[low, high])


if __name__ == "__main__":
    main()
