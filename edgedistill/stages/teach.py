"""teach: every teacher answers every prompt once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import EdgeDistillError, InvalidInput, Stopped
from ..recipe import Recipe, TeachSettings
from ..records import Completion, Example, Message, Prompt, Tool, Wanted, digest, iter_prompts
from ..run import Progress, Run, file_sha256
from ..store import Store
from ..teachers import Teacher, TeacherTask, load_teacher, preamble
from ..teachers.identity import fetch_teacher
from .asking import Asking, Pass, Source, Tally
from .calibration import asks_calibration, calibrated, prior_of
from .combine import Answered
from .dialogue import Ask, conversed, parts
from .failures import Failures
from .keys import AnswerKeys, GivenAnswers, given_answers, teacher_identity
from .on_offer import teacher_rule
from .retries import Tries, retry, write_tries
from .shortening import is_too_long, question, shorten
from .tool_results import loop_of
from .trajectories import Loop, keep, kept, running, steps_key, with_steps

__all__ = ["STORE", "answers", "prompts_file", "row_count", "taught_keys", "teach", "turn_keys"]

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
    told: list[dict[str, Any]] = []
    is_over = False
    try:
        with Store(out / STORE) as store:
            for number, settings in enumerate(recipe.teachers):
                found = fetch_teacher(recipe, settings, run.offline, progress)
                assert found.sha256 is not None, "weights that were fetched have been hashed"
                keys = AnswerKeys(teacher_identity(recipe, settings, found.sha256), samples, given)
                shown = preamble(recipe, settings)
                schema, tools = teacher_rule(recipe, settings), first_tools(source.path)
                task = TeacherTask(found.path, found.sha256, shown, schema, run.scratch, settings, tools)
                asking = Asking(store, source, number, keys, tally, settings.backend == "openai")
                place = store, run, run.scratch, progress
                with loop_of(recipe, settings, keys.identity, place) as loop:
                    told += _ask(recipe, task, (asking, given, loop), failures)
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


def prompts_file(run: Run) -> Path:
    """What the stage before left."""
    return run.folder("prompts") / "prompts.jsonl"


def first_tools(path: Path) -> tuple[Tool, ...]:
    """The tools that the first row of a file offers; most often they are those of all."""
    return next((prompt.tools for prompt in iter_prompts(path)), ())


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
    recipe: Recipe, task: TeacherTask, work: tuple[Asking, GivenAnswers | None, Loop | None], failures: Failures
) -> list[dict[str, Any]]:
    """All rows of one teacher: first those that it answers, then those whose answer is given; what it was told of wrong
    ones, which it tried again."""
    asking, given, loop = work
    teacher = _Loaded(task)
    settings = recipe.teach

    def failed() -> int:
        return len(failures) + teacher.failed

    def complete(prompts: Iterator[Prompt]) -> Iterator[Completion]:
        one = settings.model_copy(update={"samples": 1})
        missing = partial(teacher.complete, settings=settings, seed=recipe.seed, wanted=asking.missing)
        asks: tuple[Ask, Ask] = (missing, partial(teacher.complete, settings=one, seed=recipe.seed))
        if loop is not None:
            asks = running(asks, settings.samples, loop, teacher.names)
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
        told = retry(recipe, asking, _first_answers(asking), teacher.complete) if recipe.teach.retries else []
        if recipe.curate.reasoning == "shorten":
            shorten(recipe, asking, _last_answers(asking, Tries.of(told)), teacher.complete)
        return told
    finally:
        teacher.close()


def _last_answers(asking: Asking, tries: Tries) -> Iterator[tuple[Prompt, list[Answered]]]:
    """The same with the last tries in place of those that failed."""

    def get(question: Prompt, sample: int) -> tuple[str, Completion | None]:
        key = asking.keys.part(question, sample)
        return key, asking.store.get(key)

    for prompt, given in _first_answers(asking):
        yield prompt, [tries.last(prompt, one, get) for one in given]


def _first_answers(asking: Asking) -> Iterator[tuple[Prompt, list[Answered]]]:
    """The prompts that one teacher has answered itself, with these answers."""
    prompts = iter_prompts(asking.source.path)
    while block := list(islice(prompts, READ_AT_ONCE)):
        own = [prompt for prompt in block if asking.keys.given(prompt) is None]
        yield from _read(asking.store, [(prompt, list(_wanted(asking.number, asking.keys, prompt))) for prompt in own])


def _read(
    store: Store, wanted: list[tuple[Prompt, list[tuple[int, list[str]]]]]
) -> Iterator[tuple[Prompt, list[Answered]]]:
    """Prompts with those of their wanted answers that are there with all their turns, which call no tools."""
    found = store.find([key for _, many in wanted for _, turns in many for key in turns], targets=False)
    for prompt, many in wanted:
        said = [(number, [found[key] for key in turns]) for number, turns in many if all(key in found for key in turns)]
        yield prompt, [Answered(number, turns[-1], tuple(turns[:-1])) for number, turns in said]


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


def taught_keys(recipe: Recipe, run: Run) -> list[AnswerKeys]:
    """The keys of each teacher's answers, as the finished stage stored them."""
    given = given_answers(recipe)
    return [
        AnswerKeys(teacher["identity"], recipe.teach.samples, given) for teacher in run.summary("teach")["teachers"]
    ]


