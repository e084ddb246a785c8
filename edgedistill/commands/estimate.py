"""`edgedistill teach --dry-run`: what teaching will take, from a few rows that the teacher really answers."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from ..errors import InvalidInput
from ..preflight import check
from ..recipe import Recipe, TeacherSettings, load_recipe
from ..records import Completion, Prompt, iter_prompts
from ..report.wording import duration
from ..run import Progress, Run, orderly_stop, stop_if_asked
from ..stages.candidates import teacher_names
from ..stages.keys import AnswerKeys, given_answers, teacher_identity
from ..stages.on_offer import goes_in_steps, teacher_rule
from ..stages.prompt_source import source_prompts
from ..stages.simulated_user import player_identity
from ..stages.stored_answers import STORE, prompts_file
from ..store import Store
from ..teachers import Teacher, TeacherTask, load_teacher, preamble
from ..teachers.identity import TeacherIdentity, fetch_teacher
from .progress import Bars

__all__ = ["Estimate", "show_estimate", "spread"]

TRIED = 8  # rows that are really asked
ROW_BYTES = 300  # of a stored answer besides its text: keys, numbers, SQLite's own


@dataclass(frozen=True)
class Estimate:
    """What a teacher will take for all rows. Tokens and bytes of a row are those of all its answers together."""

    name: str
    model: str
    rows: int
    tried: int
    prompt_tokens_mean: float
    completion_tokens_mean: float
    prompt_tokens: int
    completion_tokens: int
    cut_off: int
    """Of the answers tried, those that ended at `max_tokens`."""
    seconds: float
    is_upper_bound: bool
    """Whether more rows at a time would be faster than the few that were tried."""
    bytes: int
    price: float | None
    """In the currency of the recipe's prices; None where it states none."""


def show_estimate(
    recipe: Path, as_json: bool, quiet: bool, offline: bool, runs: Path, llama_cpp: Path | None = None
) -> None:
    """Ask each teacher a few rows and print what all of them will take. Nothing of the run changes.

    Raises what `check` raises.
    """
    loaded = load_recipe(recipe)
    run = Run(runs / loaded.name, offline, llama_cpp)
    check(loaded, run)
    with Bars(quiet) as bars, orderly_stop(), _scratch(run) as scratch:
        found = [
            _estimated(loaded, (teacher, name), (run, scratch, bars))
            for teacher, name in zip(loaded.teachers, teacher_names(loaded), strict=True)
        ]
    if as_json:
        counted = "first answers" if goes_in_steps(loaded) else "answers"
        total = {
            "counted": counted,
            "seconds": sum(one.seconds for one in found),
            "bytes": sum(one.bytes for one in found),
        }
        click.echo(json.dumps({"recipe": loaded.name, "teachers": [asdict(one) for one in found], **total}))
        return
    for one in found:
        click.echo("\n".join(_lines(one)))
    if not _are_collected(run):
        click.echo("Near-duplicates among the rows are not taken off: edgedistill prompts does that.")
        if written := _to_be_written(loaded, run):
            click.echo(f"{written} of the rows are still to be written; those that are there stood for them.")
    if goes_in_steps(loaded):
        click.echo(f"First answers alone are counted{_beyond(loaded)}.")


def _beyond(recipe: Recipe) -> str:
    """What may come on top of the first answers."""
    more = [", not what follows calls of tools"] if recipe.tools.are_run else []
    turns = recipe.user.turns
    more += [f", not up to {turns} messages of the user a row and the answers to them"] if turns else []
    return "".join(more)


def _are_collected(run: Run) -> bool:
    """Whether the run's first stage has left its prompts; before it, the recipe's own are asked."""
    return bool((run.record("prompts") or {}).get("finished")) and prompts_file(run).is_file()


def _to_be_written(recipe: Recipe, run: Run) -> int:
    """Prompts that the teacher will write before any is answered; those that are there stand for them."""
    written = recipe.prompts.synthesize
    return 0 if written is None or _are_collected(run) else written.count


@contextmanager
def _scratch(run: Run) -> Iterator[Path]:
    """The run's own scratch folder, where there is one: what it keeps saves time. Else one that is gone afterwards."""
    if run.scratch.is_dir():
        yield run.scratch
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def _estimated(recipe: Recipe, who: tuple[TeacherSettings, str], where: tuple[Run, Path, Progress]) -> Estimate:
    (settings, name), (run, scratch, progress) = who, where
    identity = fetch_teacher(recipe, settings, run.offline, progress)
    assert identity.sha256 is not None
    rows, tried = _picked(
        recipe, run, teacher_identity(recipe, settings, identity.sha256, player_identity(recipe, run.offline))
    )
    if not tried:
        return _scaled(recipe, (identity, settings, name), [], (0, 0, 0.0, 0.0))
    task = TeacherTask(
        identity.path,
        identity.sha256,
        preamble(recipe, settings),
        teacher_rule(recipe, settings),
        scratch,
        settings,
        tried[0].tools,
    )
    # the first row takes in what is done once: loading the weights, decoding what all prompts share, meeting a server
    first = 1 if len(tried) > 1 else 0
    began = time.monotonic()
    teacher = load_teacher(task)
    try:
        answers = list(_asked(recipe, teacher, tried[:first], (name, progress, 0, len(tried))))
        started = time.monotonic()
        answers += _asked(recipe, teacher, tried[first:], (name, progress, first, len(tried)))
        seconds = time.monotonic() - started
    finally:
        teacher.close()
    scale = rows, len(tried), seconds / len(tried[first:]), started - began
    return _scaled(recipe, (identity, settings, name), answers, scale)


