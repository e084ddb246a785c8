"""G2: from an adapter to Q4_K_M, by us and by the way that everybody goes, in turns: time, peak memory, equal tensors.

Ours: base and adapter are merged piece by piece into a Hugging Face folder, from there into a GGUF, and quantized; all
in numpy and llama.cpp. The peers' way: PEFT's merge_and_unload, save_pretrained, llama.cpp's convert_hf_to_gguf.py,
llama-quantize. Both start as new processes and leave the same three things. Memory is that of the whole tree of
processes, sampled: what the processes hold for themselves (RssAnon and RssShmem), which the system cannot take back,
and besides it the whole resident set, with the parts of mapped files.

The adapter is random, of numbers with few bits, so that its product and the merged weights are exact in float32 and
rounded once on both sides: then all tensors must be equal bit by bit.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from converter import converter_command, tensor_differences
from llama_tools import tool
from measure import finish, median_interval, note

from edgedistill.llamacpp import reader, weights
from edgedistill.llamacpp.importer import import_gguf
from edgedistill.models import fetch
from edgedistill.run import cores

FASTER, LEANER = 1.3, 0.6
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
EVERY = 0.02  # seconds between two looks at the memory

OURS = """
import sys
from pathlib import Path
from edgedistill.llamacpp.quantize import quantize
from edgedistill.llamacpp.writer import GgufMetadata, write_gguf
from edgedistill.students.merge import merge_adapter
base, adapter, out, threads = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
merge_adapter(base, adapter, out / "student")
write_gguf(out / "student", out / "f16.gguf", GgufMetadata(name="student"), lambda *_: None)
quantize(out / "f16.gguf", out / "q4_k_m.gguf", "Q4_K_M", threads)
"""
MERGE = """
import sys
import peft, torch, transformers
torch.set_num_threads(int(sys.argv[4]))
base = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto")
peft.PeftModel.from_pretrained(base, sys.argv[2]).merge_and_unload().save_pretrained(sys.argv[3] + "/student")
"""


@dataclass(frozen=True)
class Cost:
    """What one way took."""

    seconds: float
    own_bytes: int
    """The peak of what the processes hold for themselves."""
    resident_bytes: int
    """The peak of all that is resident, with the parts of mapped files."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qwen2.5-coder-0.5b-instruct", help="a name of the catalogue")
    parser.add_argument("--base", type=Path, help="or its Hugging Face folder with float16 weights")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=cores())
    options = parser.parse_args()
    scratch = Path(tempfile.mkdtemp())
    try:
        base = options.base or imported(options.model, scratch / "base")
        adapter = random_adapter(base, scratch / "adapter", options.rank)
        costs: dict[str, list[Cost]] = {"ours": [], "peers": []}
        for number in range(options.rounds + 1):  # the first is not counted: files are not in the page cache yet
            for side in ("ours", "peers")[:: 1 if number % 2 else -1]:
                out = scratch / side
                shutil.rmtree(out, ignore_errors=True)
                out.mkdir()
                cost = measured(side, (base, adapter, out), options.threads)
                note(f"round {number}, {side}: {cost}")
                if number or not options.rounds:
                    costs[side].append(cost)
        unlike = differences(scratch / "ours", scratch / "peers")
    finally:
        shutil.rmtree(scratch)
    report(options, costs, unlike)


def report(options: argparse.Namespace, costs: dict[str, list[Cost]], unlike: list[str]) -> None:
    """Print the result."""
    faster = median_interval([one.seconds for one in costs["peers"]], [one.seconds for one in costs["ours"]])
    leaner = max(one.own_bytes for one in costs["ours"]) / max(one.own_bytes for one in costs["peers"])
    resident = max(one.resident_bytes for one in costs["ours"]) / max(one.resident_bytes for one in costs["peers"])
    finish(
        "G2",
        {"faster": faster[0], "memory": round(leaner, 3), "tensors_equal": not unlike},
        {"faster": FASTER, "memory": LEANER, "tensors_equal": True},
        faster[0] >= FASTER and leaner <= LEANER and not unlike,
        peer="PEFT merge_and_unload, save_pretrained, convert_hf_to_gguf.py, llama-quantize",
        unit="x faster; share of the peers' peak memory",
        n=len(costs["ours"]),
        interval=faster[1:],
        resident=round(resident, 3),
        unlike=unlike[:10],
        rank=options.rank,
        model=str(options.base or options.model),
        threads=options.threads,
        costs={side: [vars(one) for one in all_of] for side, all_of in costs.items()},
    )


