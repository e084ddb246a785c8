"""A run folder as the stages leave it, with figures of a real size and no model behind them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from edgedistill.recipe import Recipe, load_recipe
from edgedistill.records import json_lines
from edgedistill.results import RESULTS, write_results
from edgedistill.run import Run

HOSTILE = "<script>alert(1)</script> \x1b]52;c;ZXZpbA==\x07 \u202egnp.exe & \"'><img src=x onerror=alert(1)>"

RECIPE = """
name = "home-commands"
description = "A spoken command in, one line of JSON out."
schema_file = "schema.json"

[teacher]
model = "qwen2.5-coder-1.5b-instruct"
system = "You turn commands into JSON."

[student]
model = "smollm2-135m-instruct"
system = "Command to JSON."

[evaluate]
edge_file = "edge.jsonl"
max_tokens = 24

[quantize]
types = ["Q8_0", "Q4_K_M"]

[accept]
valid = 0.95
agreement = 0.8
exact_of_teacher = 0.85
speedup = 5.0
must_pass = false
"""

SCHEMA = {
    "type": "object",
    "properties": {"action": {"enum": ["turn_on", "turn_off"]}, "value": {"type": ["integer", "null"]}},
    "required": ["action", "value"],
    "additionalProperties": False,
}


FIGURES = ("valid", "score", "agreement")


def user_rows(texts: list[str]) -> bytes:
    rows = [{"messages": [{"role": "user", "content": text}]} for text in texts]
    return json_lines({**row, "expected": {"action": "turn_on", "value": None}} for row in rows)


def recipe_folder(folder: Path, text: str = RECIPE) -> Recipe:
    """A recipe with its files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.toml").write_text(text, encoding="utf-8")
    (folder / "schema.json").write_text(json.dumps(SCHEMA), encoding="utf-8")
    (folder / "eval.jsonl").write_bytes(user_rows(["turn on the light", "light on", "hello world", "kitchen light"]))
    (folder / "edge.jsonl").write_bytes(user_rows(["", "LIGHT"]))
    return load_recipe(folder)


def scores(exact: float | None, valid: float = 1.0, agreement: float = 0.9, n: int = 150) -> dict[str, Any]:
    """The scores of a candidate on one set."""
    half = 1.96 * math.sqrt(0.1 / n)
    named = {"valid": valid, "exact": exact, "score": exact, "agreement": agreement}
    return {
        **named,
        "fields": {} if exact is None else {"action": min(1.0, exact + 0.04), "device": min(1.0, exact + 0.02)},
        "n": n,
        "ci95": {k: [max(0.0, v - half), min(1.0, v + half)] for k, v in named.items() if v is not None},
        "must_pass": {"n": 0, "passed": 0, "failed": []},
        "tags": {} if exact is None else {"curt": {"n": 12, "exact": exact}, "polite": {"n": 20, "exact": exact}},
    }


def edge_scores(exact: float, failed: list[str]) -> dict[str, Any]:
    return {**scores(exact, n=34), "must_pass": {"n": 6, "passed": 6 - len(failed), "failed": failed}}


def candidate(name: str, kind: str, quant: str, size: int, exact: float, agreement: float = 0.9) -> dict[str, Any]:
    failed = ["Unlock.", HOSTILE] if kind == "student" else []
    return {
        "name": name,
        "kind": kind,
        "quant": quant,
        "prompt": "teacher" if kind == "teacher" else "student",
        "size_bytes": size,
        "sha256": "ab" * 32,
        "eval": scores(exact, 1.0 if kind != "base" else 0.62, agreement),
        "edge": edge_scores(0.7 * exact, failed),
    }


