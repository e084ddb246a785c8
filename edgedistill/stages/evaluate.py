"""evaluate: everybody answers the eval set and the edge cases, side by side."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ..llamacpp.answer import Answerer, AnswererSettings
from ..llamacpp.prefix import PrefixCache
from ..llamacpp.sampling import Sampling
from ..models import cache_root
from ..recipe import Recipe
from ..records import Completion, Prompt, Tool, digest, read_prompts
from ..results import RESULTS, write_results
from ..run import Progress, Run, cores, file_sha256, stop_if_asked, write_whole
from ..store import Store
from .calibration import calibrated
from .candidates import (
    Candidate,
    base_candidates,
    greedy,
    opened,
    quant_candidates,
    student_candidate,
    teacher_candidates,
    whole_prompt_candidate,
)
from .contamination import refuse_contamination
from .dialogue import Ask, come_back, conversed
from .on_offer import device_rule, held_to, is_fine, ran_by, shown_to, wanting
from .scorer_desk import Desk
from .scorers import agreed, scored
from .scoring import outcomes, result_rows, summary
from .simulated_user import Player, goal_scores, playing
from .steps import in_steps, keep, kept
from .tool_results import loop_of
from .trajectories import scored_text

__all__ = ["evaluate", "evaluate_on"]


class _Offer(NamedTuple):
    """What answers are held to, the tools that most prompts offer, and whether what is asked comes back longer."""

    schema: dict[str, Any] | None
    tools: tuple[Tool, ...]
    has_turns: bool


def evaluate(recipe: Recipe, run: Run, out: Path, progress: Progress) -> dict[str, Any]:
    """Write `evaluation.json` and, row by row, `results.sqlite`; it keeps the answers too, to go on from there.

    Raises GateMissed where a row that was learnt overlaps one that measures.
    """
    sets = {
        name.partition(".")[2].replace("edge_file", "edge").replace("file", "eval"): path
        for name, path in recipe.files("evaluate").items()
    }
    prompts = {name: read_prompts(path) for name, path in sets.items()}
    refuse_contamination(recipe, run, prompts, out)
    people = [
        *teacher_candidates(recipe, run, progress),
        *base_candidates(recipe, run, out, progress),
        *whole_prompt_candidate(recipe, run),
        student_candidate(recipe, run),
        *quant_candidates(recipe, run),
    ]
    result, rows = _compare(recipe, people, prompts, _Bench(out / RESULTS, run, True, progress))
    (out / "base-f16.gguf").unlink(missing_ok=True)
    write_results(out / RESULTS, rows)
    write_whole(out / "evaluation.json", json.dumps({"files": _files(sets, prompts), **result}, indent=1).encode())
    return {person["name"]: person["eval"]["score"] for person in result["candidates"]}


def evaluate_on(recipe: Recipe, run: Run, path: Path, store: Path, progress: Progress) -> dict[str, Any]:
    """The teachers and the student's quants on another eval file; the run is not touched.

    Raises GateMissed where a row that was learnt overlaps one of the file.
    """
    prompts = {"eval": read_prompts(path)}
    refuse_contamination(recipe, run, prompts, store.parent)
    people = [*teacher_candidates(recipe, run, progress), *quant_candidates(recipe, run)]
    result, _ = _compare(recipe, people, prompts, _Bench(store, run, False, progress))
    return {"files": _files({"eval": path}, prompts), **result}


def _files(sets: dict[str, Path], prompts: dict[str, list[Prompt]]) -> dict[str, Any]:
    return {one: {"name": path.name, "sha256": file_sha256(path), "n": len(prompts[one])} for one, path in sets.items()}


@dataclass(frozen=True)
class _Bench:
    """Where answers are kept, whose they are, and who is told."""

    store: Path
    run: Run
    writes: bool
    progress: Progress

    @property
    def room(self) -> Path:
        """Where a teacher's backend may leave what makes its next start faster."""
        return self.run.scratch if self.writes else self.store.parent / "scratch"


