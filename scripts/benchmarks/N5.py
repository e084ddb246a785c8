"""N5: curate over 100,000 and 500,000 rows of 1.5 KB: seconds and memory; and what its search for near-duplicates finds
of all that brute force finds among 5,000.

`python N5.py [ROWS]` measures another number of rows than 100,000 (five times as many are measured after them).
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from curating import asked, sentence, taught_run
from measure import finish, note

from edgedistill.hardware import peak_memory
from edgedistill.records import Completion, Prompt
from edgedistill.similarity import SimilarTexts, shingles
from edgedistill.stages.curate import curate

ROWS, TIMES = 100_000, 5
WORDS = 115  # of a prompt and of an answer: 750 bytes each
MOST_SECONDS, MOST_RATIO, MOST_MEMORY, LEAST_RECALL = 40.0, 5.5, 1 << 30, 0.95
COMPARED, THRESHOLD = 5_000, 0.8
RECIPE = 'name = "n5"\n[teacher]\nmodel = "t.gguf"\n[student]\nmodel = "s"\n'


def rows(count: int) -> Iterator[tuple[Prompt, list[Completion]]]:
    """As many rows; one prompt in ten nearly says what an earlier one says."""
    source = random.Random(5)
    earlier: list[str] = []
    for number in range(count):
        text = sentence(source, WORDS)
        if number % 10 == 9:
            text = edited(source, earlier[source.randrange(len(earlier))])
        elif len(earlier) < 10_000:
            earlier.append(text)
        prompt = asked(f"{text} {number}")
        yield prompt, [Completion(prompt.id, sentence(source, WORDS), "stop", 9, 9, 0.1)]


def edited(source: random.Random, text: str) -> str:
    """The text with some of its words changed."""
    words = text.split()
    for _ in range(source.randrange(1, 12)):
        words[source.randrange(len(words))] = sentence(source, 4).split()[-1]
    return " ".join(words)


def measured(count: int) -> dict[str, Any]:
    """Seconds, processor seconds and the peak of memory of curate over so many rows, in this process."""
    with tempfile.TemporaryDirectory() as folder:
        recipe, run = taught_run(Path(folder), RECIPE, rows(count))
        out = run.begin("curate", "key", afresh=True)
        started, worked = time.monotonic(), time.process_time()
        stats = curate(recipe, run, out, lambda what, done, total: None)
        found = {"seconds": time.monotonic() - started, "cpu_seconds": time.process_time() - worked}
    return {**found, "peak_bytes": peak_memory(), "stats": stats}


def in_child(count: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--measure", str(count)]
    found: dict[str, Any] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    note(f"{count} rows: {json.dumps(found)}")
    return found


def recall() -> tuple[float, int]:
    """Of the texts as similar as the threshold to an earlier one, by brute force, the share that we find; how many."""
    texts = [prompt.text for prompt, _ in rows(COMPARED)]
    place_of: dict[str, int] = {}
    kept: list[tuple[int, int]] = []
    near = set()
    for number, text in enumerate(texts):
        places = {place_of.setdefault(shingle, len(place_of)) for shingle in shingles(text)}
        mine, size = sum(1 << place for place in places), len(places)  # a set as the bits of a number
        for other, others in kept:
            shared = (mine & other).bit_count()
            if shared >= THRESHOLD * (size + others - shared):
                near.add(number)
                break
        else:
            kept.append((mine, size))
    with tempfile.TemporaryDirectory() as folder, SimilarTexts(THRESHOLD, Path(folder)) as seen:
        twins = seen.screen([(str(number), text) for number, text in enumerate(texts)])
    found = {number for number, twin in enumerate(twins) if twin is not None}
    return len(found & near) / len(near), len(near)


def main() -> None:
    if "--measure" in sys.argv:
        sys.stdout.write(json.dumps(measured(int(sys.argv[-1]))) + "\n")
        return
    count = int(sys.argv[1]) if len(sys.argv) > 1 else ROWS
    share, pairs = recall()
    note(f"recall {share:.4f} of {pairs}")
    small, large = in_child(count), in_child(TIMES * count)
    value = {
        "seconds": round(small["seconds"], 1),
        "cpu_seconds": round(small["cpu_seconds"], 1),
        "times_for_5_times_as_many": round(large["seconds"] / small["seconds"], 2),
        "cpu_times": round(large["cpu_seconds"] / small["cpu_seconds"], 2),
        "peak_mb": large["peak_bytes"] >> 20,
        "recall": round(share, 4),
    }
    holds = (
        small["seconds"] <= MOST_SECONDS * count / ROWS
        and large["seconds"] <= MOST_RATIO * small["seconds"]
        and large["peak_bytes"] < MOST_MEMORY
        and share >= LEAST_RECALL
    )
    bar = {"seconds": MOST_SECONDS, "times": MOST_RATIO, "peak_mb": MOST_MEMORY >> 20, "recall": LEAST_RECALL}
    finish("N5", value, bar, holds, peer="brute force, for recall", unit="s", n=count, compared=COMPARED, near=pairs)


if __name__ == "__main__":
    main()
