"""teach: every teacher answers every prompt once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import EdgeDistillError, InvalidInput, Stopped
from ..recipe import Recipe, TeachSettings
from ..records import Completion, Example, Message, Prompt, Wanted, digest, iter_prompts
from ..run import Progress, Run, file_sha256
from ..store import Store
from ..teachers import Teacher, TeacherTask, load_teacher, preamble
from ..teachers.identity import fetch_teacher
from .asking import Asking, Pass, Source, Tally
from .calibration import asks_calibration, prior_of
from .combine import Answered
from .dialogue import Ask, come_back, conversed
from .failures import Failures
from .keys import AnswerKeys, GivenAnswers, drawn_tries, given_answers, teacher_identity
from .on_offer import teacher_rule
from .retries import Tries, retry, write_tries
from .scorer_desk import Desk
from .shortening import shorten
from .simulated_user import playing
from .steps import Onward, in_steps, keep, kept
from .stored_answers import READ_AT_ONCE, STORE, StoredAnswers, prompts_file
from .tool_results import loop_of

__all__ = ["row_count", "teach"]

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
    told: list[dict[str, Any]] = []
    is_over = False
    try:
        with Store(out / STORE) as store, playing(recipe, Desk(store, run.offline, run.scratch, progress)) as player:
            for number, settings in enumerate(recipe.teachers):
                found = fetch_teacher(recipe, settings, run.offline, progress)
                assert found.sha256 is not None, "weights that were fetched have been hashed"
                heard = None if player is None else player.identity
                keys = AnswerKeys(
                    teacher_identity(recipe, settings, found.sha256, heard), samples, given, drawn_tries(recipe)
                )
                shown = preamble(recipe, settings)
                schema, first = teacher_rule(recipe, settings), next(iter_prompts(source.path), None)
                tools, has_turns = first.tools if first else (), come_back(recipe, first, recipe.user.turns > 0)
                task = TeacherTask(found.path, found.sha256, shown, schema, run.scratch, settings, tools, has_turns)
                asking = Asking(store, source, number, keys, tally, settings.backend == "openai")
                place = store, run, run.scratch, progress
                with loop_of(recipe, settings, keys.identity, place) as loop:
                    talk = None if player is None else player.talk(keys.identity, store)
                    told += _ask(recipe, task, (asking, given, (loop, talk)), failures)
                records.append({**found.record(), "identity": keys.identity})
                if asks_calibration(recipe):
                    records[-1]["prior"] = _prior(store, keys, source.path)
        write_tries(out, told)
        is_over = True
    finally:
        failures.write(is_over)
    retried = {"retried": sum(len(row["told"]) for row in told)} if recipe.teach.retries else {}
    return {
        **retried,
        "rows": tally.rows,
        "asked": tally.asked,
        "completion_tokens": tally.tokens,
        "failed": len(failures),
        "teachers": records,
        "warnings": _warnings(recipe, records),
    }


def row_count(path: Path) -> int:
    """Rows of a file that a stage wrote: its lines."""
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


def _answers_sha256(recipe: Recipe) -> str | None:
    return None if recipe.teach.answers is None else file_sha256(recipe.file(recipe.teach.answers))


def _prior(store: Store, keys: AnswerKeys, path: Path) -> dict[str, float]:
    """The mean odds of a teacher's own closed answers to all prompts.

    Raises InvalidInput where it told none.
    """
    prior = prior_of(_own_answers(store, keys, path))
    if not prior:
        raise InvalidInput(
            "teach.calibrate: the teacher told no probabilities of answers", "Take it out of the recipe."
        )
    return prior


def _own_answers(store: Store, keys: AnswerKeys, path: Path) -> Iterator[Completion]:
    prompts = iter_prompts(path)
    while block := list(islice(prompts, READ_AT_ONCE)):
        wanted = [key for prompt in block if keys.given(prompt) is None for key in keys.of(prompt)]
        yield from store.find(wanted).values()


class _Loaded:
    """A teacher that is loaded when it is first asked for anything."""

    def __init__(self, task: TeacherTask) -> None:
        self._task = task
        self._teacher: Teacher | None = None
        self._error: EdgeDistillError | None = None
        self.failures: dict[str, str] = {}
        """The reasons, by prompt id, of a teacher that gives any."""
        self.names: dict[str, str] = {}
        """The prompt ids of questions that were asked under another name."""

    def get(self) -> Teacher:
        if self._teacher is None:
            self._teacher = load_teacher(self._task)
        return self._teacher

    def complete(
        self, prompts: Iterator[Prompt], settings: TeachSettings, seed: int, wanted: Wanted | None = None
    ) -> Iterator[Completion]:
        """The teacher's completions; that some prompts got none is kept for `settle`."""
        try:
            yield from self.get().complete(prompts, settings, seed, wanted)
        except EdgeDistillError as error:
            if isinstance(error, Stopped) or not self.note():
                raise
            self._error = self._error or error

    @property
    def failed(self) -> int:
        """How many prompts have been given up so far."""
        return len(self.failures.keys() | self._reasons().keys())

    def settle(self) -> None:
        """Raise what was kept."""
        if self._error is not None:
            raise self._error

    def _reasons(self) -> dict[str, str]:
        reasons: dict[str, str] = getattr(self._teacher, "failures", {})
        return {self.names.get(name, name): reason for name, reason in reasons.items()}

    def note(self) -> bool:
        """Keep the reasons that the teacher gives; return whether there are any."""
        self.failures |= self._reasons()
        return bool(self.failures)

    def close(self) -> None:
        if self._teacher is not None:
            self._teacher.close()


