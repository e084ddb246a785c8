"""K5: support-triage learned from the odds of all 15 answers, against from the most probable answer's text alone.

Qwen2.5-Coder-1.5B teaches SmolLM2-135M; the same tickets, batches, first weights and number of steps for both losses,
three seeds. `--run RUN` is a run of the recipe whose curate stage is finished: its rows hold the teacher's probability
of each answer. On the 120 eval tickets each student's answer is the most probable of the 15, scored as whole
completions; its probability is normalised over them. Right is what the eval set expects; agreement is with the
teacher's most probable answer; the expected calibration error (Guo et al., arXiv 1706.04599, eq. 3) is that of the
answer's probability against being right, in 10 bins of equal width.

With `--work DIR`, a benchmark that was killed goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from demo_rows import demo_base
from measure import finish, note, teacher_gguf
from numpy.typing import NDArray

from edgedistill.chat import with_system
from edgedistill.recipe import Recipe, load_recipe
from edgedistill.records import Prompt, read_prompts
from edgedistill.run import Run, cores, file_sha256, write_whole
from edgedistill.schema import closed_answers, load_schema
from edgedistill.stages.calibration import calibrated
from edgedistill.stages.candidates import answering, greedy
from edgedistill.stages.scoring import equal
from edgedistill.stages.taught import TaughtRows
from edgedistill.students import TrainingData, TrainStep, load_student
from edgedistill.students.encode import Encoder
from edgedistill.students.lessons import answers_lesson, collated
from edgedistill.students.merge import merge_adapter
from edgedistill.teachers import TeacherTask, preamble

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "support-triage"
LOSSES = ("hard", "soft")
CALIBRATION = 0.6
BINS = 10

Odds = NDArray[np.float64]
"""(tickets, answers) The probability of each answer; each row sums to 1."""


def teacher_odds(
    recipe: Recipe, prompts: Sequence[Prompt], answers: Sequence[str], kept: Path, prior: Mapping[str, float] | None
) -> Odds:
    """What the teacher says of each eval ticket, calibrated as its answers to the tickets were; kept in a file."""
    if not kept.is_file():
        path = teacher_gguf(recipe.teacher.model)
        shown, schema = preamble(recipe), load_schema(recipe)
        task = TeacherTask(path, file_sha256(path), shown, schema, kept.parent, recipe.teacher)
        with answering(task, prompts, greedy(recipe), recipe.seed) as found:
            rows = {one.prompt_id: calibrated(one, prior).answers for one in found}
        write_whole(kept, json.dumps(rows).encode())
    odds = json.loads(kept.read_text("utf-8"))
    return np.array([[odds[prompt.id].get(answer, 0.0) for answer in answers] for prompt in prompts])


def trained(recipe: Recipe, run: Run, base: Path, seed: int, out: Path) -> Path:
    """The student as a Hugging Face folder, after training with the recipe's loss."""
    student = load_student(recipe.student, base)

    def report(moment: Any) -> None:
        if isinstance(moment, TrainStep) and moment.step % 25 == 0:
            note(f"{recipe.train.loss}, seed {seed}: step {moment.step} of {moment.steps}, loss {moment.loss:.4f}")

    if not (out / "merged").is_dir():
        with TaughtRows(recipe, run, Encoder(base)) as rows:
            data = TrainingData(rows.examples("train"), (), seed, rows.lesson)
            student.train(data, recipe.train, out, report)
        merge_adapter(base, out / "adapter", out / "merged")
    return out / "merged"


