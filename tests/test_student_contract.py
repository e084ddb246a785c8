"""What a student learns does not depend on who computes it, nor on how a batch is laid out."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pico import pico_hf_folder
from pico_lessons import END, VOCABULARY, closed_lesson, runs_lesson, soft_lesson
from required import required_or_skipped

from edgedistill.recipe import StudentSettings, TrainSettings
from edgedistill.students import BACKENDS, Exam, TrainingData, TrainStep, load_student
from edgedistill.students.encode import EncodedExample
from edgedistill.students.lessons import Lesson, hard_lesson
from edgedistill.students.merge import merge_adapter

Array = NDArray[Any]
Curve = tuple[list[float], dict[str, Array]]
Tokens = tuple[int, ...]

SETTINGS = TrainSettings(epochs=2, learning_rate=1e-3, batch_size=4, rank=4, alpha=8.0, checkpoint_steps=50)
EXACT = 1e-4


def examples(count: int, seed: int = 0, opening: Tokens = (), has_turns: bool = False) -> list[EncodedExample]:
    """Random texts behind an opening that all share; with `has_turns`, what is learned begins in it, and has a gap."""
    source = np.random.default_rng(seed)
    found = []
    for number in range(count):
        length = int(source.integers(9, 24))
        tokens = source.integers(3, VOCABULARY, length).tolist()
        start = len(opening) + length - int(source.integers(3, 8))
        turns = (len(opening) // 2 or 2, ((len(opening) // 2 or 2) + 3, start)) if has_turns else (start, None)
        gaps = () if turns[1] is None else (turns[1],)
        found.append(EncodedExample(str(number), (*opening, *tokens), turns[0], gaps=gaps))
    return found


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    required_or_skipped(request.param, BACKENDS[request.param][0])
    return str(request.param)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pico_hf_folder(tmp_path_factory.mktemp("contract") / "base")


@pytest.fixture(autouse=True)
def in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch computes in depends on the machine."""
    if find_spec("torch") is not None:
        monkeypatch.setattr("edgedistill.students.torch.compute_dtype", lambda torch: torch.float32)


def data_of(
    lesson: Callable[[EncodedExample], Lesson] = hard_lesson, opening: Tokens = (), has_turns: bool = False
) -> TrainingData:
    how = {"opening": opening, "has_turns": has_turns}
    return TrainingData(examples(12, **how), examples(3, seed=1, **how), 3, lesson)  # type: ignore[arg-type]


def trained(backend: str, base: Path, out: Path, data: TrainingData, **changes: Any) -> Curve:
    """The losses of all steps and of each epoch, and the merged weights."""
    steps: list[TrainStep] = []

    def report(moment: Any) -> None:
        if isinstance(moment, TrainStep):
            steps.append(moment)

    student = load_student(StudentSettings(backend=backend, model=str(base)), base)  # type: ignore[arg-type]
    student.train(data, SETTINGS.model_copy(update=changes), out, report)
    merge_adapter(base, out / "adapter", out / "merged")
    losses = [step.loss for step in steps] + [step.valid_loss for step in steps if step.valid_loss is not None]
    return losses, weights_in(out / "merged")


def weights_in(folder: Path) -> dict[str, Array]:
    load_file = pytest.importorskip("safetensors.numpy").load_file
    return {name: values.astype(np.float32) for name, values in load_file(folder / "model.safetensors").items()}


def assert_alike(one: Curve, other: Curve, base: Path) -> None:
    """Losses within 1e-4, and weights within 1 % of what was learned; merged ones are rounded to 16 bits."""
    assert one[0] == pytest.approx(other[0], rel=EXACT)
    before = weights_in(base)
    apart = sum(float(np.square(one[1][name] - other[1][name]).sum()) for name in before)
    learned = sum(float(np.square(one[1][name] - before[name]).sum()) for name in before)
    whole = sum(float(np.square(before[name]).sum()) for name in before)
    assert learned > 0
    assert apart**0.5 < 0.01 * learned**0.5
    assert apart**0.5 < EXACT * whole**0.5


LESSONS = {
    "text": hard_lesson,
    "distributions": soft_lesson,
    "closed answers": closed_lesson,
    "runs of tokens": runs_lesson,
}
CHANGES: dict[str, dict[str, Any]] = {
    "dora": {"method": "dora"},
    "full": {"method": "full", "weight_decay": 0.1},
    "reverse": {"divergence": "reverse_kl", "temperature": 2.0},
}


@pytest.mark.parametrize("opening", [(), tuple(range(3, 13))], ids=["apart", "behind one opening"])
@pytest.mark.parametrize("lesson", LESSONS)
def test_both_backends_learn_the_same_from_the_same_lessons(
    base: Path, tmp_path: Path, lesson: str, opening: Tokens
) -> None:
    found = {}
    for backend in BACKENDS:
        required_or_skipped(backend, BACKENDS[backend][0])
        found[backend] = trained(backend, base, tmp_path / backend, data_of(LESSONS[lesson], opening))
    assert_alike(found["torch"], found["mlx"], base)


@pytest.mark.parametrize("changes", CHANGES)
def test_both_backends_learn_the_same_in_each_way(base: Path, tmp_path: Path, changes: str) -> None:
    found = {}
    for backend in BACKENDS:
        required_or_skipped(backend, BACKENDS[backend][0])
        found[backend] = trained(backend, base, tmp_path / backend, data_of(soft_lesson), **CHANGES[changes])
    assert_alike(found["torch"], found["mlx"], base)


