"""T4: prompt tokens decoded, against the shared prefix once and each prompt's own part once."""

from __future__ import annotations

import engine_work
from measure import finish, teacher_gguf

from edgedistill.llamacpp.layout import Layout
from edgedistill.llamacpp.sampling import Sampling


def main() -> None:
    answerer = engine_work.answerer(teacher_gguf())
    prompts = engine_work.prompts(answerer, 64)
    requests = [answerer.request(prompt, Sampling(8)) for prompt in prompts]
    least = len(answerer.shared.tokens) + sum(len(request.tokens) for request in requests)
    values = {}
    for layout in (Layout(16, split=False), Layout(32, split=True)):
        with answerer.engine(layout, requests) as engine:
            answers = list(engine.run(requests))
            written = sum(len(answer.tokens) - (answer.finish_reason == "length") for answer in answers)
            values[str(layout)] = round((engine.decoded_tokens - written) / least, 4)
    worst = max(values.values())
    finish("T4", worst, 1.02, worst <= 1.02, peer="prefix + own parts", unit="x", n=len(prompts), layouts=values)


if __name__ == "__main__":
    main()
