"""B6: what `fit` predicts for a request against what it takes, for models of usual shapes in several quants."""

from __future__ import annotations

import argparse
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from measure import finish, note

from edgedistill.llamacpp import calibration
from edgedistill.llamacpp.calibration import calibrate
from edgedistill.llamacpp.context import Context, ContextSettings
from edgedistill.llamacpp.model import LlamaModel
from edgedistill.llamacpp.prediction import ERROR, forecast
from edgedistill.llamacpp.shapes import Shape, mixture, shape_of_config, write_shaped
from edgedistill.run import cores

# name -> class, vocabulary, width, inner, layers, heads, key heads, head size, tied: as published
SHAPES: dict[str, tuple[Any, ...]] = {
    "smollm2-135m": ("LlamaForCausalLM", 49152, 576, 1536, 30, 9, 3, 64, True),
    "smollm2-360m": ("LlamaForCausalLM", 49152, 960, 2560, 32, 15, 5, 64, True),
    "qwen2.5-0.5b": ("Qwen2ForCausalLM", 151936, 896, 4864, 24, 14, 2, 64, True),
    "tinyllama-1.1b": ("LlamaForCausalLM", 32000, 2048, 5632, 22, 32, 4, 64, False),
    "qwen2.5-1.5b": ("Qwen2ForCausalLM", 151936, 1536, 8960, 28, 12, 2, 128, True),
}
NAMES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "head_dim", "tie_word_embeddings"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES))
    parser.add_argument("--quants", nargs="*", default=["Q8_0", "Q5_K_M", "Q4_K_M"])
    parser.add_argument("--prompt", type=int, default=96)
    parser.add_argument("--output", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--cpu", action="store_true", help="one thread, and its own time: for a busy machine")
    parser.add_argument("--profiles", type=Path, help="a folder with profiles made before; a new one by default")
    asked = parser.parse_args()
    if asked.cpu:
        asked.threads, calibration.clock = 1, time.process_time_ns
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        profiles = asked.profiles or Path(scratch)
        for name in asked.shapes:
            shape = shape_of(name)
            for quant in asked.quants:
                types = mixture(shape, quant)
                started = time.perf_counter()
                profile = calibrate(types.values(), profiles, lambda what, done, total: None, asked.threads)
                calibrated = time.perf_counter() - started
                told = forecast(shape, types, profile, asked.prompt, asked.output)
                path = Path(scratch) / "model.gguf"
                write_shaped(path, shape, types)
                ttft, e2e = measured(path, (asked.prompt, asked.output), asked.rounds, asked.threads)
                row = {
                    "model": name,
                    "quant": quant,
                    "predicted_ms": [round(told.ttft_ms, 1), round(told.e2e_ms, 1)],
                    "measured_ms": [round(ttft, 1), round(e2e, 1)],
                    "error": round(told.e2e_ms / e2e - 1, 4),
                    "error_ttft": round(told.ttft_ms / ttft - 1, 4),
                    "calibration_s": round(calibrated, 1),
                }
                note(str(row))
                rows.append(row)
    near = sum(abs(row["error"]) <= ERROR for row in rows)
    finish(
        "B6",
        near,
        f"{round(0.8 * len(rows))} of {len(rows)} within 10 %",
        near >= 0.8 * len(rows),
        peer="the request measured, on a model of noise of the same shape and types",
        unit="predictions within 10 %",
        n=len(rows),
        threads=asked.threads,
        clock="CPU time" if asked.cpu else "wall",
        calibration_s=round(sum(row["calibration_s"] for row in rows), 1),
        busy=profile.busy,
        rows=rows,
    )


def shape_of(name: str) -> Shape:
    kind, *numbers = SHAPES[name]
    more = {"max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "hidden_act": "silu"}
    return shape_of_config(name, {"architectures": [kind], **dict(zip(NAMES, numbers, strict=True)), **more})


def measured(path: Path, lengths: tuple[int, int], rounds: int, threads: int) -> tuple[float, float]:
    """Median milliseconds to the first token and to the last, the most probable one taken each time."""
    prompt, output = lengths
    times = []
    with LlamaModel(path) as model:
        settings = ContextSettings(-(-(prompt + output) // 256) * 256, 1, threads)
        with closing(Context(model, settings)) as context:
            for number in range(rounds + 1):
                context.cut(0)
                started = calibration.clock()
                token, first = 1, 0.0
                for step in range(output):
                    context.batch.clear()
                    rows = [1 + (place * 7 + number) % 200 for place in range(prompt)] if step == 0 else [token]
                    end = context.batch.add(rows, 0 if step == 0 else prompt + step - 1, 0, 1)
                    context.decode()
                    token = int(np.argmax(context.logits(end - 1)))
                    first = first or calibration.clock() - started
                times.append((first / 1e6, (calibration.clock() - started) / 1e6))
    ttft, e2e = np.median(times[1:], axis=0)
    return float(ttft), float(e2e)


if __name__ == "__main__":
    main()