def answers(recipe: Recipe, run: Run, targets: bool = False) -> Iterator[tuple[Prompt, list[Answered]]]:
    """Each prompt with its stored completions, in the order of prompts, teachers and samples; read as it is needed.

    Where the recipe calibrates, closed answers are calibrated; of a conversation, the last one. Without `targets`, b""
    stands for them where there are any. Raises EdgeDistillError where an answer is missing that
    the stage did not leave out.
    """
    summary = run.summary("teach")
    teachers = taught_keys(recipe, run)
    priors = [teacher.get("prior") for teacher in summary["teachers"]]
    prompts, runs = iter_prompts(prompts_file(run)), recipe.tools.results != "none"
    tries = Tries.read(run.folder("teach"))
    with Store(run.folder("teach") / STORE, read_only=True) as store:

        def get(number: int, asked: Prompt, sample: int) -> tuple[str, Completion | None]:
            key = teachers[number].part(asked, sample)
            return key, store.find([key], targets).get(key)

        while block := list(islice(prompts, READ_AT_ONCE)):
            wanted = [[one for number, keys in enumerate(teachers) for one in _wanted(number, keys, p)] for p in block]
            keys = [key for many in wanted for _, turns in many for key in turns]
            found = store.find([*keys, *map(steps_key, keys)] if runs else keys, targets)
            for prompt, many in zip(block, wanted, strict=True):
                whole = [(number, turns) for number, turns in many if all(key in found for key in turns)]
                if len(whole) < len(many) and not summary["failed"]:
                    raise EdgeDistillError(f"{run.folder('teach')}: answers are missing", "Redo with --from teach.")
                said = [(number, [with_steps(found, key) or found[key] for key in turns]) for number, turns in whole]
                given = (Answered(number, turns[-1], tuple(turns[:-1])) for number, turns in said)
                lasting = [tries.last(prompt, one, partial(get, one.teacher)) for one in given]
                for place, one in enumerate(lasting):
                    if is_too_long(one, recipe.curate):
                        shorter = get(one.teacher, question(prompt, one, recipe.curate), 0)[1]
                        lasting[place] = replace(one, shorter=shorter)
                yield (
                    prompt,
                    [replace(one, completion=calibrated(one.completion, priors[one.teacher])) for one in lasting],
                )


def turn_keys(keys: AnswerKeys, prompt: Prompt, sample: int) -> list[str]:
    """The keys of one sample of the answers to a prompt, turn by turn; only the last may be a given one."""
    return [*(keys.part(part, sample) for part in parts(prompt)[:-1]), keys.of(prompt)[sample]]


def _wanted(number: int, keys: AnswerKeys, prompt: Prompt) -> Iterator[tuple[int, list[str]]]:
    """Of each sample of a teacher's answers to a prompt: the teacher's number, and the keys of its turns."""
    samples = 1 if keys.given(prompt) is not None else len(keys.of(prompt))
    for sample in range(samples):
        yield number, turn_keys(keys, prompt, sample)
