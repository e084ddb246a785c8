"""teach: every teacher answers every prompt once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import EdgeDistillError, Stopped
from ..recipe import Recipe
from ..records import Completion, Example, Message, Prompt, digest, iter_prompts
from ..run import Progress, Run, file_sha256
from ..schema import load_schema
from ..store import Store
from ..teachers import Teacher, TeacherTask, load_teacher, preamble
from ..teachers.identity import fetch_teacher
from .asking import Asking, Pass, Source, Tally
from .combine import Answered
from .failures import Failures
from .keys import AnswerKeys, GivenAnswers, given_answers, teacher_identity

__all__ = ["STORE", "answers", "prompts_file", "row_count", "taught_keys", "teach"]

STORE = "teacher.sqlite"
READ_AT_ONCE = 500  # prompts whose answers are read in one query
WHOLE = ("F32", "F16", "BF16", "Q8_0", "8 bit")  # types whose distributions are close to the unrounded weights' own


def teach(recipe: Recipe, run: Run, out: Path, progress: Progress) -> dict[str, Any]:
    """Fill `teacher.sqlite`; rows that are there already are not asked again.

    Prompts without an answer are listed in `failed.jsonl`. Raises EdgeDistillError where there are any; those that get
    none the second time either are left out, and counted in the summary.
    """
    samples, given = recipe.teach.samples, given_answers(recipe)
    source = Source(prompts_file(run), digest(file_sha256(prompts_file(run)), samples, _answers_sha256(recipe)))
    tally = Tally(progress, row_count(source.path) * samples * len(recipe.teachers))
    failures = Failures(out / "failed.jsonl")
    records: list[dict[str, Any]] = []
    is_over = False
    try:
        with Store(out / STORE) as store:
            for number, settings in enumerate(recipe.teachers):
                found = fetch_teacher(recipe, settings, run.offline, progress)
                assert found.sha256 is not None, "weights that were fetched have been hashed"
                keys = AnswerKeys(teacher_identity(recipe, settings, found.sha256), samples, given)
                shown = preamble(recipe, settings)
                task = TeacherTask(found.path, found.sha256, shown, load_schema(recipe), run.scratch, settings)
                asking = Asking(store, source, number, keys, tally, settings.backend == "openai")
                _ask(recipe, task, (asking, given), failures)
                records.append({**found.record(), "identity": keys.identity})
        is_over = True
    finally:
        failures.write(is_over)
    return {
        "rows": tally.rows,
        "asked": tally.asked,
        "completion_tokens": tally.tokens,
        "failed": len(failures),
        "teachers": records,
        "warnings": _warnings(recipe, records),
    }


def prompts_file(run: Run) -> Path:
    """What the stage before left."""
    return run.folder("prompts") / "prompts.jsonl"


def row_count(path: Path) -> int:
    """Rows of a file that a stage wrote: its lines."""
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


def _answers_sha256(recipe: Recipe) -> str | None:
    return None if recipe.teach.answers is None else file_sha256(recipe.file(recipe.teach.answers))


class _Loaded:
    """A teacher that is loaded when it is first asked for anything."""

    def __init__(self, task: TeacherTask) -> None:
        self._task = task
        self._teacher: Teacher | None = None

    def get(self) -> Teacher:
        if self._teacher is None:
            self._teacher = load_teacher(self._task)
        return self._teacher

    @property
    def failures(self) -> dict[str, str]:
        """The reasons, by prompt id, of a teacher that gives any."""
        return getattr(self._teacher, "failures", {})

    def close(self) -> None:
        if self._teacher is not None:
            self._teacher.close()


def _ask(recipe: Recipe, task: TeacherTask, work: tuple[Asking, GivenAnswers | None], failures: Failures) -> None:
    """All rows of one teacher: first those that it answers, then those whose answer is given."""
    asking, given = work
    teacher = _Loaded(task)
    settings = recipe.teach

    def failed() -> int:
        return len(failures) + len(teacher.failures)

    def complete(prompts: Iterator[Prompt]) -> Iterable[Completion]:
        return teacher.get().complete(prompts, settings, recipe.seed)

    def score(prompts: Iterator[Prompt]) -> Iterable[Completion]:
        assert given is not None
        texts = ((prompt, given.get(prompt.id) or "") for prompt in prompts)
        if settings.targets == "none":
            return (Completion(prompt.id, text, "stop", 0, 0, 0.0) for prompt, text in texts)
        examples = (Example(prompt.id, (*prompt.messages, Message("assistant", text))) for prompt, text in texts)
        return teacher.get().score(examples, settings, recipe.seed)

    try:
        chosen = Pass("chosen", lambda prompt: asking.keys.given(prompt) is None, complete, failed)
        _pass(asking, chosen, teacher, failures)
        if given is not None:
            taken = Pass("given", lambda prompt: asking.keys.given(prompt) is not None, score, lambda: len(failures))
            _pass(asking, taken, teacher, failures)
    finally:
        teacher.close()


def _pass(asking: Asking, one: Pass, teacher: _Loaded, failures: Failures) -> None:
    try:
        asking.run(one)
    except EdgeDistillError as error:
        failures.note(asking, teacher.failures)
        if isinstance(error, Stopped) or not failures.may_be_left_out(asking):
            raise
    else:
        failures.note(asking, teacher.failures)
        if not failures.may_be_left_out(asking):
            raise failures.error(asking)


def _warnings(recipe: Recipe, records: list[dict[str, Any]]) -> list[str]:
    if recipe.teach.targets == "none":
        return []
    rounded = dict.fromkeys(record["quant"] for record in records if record["quant"] not in (None, *WHOLE))
    return [f"soft targets from a {quant} teacher carry its rounding; use Q8_0 or better" for quant in rounded]


def taught_keys(recipe: Recipe, run: Run) -> list[AnswerKeys]:
    """The keys of each teacher's answers, as the finished stage stored them."""
    given = given_answers(recipe)
    return [
        AnswerKeys(teacher["identity"], recipe.teach.samples, given) for teacher in run.summary("teach")["teachers"]
    ]


def answers(recipe: Recipe, run: Run, targets: bool = False) -> Iterator[tuple[Prompt, list[Answered]]]:
    """Each prompt with its stored completions, in the order of prompts, teachers and samples; read as it is needed.

    Without `targets`, b"" stands for them where there are any. Raises EdgeDistillError where an answer is missing that
    the stage did not leave out.
    """
    summary = run.summary("teach")
    teachers = taught_keys(recipe, run)
    prompts = iter_prompts(prompts_file(run))
    with Store(run.folder("teach") / STORE, read_only=True) as store:
        while block := list(islice(prompts, READ_AT_ONCE)):
            keyed = [
                [(number, key) for number, keys in enumerate(teachers) for key in keys.of(prompt)] for prompt in block
            ]
            found = store.find([key for keys in keyed for _, key in keys], targets)
            for prompt, keys in zip(block, keyed, strict=True):
                answered = [Answered(number, found[key]) for number, key in keys if key in found]
                if len(answered) < len(keys) and not summary["failed"]:
                    raise EdgeDistillError(f"{run.folder('teach')}: answers are missing", "Redo with --from teach.")
                yield prompt, answered
