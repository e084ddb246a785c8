"""L2: writing answers with the distribution at each token kept, against without."""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import engine_work
from measure import finish, median_interval, pairs, teacher_gguf

from edgedistill.llamacpp.layout import Layout
from edgedistill.llamacpp.requests import Request
from edgedistill.llamacpp.sampling import Sampling
from edgedistill.targets import CaptureSettings

LAYOUT = Layout(32, split=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--profiles", nargs="+", default=["top_k", "sampled"])
    options = parser.parse_args()
    answerer = engine_work.answerer(teacher_gguf())
    prompts = engine_work.prompts(answerer, options.prompts)
    plain = [answerer.request(prompt, Sampling(engine_work.MAX_TOKENS)) for prompt in prompts]
    values = {}
    for profile in options.profiles:
        keep = CaptureSettings(profile, 0.995, 64, 50)
        kept = [replace(request, sampling=replace(request.sampling, capture=keep)) for request in plain]

        def rate(requests: list[Request]) -> float:
            with answerer.engine(LAYOUT, requests) as engine:
                started = time.perf_counter()
                for _ in engine.run(requests):
                    pass
                return len(requests) / (time.perf_counter() - started)

        mine, without = pairs(lambda kept=kept: rate(kept), lambda: rate(plain))  # type: ignore[misc]
        values[profile] = median_interval(mine, without)
    worst = min(value[0] for value in values.values())
    finish(
        "L2",
        {profile: value[0] for profile, value in values.items()},
        0.95,
        worst >= 0.95,
        peer="the same without",
        unit="x requests/s",
        n=len(prompts),
        intervals={profile: value[1:] for profile, value in values.items()},
    )


if __name__ == "__main__":
    main()