def _picked(recipe: Recipe, run: Run, identity: str) -> tuple[int, list[Prompt]]:
    """How many rows a teacher will be asked, and a few of them at equal distances; all where there are fewer."""
    given = given_answers(recipe)
    try:
        keys = AnswerKeys(identity, recipe.teach.samples, given)
        rows = sum(1 for _ in _to_ask(recipe, run, keys))
        if not rows and _to_be_written(recipe, run):
            raise InvalidInput(
                f"{recipe.path}: the prompts are still to be written, and there are no seeds to try",
                f"Write them first: edgedistill prompts {recipe.path.parent}",
            )
        places = spread(rows)
        rows += _to_be_written(recipe, run)
        return rows, [prompt for place, prompt in enumerate(_to_ask(recipe, run, keys)) if place in places]
    finally:
        if given is not None:
            given.close()


def spread(count: int) -> set[int]:
    """Places at equal distances, from the first to the last of so many; all where there are few.

    >>> sorted(spread(71))
    [0, 10, 20, 30, 40, 50, 60, 70]
    """
    return set(range(count)) if count <= TRIED else {index * (count - 1) // (TRIED - 1) for index in range(TRIED)}


def _to_ask(recipe: Recipe, run: Run, keys: AnswerKeys) -> Iterator[Prompt]:
    """The rows that this teacher will be asked: without those whose answers are given, or in the store already."""
    path = run.folder("teach") / STORE
    with Store(path, read_only=True) if path.is_file() else nullcontext() as store:
        for prompt in iter_prompts(prompts_file(run)) if _are_collected(run) else source_prompts(recipe):
            wanted = keys.of(prompt)
            if keys.given(prompt) is None and (store is None or len(store.held(wanted)) < len(wanted)):
                yield prompt


def _asked(
    recipe: Recipe, teacher: Teacher, tried: Sequence[Prompt], seen: tuple[str, Progress, int, int]
) -> Iterator[Completion]:
    name, progress, done, total = seen
    if not tried:
        return
    samples = recipe.teach.samples
    for number, completion in enumerate(teacher.complete(tried, recipe.teach, recipe.seed), start=1):
        yield completion
        progress(f"asking {name}", done + number // samples, total)
        stop_if_asked()


def _scaled(
    recipe: Recipe,
    who: tuple[TeacherIdentity, TeacherSettings, str],
    answers: Sequence[Completion],
    scale: tuple[int, int, float, float],
) -> Estimate:
    """What was measured on the rows tried, for all rows; `scale` is all rows, rows tried, seconds a row and once."""
    (identity, settings, name), (rows, tried, seconds, once) = who, scale
    share = 1 / tried if tried else 0.0
    told = sum(one.prompt_tokens for one in answers) * share
    written = sum(one.completion_tokens for one in answers) * share
    return Estimate(
        name=name,
        model=identity.name,
        rows=rows,
        tried=tried,
        prompt_tokens_mean=round(told, 1),
        completion_tokens_mean=round(written, 1),
        prompt_tokens=round(told * rows),
        completion_tokens=round(written * rows),
        cut_off=sum(one.finish_reason == "length" for one in answers),
        seconds=round(once + seconds * rows, 1),
        is_upper_bound=recipe.teach.slots != 1 and rows > tried,
        bytes=round(sum(_stored(one) for one in answers) * share * rows),
        price=_price(settings, told * rows, written * rows),
    )


def _stored(completion: Completion) -> int:
    """Bytes of an answer in the store."""
    closed = len(json.dumps(completion.answers)) if completion.answers else 0
    return ROW_BYTES + len(completion.text.encode()) + len(completion.targets or b"") + closed


def _price(settings: TeacherSettings, told: float, written: float) -> float | None:
    if settings.price_in is None and settings.price_out is None:
        return None
    return round((told * (settings.price_in or 0.0) + written * (settings.price_out or 0.0)) / 1e6, 4)


def _lines(one: Estimate) -> list[str]:
    """An estimate as people read it."""
    if not one.rows:
        return [f"{one.name} ({one.model}): no rows to ask"]
    bound, few = ("at most ", "; so few rows do not fill the teacher") if one.is_upper_bound else ("", "")
    lines = [
        f"{one.name} ({one.model}): {one.rows:,} rows to ask, {one.tried} were tried and thrown away",
        f"  tokens: {one.prompt_tokens:,} in prompts ({one.prompt_tokens_mean:,.0f} a row), "
        f"{one.completion_tokens:,} in answers ({one.completion_tokens_mean:,.0f} a row)",
        f"  time: {bound}about {duration(one.seconds)}, if the machine is as busy as now{few}",
        f"  disk: about {one.bytes / 1e6:,.1f} MB of answers",
    ]
    if one.price is not None:
        lines.append(f"  price: about {one.price:,.2f}, without what the server discounts and what is asked twice")
    if one.cut_off:
        lines.append(f"  {one.cut_off} answers were cut off at teach.max_tokens")
    return lines
