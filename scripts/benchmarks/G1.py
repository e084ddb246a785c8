"""G1: architectures whose random-weight models we write as llama.cpp's own converter does, and that compute alike.

For each model: transformers writes it, we write the GGUF and llama.cpp's converter writes it. All tensors must be equal
in name, type, shape and bits, all metadata in type and value; what may differ is in EXPLAINED, with the reason, and
every other difference fails the model. Then llama.cpp loads ours: token ids of all probes as the tokenizer.json, and
next-token distributions as transformers' in float32. Vocabularies are real ones where the source has them as a file
(models/ggml-vocab-*.gguf), so that the name of the pre-tokenizer is the converter's finding too; elsewhere made up.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from converter import convert, source, tensor_differences
from measure import finish, note

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))
from pico import edited
from tiny_models import TINY, Tiny, tiny_folder, write_model

from edgedistill.errors import EdgeDistillError
from edgedistill.llamacpp import reader, vocabulary
from edgedistill.llamacpp.probe import kl_divergence, next_token_logits
from edgedistill.llamacpp.tokenizer_files import tokenizer_files
from edgedistill.llamacpp.writer import GgufMetadata, write_gguf
from edgedistill.stages.parity import prove_tokens

BAR, ALLOWED_KL = 9, 1e-3
ROWS = (1, 7, 40)  # tokens of the probes
CHAT = (
    "{% for message in messages %}{{ '<T>' + message['role'] + '\n' + message['content'] + '<E>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<T>assistant\n' }}{% endif %}"
)

# model -> vocabulary file of the source, and the tokens that begin and end a turn in it
REAL = {
    "llama": ("refact", "<|endoftext|>", "<|endoftext|>"),
    "llama 3": ("llama-bpe", "<|start_header_id|>", "<|eot_id|>"),
    "tinyllama": ("llama-spm", "<s>", "</s>"),
    "mistral": ("llama-spm", "<s>", "</s>"),
    "smollm3": ("llama-bpe", "<|start_header_id|>", "<|eot_id|>"),
    "qwen2": ("qwen2", "<|im_start|>", "<|im_end|>"),
    "qwen3": ("qwen2", "<|im_start|>", "<|im_end|>"),
    "gemma3": ("llama-spm", "<s>", "</s>"),
    "phi3": ("phi-3", "<|assistant|>", "<|end|>"),
    "granite": ("refact", "<|endoftext|>", "<|endoftext|>"),
}

# what of the metadata may differ: key, ours, the converter's -> why; None stands for "not there", ... for anything
EXPLAINED = (
    (r"general\.(?!architecture|file_type|alignment|quantization_version|type).*", ..., ...,
     "where the model comes from is for the recipe to say; the converter guesses it from the folder's name"),
    (r".*\.attention\.(key|value)_length", ..., None, "the size of a head is said even where it is the default"),
    (r"tokenizer\.ggml\.add_bos_token", ..., None, "whether a text begins with bos is always said, as llama.cpp's "
     "default depends on the tokenizer's name"),
    (r"tokenizer\.ggml\.eot_token_id", ..., None, "the token that ends an answer is named where llama.cpp would "
     "have to choose among several"),
    (r"tokenizer\.ggml\.add_sep_token", None, False, "no text has two parts"),
    (r"tokenizer\.ggml\.add_space_prefix", None, False, "no meaning for byte-level BPE"),
    (r"tokenizer\.ggml\.pre", "smollm", "refact", "two names of the same rules; ours leaves spaces alone when reading "
     "tokens back"),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(TINY), choices=list(TINY))
    parser.add_argument("--made-up", action="store_true", help="small made-up vocabularies everywhere: quick")
    options = parser.parse_args()
    scratch = Path(tempfile.mkdtemp())
    results: dict[str, dict[str, Any]] = {}
    try:
        for name in options.models:
            results[name] = examined(scratch / "model", TINY[name], None if options.made_up else REAL.get(name))
            note(f"{name}: {results[name]}")
            shutil.rmtree(scratch / "model")
    finally:
        shutil.rmtree(scratch)
    rows = {TINY[name].row for name in results}
    passed = {row for row in rows if all(results[name]["passed"] for name in results if TINY[name].row == row)}
    differences = sorted({line for result in results.values() for line in result.get("explained", ())})
    finish(
        "G1",
        len(passed),
        BAR,
        len(passed) >= BAR,
        peer="llama.cpp's convert_hf_to_gguf.py",
        unit="architectures",
        n=len(results),
        failed=sorted(rows - passed),
        explained=differences,
        models=results,
    )


def examined(folder: Path, tiny: Tiny, real: tuple[str, str, str] | None) -> dict[str, Any]:
    """What was found for one model: `passed`, and the reason where it did not."""
    folder.mkdir()
    model, ours, theirs = folder / "hf", folder / "ours.gguf", folder / "theirs.gguf"
    if real is None:
        for_converter(tiny_folder(model, tiny), tiny)
    else:
        real_folder(model, tiny, real)
    try:
        write_gguf(model, ours, GgufMetadata(name="ours"), lambda what, done, total: None)
        proven = prove_tokens(model, ours, ())
    except EdgeDistillError as error:
        return {"passed": False, "why": error.message}
    made_up = real is None and not tiny.tokenizer.startswith("spm")
    failed = convert(model, theirs, tiny.tokenizer if made_up else "")
    if failed:
        return {"passed": False, "why": f"the converter failed: {failed}"}
    one, other = reader.read_gguf(ours), reader.read_gguf(theirs)
    unlike, explained = metadata_differences(one.metadata, other.metadata)
    unlike += tensor_differences(one, other)
    kl = divergence(model, ours)
    return {
        "passed": not unlike and kl < ALLOWED_KL,
        "tensors": len(one.tensors),
        "keys": len(one.metadata),
        "texts": proven["texts"],
        "kl": kl,
        "vocabulary": real[0] if real else f"made up, {tiny.tokenizer}",
        "unlike": unlike,
        "explained": explained,
    }


def for_converter(model: Path, tiny: Tiny) -> None:
    """Add to a made-up model what the converter wants to see: tokenizer.model, or the class of Phi-4's tokenizer."""
    if tiny.tokenizer.startswith("spm"):
        size = json.loads((model / "config.json").read_text(encoding="utf-8"))["vocab_size"]
        files = tokenizer_files(vocabulary.from_folder(model, size), 512)
        for name in ("tokenizer.model", "tokenizer_config.json"):
            (model / name).write_bytes(files[name])
    elif tiny.row == "phi3":
        edited(model, "tokenizer_config.json", lambda settings: settings.update(tokenizer_class="GPT2Tokenizer"))


