"""quantize: make the sizes that the recipe asks for, and measure what each has lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from ..chat import with_system
from ..llamacpp.probe import kl_divergence, next_token_logits
from ..llamacpp.quantize import quantize as quantize_gguf
from ..recipe import Recipe
from ..records import read_prompts
from ..run import Progress, Run, cores, stop_if_asked, write_whole
from ..students.encode import Encoder
from .export import F16_NAME

__all__ = ["quantize"]

PROBES = 32


def quantize(recipe: Recipe, run: Run, out: Path, progress: Progress) -> dict[str, Any]:
    """Write `<name>-<QUANT>.gguf` for each type, and `quality.json` with the divergence from the 16-bit student."""
    source = run.folder("export") / F16_NAME
    encoder = Encoder(run.folder("export") / "student")
    prompts = read_prompts(run.folder("prompts") / "prompts.jsonl")[:PROBES]
    rows = [encoder.prompt(with_system(recipe.student.system, prompt.messages)) for prompt in prompts]
    reference = next_token_logits(source, rows, cores())
    files, quality = {}, {}
    for number, name in enumerate(recipe.quantize.types, start=1):
        stop_if_asked()
        path = out / f"{recipe.name}-{name}.gguf"
        quantize_gguf(source, path, name, cores())
        logits = next_token_logits(path, rows, cores())
        kl = kl_divergence(reference, logits)
        same = float(np.mean(reference.argmax(axis=1) == logits.argmax(axis=1)))
        quality[name] = {
            "kl_mean": float(kl.mean()),
            "top1_agreement": same,
            "bytes": path.stat().st_size,
            "f16_quant": {"mean": float(kl.mean()), "p99": float(np.quantile(kl, 0.99)), "top1": same},
        }
        files[name] = path.name
        progress("quantizing", number, len(recipe.quantize.types))
    write_whole(out / "quality.json", json.dumps(quality, indent=1).encode())
    return {"files": files, "quality": quality}
