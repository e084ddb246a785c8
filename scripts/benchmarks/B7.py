"""B7: end to end of the demo's student with forced tokens skipped, against plain grammar decoding, prompt by prompt."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from measure import finish, note

from edgedistill.chat import with_system
from edgedistill.llamacpp.runtime import Reply, Runtime, RuntimeSettings
from edgedistill.recipe import load_recipe
from edgedistill.records import Prompt, read_prompts
from edgedistill.run import cores, open_run
from edgedistill.schema import load_schema

BAR = 1.25
RESAMPLES = 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="a finished run of a recipe with a schema")
    parser.add_argument("--quants", nargs="*", default=[], help="of the run's types; all of them by default")
    parser.add_argument("--rows", type=int, default=150, help="prompts of the eval set")
    parser.add_argument("--threads", type=int, default=cores())
    asked = parser.parse_args()
    run = open_run(asked.run)
    recipe = load_recipe(run.path / "recipe" / "this")
    schema = load_schema(recipe)
    assert schema is not None, "the run's recipe has no schema"
    prompts = read_prompts(recipe.file(recipe.evaluate.file))[: asked.rows]
    files: dict[str, str] = run.summary("quantize")["files"]
    found = {}
    for quant in asked.quants or list(files):
        path = run.folder("quantize") / files[quant]
        with Runtime(path, with_system(recipe.student.system, ()), schema, RuntimeSettings(asked.threads)) as runtime:
            found[quant] = compare(runtime, prompts, recipe.evaluate.max_tokens)
        note(f"{quant}: {found[quant]}")
    values = {quant: row["ratio"] for quant, row in found.items()}
    same = all(row["same"] == len(prompts) for row in found.values())
    finish(
        "B7",
        values,
        BAR,
        same and min(row["interval"][0] for row in found.values()) >= BAR,
        peer="the same runtime, token by token under the grammar, as llama-server and Ollama decode",
        unit="x p50 end to end",
        n=len(prompts),
        threads=asked.threads,
        quants=found,
    )


def compare(runtime: Runtime, prompts: list[Prompt], max_tokens: int) -> dict[str, object]:
    """p50 of both ways in ms, their ratio with its bootstrap interval over prompts, and how many answers are equal."""
    both: list[tuple[Reply, Reply]] = []
    for jump in (True, False):
        runtime.answer(prompts[0].messages, max_tokens, jump=jump)
    for number, prompt in enumerate(prompts):
        order = (True, False) if number % 2 else (False, True)
        replies = {jump: runtime.answer(prompt.messages, max_tokens, jump=jump) for jump in order}
        both.append((replies[True], replies[False]))
    times = np.array([[reply.e2e_ms for reply in pair] for pair in both])
    drawn = np.random.default_rng(0).integers(0, len(times), (RESAMPLES, len(times)))
    medians = np.median(times[drawn], axis=1)
    low, high = np.quantile(medians[:, 1] / medians[:, 0], [0.025, 0.975])
    ours, plain = np.median(times, axis=0)
    return {
        "ratio": round(float(plain / ours), 3),
        "interval": [round(float(low), 3), round(float(high), 3)],
        "p50_ms": [round(float(ours), 2), round(float(plain), 2)],
        "same": sum(first.text == second.text for first, second in both),
        "tokens_mean": round(float(np.mean([pair[0].tokens for pair in both])), 1),
        "forced_mean": round(float(np.mean([pair[0].forced for pair in both])), 1),
        "steps_mean": [round(float(np.mean([pair[side].steps for pair in both])), 1) for side in (0, 1)],
    }


if __name__ == "__main__":
    main()
