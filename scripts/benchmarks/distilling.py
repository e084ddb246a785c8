"""What K1 and K3 share: a teacher's answers with its distributions, and students trained on them.

All of it is kept in a folder as it comes, so that a stopped measurement goes on: answers in a store, a training under
way in its checkpoints, what came of each one in a file.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure import note

from edgedistill.chat import with_system
from edgedistill.llamacpp.answer import Answerer, AnswererSettings
from edgedistill.llamacpp.sampling import Sampling
from edgedistill.llamacpp.writer import GgufMetadata, write_gguf
from edgedistill.models import fetch
from edgedistill.recipe import Recipe, load_recipe
from edgedistill.records import Completion, Example, Message, Prompt, digest, read_prompts
from edgedistill.run import Run, cores, write_whole
from edgedistill.schema import load_schema
from edgedistill.stages.imported import base_folder
from edgedistill.stages.scoring import equal
from edgedistill.store import Store
from edgedistill.students import TrainingData, TrainStep, load_student
from edgedistill.students.encode import EncodedExample, Encoder
from edgedistill.students.lessons import Lesson
from edgedistill.students.merge import merge_adapter
from edgedistill.targets import Targets, decode
from edgedistill.teachers import TeacherTask, load_teacher, preamble

__all__ = ["Trial", "Workshop", "options", "share_equal"]

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "home-commands" / "recipe.toml"


def options(
    description: str | None,
    rows: int,
    epochs: int,
    ways: Sequence[str],
    parents: Sequence[argparse.ArgumentParser] = (),
) -> argparse.Namespace:
    """How much is measured, and where it is kept; the first two of `ways` are compared if nothing is said.

    `parents` have further options.
    """
    parser = argparse.ArgumentParser(description=description, parents=parents)
    parser.add_argument("--work", type=Path, required=True, help="a folder, to go on from where it is filled already")
    parser.add_argument("--rows", type=int, default=rows, help="commands to learn from")
    parser.add_argument("--held-out", type=int, default=60, help="commands on which the loss is measured")
    parser.add_argument("--eval", type=int, default=200, help="commands of eval.jsonl that are answered")
    parser.add_argument("--epochs", type=int, default=epochs)
    parser.add_argument("--learning-rate", type=float, help="for all ways; by default the recipe's")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", choices=ways, default=ways[:2])
    return parser.parse_args()


@dataclass(frozen=True)
class Trial:
    """One training: its name, its seed, and what a row teaches. On rows held out, `measured` is the loss."""

    name: str
    seed: int
    taught: Callable[[EncodedExample], Lesson]
    measured: Callable[[EncodedExample], Lesson]


class Workshop:
    """The demo's teacher and a student of another recipe's choice, with all that they answer."""

    def __init__(self, student: str, given: argparse.Namespace) -> None:
        recipe = load_recipe(RECIPE)
        self.recipe: Recipe = recipe.model_copy(
            update={
                "student": recipe.student.model_copy(update={"model": student}),
                "teach": recipe.teach.model_copy(update={"targets": "top_k"}),
                "train": recipe.train.model_copy(
                    update={
                        "epochs": given.epochs,
                        "learning_rate": given.learning_rate or recipe.train.learning_rate,
                    }
                ),
            }
        )
        given.work.mkdir(parents=True, exist_ok=True)
        self.run = Run(given.work)
        self.base = base_folder(self.recipe, self.run, _silent)[1]
        self.encoder = Encoder(self.base)
        self.teacher = fetch(self.recipe.reference("teacher"), ("gguf",), False, _silent)
        self.eval = read_prompts(self.recipe.file(self.recipe.evaluate.file))[: given.eval]
        prompts = read_prompts(self.recipe.file(self.recipe.prompts.file))
        random.Random(0).shuffle(prompts)
        prompts = prompts[: given.rows + given.held_out]
        self._answers = self._asked([*prompts, *self.eval])
        whole = [prompt for prompt in prompts if self._answers[prompt.id].finish_reason == "stop"]
        self.rows, self.held_out = whole[given.held_out :], whole[: given.held_out]

    def answer(self, prompt: Prompt) -> str:
        """The teacher's answer."""
        return self._answers[prompt.id].text

    def targets(self, identity: str) -> Targets:
        """The teacher's distributions at the tokens of its answer to a prompt."""
        blob = self._answers[identity].targets
        assert blob is not None
        return decode(blob)

    def example(self, prompt: Prompt) -> EncodedExample:
        """A command with the teacher's answer, in the student's tokens."""
        turns = (*prompt.messages, Message("assistant", self.answer(prompt)))
        return self.encoder.example(Example(prompt.id, with_system(self.recipe.student.system, turns)))

    def result(self, trial: Trial, examples: Callable[[Prompt], EncodedExample]) -> dict[str, Any]:
        """Steps, seconds, the loss on rows held out, and the answers to the eval commands, by prompt id."""
        name = f"{trial.name}-{trial.seed}"
        kept = self.run.path / f"{name}-{digest(self._content(trial))[:8]}.json"
        if not kept.is_file():
            started = time.perf_counter()
            train, valid = ([examples(prompt) for prompt in prompts] for prompts in (self.rows, self.held_out))
            measured = {example.id for example in valid}

            def lesson(example: EncodedExample) -> Lesson:
                return trial.measured(example) if example.id in measured else trial.taught(example)

            data = TrainingData(train, valid, trial.seed, lesson)
            out = kept.with_suffix("")
            student = load_student(self.recipe.student, self.base)
            summary = student.train(data, self.recipe.train, out, _reporter(name))
            shutil.rmtree(out / "student", ignore_errors=True)  # of a measurement that was stopped here
            merge_adapter(self.base, out / "adapter", out / "student")
            write_gguf(out / "student", out / "student.gguf", GgufMetadata(name=name), _silent)
            answers = self._answered(out / "student.gguf")
            seconds = round(time.perf_counter() - started, 1)
            found = {"steps": summary["steps"], "loss": summary["valid_loss"], "seconds": seconds, "answers": answers}
            write_whole(kept, json.dumps(found).encode())
            shutil.rmtree(out)
        row: dict[str, Any] = json.loads(kept.read_text("utf-8"))
        note(f"{name}: {row['steps']} steps, loss {row['loss']:.4f}, {row['seconds']} s")
        return row

    def _content(self, trial: Trial) -> list[Any]:
        how = self.recipe.train
        counts = [len(self.rows), len(self.held_out), len(self.eval)]
        return [trial.name, trial.seed, *counts, how.epochs, how.learning_rate]

    def _asked(self, prompts: Sequence[Prompt]) -> dict[str, Completion]:
        """The teacher's completion of each prompt; those in the store are not asked again."""
        recipe, schema = self.recipe, load_schema(self.recipe)
        shown = preamble(recipe)
        task = TeacherTask(self.teacher.path, self.teacher.sha256, shown, schema, self.run.scratch, recipe.teacher)
        content = [self.teacher.sha256, [message.as_dict() for message in shown], schema, recipe.teach.model_dump()]
        keys = {prompt.id: digest(prompt.id, content) for prompt in prompts}
        with Store(self.run.path / "answers.sqlite") as store:
            todo = [prompt for prompt in prompts if keys[prompt.id] not in store]
            if todo:
                with closing(load_teacher(task)) as teacher:
                    for number, one in enumerate(teacher.complete(todo, recipe.teach, recipe.seed), start=1):
                        store.add(keys[one.prompt_id], one)
                        if number % 50 == 0:
                            note(f"the teacher answered {number} of {len(todo)}")
            return {prompt.id: store.find([keys[prompt.id]])[keys[prompt.id]] for prompt in prompts}

    def _answered(self, gguf: Path) -> dict[str, str]:
        """A student's greedy answers to the eval commands, not held to the schema."""
        shown = with_system(self.recipe.student.system, ())
        with Answerer(gguf, shown, None, AnswererSettings(cores())) as answerer:
            sampling = Sampling(self.recipe.evaluate.max_tokens)
            with closing(answerer.complete(self.eval, sampling, self.recipe.teach.slots)) as completions:
                return {one.prompt_id: one.text for one in completions}


def share_equal(answers: dict[str, str], others: dict[str, Any]) -> float:
    """The share of answers that say what the others say, in percent."""
    return 100 * sum(equal(answers[key], other) for key, other in others.items()) / len(others)


def _reporter(name: str) -> Callable[[Any], None]:
    def report(step: Any) -> None:
        if isinstance(step, TrainStep) and step.valid_loss is not None:
            note(f"{name}: step {step.step} of {step.steps}, loss {step.loss:.4f}, held out {step.valid_loss:.4f}")

    return report


def _silent(what: str, done: int, total: int) -> None:
    pass
