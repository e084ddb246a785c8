"""K2: steps until soft learning is as good as hard learning ever gets, on a synthetic grammar, from scratch.

A grammar over 256 words: classes of words follow each other by a sparse random table of the last two classes, and each
class draws its words from a sparse distribution of its own. A small Llama, the teacher, is trained on it; a smaller
one, the student, then learns from texts that the teacher samples at temperature 1, with the teacher's own distributions
as targets, once from the texts alone (hard) and once from the distributions (soft): same texts, first weights, batches,
learning rates and steps. Both are measured by the cross entropy of held-out texts of the teacher, after each epoch.
`value` is, for the seed where it is largest, the share of hard's steps after which soft's loss is first no higher than
hard's at the end. The texts, the student's first weights and the order come from the seed; the teacher is one.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import finish, note
from numpy.typing import NDArray

from edgedistill.recipe import StudentSettings, TrainSettings
from edgedistill.run import cores
from edgedistill.students import TrainingData, TrainStep, load_student
from edgedistill.students.encode import EncodedExample
from edgedistill.students.lessons import Lesson, hard_lesson, text_lesson
from edgedistill.students.merge import merge_adapter
from edgedistill.targets import Targets, top_k

BAR = 0.5
VOCABULARY, CLASSES, BEGIN = 256, 12, 0
LENGTH = 32  # tokens of a text, without the one it begins with
MASS, LARGEST = 0.995, 64  # as recipes have them by default
TEACHER = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
STUDENT = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 1}

Texts = NDArray[np.int32]
"""(N, 1 + LENGTH) token ids."""


@dataclass(frozen=True)
class Grammar:
    """What word follows, by the classes of the last two."""

    of_word: NDArray[np.int64]
    next_class: NDArray[np.float64]
    """(CLASSES, CLASSES, CLASSES)"""
    word: NDArray[np.float64]
    """(CLASSES, VOCABULARY)"""

    @classmethod
    def drawn(cls, source: np.random.Generator) -> Grammar:
        of_word = source.integers(0, CLASSES, VOCABULARY)
        of_word[BEGIN] = 0
        word = np.zeros((CLASSES, VOCABULARY))
        for number in range(CLASSES):
            members = np.flatnonzero((of_word == number) & (np.arange(VOCABULARY) != BEGIN))
            word[number, members] = source.dirichlet(np.full(len(members), 0.3))
        return cls(of_word, source.dirichlet(np.full(CLASSES, 0.15), (CLASSES, CLASSES)), word)

    def texts(self, count: int, source: np.random.Generator) -> Texts:
        found = np.full((count, 1 + LENGTH), BEGIN, np.int32)
        before, last = np.zeros(count, np.int64), np.zeros(count, np.int64)
        for place in range(1, 1 + LENGTH):
            kind = _drawn(self.next_class[before, last], source)
            found[:, place] = _drawn(self.word[kind], source)
            before, last = last, kind
        return found


def _drawn(shares: NDArray[np.float64], source: np.random.Generator) -> NDArray[np.int64]:
    bounds = shares.cumsum(axis=1)
    points = source.random((len(shares), 1)) * bounds[:, -1:]
    return np.asarray((bounds <= points).sum(axis=1).clip(max=shares.shape[1] - 1))


def blank(folder: Path, size: dict[str, int], seed: int) -> Path:
    """A Llama with random weights, as a Hugging Face folder."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        **size,
        vocab_size=VOCABULARY,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2 * LENGTH,
        tie_word_embeddings=True,
        bos_token_id=BEGIN,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def encoded(texts: Texts, name: str) -> list[EncodedExample]:
    return [EncodedExample(f"{name}{number}", tuple(row), 1) for number, row in enumerate(texts.tolist())]


@dataclass(frozen=True)
class Trained:
    adapter: Path
    losses: dict[int, float]
    """Held-out cross entropy in nats a token, by step."""


def trained(
    base: Path,
    out: Path,
    texts: tuple[Texts, Texts],
    settings: TrainSettings,
    seed: int,
    targets: Sequence[Targets] = (),
) -> Trained:
    """The student of a folder, trained on the first texts, measured on the others, by their tokens alone."""
    train, valid = (encoded(rows, name) for rows, name in zip(texts, ("train", "valid"), strict=True))
    kept = {example.id: one for example, one in zip(train, targets, strict=False)}

    def lesson(example: EncodedExample) -> Lesson:
        if example.id not in kept:
            return hard_lesson(example)
        return text_lesson(example.id, example.tokens, example.start, kept[example.id], 0.0)

    losses: dict[int, float] = {}

    def report(moment: Any) -> None:
        if isinstance(moment, TrainStep) and moment.valid_loss is not None:
            losses[moment.step] = moment.valid_loss

    student = load_student(StudentSettings(model=str(base)), base)
    student.train(TrainingData(train, valid, seed, lesson), settings, out, report)
    return Trained(out / "adapter", losses)


