"""K4: a model of which every other layer was taken out, healed by its distribution or by its text, for the same steps.

SmolLM2-135M answers customers' messages, sampled at temperature 1, and each answer is kept with the distribution at its
tokens. Pruned to 15 of its 30 layers it then learns from these: softly, and by the texts alone. The figure is the
perplexity of held-out answers of the whole model; each seed has a split and an order of its own.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from measure import finish, note, teacher_gguf
from transformers import AutoModelForCausalLM

from edgedistill.chat import with_system
from edgedistill.llamacpp.importer import import_gguf
from edgedistill.recipe import StudentSettings, TeacherSettings, TeachSettings, TrainSettings
from edgedistill.records import read_json, read_prompts
from edgedistill.run import cores, file_sha256
from edgedistill.students import TrainingData, load_student
from edgedistill.students.encode import EncodedExample, Encoder
from edgedistill.students.lessons import Lesson, hard_lesson, text_lesson
from edgedistill.students.merge import merge_adapter
from edgedistill.students.prune import kept_layers, prune
from edgedistill.targets import Targets, decode
from edgedistill.teachers import TeacherTask, load_teacher

MODEL = "smollm2-135m-instruct"
PROMPTS = Path(__file__).resolve().parents[2] / "recipes" / "support-triage" / "prompts.jsonl"
SHORT, LEAST = 40, 16  # tokens of a prompt at most, and of an answer at least


@dataclass(frozen=True)
class Answers:
    """Answers of the whole model as examples, and the distribution at the tokens of each, by its id."""

    examples: list[EncodedExample]
    targets: dict[str, Targets]

    def soft_lesson(self, example: EncodedExample) -> Lesson:
        return text_lesson(example.id, example.tokens, example.start, self.targets[example.id], ce_weight=0.0)


def answers(path: Path, encoder: Encoder, count: int, max_tokens: int) -> Answers:
    """Answers of the whole model to short messages, no more than `count`; very short answers are left out."""
    prompts = {prompt.id: encoder.prompt(with_system("", prompt.messages)) for prompt in read_prompts(PROMPTS)}
    asked = [prompt for prompt in read_prompts(PROMPTS) if len(prompts[prompt.id]) <= SHORT][: count + count // 4]
    settings = TeachSettings(max_tokens=max_tokens, temperature=1.0, targets="top_k", slots=16)
    who, cache = TeacherSettings(model=MODEL), Path(tempfile.mkdtemp())
    teacher = load_teacher(TeacherTask(path, file_sha256(path), with_system("", ()), None, cache, who))
    kept = {one.prompt_id: decode(one.targets or b"") for one in teacher.complete(asked, settings, 0)}
    teacher.close()
    examples = []
    for prompt in asked:  # in their order, not in that in which they were answered
        tokens = kept[prompt.id].tokens.tolist()
        if len(tokens) >= LEAST:
            examples.append(EncodedExample(prompt.id, (*prompts[prompt.id], *tokens), len(prompts[prompt.id])))
    return Answers(examples[:count], kept)


def perplexity(folder: Path, rows: Sequence[EncodedExample]) -> float:
    """Of the rows' answers under a model, over all of their tokens."""
    torch.set_num_threads(cores())
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for row in rows:
            logits = model(torch.tensor([row.tokens]), use_cache=False).logits[0, row.start - 1 : -1]
            answer = torch.tensor(row.tokens[row.start :])
            total += float(torch.nn.functional.cross_entropy(logits, answer, reduction="sum"))
            count += len(answer)
    return float(np.exp(total / count))


def healed(
    base: Path, found: Answers, split: Sequence[Sequence[EncodedExample]], how: TrainSettings, seed: int
) -> float:
    """Held-out perplexity of the pruned model after training."""
    train, held_out = split
    lesson = found.soft_lesson if how.loss == "soft" else hard_lesson
    student = load_student(StudentSettings(model=str(base)), base)
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        student.train(TrainingData(train, (), seed, lesson), how, out, lambda moment: None)
        merge_adapter(base, out / "adapter", out / "merged")
        return perplexity(out / "merged", held_out)


def result_of(seed: int, whole: Path, base: Path, found: Answers, options: argparse.Namespace) -> dict[str, float]:
    """Held-out perplexities with one seed: of the whole model, of the pruned one, and healed both ways."""
    order = np.random.default_rng(seed).permutation(len(found.examples)).tolist()
    rows = [found.examples[index] for index in order]
    split = rows[: options.texts], rows[options.texts :]
    result = {"whole": perplexity(whole, split[1]), "pruned": perplexity(base, split[1])}
    losses: list[Literal["soft", "hard"]] = ["soft", "hard"] if seed % 2 == 0 else ["hard", "soft"]
    for loss in losses:
        how = TrainSettings(
            method=options.method,
            loss=loss,
            epochs=options.epochs,
            batch_size=options.batch,
            learning_rate=options.learning_rate,
            rank=64,
            alpha=64.0,
            checkpoint_steps=10**6,
        )
        result[loss] = healed(base, found, split, how, seed)
    return {name: round(value, 3) for name, value in result.items()}


def asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=128, help="answers to learn from")
    parser.add_argument("--held-out", type=int, default=32)
    parser.add_argument("--max-tokens", type=int, default=64, help="of an answer")
    parser.add_argument("--layers", type=int, default=15)
    parser.add_argument("--epochs", type=int, default=2, help="of texts / batch steps each")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--method", default="full", choices=["full", "lora"])
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--seeds", type=int, default=3)
    return parser.parse_args()


def main() -> None:
    options = asked()
    path = teacher_gguf(MODEL)
    with tempfile.TemporaryDirectory() as scratch:
        whole, base = Path(scratch) / "whole", Path(scratch) / "pruned"
        import_gguf(path, whole, lambda what, done, total: None)
        of = read_json(whole / "config.json")["num_hidden_layers"]
        prune(whole, base, kept_layers(of, options.layers))
        found = answers(path, Encoder(whole), options.texts + options.held_out, options.max_tokens)
        length = float(np.mean([len(row.tokens) for row in found.examples]))
        note(f"{len(found.examples)} answers, {length:.0f} tokens each with their prompts")
        seeds = []
        for seed in range(options.seeds):
            seeds.append(result_of(seed, whole, base, found, options))
            note(f"seed {seed}: {seeds[-1]}")
    lower = sum(result["soft"] < result["hard"] for result in seeds)
    finish(
        "K4",
        {loss: round(float(np.mean([result[loss] for result in seeds])), 3) for loss in ("soft", "hard")},
        "soft lower with every seed",
        lower == len(seeds),
        peer="the same steps of hard loss",
        unit="held-out perplexity",
        n=len(seeds),
        lower=lower,
        seeds=seeds,
        layers=[options.layers, of],
        steps=options.epochs * -(-options.texts // options.batch),
        texts=[options.texts, options.held_out],
        method=options.method,
        learning_rate=options.learning_rate,
    )


if __name__ == "__main__":
    main()