def _compare(
    recipe: Recipe, people: Sequence[Candidate], prompts: dict[str, list[Prompt]], place: _Bench
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Every candidate's scores on every set, and the rows behind them."""
    scorer = recipe.evaluate.scorer
    prompts = {kind: [_with_user(recipe, prompt) for prompt in rows] for kind, rows in prompts.items()}
    with Store(place.store) as store:
        desk = Desk(store, place.run.offline, place.room, place.progress)
        said = _said(recipe, people, prompts, (desk, place))
        answers = {name: {key: scored_text(scorer, one) for key, one in given.items()} for name, given in said.items()}
        scores = {
            kind: goal_scores(rows, said) if scorer == "goal" else scored(recipe, rows, answers, desk)
            for kind, rows in prompts.items()
        }
    is_valid = is_fine(recipe)
    reference = answers[people[0].name]
    agrees = partial(agreed, scorer)
    found = {
        kind: {
            name: outcomes(rows, (given, reference), is_valid, (scores[kind][name], recipe.evaluate.right_from), agrees)
            for name, given in answers.items()
        }
        for kind, rows in prompts.items()
    }
    result = {
        "reference": people[0].name,
        "scorer": scorer,
        "candidates": [
            {**person.record(), **{kind: summary(rows, found[kind][person.name]) for kind, rows in prompts.items()}}
            for person in people
        ],
    }
    return result, [row for kind, rows in prompts.items() for row in result_rows(kind, rows, found[kind])]


def _with_user(recipe: Recipe, prompt: Prompt) -> Prompt:
    """A row with what its user wants, where the conversation is scored; else its own answer is measured alone."""
    return wanting(recipe, prompt) if recipe.evaluate.scorer == "goal" else replace(prompt, goal="", persona="")


def _said(
    recipe: Recipe, people: Sequence[Candidate], prompts: dict[str, list[Prompt]], where: tuple[Desk, _Bench]
) -> dict[str, dict[str, Completion]]:
    """Everybody's answers, by name and prompt id; where conversations are scored, all talk with the same user."""
    desk, place = where
    everything = list({prompt.id: prompt for rows in prompts.values() for prompt in rows}.values())
    found = {}
    with ExitStack() as stack:
        talks = recipe.evaluate.scorer == "goal"
        player = stack.enter_context(playing(recipe, desk, greedy=True)) if talks else None
        for number, person in enumerate(people):
            counted = _Part(place.progress, number * len(everything), len(people) * len(everything), person.name)
            own = desk.store, replace(place, progress=counted), player
            found[person.name] = _answers(recipe, person, everything, own)
    return found


def _answers(
    recipe: Recipe, person: Candidate, prompts: Sequence[Prompt], kept_in: tuple[Store, _Bench, Player | None]
) -> dict[str, Completion]:
    """The candidate's answer to each prompt; only those that the store does not hold are asked."""
    store, place, player = kept_in
    rule = held_to(device_rule(recipe), person.asked)
    identity = _identity(recipe, person, rule, place.run)
    held = _Kept(store, identity if player is None else digest(identity, player.identity))
    look = shown_to(recipe, person.prompt)
    shown = {prompt.id: look(prompt) for prompt in prompts}
    todo = [prompt for prompt in shown.values() if held.get(prompt) is None]
    if todo:
        opened_by = _of_gguf if person.asked is None else _of_backend
        offer = _Offer(rule, todo[0].tools, come_back(recipe, todo[0], player is not None))
        where = store, place.run, place.room, place.progress
        with ExitStack() as stack:
            ask = stack.enter_context(opened_by(recipe, person, offer, place))
            loop = stack.enter_context(loop_of(recipe, recipe.teacher, held.identity, where))
            asks = ask, ask
            talk = None if player is None else player.talk(held.identity, store)
            for way in (loop, talk):
                asks = asks if way is None else in_steps(asks, lambda prompt: (0,), way)
            # closed before the model is: an engine that outlives its weights reads freed memory
            answers = stack.enter_context(closing(conversed(todo, 1, asks, held)))
            by_id = {prompt.id: prompt for prompt in todo}
            for number, completion in enumerate(answers, start=1):
                held.add(by_id[completion.prompt_id], completion)
                place.progress("evaluating", len(prompts) - len(todo) + number, len(prompts))
                stop_if_asked()
    found = {name: held.get(prompt) for name, prompt in shown.items()}
    return {name: calibrated(one, person.prior) for name, one in found.items() if one is not None}


def _identity(recipe: Recipe, person: Candidate, schema: dict[str, Any] | None, run: Run) -> str:
    """A digest of all that decides a candidate's answers, the prompt apart."""
    played = [run.summary("teach")["teachers"][0]["sha256"]] if recipe.tools.results == "teacher" else []
    shown = [message.as_dict() for message in person.preamble]
    through = () if person.asked is None else (person.asked.backend, recipe.teach.closed)
    return digest(person.sha256, shown, schema, recipe.evaluate.max_tokens, *through, *ran_by(recipe), *played)


class _Kept:
    """A candidate's answers in the store, those in the middle of a conversation too."""

    def __init__(self, store: Store, identity: str) -> None:
        self._store, self.identity = store, identity

    def get(self, part: Prompt, sample: int = 0) -> Completion | None:
        return kept(self._store, self._key(part))

    def add(self, part: Prompt, completion: Completion) -> Completion:
        keep(self._store, self._key(part), completion)
        return kept(self._store, self._key(part)) or completion

    def _key(self, part: Prompt) -> str:
        tools = (list(part.tools),) if part.tools else ()
        wanted = (part.goal, part.persona) if part.goal else ()
        return digest([message.as_dict() for message in part.messages], self.identity, *tools, *wanted)


@contextmanager
def _of_gguf(recipe: Recipe, person: Candidate, offer: _Offer, place: _Bench) -> Iterator[Ask]:
    """The answers of a GGUF, through llama.cpp's batch engine."""
    cache = PrefixCache(place.run.scratch, person.sha256, place.writes)
    layouts = cache_root() / "layouts"
    how = AnswererSettings(
        cores(), recipe.teach.gpu_layers, layouts=layouts, prefix_cache=cache, keeps_turns=offer.has_turns
    )
    with Answerer(person.gguf, person.preamble, offer.schema, how, offer.tools) as answerer:
        sampling = Sampling(recipe.evaluate.max_tokens)
        jump = person.prompt == "teacher" and person.kind != "student"  # a student answers as on the device
        yield lambda prompts: answerer.complete(prompts, sampling, recipe.teach.slots, jump)


@contextmanager
def _of_backend(recipe: Recipe, person: Candidate, offer: _Offer, place: _Bench) -> Iterator[Ask]:
    """The answers of a teacher that is no GGUF, through the backend with which it teaches."""
    with opened(person.task(offer.schema, place.room, offer.tools, offer.has_turns)) as teacher:
        yield lambda prompts: teacher.complete(prompts, greedy(recipe), recipe.seed)


class _Part:
    """Progress of one candidate as a part of the whole."""

    def __init__(self, progress: Progress, start: int, total: int, name: str) -> None:
        self._progress, self._start, self._total, self._name = progress, start, total, name

    def __call__(self, what: str, done: int, total: int) -> None:
        self._progress(f"{what} {self._name}", self._start + done, self._total)