def teacher_texts(folder: Path, count: int, seed: int) -> tuple[Texts, list[Targets]]:
    """Texts sampled from a model at temperature 1, and its distribution at each token."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32)
    begins = torch.full((count, 1), BEGIN)
    with torch.inference_mode():
        written = model.generate(
            begins,
            attention_mask=torch.ones_like(begins),
            min_new_tokens=LENGTH,
            max_new_tokens=LENGTH,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            eos_token_id=None,
            pad_token_id=BEGIN,
        )
        logits = model(written).logits[:, :-1].numpy()
    texts = written.numpy().astype(np.int32)
    return texts, [kept(row[1:], each) for row, each in zip(texts, logits, strict=True)]


def kept(tokens: NDArray[np.int32], logits: NDArray[np.float32]) -> Targets:
    """What a teacher's run would store of a text."""
    rows = [top_k(row, MASS, LARGEST) for row in logits]
    return Targets(
        profile="top_k",
        tokens=tokens,
        offsets=np.cumsum([0, *(len(row[0]) for row in rows)]),
        ids=np.concatenate([row[0] for row in rows]),
        logprobs=np.concatenate([row[1] for row in rows]),
        tail=np.array([row[2] for row in rows], np.float32),
    )


def settings_of(options: argparse.Namespace, epochs: int, **more: Any) -> TrainSettings:
    return TrainSettings(
        method="full",
        epochs=epochs,
        learning_rate=options.rate,
        batch_size=options.batch,
        micro_batch=options.batch,
        gradient_checkpointing="off",
        checkpoint_steps=1_000_000,
        **more,
    )


def teacher(folder: Path, options: argparse.Namespace) -> tuple[Path, dict[str, float]]:
    """A teacher that learned the grammar from more texts than its students get."""
    source = np.random.default_rng(0)
    grammar = Grammar.drawn(source)
    texts = grammar.texts(options.teacher_texts, source), grammar.texts(256, source)
    base = blank(folder / "blank", TEACHER, 0)
    found = trained(base, folder / "out", texts, settings_of(options, options.teacher_epochs), 0)
    merge_adapter(base, found.adapter, folder / "merged")
    losses = list(found.losses.values())
    return folder / "merged", {"first": round(losses[0], 4), "last": round(losses[-1], 4)}


def one_seed(number: int, model: Path, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Hard and soft learning from the same texts."""
    texts, targets = teacher_texts(model, options.texts + 256, 1000 + number)
    both = texts[: options.texts], texts[options.texts :]
    base = blank(folder / "blank", STUDENT, number)
    settings = settings_of(options, options.epochs)
    hard = trained(base, folder / "hard", both, settings, number).losses
    soft_settings = settings_of(options, options.epochs, loss="soft")
    soft = trained(base, folder / "soft", both, soft_settings, number, targets[: options.texts]).losses
    last = max(hard)
    reached = [step for step, loss in soft.items() if loss <= hard[last]]
    found = {
        "share": round(min(reached) / last, 4) if reached else None,
        "hard": {"last": round(hard[last], 4), "lowest": round(min(hard.values()), 4)},
        "soft": {"last": round(soft[last], 4), "lowest": round(min(soft.values()), 4)},
        "steps": last,
    }
    note(f"seed {number}: {found}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--texts", type=int, default=1024, help="that a student learns from")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--teacher-texts", type=int, default=8192)
    parser.add_argument("--teacher-epochs", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(cores())
    with tempfile.TemporaryDirectory() as scratch:
        model, learned = teacher(Path(scratch), options)
        note(f"the teacher's held-out loss on the grammar, first and last: {learned}")
        folders = [Path(scratch) / f"seed{number}" for number in range(options.seeds)]
        seeds = [one_seed(number, model, folder, options) for number, folder in enumerate(folders)]
    shares = [one["share"] for one in seeds]
    worst = None if None in shares else max(shares)
    finish(
        "K2",
        worst,
        BAR,
        worst is not None and worst <= BAR,
        peer="hard learning of the same texts",
        unit="x steps",
        n=options.seeds,
        seeds=seeds,
        teacher=learned,
        texts=options.texts,
        tokens=options.texts * LENGTH,
    )


if __name__ == "__main__":
    main()