def evaluation() -> dict[str, Any]:
    return {
        "files": {"eval": {"name": "eval.jsonl", "sha256": "cd" * 32, "n": 150}, "edge": None},
        "candidates": [
            candidate("teacher", "teacher", "Q4_K_M", 1_117_320_768, 0.9267, 1.0),
            candidate("untrained student, teacher's prompt", "base", "F16", 270_000_000, 0.16, 0.17),
            candidate("untrained student", "base", "F16", 270_000_000, 0.02, 0.02),
            {
                **candidate("student F16, teacher's prompt", "student", "F16", 270_885_952, 0.3, 0.3),
                "prompt": "teacher",
            },
            candidate("student F16", "student", "F16", 270_885_952, 0.8867, 0.9),
            candidate("student Q8_0", "student", "Q8_0", 144_811_072, 0.88, 0.893),
            candidate("student Q4_K_M", "student", "Q4_K_M", 105_454_144, 0.86, 0.873),
        ],
        "reference": "teacher",
        "scorer": "exact",
    }


def result_rows(candidates: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with these scores: of each figure, a candidate's first rows are the good ones."""
    rows = []
    for kind in ("eval", "edge"):
        people = {one["name"]: one[kind] for one in candidates if one.get(kind)}
        for number in range(max((one["n"] for one in people.values()), default=0)):
            prompt = (
                HOSTILE
                if number == {"eval": 130, "edge": 30}[kind]
                else f"It is far too dark in here, number {number}, do something!"
            )
            row = {"set": kind, "id": f"{kind}{number}", "prompt": prompt, "tags": ["curt"], "must_pass": False}
            results = {name: _result(number, one, name) for name, one in people.items()}
            rows.append({**row, "expected": {"action": "turn_on", "value": None}, "candidates": results})
    return rows


def _result(number: int, measured: dict[str, Any], name: str) -> dict[str, Any]:
    good = {key: None if measured[key] is None else number < round(measured[key] * measured["n"]) for key in FIGURES}
    right = good["score"]
    wrong = HOSTILE if number == 131 and name == "student Q4_K_M" else '{"action":"turn_off","value":7}'
    return {
        "answer": '{"action":"turn_on","value":null}' if right else wrong,
        "valid": good["valid"],
        "score": None if right is None else float(right),
        "right": right,
        "same": good["agreement"],
    }


def proven(e2e: dict[str, float]) -> dict[str, Any]:
    """What the requests prove of a target of 500 ms."""
    return {
        "n": 111,
        "verdict": "pass" if e2e["p95"] <= 500 else "fail",
        "decided_at": 111,
        "over": 0,
        "needed": 0,
        "bounds": {name: {"p95": [e2e["p50"], e2e["p99"]]} for name in ("e2e", "ttft")},
        "drift": {"ratio": 1.0, "z": 0.0, "drifting": False, "autocorrelation": 0.0, "dependent": False},
        "tpot_ms": {key: value / 40 for key, value in e2e.items()},
    }


def timed(name: str, kind: str, quant: str, size: int, p50: float) -> dict[str, Any]:
    e2e = {"p50": p50, "p90": p50 * 1.1, "p95": p50 * 1.15, "p99": p50 * 1.4}
    return {
        "name": name,
        "kind": kind,
        "quant": quant,
        "size_bytes": size,
        "sha256": "ab" * 32,
        **proven(e2e),
        "latency_ms": {"ttft": {key: value / 4 for key, value in e2e.items()}, "e2e": e2e},
        "tokens_per_s": 2e4 / p50,
        "prompt_tokens_mean": 20.0,
        "shared_tokens": 980 if kind == "teacher" else 30,
        "completion_tokens_mean": 25.0,
        "load_ms": 240.0,
        "peak_memory_bytes": 2 * size,
        "forced_skipped": {"e2e_ms": e2e, "ratio_of_medians": 0.64, "ci95": [0.6, 0.7], "pairs": 50},
    }


def bench() -> dict[str, Any]:
    return {
        "conditions": {
            "threads": 2,
            "requests": 100,
            "warmup": 5,
            "target_ms": [100.0, 500.0],
            "percentile": 95,
            "decoding": "token by token under the grammar, as llama-server and Ollama decode",
            "cache": "shared prefix kept, the prompt's own tokens not",
            "prompt_tokens_mean": 20.0,
        },
        "machine": {"system": "Linux", "arch": "x86_64", "cpu": "A CPU", "cores": 2, "memory_bytes": 16 << 30},
        "candidates": [
            timed("teacher", "teacher", "Q4_K_M", 1_117_320_768, 2000.0),
            timed("student Q8_0", "student", "Q8_0", 144_811_072, 200.0),
            timed("student Q4_K_M", "student", "Q4_K_M", 105_454_144, 180.0),
        ],
    }


SUMMARIES: dict[str, dict[str, Any]] = {
    "prompts": {"kept": 1230, "dropped": 14},
    "teach": {
        "rows": 1230,
        "asked": 1230,
        "completion_tokens": 30000,
        "teacher": {
            "name": "qwen2.5-coder-1.5b-instruct",
            "sha256": "ee" * 32,
            "source": "packages:a==1",
            "licence": "apache-2.0",
            "quant": "Q4_K_M",
        },
        "identity": "1",
    },
    "curate": {},
    "train": {
        "steps": 120,
        "loss": 0.02,
        "valid_loss": 0.04,
        "base": {
            "name": "smollm2-135m-instruct",
            "sha256": "ff" * 32,
            "source": "packages:b==1",
            "licence": "apache-2.0",
            "imported_from_quant": "Q4_1",
        },
    },
    "export": {},
    "quantize": {"files": {"Q8_0": "home-commands-Q8_0.gguf", "Q4_K_M": "home-commands-Q4_K_M.gguf"}},
    "evaluate": {},
    "bench": {},
}


QUALITY = {
    quant: {
        "teacher_f16": {"mean": 0.21, "p99": 2.9, "p999": 6.1, "top1": 0.93},
        "f16_quant": {"mean": 1e-4 * factor, "p99": 1e-3 * factor, "p999": 5e-3 * factor, "top1": 0.998},
        "teacher_quant": {"mean": 0.22, "p99": 3.0, "p999": 6.2, "top1": 0.929},
        "worst": [{"before": '{"action":', "reference": '"off', "quant": '"on', "kl": 0.03 * factor}],
    }
    for quant, factor in (("Q8_0", 1), ("Q4_K_M", 40))
}


def fabricated_run(folder: Path, text: str = RECIPE) -> tuple[Recipe, Run]:
    """A finished run up to the bench, beside the folder of its recipe."""
    recipe = recipe_folder(folder / "recipe", text)
    run = Run(folder / "runs" / recipe.name)
    for kept in (run.path, run.path / "recipe" / "this"):
        kept.mkdir(parents=True)
        (kept / "recipe.toml").write_text(text, encoding="utf-8")
    metrics = [
        {
            "step": step,
            "loss": 2 * math.exp(-step / 20) + 0.03 * (step % 3),
            "learning_rate": 1e-3,
            "tokens_per_s": 230.0,
        }
        | ({"valid_loss": 2 * math.exp(-step / 18) + 0.05} if step % 40 == 0 else {})
        for step in range(1, 121)
    ]
    rejected = {"overlap with eval": 31, "schema": 9, "near duplicate": 14, "cut off": 2}
    shown = {"id": "a1", "prompt": "Dim the lamp.", "answer": HOSTILE}
    examples = {"schema": [{**shown, "what": "$.value is no number"}], "near duplicate": [{**shown, "of": "b2"}]}
    stats = {"prompts": 1230, "train": 1115, "valid": 59, "rejected": rejected, "examples": examples}
    files: dict[tuple[str, str], bytes] = {
        ("curate", "stats.json"): json_lines([stats]),
        ("train", "metrics.jsonl"): json_lines(metrics),
        ("evaluate", "evaluation.json"): json.dumps(evaluation()).encode(),
        ("bench", "bench.json"): json.dumps(bench()).encode(),
        ("quantize", "quality.json"): json.dumps(QUALITY).encode(),
        ("export", "parity.json"): json.dumps({"texts": 60, "tokens_equal": True, "kl_mean": 2e-6}).encode(),
    }
    for stage, summary in SUMMARIES.items():
        run.begin(stage, "key", afresh=True)
        for (owner, name), data in files.items():
            if owner == stage:
                (run.folder(stage) / name).write_bytes(data)
        if stage == "evaluate":
            write_results(run.folder(stage) / RESULTS, result_rows(evaluation()["candidates"]))
        run.finish(stage, "key", summary, 450.0)
    return recipe, run