@pytest.mark.parametrize("opening", [(), tuple(range(3, 13))], ids=["apart", "behind one opening"])
@pytest.mark.parametrize("lesson", ["distributions", "closed answers"])
def test_a_batch_in_one_sequence_teaches_what_padded_ones_do(
    backend: str, base: Path, tmp_path: Path, lesson: str, opening: Tokens
) -> None:
    data = data_of(LESSONS[lesson], opening)
    plain = trained(backend, base, tmp_path / "plain", data)
    packed = trained(backend, base, tmp_path / "packed", data, packing=True)
    assert_alike(packed, plain, base)


@pytest.mark.parametrize("opening", [(), tuple(range(3, 13))], ids=["apart", "behind one opening"])
def test_several_turns_in_one_text_are_learned_alike_padded_packed_and_by_both(
    base: Path, tmp_path: Path, opening: Tokens
) -> None:
    data, found = data_of(opening=opening, has_turns=True), []
    for backend in BACKENDS:
        required_or_skipped(backend, BACKENDS[backend][0])
        for packing in (False, True):
            found.append(trained(backend, base, tmp_path / f"{backend}{packing}", data, packing=packing))
    for other in found[1:]:
        assert_alike(other, found[0], base)


def test_a_text_of_several_turns_weighs_what_its_turns_weigh_apart(backend: str, base: Path, tmp_path: Path) -> None:
    """The loss before the first step: of one text with two turns, and of its two turns each in a text of its own."""
    rows = examples(4, has_turns=True)
    apart = [EncodedExample(f"{row.id}{begin}", row.tokens[:end], begin) for row in rows for begin, end in row.spans]
    whole = trained(backend, base, tmp_path / "whole", TrainingData(rows, (), 3), epochs=1)
    alone = trained(backend, base, tmp_path / "alone", TrainingData(apart, (), 3), epochs=1, batch_size=8)
    assert whole[0] == pytest.approx(alone[0], rel=EXACT)


def test_torch_computes_what_all_texts_begin_with_once_a_step(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    required_or_skipped("torch", BACKENDS["torch"][0])
    embedding = import_module("torch").nn.Embedding
    whole, sizes = embedding.forward, list[tuple[int, ...]]()

    def watched(self: Any, ids: Any) -> Any:
        sizes.append(tuple(ids.shape))
        return whole(self, ids)

    monkeypatch.setattr(embedding, "forward", watched)
    trained("torch", base, tmp_path, data_of(opening=tuple(range(3, 13))), epochs=1)
    steps = [(one, other) for one, other in pairwise(sizes) if one == (1, 10)]
    assert len(steps) == 4  # three to learn from, one to measure
    assert all(other[0] in (3, 4) and other[1] < 24 for _, other in steps)


def test_a_batch_in_parts_teaches_what_it_does_at_once(backend: str, base: Path, tmp_path: Path) -> None:
    plain = trained(backend, base, tmp_path / "plain", data_of(soft_lesson), micro_batch=4)
    parts = trained(backend, base, tmp_path / "parts", data_of(soft_lesson), micro_batch=3)
    assert_alike(parts, plain, base)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_activations_computed_twice_teach_what_kept_ones_do(
    backend: str, base: Path, tmp_path: Path, method: str
) -> None:
    data = data_of(opening=tuple(range(3, 13)))
    kept = trained(backend, base, tmp_path / "kept", data, method=method, gradient_checkpointing="off")
    twice = trained(backend, base, tmp_path / "twice", data, method=method, gradient_checkpointing="on")
    assert_alike(twice, kept, base)


def test_dropout_is_the_seeds_own(backend: str, base: Path, tmp_path: Path) -> None:
    plain, one, same = (
        trained(backend, base, tmp_path / str(number), data_of(), dropout=share)
        for number, share in enumerate((0.0, 0.3, 0.3))
    )
    assert one[0] == same[0]
    assert all(np.array_equal(one[1][name], same[1][name]) for name in one[1])
    assert one[0][1:6] != plain[0][1:6]


def test_an_exam_is_answered_greedily(backend: str, base: Path, tmp_path: Path) -> None:
    given: list[list[list[int]]] = []

    def mark(answers: Any) -> float:
        given.append([list(answer) for answer in answers])
        return 0.5

    student = load_student(StudentSettings(backend=backend, model=str(base)), base)  # type: ignore[arg-type]
    rows, scores = examples(4), []

    def report(moment: Any) -> None:
        if isinstance(moment, TrainStep) and moment.score is not None:
            scores.append(moment.score)

    exam = Exam([row.tokens[: row.start] for row in rows], END, 5, mark)
    data = TrainingData(rows, (), 3, exam=exam)
    student.train(data, SETTINGS.model_copy(update={"epochs": 1}), tmp_path, report)
    merge_adapter(base, tmp_path / "adapter", tmp_path / "merged")
    assert scores == [0.5]
    for row, answer in zip(rows, given[0], strict=True):
        text = list(row.tokens[: row.start])
        for token in answer:
            assert student.logits(tmp_path / "merged", [text])[0].argmax() == token
            text.append(token)
        assert len(answer) == 5 or student.logits(tmp_path / "merged", [text])[0].argmax() == END