def imported(name: str, out: Path) -> Path:
    """The model as a Hugging Face folder with float16 weights, whatever it is at hand as."""
    found = fetch(name, ("hf", "gguf"), False, lambda what, done, total: None)
    if found.format == "hf":
        return found.path
    import_gguf(found.path, out, lambda what, done, total: None)
    return out


def random_adapter(base: Path, out: Path, rank: int) -> Path:
    """Write a PEFT adapter of all linear layers whose numbers have two bits each. Returns `out`."""
    numbers = np.random.default_rng(0)
    matrices = {
        name: tensor.shape
        for name, tensor in weights.find_tensors(base).items()
        if name.removesuffix(".weight").endswith(MODULES)
    }
    shapes: dict[str, tuple[int, ...]] = {}
    for name, (outputs, inputs) in matrices.items():
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        shapes |= {f"{stem}.lora_A.weight": (rank, inputs), f"{stem}.lora_B.weight": (outputs, rank)}

    def pieces(name: str) -> list[Any]:
        return [numbers.integers(-1, 2, shapes[name]).astype(np.float32) * np.float32(2**-6)]

    out.mkdir()
    weights.write_safetensors(out / "adapter_model.safetensors", shapes, "F32", pieces)
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 2 * rank, "lora_dropout": 0.0}
    config |= {"target_modules": list(MODULES), "bias": "none", "fan_in_fan_out": False, "inference_mode": True}
    (out / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return out


def measured(side: str, paths: tuple[Path, Path, Path], threads: int) -> Cost:
    """Run one way from beginning to end."""
    base, adapter, out = paths
    given = [str(base), str(adapter), str(out), str(threads)]
    if side == "ours":
        return watched([[sys.executable, "-c", OURS, *given]])
    convert = converter_command(out / "student", out / "f16.gguf")
    copied = [path for path in base.iterdir() if path.name.startswith(("tokenizer", "special_tokens", "chat_template"))]
    copy = ["cp", *map(str, copied), str(out / "student")]
    quantize = [tool("llama-quantize"), str(out / "f16.gguf"), str(out / "q4_k_m.gguf"), "Q4_K_M", str(threads)]
    return watched([[sys.executable, "-c", MERGE, *given], copy, convert, quantize])


def watched(commands: list[list[str]]) -> Cost:
    """Run the commands one after the other, and look at the memory of each and its children."""
    own = resident = 0
    started = time.perf_counter()
    for command in commands:
        with tempfile.TemporaryFile() as log:
            child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log)
            while child.poll() is None:
                one, other = memory(child.pid)
                own, resident = max(own, one), max(resident, other)
                time.sleep(EVERY)
            if child.returncode:
                log.seek(0)
                raise SystemExit(f"{command[:3]} failed: {log.read().decode(errors='replace')[-2000:]}")
    return Cost(time.perf_counter() - started, own, resident)


def memory(root: int) -> tuple[int, int]:
    """Bytes of a process and all below it: what is their own, and all that is resident."""
    import psutil

    own = resident = 0
    try:
        processes = [psutil.Process(root), *psutil.Process(root).children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0, 0
    for process in processes:
        try:
            lines = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8").splitlines()
        except OSError:  # it has just ended
            continue
        sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith(("Rss", "VmRSS"))}
        own += sizes.get("RssAnon", 0) + sizes.get("RssShmem", 0)
        resident += sizes.get("VmRSS", 0)
    return own, resident


def differences(ours: Path, peers: Path) -> list[str]:
    """Every tensor of both GGUFs that differs in name, type, shape or any bit."""
    return [
        f"{name}: {one}"
        for name in ("f16.gguf", "q4_k_m.gguf")
        for one in tensor_differences(reader.read_gguf(ours / name), reader.read_gguf(peers / name))
    ]


if __name__ == "__main__":
    main()
