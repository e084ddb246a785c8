"""Students: small models that learn. One module a backend, one literal table, one protocol.

Whoever trained it, a student ends as an ordinary Hugging Face folder: no later stage knows the backend.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from ..errors import InvalidInput, MissingRequirement
from ..recipe import StudentSettings, TrainSettings
from .encode import EncodedExample
from .lessons import Lesson, hard_lesson

__all__ = [
    "BACKENDS",
    "Estimate",
    "Exam",
    "Healer",
    "Report",
    "Student",
    "TrainStep",
    "TrainingData",
    "load_healer",
    "load_student",
    "require_healer",
    "require_student",
]

# backend -> (the libraries it needs, what to install)
BACKENDS = {
    "torch": (("torch", "transformers", "peft", "tokenizers"), "'edgedistill[torch]'"),
    "mlx": (("mlx", "mlx_lm", "tokenizers"), "'edgedistill[mlx]'"),
}


@dataclass(frozen=True, slots=True)
class Exam:
    """Prompts that the student answers after each epoch, and who marks the answers."""

    prompts: Sequence[Sequence[int]]
    """Token ids of each."""
    end: int
    """The token that ends an answer."""
    longest: int
    """Tokens of an answer at most."""
    score: Callable[[Sequence[Sequence[int]]], float]
    """The share of right answers, given the token ids of all."""


@dataclass(frozen=True)
class TrainingData:
    """Encoded examples to learn from and to measure on, what each teaches, and the seed of weights and order."""

    train: Sequence[EncodedExample]
    valid: Sequence[EncodedExample]
    seed: int
    lesson: Callable[[EncodedExample], Lesson] = hard_lesson
    """What an example teaches: its text, unless the stage knows the teacher's distribution."""
    exam: Exam | None = None


@dataclass(frozen=True)
class TrainStep:
    """One optimizer step as reported: losses are nats per completion token, `tokens_per_s` counts unpadded tokens."""

    step: int
    steps: int
    loss: float
    learning_rate: float
    tokens_per_s: float
    valid_loss: float | None = None
    score: float | None = None
    """Share of the exam's answers that are right."""


@dataclass(frozen=True)
class Estimate:
    """What a training will take, told before its first step."""

    memory_bytes: int
    """The peak of the process, or of its share of the GPU."""
    seconds: float


class Student(Protocol):
    """A model that can be trained."""

    def train(self, data: TrainingData, settings: TrainSettings, out: Path, report: Report) -> dict[str, Any]:
        """Write `adapter/`, resuming from the newest whole checkpoint under `checkpoints/`; return a summary."""

    def logits(self, folder: Path, rows: Sequence[Sequence[int]]) -> NDArray[Any]:
        """Next-token logits after each row of token ids: float32 of shape (rows, vocabulary)."""


Report = Callable[[TrainStep | Estimate], None]


class Healer(Protocol):
    """What teaches a quantized student to say again what its 16-bit self says."""

    def heal(
        self, data: TrainingData, settings: TrainSettings, out: Path, report: Report
    ) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Train, resuming from the newest whole checkpoint under `out`; return a summary, and what is new in the GGUF.

        That is, by tensor, the vectors that `llamacpp.vectors.write_vectors` takes.
        """


def require_student(settings: StudentSettings, train: TrainSettings | None = None) -> None:
    """Raise MissingRequirement where the backend's libraries are not installed, or not what the training asks for."""
    _require(settings.backend, f"the '{settings.backend}' student")
    if train is not None and train.compile:
        if settings.backend != "torch":
            raise InvalidInput(
                f"train.compile is for the 'torch' student; '{settings.backend}' compiles its steps unasked",
                "Leave train.compile out.",
            )
        import_module(f"{__name__}.torch_compile").require_cuda()


def load_student(settings: StudentSettings, base: Path) -> Student:
    """The student that the recipe names, on a base given as a Hugging Face folder."""
    require_student(settings)
    module = import_module(f"{__name__}.{settings.backend}")
    student: Student = module.load(base)
    return student


def require_healer() -> None:
    """Raise MissingRequirement where what heals is not installed."""
    _require("torch", "healing")


def load_healer(folder: Path, quant: Path) -> Healer:
    """What heals a quantized GGUF of a student in a Hugging Face folder. Whoever trained it, PyTorch heals it."""
    require_healer()
    healer: Healer = import_module(f"{__name__}.torch_heal").QuantizedStudent(folder, quant)
    return healer


def _require(backend: str, what: str) -> None:
    libraries, install = BACKENDS[backend]
    for library in libraries:
        if find_spec(library) is None:
            raise MissingRequirement(f"{what} needs {library}", f"pip install {install}")
