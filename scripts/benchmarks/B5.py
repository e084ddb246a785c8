"""B5: time to the first text with the shared part's state read from a file, against computing it, in turns."""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from measure import finish, median_interval, note, pairs, teacher_gguf

from edgedistill.llamacpp.prefix import PrefixCache
from edgedistill.llamacpp.runtime import Runtime, RuntimeSettings
from edgedistill.records import Message
from edgedistill.run import cores, file_sha256

BARS = {256: 3.0, 1000: 10.0}
WORDS = "Answer in one short sentence, name the room and the device, and never promise what nobody has checked. "
QUESTION = (Message("user", "Is the light in the kitchen still on?"),)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="a GGUF file; by default the catalogue's SmolLM2-135M")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--tokens", type=int, nargs="*", default=list(BARS))
    parser.add_argument("--threads", type=int, default=cores())
    asked = parser.parse_args()
    model = asked.model or teacher_gguf("smollm2-135m-instruct")
    found = {}
    for tokens in asked.tokens:
        found[tokens] = measured(model, tokens, asked.threads, asked.pairs)
        note(f"{tokens} shared tokens: {found[tokens]}")
    finish(
        "B5",
        {tokens: row["ratio"] for tokens, row in found.items()},
        {tokens: BARS.get(tokens, 3.0) for tokens in found},
        all(row["interval"][0] >= BARS.get(tokens, 3.0) for tokens, row in found.items()),
        peer="the same runtime, the shared part computed",
        unit="x time to the first text",
        n=asked.pairs,
        threads=asked.threads,
        model=model.name,
        details=found,
    )


def measured(model: Path, tokens: int, threads: int, count: int) -> dict[str, object]:
    """Milliseconds to the first text both ways, and their ratio; model and state are in the page cache."""
    scratch = Path(tempfile.mkdtemp())
    sha256 = file_sha256(model)
    answers = set()
    try:

        def first_text(reads: bool) -> float:
            """From opening an empty context to the first text: what a start with this system text takes."""
            kept = [PrefixCache(scratch, sha256)] if reads else []
            runtime.settings = RuntimeSettings(threads, prefixes=lambda: kept)
            runtime.forget()
            reply = runtime.answer(QUESTION, 8)
            answers.add(reply.text)
            return reply.ttft_ms

        with Runtime(model, preamble(model, tokens), None, RuntimeSettings(threads)) as runtime:
            computed, read = pairs(lambda: first_text(False), lambda: first_text(True), count)
            first_text(True)
            assert runtime.restored, "the state was not read"
            shared = len(runtime.shared.tokens)
    finally:
        shutil.rmtree(scratch)
    ratio, low, high = median_interval(computed, read)
    return {
        "ratio": ratio,
        "interval": [low, high],
        "shared_tokens": shared,
        "ttft_ms": [round(sorted(read)[len(read) // 2], 2), round(sorted(computed)[len(computed) // 2], 2)],
        "same_answers": len(answers) == 1,
    }


def preamble(model: Path, tokens: int) -> tuple[Message, ...]:
    """A system message that, in the model's template, makes so many shared tokens, a few more or less."""
    words: list[str] = []
    with Runtime(model, (Message("system", ""),), None, RuntimeSettings(1)) as runtime:
        room = tokens - len(runtime.shared.tokens)
        while len(runtime.model.tokenize(" ".join(words))) < room:
            words += WORDS.split()
        while len(runtime.model.tokenize(" ".join(words))) > room:
            words.pop()
    return (Message("system", " ".join(words)),)


if __name__ == "__main__":
    main()
