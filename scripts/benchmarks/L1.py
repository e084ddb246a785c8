"""L1: bytes a completion token on disk for the teacher's distributions, everything counted, and the mass they keep.

Answers to the home-commands recipe as it teaches, and free text: greedy, and at temperature 1, which is the hard case.
Each answer is written with its most probable tokens kept, then scored again with draws. `value` is of the recipe's
answers, `free_text` has the same figures of the others; the bar is held only where all of them hold it.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import engine_work
import numpy as np
from measure import finish, note, teacher_gguf

from edgedistill.llamacpp.answer import SCORED, Answerer, AnswererSettings
from edgedistill.llamacpp.layout import Layout
from edgedistill.llamacpp.requests import Answer, Request
from edgedistill.llamacpp.sampling import Sampling
from edgedistill.recipe import TeachSettings, load_recipe
from edgedistill.records import Completion, read_prompts
from edgedistill.run import cores
from edgedistill.store import Store
from edgedistill.targets import CaptureSettings, Targets, decode
from edgedistill.teachers import preamble

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "home-commands"
BAR = {"top_k": 48.0, "captured_mass": 0.99, "sampled": 32.0}
# DistillKit's small setting: 50 ids of 18 bits, one bfloat16 and three float32 terms
PEER = 50 * 18 / 8 + 2 + 3 * 4
SLOTS = 32


@dataclass(frozen=True)
class Kept:
    """What one profile leaves of a set of answers."""

    bytes_a_token: float
    targets: list[Targets]

    @property
    def positions(self) -> int:
        return sum(len(one.tokens) for one in self.targets)

    @property
    def entries(self) -> float:
        return sum(len(one.ids) for one in self.targets) / self.positions

    @property
    def mass(self) -> float:
        return 1.0 - float(np.concatenate([one.tail for one in self.targets]).mean(dtype=np.float64))


def on_disk(answers: Sequence[Answer]) -> Kept:
    """The growth of a real row store, journal folded; the answers' texts, which are there anyway, left out."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "teacher.sqlite"
        with Store(path):
            pass
        before = path.stat().st_size
        with Store(path) as store:
            for answer in answers:
                key = hashlib.sha256(answer.id.encode()).hexdigest()
                row = Completion(answer.id, "", "stop", 1, len(answer.tokens), 1.5, targets=answer.targets)
                store.add(key, row)
        growth = path.stat().st_size - before
    targets = [decode(answer.targets or b"") for answer in answers]
    return Kept(growth / sum(len(one.tokens) for one in targets), targets)


def answered(answerer: Answerer, requests: Sequence[Request], layout: Layout) -> list[Answer]:
    with answerer.engine(layout, requests) as engine:
        return list(engine.run(requests))


def measured(answerer: Answerer, requests: Sequence[Request], keep: CaptureSettings) -> dict[str, Any]:
    """Both profiles' figures on the same answers."""
    layout = Layout(min(SLOTS, len(requests)), split=False)
    written = answered(answerer, [_keeping(request, keep) for request in requests], layout)
    top = on_disk(written)
    tokens = {one.id: tuple(map(int, targets.tokens)) for one, targets in zip(written, top.targets, strict=True)}
    drawing = replace(keep, profile="sampled")
    given = [replace(_keeping(request, drawing), given=tokens[request.id]) for request in requests]
    drawn = on_disk(answered(answerer, given, Layout(SCORED, split=False)))
    found = {
        "top_k": round(top.bytes_a_token, 2),
        "captured_mass": round(top.mass, 4),
        "sampled": round(drawn.bytes_a_token, 2),
    }
    holds = found["top_k"] <= BAR["top_k"] and found["captured_mass"] >= BAR["captured_mass"]
    return {
        "value": found,
        "holds": holds and found["sampled"] <= BAR["sampled"],
        "n": top.positions,
        "completions": len(written),
        "entries": {"top_k": round(top.entries, 2), "sampled": round(drawn.entries, 2)},
    }


def _keeping(request: Request, keep: CaptureSettings) -> Request:
    return replace(request, sampling=replace(request.sampling, capture=keep))


def recipe_answers(path: Path, count: int, keep: CaptureSettings) -> dict[str, Any]:
    recipe = load_recipe(RECIPE)
    prompts = read_prompts(recipe.file(recipe.prompts.file))[:count]
    with Answerer(path, preamble(recipe), None, AnswererSettings(cores())) as answerer:
        sampling = Sampling(recipe.teach.max_tokens, temperature=recipe.teach.temperature)
        return measured(answerer, [answerer.request(prompt, sampling) for prompt in prompts], keep)


def free_text(path: Path, count: int, temperature: float, keep: CaptureSettings) -> dict[str, Any]:
    with engine_work.answerer(path) as answerer:
        sampling = Sampling(160, temperature=temperature)
        requests = [answerer.request(prompt, sampling) for prompt in engine_work.prompts(answerer, count)]
        return measured(answerer, requests, keep)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="the teacher's GGUF file; by default the recipe's, fetched")
    parser.add_argument("--completions", type=int, default=200, help="of the recipe; a tenth as many of free text")
    usual = TeachSettings()
    parser.add_argument("--mass", type=float, default=usual.target_mass)
    parser.add_argument("--largest", type=int, default=usual.target_tokens)
    parser.add_argument("--draws", type=int, default=usual.target_draws)
    options = parser.parse_args()
    path = options.model or teacher_gguf()
    keep = CaptureSettings("top_k", options.mass, options.largest, options.draws)
    commands = recipe_answers(path, options.completions, keep)
    note(f"the recipe's answers: {commands}")
    others = {}
    for name, temperature in (("greedy", 0.0), ("temperature_1", 1.0)):
        others[name] = free_text(path, max(2, options.completions // 10), temperature, keep)
        note(f"free text, {name}: {others[name]}")
    finish(
        "L1",
        commands["value"],
        BAR,
        all(one["holds"] for one in (commands, *others.values())),
        peer=f"DistillKit's small setting: {PEER:.0f}",
        unit="bytes/token on disk",
        n=commands["n"],
        recipe=commands,
        free_text=others,
        settings={"mass": options.mass, "largest": options.largest, "draws": options.draws},
    )


if __name__ == "__main__":
    main()
