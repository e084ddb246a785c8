"""T6: support-triage as closed answers, against sampling one answer under the grammar, token by token."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from measure import finish, median_interval, note, teacher_gguf

from edgedistill.llamacpp.answer import Answerer, AnswererSettings
from edgedistill.llamacpp.layout import Layout
from edgedistill.llamacpp.prefix import PrefixCache
from edgedistill.llamacpp.sampling import Sampling
from edgedistill.recipe import load_recipe
from edgedistill.records import read_prompts
from edgedistill.run import cores, file_sha256
from edgedistill.schema import closed_answers, load_schema
from edgedistill.teachers import preamble

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "support-triage"


FLOORS = (0.0, 0.001, 0.01)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=96)
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    recipe = load_recipe(RECIPE)
    schema = load_schema(recipe)
    answers = closed_answers(schema) or ()
    prompts = read_prompts(recipe.file(recipe.prompts.file))[: options.prompts]
    path, scratch = teacher_gguf(), Path(tempfile.mkdtemp())
    how = AnswererSettings(cores(), prefix_cache=PrefixCache(scratch, file_sha256(path)))
    with Answerer(path, preamble(recipe), schema, how) as answerer:
        trie = answerer.trie(answers)
        requests = [answerer.request(prompt, Sampling(recipe.teach.max_tokens)) for prompt in prompts]
        greedy: dict[str, str] = {}
        ranked: dict[float, dict[str, tuple[float, ...]]] = {floor: {} for floor in FLOORS}

        def plain() -> float:
            with answerer.engine(Layout(options.slots, split=False), requests, jump=False) as engine:
                started = time.perf_counter()
                greedy.update((one.id, one.text) for one in engine.run(requests))
                return len(prompts) / (time.perf_counter() - started)

        def closed(floor: float) -> float:
            with answerer.ranking(trie, requests, floor) as engine:
                started = time.perf_counter()
                ranked[floor].update((one.id, one.probabilities) for one in engine.run(requests))
                return len(prompts) / (time.perf_counter() - started)

        rates: dict[float, list[float]] = {floor: [] for floor in FLOORS}
        peer: list[float] = []
        for number in range(options.rounds + 1):
            round_peer, round_mine = plain(), {floor: closed(floor) for floor in FLOORS}
            note(f"round {number}: {round_peer:.3f} and {round_mine}")
            if number:
                peer.append(round_peer)
                for floor, rate in round_mine.items():
                    rates[floor].append(rate)
    default = recipe.teach.closed_floor
    chosen = ranked[default]
    at_least = sum(max(chosen[key]) >= chosen[key][answers.index(text)] for key, text in greedy.items()) / len(greedy)
    same = sum(chosen[key].index(max(chosen[key])) == answers.index(text) for key, text in greedy.items()) / len(greedy)
    off = {
        str(floor): max(abs(p - q) for key in chosen for p, q in zip(ranked[floor][key], ranked[0.0][key], strict=True))
        for floor in FLOORS
    }
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
        largest_error=off,
        same_as_greedy=round(same, 4),
        own_tokens=round(sum(len(request.tokens) for request in requests) / len(requests), 1),
    )


if __name__ == "__main__":
    main()
