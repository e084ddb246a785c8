"""S1: memory that the soft loss and its gradient need beyond what is there before, against dense, Liger's and TRL's.

Float32 on the CPU, in a process of its own each: the peak of its resident memory during the loss (VmHWM, set back
through /proc/self/clear_refs), less what was resident before. So Linux only. Inputs are there before and not counted:
not the teacher's head and hidden states that Liger and TRL need, nor the kept tokens. Of Liger's chunk sizes the best
one counts. See soft_losses.py for who gets which inputs.

The peers: `pip install --target DIR/site-packages --no-deps trl liger-kernel datasets pyarrow pandas python-dateutil
six dill multiprocess xxhash`, then `--peers DIR/site-packages`. dill, in datasets, goes by the folder's name.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from measure import finish, note
from soft_losses import KEPT, LIGER_CHUNKS, VOCABULARY, WIDTH, as_arrays, losses, problem, targets, with_targets

from edgedistill.run import cores
from edgedistill.students.lessons import Rows

BARS = {"dense": 1 / 12, "liger": 0.5, "trl": 1.0}
SIDES = ("ours", "dense", *(f"liger_{chunk}" for chunk in LIGER_CHUNKS), "trl")
WARM_ROWS = 8


def status(field: str) -> int:
    """Bytes of a field of /proc/self/status, such as VmRSS."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"/proc/self/status has no {field}")


def extra_memory(side: str, options: argparse.Namespace, stored: Path) -> int:
    """Bytes at the peak, above what was resident before, in this process."""
    torch.set_num_threads(cores())
    loss = losses(options.peers, options.divergence)[side]
    with np.load(stored) as columns:
        rows = Rows(**columns)
    small = problem(WARM_ROWS, 2 * KEPT, WIDTH)
    loss(with_targets(small, targets(small)))  # what libraries allocate once is not the loss's
    given = with_targets(problem(len(rows), options.vocabulary, options.width), rows)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    loss(given)
    return status("VmHWM") - before


def measured(side: str, options: argparse.Namespace, stored: Path) -> int:
    command = [sys.executable, __file__, *sys.argv[1:], "--side", side, "--stored", str(stored)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{side}: {done.stderr}")
    found: int = json.loads(done.stdout)
    note(f"{side}: {found / 2**20:.1f} MB")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, required=True, help="the folder with trl, liger-kernel and datasets")
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--vocabulary", type=int, default=VOCABULARY)
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--divergence", choices=("jsd", "forward_kl"), default="jsd")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--stored", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        sys.stdout.write(json.dumps(extra_memory(options.side, options, options.stored)))
        return
    torch.set_num_threads(cores())
    with tempfile.TemporaryDirectory() as folder:
        stored = Path(folder) / "targets.npz"
        np.savez(stored, **as_arrays(targets(problem(options.rows, options.vocabulary, options.width))))
        rounds = [{side: measured(side, options, stored) for side in SIDES} for _ in range(options.rounds)]
    found = {side: float(np.median([one[side] for one in rounds])) for side in SIDES}
    peers = {
        "dense": found["dense"],
        "liger": min(found[f"liger_{chunk}"] for chunk in LIGER_CHUNKS),
        "trl": found["trl"],
    }
    value = {name: round(found["ours"] / peer, 4) for name, peer in peers.items()}
    finish(
        "S1",
        value,
        {name: round(bar, 4) for name, bar in BARS.items()},
        all(value[name] <= bar for name, bar in BARS.items()),
        peer="dense autograd; Liger's LigerFusedLinearJSDLoss; TRL's ChunkedDivergenceFunction",
        unit="x extra bytes at the peak",
        n=options.rows,
        mebibytes={side: round(size / 2**20, 1) for side, size in found.items()},
        rounds=options.rounds,
        sizes={"vocabulary": options.vocabulary, "width": options.width, "divergence": options.divergence},
    )


if __name__ == "__main__":
    main()
