"""What is compared after quantizing: held-out answers, the teacher's own distributions at them, and what they say."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pico import edited, pico_gguf, pico_hf_folder, silent, written
from pico_recipe import PicoModels, write_pico_recipe

from edgedistill.chat import with_system
from edgedistill.llamacpp.probe import next_token_logits
from edgedistill.llamacpp.quantize import quantize
from edgedistill.recipe import Recipe, load_recipe
from edgedistill.records import Completion, Example, Message
from edgedistill.run import Run
from edgedistill.stages import held_out as module
from edgedistill.stages.held_out import held_out, told_by
from edgedistill.stages.quantize import measured
from edgedistill.stages.stored_answers import STORE
from edgedistill.store import Store
from edgedistill.students.encode import Encoder
from edgedistill.targets import Capture, CaptureSettings

pytestmark = pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason="llama_cpp is not installed")

ANSWERS = [f'{{"action":"on","room":"{room}"}}' for room in ("hall", "all")]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> PicoModels:
    folder = tmp_path_factory.mktemp("models")
    teacher = pico_gguf(folder / "teacher.gguf", "llama", tied=False, seed=3)
    other = pico_hf_folder(folder / "other", "llama", seed=4)
    written(edited(other, "tokenizer.json", lambda data: data["model"].update(merges=data["model"]["merges"][:3])))
    student = pico_gguf(folder / "student.gguf", "llama", seed=1)
    return PicoModels(teacher, student.with_name("student-hf"))


def rows(count: int, first: int, keys: bool) -> list[dict[str, Any]]:
    return [
        {
            "messages": [
                {"role": "user", "content": f"turn on light {number}"},
                {"role": "assistant", "content": ANSWERS[number % 2]},
            ],
            "_ed": {"id": f"{number:016x}", **({"key": f"{number:064x}"} if keys else {})},
        }
        for number in range(first, first + count)
    ]


def prepared(
    folder: Path, models: PicoModels, valid: int = 5, changes: dict[str, str] | None = None, keys: bool = False
) -> tuple[Recipe, Run]:
    """A run as far as export."""
    recipe = load_recipe(write_pico_recipe(folder / "recipe", models, changes))
    run = Run(folder / "runs" / "pico", offline=True)
    for name in ("curate", "teach", "export"):
        run.folder(name).mkdir(parents=True)
    for name, lines in (("valid", rows(valid, 100, keys)), ("train", rows(12, 0, keys))):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (run.folder("curate") / f"{name}.jsonl").write_text(text, encoding="utf-8")
    pico_hf_folder(run.folder("export") / "student", "llama", seed=1)
    return recipe, run


def student_of(run: Run) -> Encoder:
    return Encoder(run.folder("export") / "student")


def test_a_teacher_of_the_same_tokenizer_is_asked_behind_its_own_prompt(tmp_path: Path, models: PicoModels) -> None:
    recipe, run = prepared(tmp_path, models)
    found = held_out(recipe, run, student_of(run), silent)
    assert (found.of, len(found.rows), len(found.learnt)) == ("valid", 5, 12)
    assert found.teacher.model == models.teacher
    assert not found.teacher.kept
    for mine, theirs in zip(found.texts, found.teacher.texts, strict=True):
        assert mine.tokens[mine.start :] == theirs.tokens[theirs.start :]
        assert theirs.start > mine.start + 20, "the guide and the example are before it"


def test_a_teacher_of_another_tokenizer_is_not_compared(tmp_path: Path, models: PicoModels) -> None:
    recipe, run = prepared(tmp_path, PicoModels(models.teacher.with_name("other.gguf"), models.student))
    teacher = held_out(recipe, run, student_of(run), silent).teacher
    assert (teacher.model, len(teacher.kept)) == (None, 0)


def test_without_held_out_rows_others_than_those_that_weigh_are_measured(tmp_path: Path, models: PicoModels) -> None:
    recipe, run = prepared(tmp_path, models, valid=0)
    found = held_out(recipe, run, student_of(run), silent)
    assert found.of == "train"
    assert not {text.tokens for text in found.texts} & {text.tokens for text in found.learnt}
    assert len(found.texts) + len(found.learnt) == 12


def test_of_many_rows_some_from_all_over_are_taken(
    tmp_path: Path, models: PicoModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LEARNT", 150)
    recipe, run = prepared(tmp_path, models)
    found = held_out(recipe, run, student_of(run), silent)
    assert 1 <= len(found.learnt) < 5
    assert sum(len(text.tokens) for text in found.learnt) <= 150


def kept(recipe: Recipe, run: Run, models: PicoModels) -> None:
    """Keep the teacher's distributions at the answers of all rows, the end's left out."""
    encoder = student_of(run)
    with Store(run.folder("teach") / STORE) as store:
        for row in (*rows(5, 100, True), *rows(12, 0, True)):
            turns = tuple(Message(**message) for message in row["messages"])
            example = encoder.example(Example("", with_system(recipe.student.system, turns)))
            capture = Capture(CaptureSettings("top_k", mass=0.999, largest=256, draws=1), 512, seed=0)
            before = [example.tokens[:place] for place in range(example.start, len(example.tokens) - 1)]
            for token, logits in zip(
                example.tokens[example.start :], next_token_logits(models.teacher, before, 1), strict=False
            ):
                capture.add(token, np.pad(logits, (0, 512 - len(logits)), constant_values=-1e9))
            done = Completion(row["_ed"]["id"], turns[-1].content, "stop", 1, 1, 0.1, targets=capture.encoded())
            store.add(row["_ed"]["key"], done)


def test_kept_distributions_are_compared_where_there_are_any(tmp_path: Path, models: PicoModels) -> None:
    recipe, run = prepared(tmp_path, models, changes={"slots = 4": 'slots = 4\ntargets = "top_k"'}, keys=True)
    kept(recipe, run, models)
    found = held_out(recipe, run, student_of(run), silent)
    assert found.teacher.model is None
    for text, row in zip(found.texts, found.teacher.kept, strict=True):
        assert len(row) == text.scored
        assert [one is None for one in row] == [False] * (text.scored - 1) + [True]
    quality = lost(found, run, models, tmp_path)
    assert quality["Q8_0"]["teacher_f16"]["tokens"] == quality["Q8_0"]["f16_quant"]["tokens"] - 5


def lost(found: Any, run: Run, models: PicoModels, folder: Path) -> dict[str, Any]:
    made = {}
    for name in ("Q8_0", "Q4_0"):
        made[name] = folder / f"{name}.gguf"
        quantize(models.teacher.with_name("student.gguf"), made[name], name, 1)
    return measured(models.teacher.with_name("student.gguf"), made, found, student_of(run), silent)


def test_the_three_divergences_and_the_worst_tokens_are_told(tmp_path: Path, models: PicoModels) -> None:
    recipe, run = prepared(tmp_path, models)
    quality = lost(held_out(recipe, run, student_of(run), silent), run, models, tmp_path)
    assert quality["Q8_0"]["teacher_f16"] == quality["Q4_0"]["teacher_f16"]
    assert quality["Q8_0"]["f16_quant"]["mean"] < quality["Q4_0"]["f16_quant"]["mean"]
    assert quality["Q4_0"]["f16_quant"]["mean"] < quality["Q4_0"]["teacher_quant"]["mean"]
    worst = quality["Q4_0"]["worst"]
    assert [one["kl"] for one in worst] == sorted((one["kl"] for one in worst), reverse=True)
    assert worst[0]["kl"] == pytest.approx(quality["Q4_0"]["f16_quant"]["max"], abs=1e-4)
    whole = {f"{number:016x}": ANSWERS[number % 2] for number in range(100, 105)}
    for one in worst:
        answer = one["before"].rpartition("assistant\n")[2] + (one["text"] if one["text"] != "<|im_end|>" else "")
        assert answer in whole[one["id"]] or one["before"] in answer


def test_a_special_token_alone_is_told_by_its_name(models: PicoModels) -> None:
    told = told_by(Encoder(models.student))
    assert told([2]) == "<|im_end|>"
    assert told([1, *Encoder(models.student).ids("hello")]) == "hello"
