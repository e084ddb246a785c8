"""What torch computes with on this machine. torch is handed in: it is imported only where teachers and students are."""

from __future__ import annotations

from typing import Any

__all__ = ["compute_dtype", "device"]


def device(torch: Any) -> str:
    """Where the weights go: CUDA, else MPS, else the CPU."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def compute_dtype(torch: Any) -> Any:
    """bfloat16 where the hardware multiplies it, float32 elsewhere: emulated bfloat16 is many times slower."""
    if device(torch) == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    if device(torch) == "mps":
        return torch.float32
    flags = torch.cpu.get_capabilities()
    return torch.bfloat16 if flags.get("avx512_bf16") or flags.get("amx_bf16") or flags.get("bf16") else torch.float32
