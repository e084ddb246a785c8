"""The teach stage: several teachers, samples and given answers; what is stored is never asked again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fault_server import MODEL, fault_server, stats_of
from pico import pico_gguf, silent
from pico_recipe import PROMPTS, PicoModels, edit, rows

from edgedistill.errors import EdgeDistillError, InvalidInput
from edgedistill.recipe import Recipe, load_recipe
from edgedistill.records import Completion, json_lines, read_prompts, read_rows
from edgedistill.run import Run
from edgedistill.stages.curate import curate
from edgedistill.stages.keys import row_key
from edgedistill.stages.rows import asked_keys
from edgedistill.stages.stored_answers import answers
from edgedistill.stages.teach import teach
from edgedistill.store import Store
from edgedistill.targets import decode

RECIPE = """
name = "taught"
seed = 5
accept_license = "apache-2.0"
{teachers}
[student]
model = "s"
[teach]
max_tokens = 4
"""
SIX = PROMPTS[:6]


@dataclass
class Work:
    """A recipe without a schema, and a run whose prompts are collected."""

    folder: Path

    @property
    def recipe(self) -> Recipe:
        return load_recipe(self.folder)

    @property
    def run(self) -> Run:
        return Run(self.folder / "run", offline=True)

    @property
    def out(self) -> Path:
        return self.run.folder("teach")

    def change(self, old: str, new: str) -> None:
        edit(self.folder / "recipe.toml", old, new)

    def collect(self, texts: Iterable[str]) -> None:
        (self.run.begin("prompts", "key", afresh=True) / "prompts.jsonl").write_bytes(rows(tuple(texts)))
        self.run.finish("prompts", "key", {}, 1.0)

    def teach(self, progress: Callable[[str, int, int], None] = silent) -> dict[str, Any]:
        out = self.run.begin("teach", "key", afresh=False)
        summary = teach(self.recipe, self.run, out, progress)
        self.run.finish("teach", "key", summary, 1.0)
        return summary

    def texts(self) -> dict[str, list[tuple[int, int, str]]]:
        """By prompt: teacher, sample and text of every answer."""
        return {
            prompt.text: [(one.teacher, one.completion.sample, one.completion.text) for one in found]
            for prompt, found in answers(self.recipe, self.run)
        }


def work(folder: Path, *teachers: str, texts: Iterable[str] = SIX) -> Work:
    folder.mkdir(parents=True, exist_ok=True)
    tables = "\n".join(f"[[teachers]]\n{teacher}" for teacher in teachers)
    (folder / "recipe.toml").write_text(RECIPE.format(teachers=tables), encoding="utf-8")
    (folder / "eval.jsonl").write_bytes(b"")
    made = Work(folder)
    made.collect(texts)
    return made


@pytest.fixture
def one(models: PicoModels, tmp_path: Path) -> Work:
    """Work for one pico teacher."""
    return work(tmp_path / "one", f'model = "{models.teacher}"')


# -- what is asked


def test_a_row_is_asked_once(one: Work) -> None:
    first = one.teach()
    assert (first["rows"], first["asked"], first["failed"], first["warnings"]) == (6, 6, 0, [])
    again = one.teach()
    assert (again["rows"], again["asked"]) == (6, 0)
    assert again["completion_tokens"] == first["completion_tokens"] > 0
    assert list(one.texts()) == list(SIX)


def test_each_of_several_teachers_answers_each_prompt(models: PicoModels, tmp_path: Path) -> None:
    other = pico_gguf(tmp_path / "other.gguf", "llama", seed=9)
    both = work(tmp_path / "both", f'model = "{models.teacher}"', f'model = "{other}"')
    done: list[tuple[int, int]] = []
    summary = both.teach(lambda what, now, total: done.append((now, total)) if what.startswith("teaching") else None)
    assert (summary["rows"], summary["asked"]) == (12, 12)
    assert [teacher["name"] for teacher in summary["teachers"]] == ["teacher", "other"]
    assert all({"sha256", "source", "licence", "quant", "identity"} <= set(one) for one in summary["teachers"])
    assert done == [(number, 12) for number in range(13)]
    found = both.texts()
    assert all([(teacher, sample) for teacher, sample, _ in one] == [(0, 0), (1, 0)] for one in found.values())
    assert any(one[0][2] != one[1][2] for one in found.values())


def test_a_teacher_that_joins_is_the_only_one_asked(one: Work, models: PicoModels, tmp_path: Path) -> None:
    one.teach()
    before = one.texts()
    other = pico_gguf(tmp_path / "other.gguf", "llama", seed=9)
    one.change("[student]", f'[[teachers]]\nmodel = "{other}"\n\n[student]')
    assert (one.teach()["rows"], one.teach()["asked"]) == (12, 0)
    assert {text: found[:1] for text, found in one.texts().items()} == before


def test_further_samples_keep_those_that_are_there(one: Work) -> None:
    one.change("max_tokens = 4", "max_tokens = 4\ntemperature = 1.0\nsamples = 2")
    assert one.teach()["asked"] == 12
    before = one.texts()
    one.change("samples = 2", "samples = 3")
    summary = one.teach()
    assert (summary["rows"], summary["asked"]) == (18, 6)
    found = one.texts()
    assert {text: samples[:2] for text, samples in found.items()} == before
    assert all([sample for _, sample, _ in samples] == [0, 1, 2] for samples in found.values())
    assert any(len({text for _, _, text in samples}) > 1 for samples in found.values())


@pytest.mark.parametrize(
    ("setting", "asked"),
    [
        ("slots = 2", 0),
        ('flash_attention = "off"', 0),
        ("top_p = 0.5", 0),  # greedy answers do not hang on it
        ("closed = false", 0),  # nor, without a schema, on this
        ("temperature = 0.5", 6),
        ('targets = "top_k"', 6),
    ],
)
def test_only_what_decides_an_answer_asks_again(one: Work, setting: str, asked: int) -> None:
    one.teach()
    one.change("max_tokens = 4", f"max_tokens = 4\n{setting}")
    assert one.teach()["asked"] == asked


def test_targets_are_kept_and_a_profile_is_an_answer_of_its_own(one: Work) -> None:
    one.change("max_tokens = 4", 'max_tokens = 4\ntargets = "top_k"')
    one.teach()
    found = [answered for _, all_of_it in answers(one.recipe, one.run, targets=True) for answered in all_of_it]
    assert all(len(decode(answered.completion.targets or b"").tokens) >= 1 for answered in found)
    without = [answered for _, all_of_it in answers(one.recipe, one.run) for answered in all_of_it]
    assert {answered.completion.targets for answered in without} == {b""}
    one.change('targets = "top_k"', 'targets = "sampled"')
    assert one.teach()["asked"] == 6


def test_soft_targets_of_a_coarse_quant_are_warned_of(tmp_path: Path) -> None:
    from edgedistill.llamacpp.quantize import quantize

    quantize(pico_gguf(tmp_path / "f16.gguf", "llama", size=256), tmp_path / "coarse.gguf", "Q4_K_M", 1)
    coarse = work(tmp_path / "coarse", f'model = "{tmp_path / "coarse.gguf"}"', texts=SIX[:1])
    assert coarse.teach()["warnings"] == []
    coarse.change("max_tokens = 4", 'max_tokens = 4\ntargets = "top_k"')
    (warning,) = coarse.teach()["warnings"]
    assert warning == "soft targets from a Q4_K_M teacher carry its rounding; use Q8_0 or better"


# -- answers that are given


def give(work: Work, *pairs: tuple[str, str]) -> None:
    lines = (
        {"messages": [{"role": "user", "content": one}, {"role": "assistant", "content": answer}]}
        for one, answer in pairs
    )
    (work.folder / "answers.jsonl").write_bytes(json_lines(lines))


def test_given_answers_are_taken_and_not_asked_for(one: Work) -> None:
    give(one, (SIX[0], "of course"), (SIX[4], "never"), (SIX[4], "a second one"), ("no prompt of ours", "what?"))
    one.change("max_tokens = 4", 'max_tokens = 4\nanswers = "answers.jsonl"')
    assert one.teach()["rows"] == 6
    found = one.texts()
    assert found[SIX[0]] == [(0, 0, "of course")]
    assert found[SIX[4]] == [(0, 0, "never")]
    others = {text: found[text] for text in SIX if text not in (SIX[0], SIX[4])}
    give(one, (SIX[0], "of course"), (SIX[4], "seldom"))
    assert one.teach()["asked"] == 1
    assert one.texts()[SIX[4]] == [(0, 0, "seldom")]
    assert {text: one.texts()[text] for text in others} == others


def test_given_answers_are_scored_where_targets_are_kept(one: Work) -> None:
    give(one, (SIX[2], "the hall"))
    one.change("max_tokens = 4", 'max_tokens = 4\nanswers = "answers.jsonl"\ntargets = "top_k"')
    assert one.teach()["asked"] == 6
    assert one.teach()["asked"] == 0
    found = {prompt.text: all_of_it for prompt, all_of_it in answers(one.recipe, one.run, targets=True)}
    ((completion),) = [answered.completion for answered in found[SIX[2]]]
    assert completion.text == "the hall"
    assert len(decode(completion.targets or b"").tokens) > 2
    assert {len(all_of_it) for all_of_it in found.values()} == {1}


def test_a_given_answer_that_is_none_is_named(one: Work) -> None:
    one.change("max_tokens = 4", 'max_tokens = 4\nanswers = "answers.jsonl"')
    (one.folder / "answers.jsonl").write_bytes(rows(("only a question",)))
    with pytest.raises(InvalidInput, match=r"answers\.jsonl:1: a given answer is the assistant's"):
        one.teach()


# -- prompts that get no answer


@pytest.fixture(scope="module")
def faults() -> Iterator[str]:
    with fault_server() as address:
        yield address


def filtered(folder: Path, address: str, count: int = 12) -> Work:
    """Work for a server that withholds its answer to some of the prompts."""
    url = f"{address}/plain/filtered/0/{folder.name}/0.3/v1"
    return work(folder, f'backend = "openai"\nmodel = "{MODEL}"\nurl = "{url}"', texts=PROMPTS[:count])


def test_a_prompt_that_fails_twice_is_left_out_and_counted(faults: str, tmp_path: Path) -> None:
    made = filtered(tmp_path / "a", faults)
    with pytest.raises(EdgeDistillError, match=r"of 12 prompts got no answer") as caught:
        made.teach()
    assert "Run the same command again" in caught.value.hint
    listed = [row for _, row in read_rows(made.out / "failed.jsonl")]
    failed = {row["_ed"]["id"] for row in listed}
    assert 0 < len(failed) < 12
    assert all(row["_ed"]["reason"] and row["messages"][0]["role"] == "user" for row in listed)
    said: list[str] = []
    summary = made.teach(lambda what, done, total: said.append(what))
    assert (summary["failed"], summary["rows"], summary["asked"]) == (len(failed), 12 - len(failed), 0)
    assert {row["_ed"]["id"] for _, row in read_rows(made.out / "failed.jsonl")} == failed
    assert {prompt.id for prompt, found in answers(made.recipe, made.run) if not found} == failed
    asked = stats_of(made.recipe.teacher.url or "")["asked"]
    assert all(asked[prompt.text] == 1 for prompt, found in answers(made.recipe, made.run) if found)
    out = made.run.begin("curate", "key", afresh=True)
    assert curate(made.recipe, made.run, out, silent)["rejected"]["no answer"] == len(failed)


def test_what_failed_is_asked_again_and_the_list_goes_when_it_is_answered(faults: str, tmp_path: Path) -> None:
    made = filtered(tmp_path / "b", faults)
    with pytest.raises(EdgeDistillError, match="got no answer"):
        made.teach()
    count = len(list(read_rows(made.out / "failed.jsonl")))
    (keys,) = asked_keys(made.recipe, made.run, silent)
    with Store(made.out / "teacher.sqlite") as store:  # the answers come by another way
        for prompt in read_prompts(made.run.folder("prompts") / "prompts.jsonl"):
            store.add(row_key(prompt, keys.identity), Completion(prompt.id, "at last", "stop", 1, 1, 0.1))
    summary = made.teach()
    assert (summary["failed"], summary["rows"]) == (0, 12)
    assert count > 0
    assert not (made.out / "failed.jsonl").exists()
