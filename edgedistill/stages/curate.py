"""curate: throw out what would teach the wrong thing, each row with a named reason."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..curation import broken_rule
from ..errors import InvalidInput
from ..recipe import CurateSettings, Recipe
from ..records import Completion, Message, Prompt, Tool, chat_row, iter_prompts, json_lines, sample_of
from ..run import Progress, Run, write_whole
from ..schema import load_schema, schema_validator
from ..similarity import SimilarTexts, Sketcher, in_blocks
from .again import asked_again
from .combine import Answered, answer_key, combined
from .dialogue import parts, woven
from .keys import AnswerKeys
from .on_offer import goes_in_steps, learned_tools
from .prompts import SAMPLED
from .rating import Rating
from .rightness import Fault, faults
from .shortening import Looked, looked_at
from .sorting import Again, SortedRows
from .stored_answers import answers, prompts_file, taught_keys, turn_keys
from .teach import row_count
from .tool_calls import message_of
from .traces import learned_message, learned_text, learned_turns
from .turn_rules import turns_of

__all__ = ["curate"]

Row = tuple[Prompt, list[Answered]]
Verdict = list[Answered] | dict[str, str]
"""What is learnt of a row, or why nothing is."""


def curate(recipe: Recipe, run: Run, out: Path, progress: Progress) -> dict[str, Any]:
    """Write `train.jsonl`, `valid.jsonl`, `rejected.jsonl` (with reasons) and `stats.json`."""
    total = row_count(prompts_file(run))
    keys = taught_keys(recipe, run)
    learned, done, told = learned_tools(recipe), 0, 0
    with ExitStack() as stack:
        rows = SortedRows(recipe.curate, out, stack)
        with ExitStack() as asking:  # over before a teacher is asked again: no two models are there at once
            screen = _Screen(recipe, run, out, progress, asking)
            for block in in_blocks(answers(recipe, run), lambda row: row[0].text):
                told += sum(prompt.expected is not None for prompt, _ in block)
                for (prompt, given), verdict in zip(block, screen.sifted(block), strict=True):
                    if isinstance(verdict, dict):
                        rows.reject(_row(prompt, given[0] if given else None, verdict, learned))
                    else:
                        for one in verdict:
                            more = _kept(prompt, one, keys, recipe.curate)
                            answer = learned_text(one.completion.text, recipe.curate)
                            rows.keep(_row(prompt, one, more, learned, recipe.curate), prompt, answer)
                done += len(block)
                progress("curating", done, total)
        if recipe.curate.right_by is not None and not told:
            raise InvalidInput(f"{prompts_file(run)}: no row has `expected`", "Redo with --from prompts.")
        rows.settle(lambda doubted: _again(recipe, run, out, doubted, (screen, progress)))
    counts = rows.counts
    stats = {"prompts": done, "train": counts["train"], "valid": counts["valid"], "rejected": dict(rows.reasons)}
    if recipe.curate.noise is not None:
        stats["suspicious"] = dict(rows.noise)
    if not counts["train"]:
        raise InvalidInput("no row is left to learn from", f"Read the reasons in {out / 'rejected.jsonl'}.")
    write_whole(out / "stats.json", json_lines([{**stats, "examples": rows.examples}]))
    return stats


def _again(
    recipe: Recipe, run: Run, out: Path, doubted: Sequence[dict[str, Any]], told: tuple[_Screen, Progress]
) -> dict[str, Again]:
    """What comes of rows when the first teacher is asked again, and its new answers vote together with the one there.

    Rows with several questions, calls of tools or a simulated user stay as they are.
    """
    if goes_in_steps(recipe):
        return {}
    screen, progress = told
    texts = {row["_ed"]["id"]: row["messages"][-1].get("content") for row in doubted}
    prompts = {one.id: one for one in iter_prompts(prompts_file(run)) if texts.get(one.id) and len(parts(one)) == 1}
    found: dict[str, Again] = {}
    for name, more in asked_again(recipe, run, out, list(prompts.values()), progress).items():
        there = Completion(name, texts[name], "stop", 0, 0, 0.0)
        verdict = screen.voted(prompts[name], [Answered(0, one) for one in (there, *more)])
        if isinstance(verdict, dict):
            found[name] = verdict["reason"], verdict.get("what", "its label was suspicious, and was asked for again")
        elif answer_key(learned_text(verdict[0].completion.text, recipe.curate)) != answer_key(there.text):
            found[name] = _row(prompts[name], verdict[0], {"was": there.text}, learned_tools(recipe), recipe.curate)
    return found


def _row(
    prompt: Prompt,
    one: Answered | None,
    more: dict[str, Any],
    learned: tuple[Tool, ...],
    settings: CurateSettings | None = None,
) -> dict[str, Any]:
    """The whole conversation, with every answer in its place; of a prompt without one, the empty text.

    Tools that are `learned` are not in it: the student will not be shown them. With settings, the answers are as they
    are learned.
    """
    said = () if one is None else (*one.earlier, one.completion)

    def message(text: str) -> Message:
        return message_of(text, prompt.tools) if settings is None else learned_message(text, prompt.tools, settings)

    def shown(turns: Sequence[Message]) -> Sequence[Message]:
        return turns if settings is None else learned_turns(turns, settings)

    answers = [(*shown(turn.steps), message(turn.text)) for turn in said] or [(Message("assistant", ""),)]
    *turns, last = woven(prompt.messages, answers)
    failures = () if one is None else shown(one.failures())
    tools = () if prompt.tools == learned else prompt.tools
    return {**chat_row((*turns, *failures, last), tools), "_ed": {"id": prompt.id, **more}}


def _kept(prompt: Prompt, one: Answered, keys: Sequence[AnswerKeys], settings: CurateSettings) -> dict[str, Any]:
    """What goes along with a row: each answer's probability, where the set of them is closed; where its targets are.

    `keys` has, where several turns were asked, the place of each of the assistant's turns that is learned, or null.
    Targets are of the teacher's own words: an answer without its trace is learned by its text.
    """
    more: dict[str, Any] = {}
    if one.completion.answers is not None:
        more["answers"] = {answer: round(share, 6) for answer, share in one.completion.answers.items()}
    if one.completion.targets is None or settings.reasoning == "strip":
        return more
    last = one.key or keys[one.teacher].of(prompt)[one.completion.sample]
    if not one.earlier and not one.completion.steps:
        return {**more, "key": last}
    said = (*one.earlier, one.completion)
    found = [*turn_keys(keys[one.teacher], prompt, one.completion.sample)[:-1], last]
    marks = [
        (
            *(replace(step, content="") for step in turn.steps),
            Message("assistant", key if turn.targets is not None else ""),
        )
        for key, turn in zip(found, said, strict=True)
    ]
    woven_in = woven([replace(message, content="") for message in prompt.messages], marks)
    learned = (turn for turn in woven_in if turn.role == "assistant" and turn.is_learned)
    return {**more, "keys": [turn.content or None for turn in learned]}


def _rejected(fault: Fault) -> dict[str, str]:
    return {"reason": fault[0], "what": fault[1]}


class _Screen:
    """All rules of a recipe, with what they remember of the rows before."""

    def __init__(self, recipe: Recipe, run: Run, out: Path, progress: Progress, stack: ExitStack) -> None:
        self._settings, self._tools = recipe.curate, recipe.tools
        self._rating = Rating(recipe, run, out, progress, stack) if recipe.curate.judge is not None else None
        self._folder = recipe.path.parent
        self._is_valid = schema_validator(load_schema(recipe))
        self._sketcher = Sketcher(sample_of(prompts_file(run), SAMPLED))
        self._seen, self._eval = (
            stack.enter_context(SimilarTexts(threshold, out, self._sketcher))
            for threshold in (recipe.curate.near_duplicate, recipe.curate.eval_overlap)
        )
        for path in recipe.files("evaluate").values():
            for block in in_blocks(iter_prompts(path), lambda prompt: prompt.text):
                self._eval.add([(prompt.id, prompt.text) for prompt in block])

    def sifted(self, rows: Sequence[Row]) -> list[Verdict]:
        """For each row what is learnt of it, or the reason why nothing is, with the id of what it repeats."""
        flat = [(prompt, one) for prompt, given in rows for one in given]
        looked = iter(looked_at(flat, self._settings, self._folder))
        found = [self._answer(prompt, [next(looked) for _ in given]) for prompt, given in rows]
        if self._settings.verifier is not None and self._settings.combine not in ("best", "shortest"):
            self._verify(rows, found)
        good = _good(found)
        thresholds = self._settings.near_duplicate, self._settings.eval_overlap
        seen, held_out = self._sketcher.sketch([rows[number][0].text for number in good], *thresholds)
        for number, twin in zip(good, self._eval.twins(held_out), strict=True):
            if twin is not None:
                found[number] = {"reason": "overlap with eval", "of": twin.id}
        if self._rating is not None:
            self._rate(self._rating, rows, found)
        new = [place for place, number in enumerate(good) if isinstance(found[number], list)]
        names = [rows[good[place]][0].id for place in new]
        for place, twin in zip(new, self._seen.screen_sketches(names, seen.chosen(new)), strict=True):
            if twin is not None:
                found[good[place]] = {"reason": twin.reason, "of": twin.id}
        return found

    def voted(self, prompt: Prompt, given: list[Answered]) -> Verdict:
        """What is learnt of answers by their vote, or the reason why nothing is."""
        wrong = faults([(prompt, one) for one in given], self._settings, self._folder, verifies=False)
        combining = self._settings.model_copy(update={"combine": "vote"})
        return self._answer(prompt, list(zip(given, wrong, strict=True)), combining)

    def _rate(self, rating: Rating, rows: Sequence[Row], found: list[Verdict]) -> None:
        """Take out each answer that the judge finds not good enough."""
        chosen = [(number, verdict) for number, verdict in enumerate(found) if isinstance(verdict, list)]
        judged = rating.judged([(rows[number][0], answers) for number, answers in chosen])
        for (number, _), (left, complaint) in zip(chosen, judged, strict=True):
            found[number] = left or {"reason": "judge below threshold", "what": complaint}

    def _verify(self, rows: Sequence[Row], found: list[Verdict]) -> None:
        """Take out each answer that the verifier does not pass."""
        chosen = [(number, one) for number, verdict in enumerate(found) if isinstance(verdict, list) for one in verdict]
        good: dict[int, list[Answered]] = {number: [] for number, _ in chosen}
        complaints: dict[int, Fault] = {}
        asked = [(rows[number][0], one) for number, one in chosen]
        verifying = self._settings.model_copy(update={"right_by": None})  # that has been looked at
        for (number, one), fault in zip(chosen, faults(asked, verifying, self._folder, True), strict=True):
            if fault is None:
                good[number].append(one)
            else:
                complaints.setdefault(number, fault)
        for number, left in good.items():
            found[number] = left or _rejected(complaints[number])

    def _answer(self, prompt: Prompt, looked: Sequence[Looked], combining: CurateSettings | None = None) -> Verdict:
        """What is learnt of the answers to a prompt, of which those that are wrong take no part."""
        given = [one for one, fault in looked if fault is None]
        faulty = next(((one, fault) for one, fault in looked if fault is not None), None)
        if not looked:
            return {"reason": "no answer"}
        how = combining or self._settings.combining
        chosen = combined(prompt, given, how, self._is_valid, self._folder) if given else "cut off"
        if faulty is not None and chosen == "cut off":  # a rule that objects says more than that it is wrong
            return _rejected(self._broken(prompt, faulty[0]) or faulty[1])
        if isinstance(chosen, str):
            return {"reason": chosen}
        good: list[Answered] = []
        broken: tuple[str, str] | None = None
        for one in chosen:
            found = self._broken(prompt, one)
            broken = broken or found
            if found is None:
                good.append(one)
        return good if broken is None or good else _rejected(broken)

    def _broken(self, prompt: Prompt, one: Answered) -> tuple[str, str] | None:
        """The first rule that any turn of an answer breaks, and what it says."""
        turns = turns_of(prompt, one, self._is_valid, self._tools)
        found = (fault or broken_rule(given, self._settings) for given, fault in turns)
        return next((broken for broken in found if broken is not None), None)


def _good(found: Sequence[Verdict]) -> list[int]:
    """The numbers of the rows of which something is learnt."""
    return [number for number, verdict in enumerate(found) if isinstance(verdict, list)]