def real_folder(model: Path, tiny: Tiny, real: tuple[str, str, str]) -> None:
    """The model with a vocabulary file of llama.cpp's source, in which what it lacks is filled in."""
    name, begins, ends = real
    path = source() / "models" / f"ggml-vocab-{name}.gguf"
    words = vocabulary.from_metadata(path, {**reader.read_gguf(path).metadata, "general.name": name})
    template = CHAT.replace("<T>", begins).replace("<E>", ends)
    ids = {**words.ids, "eos": words.tokens.index(ends)}
    words = replace(words, chat_template=template, ids=ids, space_prefix=tiny.tokenizer == "spm")
    model.mkdir()
    for file, content in tokenizer_files(words, 512).items():
        (model / file).write_bytes(content)
    special = {f"{role}_token_id": words.ids[role] for role in ("bos", "eos", "pad") if role in words.ids}
    write_model(model, tiny, {"vocab_size": len(words.tokens) + tiny.padded, "pad_token_id": None, **special})


def metadata_differences(ours: dict[str, Any], theirs: dict[str, Any]) -> tuple[list[str], list[str]]:
    """The keys that differ without a reason, and the explained ones with theirs."""
    unlike, explained = [], []
    for key in sorted(ours.keys() | theirs.keys()):
        one, other = ours.get(key), theirs.get(key)
        if type(one) is type(other) and one == other:
            continue
        for pattern, mine, their, reason in EXPLAINED:
            if re.fullmatch(pattern, key) and mine in (one, ...) and their in (other, ...):
                explained.append(f"{pattern}: {reason}")
                break
        else:
            unlike.append(f"{key}: {shortened(one, other)}")
    return unlike, sorted(set(explained))


def shortened(one: Any, other: Any) -> str:
    """Both values, of lists the first place in which they differ."""
    if isinstance(one, list) and isinstance(other, list):
        places = [place for place, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]]
        at = places[0] if places else min(len(one), len(other))
        return f"{len(places)} of {len(one)} and {len(other)} differ, at {at}: {one[at : at + 1]}, {other[at : at + 1]}"
    return f"{str(one)[:80]!r} and {str(other)[:80]!r}"


def divergence(model: Path, gguf: Path) -> float:
    """The largest KL of next-token distributions, transformers' in float32 against the GGUF's, in nats."""
    import torch
    import transformers

    numbers = np.random.default_rng(0)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    rows = [numbers.integers(0, min(loaded.config.vocab_size, 256), length).tolist() for length in ROWS]
    with torch.no_grad():
        ours = np.stack([loaded(torch.tensor([row])).logits[0, -1].numpy() for row in rows])
    return float(kl_divergence(ours, next_token_logits(gguf, rows, threads=1)).max())


if __name__ == "__main__":
    main()
