"""What this machine computes with. torch is handed in: it is imported only where teachers and students are."""

from __future__ import annotations

import ctypes
import re
import sys
from pathlib import Path
from typing import Any

__all__ = [
    "compute_dtype",
    "device",
    "energy_joules",
    "give_back_memory",
    "governor",
    "has_slow_blas",
    "peak_memory",
]

STATUS = Path("/proc/self/status")
POWERCAP = Path("/sys/class/powercap")
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


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


def peak_memory() -> int:
    """The most bytes that this process has held since its program began."""
    import psutil

    if sys.platform == "linux":  # there getrusage's peak outlives exec: a child would have that of who started it
        held = re.search(r"^VmHWM:\s*(\d+) kB$", STATUS.read_text(encoding="ascii", errors="replace"), re.MULTILINE)
        if held is not None:
            return int(held[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows keeps the peak elsewhere
        return int(psutil.Process().memory_info().peak_wset)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def give_back_memory() -> None:
    """Give what was freed back to the system, where the C library would keep it: glibc, by malloc_trim(3).

    Tensors of ever other sizes leave holes in its heap: a training held a third more after 24 steps than after one.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(ctypes.c_size_t(0))


def energy_joules() -> float | None:
    """Joules that the processors have used since some time, by RAPL's counters, which begin again when they are full.

    None where the system does not show them: they are Linux's, and often root's alone.
    """
    try:  # the packages: their parts have a second colon
        zones = [zone for zone in POWERCAP.glob("intel-rapl:*") if zone.name.count(":") == 1]
        counts = [int((zone / "energy_uj").read_text(encoding="ascii")) for zone in zones]
    except (OSError, ValueError):
        return None
    return sum(counts) / 1e6 if counts else None


def governor() -> str | None:
    """How the system chooses the processor's frequency, such as "performance"; None where it does not tell."""
    try:
        return GOVERNOR.read_text(encoding="ascii").strip()
    except OSError:
        return None


def has_slow_blas() -> bool:
    """Whether MLX would compute by the reference BLAS that its Linux wheel brings: none that is fast is preloaded."""
    if sys.platform != "linux":
        return False
    loaded = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").lower().splitlines()
    # numpy's own copy has names that MLX does not ask for
    others = [line for line in loaded if "numpy" not in line and "scipy" not in line]
    return not any(name in line for line in others for name in ("openblas", "libmkl", "libblis"))
