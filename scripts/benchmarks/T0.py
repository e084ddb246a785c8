"""T0: greedy answers against `Llama.create_chat_completion`: equal one at a time; at 32, as few differ as the server's.

A batch of another size rounds the logits otherwise, and a near tie may turn: so it is counted, for the engine and for
llama-server with as many slots. The loop's own first answer is one more that does not count: only from the second on
does it reuse the system text, as the engine always does, and computing a prompt in other pieces rounds otherwise too.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import engine_work
import server_client
from measure import finish, note, teacher_gguf

from edgedistill.llamacpp.layout import Layout
from edgedistill.llamacpp.sampling import Sampling
from edgedistill.records import Prompt
from edgedistill.run import cores

SLOTS = 32


def plain_answers(model: Path, prompts: list[Prompt]) -> list[str]:
    """What llama-cpp-python answers, prompt after prompt."""
    from llama_cpp import Llama

    llama = Llama(str(model), n_ctx=1024, n_threads=cores(), n_threads_batch=cores(), verbose=False)
    system = {"role": "system", "content": engine_work.SYSTEM}
    found = []
    for prompt in prompts:
        turns = [system, {"role": "user", "content": prompt.text}]
        answer = llama.create_chat_completion(turns, max_tokens=engine_work.MAX_TOKENS, temperature=0.0)
        found.append(str(answer["choices"][0]["message"]["content"]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=100)
    options = parser.parse_args()
    model = teacher_gguf()
    answerer = engine_work.answerer(model)
    first, *prompts = engine_work.prompts(answerer, options.prompts + 1)
    _, *expected = plain_answers(model, [first, *prompts])
    requests = [answerer.request(prompt, Sampling(engine_work.MAX_TOKENS)) for prompt in prompts]
    differ: dict[str, int] = {}
    for layout in (Layout(1, split=False), Layout(SLOTS, split=False), Layout(SLOTS, split=True)):
        with answerer.engine(layout, requests) as engine:
            found = {answer.id: answer.text for answer in engine.run(requests)}
        differ[str(layout)] = sum(found[p.id] != text for p, text in zip(prompts, expected, strict=True))
        note(f"{layout}: {differ[str(layout)]} of {len(prompts)} differ")
    _, served = server_client.answers(model, prompts, SLOTS)
    server = sum(text != other for text, other in zip(served, expected, strict=True))
    alone, *many = differ.values()
    finish("T0", differ, {"one at a time": 0, "32 slots": server}, alone == 0 and max(many) <= server,
           peer=f"llama-server -np {SLOTS}: {server} differ", unit="answers", n=len(prompts))  # fmt: skip


if __name__ == "__main__":
    main()