class _Answered:
    """The answers to parts of conversations, in the teacher's store."""

    def __init__(self, asking: Asking) -> None:
        self._store, self._keys, self._number = asking.store, asking.keys, asking.number

    def get(self, part: Prompt, sample: int) -> Completion | None:
        return kept(self._store, self._keys.part(part, sample))

    def add(self, part: Prompt, completion: Completion) -> Completion:
        key = self._keys.part(part, completion.sample)
        keep(self._store, key, completion, self._number)
        return kept(self._store, key) or completion


def _ask(
    recipe: Recipe,
    task: TeacherTask,
    work: tuple[Asking, GivenAnswers | None, Sequence[Onward | None]],
    failures: Failures,
) -> list[dict[str, Any]]:
    """All rows of one teacher: first those that it answers, then those whose answer is given; what it was told of wrong
    ones, which it tried again."""
    asking, given, onward = work
    teacher = _Loaded(task)
    settings = recipe.teach

    def failed() -> int:
        return len(failures) + teacher.failed

    def complete(prompts: Iterator[Prompt]) -> Iterator[Completion]:
        one = settings.model_copy(update={"samples": 1})
        missing = partial(teacher.complete, settings=settings, seed=recipe.seed, wanted=asking.missing)
        asks: tuple[Ask, Ask] = (missing, partial(teacher.complete, settings=one, seed=recipe.seed))
        for way in onward:
            asks = asks if way is None else in_steps(asks, asking.missing, way, teacher.names)
        yield from conversed(prompts, settings.samples, asks, _Answered(asking), teacher.names)
        teacher.settle()

    def score(prompts: Iterator[Prompt]) -> Iterable[Completion]:
        assert given is not None
        texts = ((prompt, given.get(prompt.id) or "") for prompt in prompts)
        if settings.targets == "none":
            return (Completion(prompt.id, text, "stop", 0, 0, 0.0) for prompt, text in texts)
        examples = (Example(p.id, (*p.messages, Message("assistant", text)), p.tools) for p, text in texts)
        return teacher.get().score(examples, settings, recipe.seed)

    try:
        chosen = Pass("chosen", lambda prompt: asking.keys.given(prompt) is None, complete, failed)
        _pass(asking, chosen, teacher, failures)
        if given is not None:
            taken = Pass("given", lambda prompt: asking.keys.given(prompt) is not None, score, lambda: len(failures))
            _pass(asking, taken, teacher, failures)
        return _asked_more(recipe, asking, teacher)
    finally:
        teacher.close()


def _asked_more(recipe: Recipe, asking: Asking, teacher: _Loaded) -> list[dict[str, Any]]:
    """Have a teacher try again what is wrong, and say shorter what is too long; what it was told of wrong answers."""
    stored = StoredAnswers(asking.store, {asking.number: asking.keys})

    def own() -> Iterator[tuple[Prompt, list[Answered]]]:
        asked = (prompt for prompt in iter_prompts(asking.source.path) if asking.keys.given(prompt) is None)
        return ((prompt, given) for prompt, given, _ in stored.first(asked))

    told = retry(recipe, asking, own(), teacher.complete) if recipe.teach.retries else []
    if recipe.curate.reasoning == "shorten":
        tries = Tries.of(told)
        last = ((prompt, [stored.last(prompt, one, tries) for one in given]) for prompt, given in own())
        shorten(recipe, asking, last, teacher.complete)
    return told


def _pass(asking: Asking, one: Pass, teacher: _Loaded, failures: Failures) -> None:
    try:
        asking.run(one)
    except EdgeDistillError as error:
        teacher.note()
        failures.note(asking, teacher.failures)
        if isinstance(error, Stopped) or not failures.may_be_left_out(asking):
            raise
    else:
        teacher.note()
        failures.note(asking, teacher.failures)
        if not failures.may_be_left_out(asking):
            raise failures.error(asking)


def _warnings(recipe: Recipe, records: list[dict[str, Any]]) -> list[str]:
    if recipe.teach.targets == "none":
        return []
    rounded = dict.fromkeys(record["quant"] for record in records if record["quant"] not in (None, *WHOLE))
    return [f"soft targets from a {quant} teacher carry its rounding; use Q8_0 or better" for quant in rounded]
