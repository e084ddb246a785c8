"""The engine on a real model: its greedy answers, one at a time, are those of a loop over llama-cpp-python."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgedistill.llamacpp.answer import Answerer, AnswererSettings
from edgedistill.llamacpp.layout import Layout
from edgedistill.llamacpp.sampling import Sampling
from edgedistill.models import fetch
from edgedistill.records import Message, read_prompts

TICKETS = Path(__file__).parent.parent / "recipes" / "support-triage" / "prompts.jsonl"
SYSTEM = "You answer messages to a small company's support, kindly and to the point, in one sentence."
LONGEST = 24


@pytest.mark.slow
def test_greedy_answers_behind_a_shared_prefix_are_those_of_a_loop_bit_by_bit() -> None:
    from llama_cpp import Llama

    path = fetch("qwen2.5-coder-0.5b-instruct", ("gguf",), False, lambda what, done, total: None).path
    first, *prompts = read_prompts(TICKETS)[:7]
    llama = Llama(str(path), n_ctx=1024, n_threads=2, n_threads_batch=2, verbose=False)

    def said(text: str) -> str:
        turns = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]
        answer = llama.create_chat_completion(turns, max_tokens=LONGEST, temperature=0.0)
        return str(answer["choices"][0]["message"]["content"])

    said(first.text)  # the loop reuses what it has computed from its second prompt on, the engine from its first
    answerer = Answerer(path, [Message("system", SYSTEM)], None, AnswererSettings(2))
    requests = [answerer.request(prompt, Sampling(LONGEST)) for prompt in prompts]
    with answerer.engine(Layout(1, split=False), requests) as engine:
        found = {answer.id: answer.text for answer in engine.run(requests)}
    assert found == {prompt.id: said(prompt.text) for prompt in prompts}
