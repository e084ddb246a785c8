"""export: merge the adapter into its base, write the GGUF, and prove that both read and answer alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..chat import folder_template, with_system
from ..errors import GateMissed
from ..llamacpp.probe import kl_divergence, next_token_logits
from ..llamacpp.writer import GgufMetadata, Source, convert_with_checkout, exact_tokens, model_name_parts, write_gguf
from ..models import Weights
from ..recipe import Recipe
from ..records import read_prompts
from ..run import Progress, Run, cores, write_whole
from ..students import load_student
from ..students.encode import Encoder
from ..students.merge import merge_adapter
from .imported import base_folder
from .parity import prove_tokens, require_safe_template

__all__ = ["F16_NAME", "export", "to_gguf"]

F16_NAME = "student-f16.gguf"
PROBES = 16  # prompts whose next-token distributions are compared


def export(recipe: Recipe, run: Run, out: Path, progress: Progress) -> dict[str, Any]:
    """Write `student/` (a Hugging Face folder), `student-f16.gguf` and `parity.json`.

    Raises GateMissed at the first token or distribution in which the two differ, Unsafe for a chat template that is not
    the base's or reacts to what a message says.
    """
    weights, base = base_folder(recipe, run, progress)
    folder = out / "student"
    progress("merging", 0, 1)
    merge_adapter(base, run.folder("train") / "adapter", folder)
    progress("merging", 1, 1)
    require_safe_template(str(folder), folder_template(folder), folder_template(base), recipe.export.allow_template)
    metadata = _metadata(recipe, weights)
    to_gguf(folder, out / F16_NAME, metadata, run, progress)
    prompts = read_prompts(run.folder("prompts") / "prompts.jsonl")[:PROBES]
    conversations = [with_system(recipe.student.system, prompt.messages) for prompt in prompts]
    progress("proving", 0, 2)
    parity = prove_tokens(folder, out / F16_NAME, conversations)
    progress("proving", 1, 2)
    rows = [Encoder(folder).prompt(conversation) for conversation in conversations]
    logits = load_student(recipe.student, base).logits(folder, rows)
    divergence = kl_divergence(logits, next_token_logits(out / F16_NAME, rows, cores()))
    parity |= {"kl_mean": float(divergence.mean()), "kl_max": float(divergence.max()), "max_kl": recipe.export.max_kl}
    if not run.llama_cpp:
        parity["exact_tokens"] = exact_tokens(folder)  # of any longer text llama.cpp computes something else
    progress("proving", 2, 2)
    write_whole(out / "parity.json", json.dumps(parity, indent=1).encode())
    if not parity["kl_mean"] <= recipe.export.max_kl:  # NaN is no proof either
        worst = int(divergence.argmax())
        raise GateMissed(
            f"{out / F16_NAME}: answers differ from the Hugging Face side, KL {parity['kl_mean']:.2g} nats; "
            f"most for {prompts[worst].text[:60]!r}",
            "This is a fault of the export; please report it with the model's config.json.",
        )
    writer = "a llama.cpp checkout" if run.llama_cpp else "edgedistill"
    return parity | {"bytes": (out / F16_NAME).stat().st_size, "writer": writer}


def _metadata(recipe: Recipe, weights: Weights) -> GgufMetadata:
    """What the GGUF says of its origin, in the words of the GGUF naming convention.

    The size is the base's own word for it; a pruned student's is counted.
    """
    organization, base, size = model_name_parts(weights.name)
    version = recipe.export.version
    return GgufMetadata(
        name=recipe.name,
        basename=base,
        size_label=size if recipe.student.init == "model" else "",
        finetune=recipe.name,
        version=version if version.startswith("v") else f"v{version}",
        licence=weights.licence,
        base_models=(Source(weights.name.rpartition("/")[2], organization),),
    )


def to_gguf(folder: Path, out: Path, metadata: GgufMetadata, run: Run, progress: Progress) -> None:
    """Write a Hugging Face folder as a 16-bit GGUF: by the converter of the run's llama.cpp checkout, or by our own."""
    if run.llama_cpp is not None:
        convert_with_checkout(run.llama_cpp, folder, out)
    else:
        write_gguf(folder, out, metadata, progress)
