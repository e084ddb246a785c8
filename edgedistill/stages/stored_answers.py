"""The answers that `teach` has stored, as they are learned from: the last tries, shorter traces, calibrated odds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

from ..errors import EdgeDistillError
from ..recipe import Recipe
from ..records import Completion, Prompt, iter_prompts
from ..run import Run
from ..store import Store
from .calibration import calibrated
from .combine import Answered
from .dialogue import parts
from .keys import AnswerKeys, drawn_tries, given_answers
from .on_offer import goes_in_steps
from .retries import Tries
from .shortening import is_too_long, question
from .steps import steps_key, with_steps

__all__ = ["READ_AT_ONCE", "STORE", "StoredAnswers", "answers", "prompts_file", "taught_keys", "turn_keys"]

STORE = "teacher.sqlite"
READ_AT_ONCE = 500  # prompts whose answers are read in one query


def prompts_file(run: Run) -> Path:
    """What the stage before `teach` left."""
    return run.folder("prompts") / "prompts.jsonl"


def taught_keys(recipe: Recipe, run: Run) -> list[AnswerKeys]:
    """The keys of each teacher's answers, as the finished stage stored them."""
    given = given_answers(recipe)
    return [
        AnswerKeys(teacher["identity"], recipe.teach.samples, given, drawn_tries(recipe))
        for teacher in run.summary("teach")["teachers"]
    ]


def turn_keys(keys: AnswerKeys, prompt: Prompt, sample: int) -> list[str]:
    """The keys of one sample of the answers to a prompt, turn by turn; only the last may be a given one."""
    return [*(keys.part(part, sample) for part in parts(prompt)[:-1]), keys.of(prompt)[sample]]


def answers(recipe: Recipe, run: Run, targets: bool = False) -> Iterator[tuple[Prompt, list[Answered]]]:
    """Each prompt with its stored completions, in the order of prompts, teachers and samples; read as it is needed.

    Where the recipe calibrates, closed answers are calibrated; of a conversation, the last one. Without `targets`, b""
    stands for them where there are any. Raises EdgeDistillError where an answer is missing that the stage did not leave
    out.
    """
    summary, tries = run.summary("teach"), Tries.read(run.folder("teach"))
    with Store(run.folder("teach") / STORE, read_only=True) as store:
        stored = StoredAnswers(store, dict(enumerate(taught_keys(recipe, run))), goes_in_steps(recipe), targets)

        def learned(prompt: Prompt, first: Answered) -> Answered:
            one = stored.last(prompt, first, tries)
            if is_too_long(one, recipe.curate):
                one = replace(one, shorter=stored.get(one.teacher, question(prompt, one, recipe.curate), 0)[1])
            prior = summary["teachers"][one.teacher].get("prior")
            return replace(one, completion=calibrated(one.completion, prior))

        for prompt, given, missing in stored.first(iter_prompts(prompts_file(run))):
            if missing and not summary["failed"]:
                raise EdgeDistillError(f"{run.folder('teach')}: answers are missing", "Redo with --from teach.")
            yield prompt, [learned(prompt, one) for one in given]


class StoredAnswers:
    """A store and the keys of some teachers, by their numbers; `steps` says whether answers may have any.

    Without `targets`, b"" stands for them where there are any.
    """

    def __init__(
        self, store: Store, keys: Mapping[int, AnswerKeys], steps: bool = False, targets: bool = False
    ) -> None:
        self._store, self._keys, self._steps, self._targets = store, keys, steps, targets

    def first(self, prompts: Iterable[Prompt]) -> Iterator[tuple[Prompt, list[Answered], int]]:
        """Each prompt with those of its answers that are there with all their turns, and how many are not."""
        source = iter(prompts)
        while block := list(islice(source, READ_AT_ONCE)):
            wanted = [
                [(number, turns) for number, keys in self._keys.items() for turns in _turns(keys, prompt)]
                for prompt in block
            ]
            names = [key for many in wanted for _, turns in many for key in turns]
            found = self._store.find([*names, *map(steps_key, names)] if self._steps else names, self._targets)
            for prompt, many in zip(block, wanted, strict=True):
                said = [(number, [with_steps(found, key) for key in turns]) for number, turns in many]
                whole = [(number, [turn for turn in turns if turn is not None]) for number, turns in said if all(turns)]
                given = [Answered(number, turns[-1], tuple(turns[:-1])) for number, turns in whole]
                yield prompt, given, len(many) - len(given)

    def last(self, prompt: Prompt, one: Answered, tries: Tries) -> Answered:
        """An answer's last try, where it was tried again."""
        return tries.last(prompt, one, partial(self._again, one.teacher))

    def get(self, teacher: int, asked: Prompt, sample: int) -> tuple[str, Completion | None]:
        """The key of a teacher's answer to a question, and the answer where there is one."""
        return self._found(self._keys[teacher].part(asked, sample))

    def _again(self, teacher: int, asked: Prompt, sample: int) -> tuple[str, Completion | None]:
        found = self._found(self._keys[teacher].again(asked, sample))
        return found if found[1] is not None else self.get(teacher, asked, sample)  # as versions before 0.8 kept it

    def _found(self, key: str) -> tuple[str, Completion | None]:
        return key, self._store.find([key], self._targets).get(key)


def _turns(keys: AnswerKeys, prompt: Prompt) -> Iterator[list[str]]:
    """Of each sample of a teacher's answers to a prompt: the keys of its turns."""
    samples = 1 if keys.given(prompt) is not None else len(keys.of(prompt))
    return (turn_keys(keys, prompt, sample) for sample in range(samples))