def student_odds(recipe: Recipe, folder: Path, prompts: Sequence[Prompt], answers: Sequence[str]) -> Odds:
    """What a student says of each eval ticket: one forward pass over the trie of all answers."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32, attn_implementation="eager").eval()
    encoder = Encoder(folder)
    tokens = [encoder.completion(answer) for answer in answers]
    rows = []
    for prompt in prompts:
        asked = encoder.prompt(with_system(recipe.student.system, prompt.messages))
        logs = _log_shares(model, asked, tokens)
        rows.append(np.exp(logs - np.logaddexp.reduce(logs)))
    return np.stack(rows)


def _log_shares(model: Any, prompt: Sequence[int], answers: Sequence[tuple[int, ...]]) -> NDArray[np.float64]:
    """The log-probability of each whole answer behind the prompt."""
    lesson = answers_lesson("", prompt, dict.fromkeys(answers, 1 / len(answers)))
    batch = collated([lesson])
    assert batch.visible is not None
    hidden = torch.from_numpy(~batch.visible)[:, None]
    mask = torch.zeros(hidden.shape).masked_fill_(hidden, torch.finfo(torch.float32).min)
    ids, positions = (torch.from_numpy(cells).long() for cells in (batch.tokens, batch.positions))
    with torch.inference_mode():
        logits = model(input_ids=ids, position_ids=positions, attention_mask=mask, use_cache=False).logits[0]
        logs = logits.double().log_softmax(dim=1).numpy()
    steps = zip(lesson.parents.tolist(), lesson.tokens.tolist(), strict=True)
    child = {step: place for place, step in enumerate(steps) if place >= len(prompt)}
    return np.array([_along(child, logs, len(prompt) - 1, answer) for answer in answers])


def _along(child: Mapping[tuple[int, int], int], logs: NDArray[np.float64], place: int, answer: Sequence[int]) -> float:
    total = 0.0
    for token in answer:
        total += float(logs[place, token])
        place = child.get((place, token), -1)
    return total


def calibration_error(confidence: NDArray[np.float64], is_right: NDArray[np.bool_]) -> float:
    """The mean gap between how sure and how often right, over bins, weighed by their sizes.

    >>> calibration_error(np.array([0.95, 0.95, 0.55, 0.55]), np.array([True, True, True, False]))
    0.05
    """
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = [
        abs(confidence[bins == one].mean() - is_right[bins == one].mean()) * (bins == one).mean()
        for one in set(bins.tolist())
    ]
    return round(float(sum(gaps)), 6)


def scored(odds: Odds, teacher: Odds, prompts: Sequence[Prompt], answers: Sequence[str]) -> dict[str, float]:
    best = odds.argmax(axis=1)
    right = np.array([equal(answers[place], prompt.expected) for place, prompt in zip(best, prompts, strict=True)])
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = np.where(teacher > 0, teacher * np.log(teacher / np.maximum(odds, 1e-300)), 0.0)
    return {
        "right": round(float(right.mean()), 4),
        "agreement": round(float((best == teacher.argmax(axis=1)).mean()), 4),
        "calibration_error": calibration_error(odds.max(axis=1), right),
        "confidence": round(float(odds.max(axis=1).mean()), 4),
        "kl_to_teacher": round(float(parts.sum(axis=1).mean()), 4),
    }


def with_loss(recipe: Recipe, loss: str, epochs: int) -> Recipe:
    train = recipe.train.model_copy(update={"loss": loss, "epochs": epochs})
    return recipe.model_copy(update={"train": train})


def measured(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """The teacher's scores, and those of each student by loss and seed."""
    recipe, run = load_recipe(RECIPE), Run(options.run)
    answers = closed_answers(load_schema(recipe)) or ()
    prompts = read_prompts(RECIPE / "eval.jsonl")[: options.tickets]
    base = demo_base(RECIPE)
    prior = run.summary("teach")["teachers"][0].get("prior")
    teacher = teacher_odds(recipe, prompts, answers, work / f"teacher-{len(prompts)}.json", prior)
    found: dict[str, Any] = {"teacher": scored(teacher, teacher, prompts, answers)}
    note(f"the teacher: {found['teacher']}")
    epochs = options.epochs or recipe.train.epochs
    for seed in range(options.seeds):
        for loss in LOSSES:
            learner = with_loss(recipe, loss, epochs)
            folder = trained(learner, run, base, seed, work / f"{loss}-{epochs}-{seed}")
            odds = student_odds(learner, folder, prompts, answers)
            found.setdefault(loss, []).append(scored(odds, teacher, prompts, answers))
            note(f"{loss}, seed {seed}: {found[loss][-1]}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="a run of recipes/support-triage, curated")
    parser.add_argument("--work", type=Path, help="a folder to keep trainings in")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="by default the recipe's")
    parser.add_argument("--tickets", type=int, default=120)
    options = parser.parse_args()
    torch.set_num_threads(cores())
    with tempfile.TemporaryDirectory() as scratch:
        work = options.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        found = measured(options, work)
    columns = {loss: {name: np.array([one[name] for one in found[loss]]) for name in found[loss][0]} for loss in LOSSES}
    gains = {name: columns["soft"][name] - columns["hard"][name] for name in ("right", "agreement")}
    error = columns["soft"]["calibration_error"].mean() / max(columns["hard"]["calibration_error"].mean(), 1e-9)
    value = {
        "right": round(float(gains["right"].mean()), 4),
        "agreement": round(float(gains["agreement"].mean()), 4),
        "no_worse": int(((gains["right"] >= 0) & (gains["agreement"] >= 0)).sum()),
        "calibration_error": round(float(error), 4),
    }
    finish(
        "K5",
        value,
        {"right": "> 0", "agreement": "> 0", "no_worse": options.seeds, "calibration_error": CALIBRATION},
        min(value["right"], value["agreement"]) > 0
        and value["no_worse"] == options.seeds
        and value["calibration_error"] <= CALIBRATION,
        peer="the most probable answer's text",
        unit="gain in share of tickets; seeds; x calibration error",
        n=options.tickets,
        **found,
    )


if __name__ == "__main__":
    main()
