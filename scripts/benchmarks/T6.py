"""T6: support-triage as closed answers, against sampling one answer under the grammar, token by token.

Where arithmetic is the limit, as on a CPU, requests take as long as their rows: `rows_a_request` tells what can be had.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import finish, median_interval, note, teacher_gguf

from edgedistill.llamacpp.answer import Answerer, AnswererSettings
from edgedistill.llamacpp.branches import BranchEngine
from edgedistill.llamacpp.engine import BatchEngine
from edgedistill.llamacpp.layout import Layout
from edgedistill.llamacpp.prefix import PrefixCache
from edgedistill.llamacpp.requests import Answer
from edgedistill.llamacpp.sampling import Sampling
from edgedistill.recipe import load_recipe
from edgedistill.records import read_prompts
from edgedistill.run import cores, file_sha256
from edgedistill.schema import closed_answers, load_schema
from edgedistill.teachers import preamble

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "support-triage"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=96)
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--floors", type=float, nargs="*", default=[], help="others than the recipe's, to compare")
    options = parser.parse_args()
    recipe = load_recipe(RECIPE)
    floors = sorted({recipe.teach.closed_floor, *options.floors})
    schema = load_schema(recipe)
    answers = closed_answers(schema) or ()
    prompts = read_prompts(recipe.file(recipe.prompts.file))[: options.prompts]
    path, scratch = teacher_gguf(), Path(tempfile.mkdtemp())
    how = AnswererSettings(cores(), prefix_cache=PrefixCache(scratch, file_sha256(path)))
    with Answerer(path, preamble(recipe), schema, how) as answerer:
        trie = answerer.trie(answers)
        requests = [answerer.request(prompt, Sampling(recipe.teach.max_tokens)) for prompt in prompts]
        greedy: dict[str, str] = {}
        ranked: dict[float, dict[str, tuple[float, ...]]] = {floor: {} for floor in floors}

        rows: dict[str, float] = {}

        def timed(engine: BatchEngine | BranchEngine, name: str, found: dict[str, Any]) -> float:
            before, started = engine.decoded_tokens, time.perf_counter()
            for one in engine.run(requests):
                found[one.id] = one.text if isinstance(one, Answer) else one.probabilities
            seconds = time.perf_counter() - started
            rows[name] = round((engine.decoded_tokens - before) / len(prompts), 1)
            return len(prompts) / seconds

        def plain() -> float:
            with answerer.engine(Layout(options.slots, split=False), requests, jump=False) as engine:
                return timed(engine, "plain", greedy)

        def closed(floor: float) -> float:
            with answerer.ranking(trie, requests, floor) as engine:
                return timed(engine, f"closed {floor}", ranked[floor])

        rates: dict[float, list[float]] = {floor: [] for floor in floors}
        peer: list[float] = []
        for number in range(options.rounds + 1):
            round_peer, round_mine = plain(), {floor: closed(floor) for floor in floors}
            note(f"round {number}: {round_peer:.3f} and {round_mine}")
            if number:
                peer.append(round_peer)
                for floor, rate in round_mine.items():
                    rates[floor].append(rate)
    default = recipe.teach.closed_floor
    chosen = ranked[default]
    at_least = sum(max(chosen[key]) >= chosen[key][answers.index(text)] for key, text in greedy.items()) / len(greedy)
    same = sum(chosen[key].index(max(chosen[key])) == answers.index(text) for key, text in greedy.items()) / len(greedy)
    ratios = {floor: median_interval(mine, peer) for floor, mine in rates.items()}
    value = ratios[default][0]
    finish(
        "T6",
        {"speed": value, "at_least_greedy": at_least},
        {"speed": 1.3, "at_least_greedy": 1.0},
        value >= 1.3 and at_least == 1.0,
        peer="grammar sampling, token by token, same engine",
        unit="x requests/s",
        n=len(prompts),
        by_floor={str(floor): ratio for floor, ratio in ratios.items()},
        same_as_greedy=round(same, 4),
        rows_a_request=rows,
        own_tokens=round(sum(len(request.tokens) for request in requests) / len(requests), 1),
    )


if __name__ == "__main__":
    main()
