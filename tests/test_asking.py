"""One teacher and very many prompts: what is stored is not asked for, and what is in flight is all of memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
from pico import silent
from pico_recipe import rows

from edgedistill.errors import Stopped
from edgedistill.records import Completion, Prompt, read_prompts
from edgedistill.stages.asking import LONGEST_GAP, Asking, Pass, Source, Tally
from edgedistill.stages.keys import AnswerKeys
from edgedistill.store import Store


def asking(folder: Path, count: int, store: Store, seen: list[tuple[str, int, int]] | None = None) -> Asking:
    """Prompts p0, p1, ... of a teacher that this test speaks for."""
    path = folder / "prompts.jsonl"
    path.write_bytes(rows(tuple(f"p{number}" for number in range(count))))
    progress = silent if seen is None else lambda *said: seen.append(said)
    return Asking(store, Source(path, "content"), 0, AnswerKeys("identity", 1), Tally(progress, count), False)


def answered_by(speak: Callable[[Iterator[Prompt]], Iterable[Completion]]) -> Pass:
    return Pass("chosen", lambda prompt: True, speak, lambda: 0)


def says(prompt: Prompt) -> Completion:
    return Completion(prompt.id, f"answer to {prompt.text}", "stop", 1, 2, 0.1)


def test_prompts_are_read_as_the_teacher_takes_them(tmp_path: Path) -> None:
    with Store(tmp_path / "rows.sqlite") as store:
        work = asking(tmp_path, 5000, store)

        def two_at_a_time(prompts: Iterator[Prompt]) -> Iterator[Completion]:
            while pair := list(islice(prompts, 2)):
                assert set(work.open) == {prompt.id for prompt in pair}
                yield from map(says, reversed(pair))

        work.run(answered_by(two_at_a_time))
        assert len(store) == 5000
        assert not work.open


def test_of_a_prompt_with_some_answers_only_the_others_are_missing(tmp_path: Path) -> None:
    asked: dict[str, list[int]] = {}
    keys = AnswerKeys("identity", 4)

    def speak(prompts: Iterator[Prompt]) -> Iterator[Completion]:
        for prompt in prompts:
            asked[prompt.text] = work.missing(prompt)
            yield from (replace(says(prompt), sample=number) for number in asked[prompt.text])

    with Store(tmp_path / "rows.sqlite") as store:
        work = replace(asking(tmp_path, 3, store), keys=keys)
        one, two, _ = read_prompts(work.source.path)
        for prompt, numbers in ((one, [0, 1, 2, 3]), (two, [0, 2])):
            for number in numbers:
                store.add(keys.of(prompt)[number], says(prompt), 0)
        work.run(answered_by(speak))
        assert len(store) == 12
    assert asked == {"p1": [1, 3], "p2": [0, 1, 2, 3]}


def test_a_stopped_teacher_goes_on_where_it_was(tmp_path: Path) -> None:
    def all_but_one(prompts: Iterator[Prompt]) -> Iterator[Completion]:
        for prompt in prompts:
            if prompt.text == "p900":
                continue
            if prompt.text == "p1500":
                raise Stopped("stopped")
            yield says(prompt)

    taken: list[str] = []
    seen: list[tuple[str, int, int]] = []

    def listed(prompts: Iterator[Prompt]) -> Iterator[Completion]:
        for prompt in prompts:
            taken.append(prompt.text)
            yield says(prompt)

    with Store(tmp_path / "rows.sqlite") as store:
        with pytest.raises(Stopped):
            asking(tmp_path, 3000, store).run(answered_by(all_but_one))
        assert store.marked("identity chosen", "content").place.line == 900
        work = asking(tmp_path, 3000, store, seen)
        # what lies before the mark is not even read
        with work.source.path.open("r+b") as file:
            file.write(b"x" * 100)
        work.run(answered_by(listed))
        assert taken == ["p900", *(f"p{number}" for number in range(1500, 3000))]
        assert seen[0] == ("teaching", 900, 3000)
        assert (work.tally.rows, work.tally.asked, work.tally.tokens) == (3000, 1501, 6000)
        again = asking(tmp_path, 3000, store)
        again.run(answered_by(listed))
        assert (again.tally.rows, again.tally.tokens, len(taken)) == (3000, 6000, 1501)


def test_other_prompts_are_looked_up_from_the_first(tmp_path: Path) -> None:
    with Store(tmp_path / "rows.sqlite") as store:
        asking(tmp_path, 700, store).run(answered_by(lambda prompts: map(says, prompts)))
        work = asking(tmp_path, 720, store)
        work.source = Source(work.source.path, "other content")
        taken: list[str] = []
        work.run(answered_by(lambda prompts: (taken.append(one.text) or says(one) for one in prompts)))
        assert taken == [f"p{number}" for number in range(700, 720)]
        assert work.tally.rows == 720


def test_one_prompt_without_an_answer_costs_no_memory(tmp_path: Path) -> None:
    with Store(tmp_path / "rows.sqlite") as store:
        work = asking(tmp_path, LONGEST_GAP + 2000, store)
        work.run(answered_by(lambda prompts: (says(one) for one in prompts if one.text != "p5")))
        assert [one.prompt.text for one in work.open.values()] == ["p5"]
        assert work._order is None
        assert store.marked("identity chosen", "content").place.line == 5
        assert len(store) == LONGEST_GAP + 1999


def test_completions_that_nobody_asked_for_are_left_out(tmp_path: Path) -> None:
    def twice(prompts: Iterator[Prompt]) -> Iterator[Completion]:
        for prompt in prompts:
            yield says(prompt)
            yield Completion(prompt.id, "another", "stop", 1, 2, 0.1)
            yield Completion("nobody", "another", "stop", 1, 2, 0.1)

    with Store(tmp_path / "rows.sqlite") as store:
        work = asking(tmp_path, 10, store)
        work.run(answered_by(twice))
        assert (work.tally.rows, work.tally.asked) == (10, 10)
        assert all(row.text.startswith("answer to") for _, row in store.rows())


def test_the_same_prompt_twice_in_the_file_is_one_row(tmp_path: Path) -> None:
    with Store(tmp_path / "rows.sqlite") as store:
        work = asking(tmp_path, 3, store)
        work.source.path.write_bytes(rows(("a", "b", "a", "c", "a")))
        work.run(answered_by(lambda prompts: map(says, prompts)))
        assert (len(store), work.open) == (3, {})


def test_progress_says_how_fast_and_how_many_failed(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    with Store(tmp_path / "rows.sqlite") as store:
        work = asking(tmp_path, 2, store, seen)
        work.run(Pass("chosen", lambda prompt: True, lambda prompts: map(says, prompts), lambda: 3))
    assert [said[1:] for said in seen] == [(0, 2), (1, 2), (2, 2)]
    assert seen[0][0] == "teaching"
    assert seen[2][0].startswith("teaching (")
    assert seen[2][0].endswith(" rows/s, 3 failed)")
    assert " tok/s, " in seen[2][0]
