"""A run whose teachers are a server, a folder and a GGUF: all are asked, measured, named and licensed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from fault_server import fault_server, stats_of
from pico import silent
from pico_recipe import EVAL, PicoModels, write_pico_recipe
from test_check import ask, teach

from edgedistill.pipeline import RunSettings, load_run, run_recipe
from edgedistill.recipe import Recipe, load_recipe
from edgedistill.report.page import page
from edgedistill.report.payoff import Prices, measured, payoff
from edgedistill.report.summary import document, training_points
from edgedistill.run import Run
from edgedistill.stages.candidates import greedy, teacher_names
from edgedistill.stages.evaluate import evaluate_on
from edgedistill.stages.package import verify


@dataclass(frozen=True)
class Taught:
    """A finished run and its recipe, and where its server was."""

    recipe: Recipe
    run: Run
    url: str

    def read(self, stage: str, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.run.folder(stage) / name).read_text(encoding="utf-8"))
        return found


@pytest.fixture(scope="module")
def taught(models: PicoModels, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Taught]:
    needed = ("torch", "transformers", "peft", "llama_cpp", "httpx2")
    if any(find_spec(library) is None for library in needed) and not os.environ.get("EDGEDISTILL_REQUIRE"):
        pytest.skip("this run needs torch, transformers, peft, llama_cpp and httpx2")
    folder = tmp_path_factory.mktemp("taught")
    recipe = write_pico_recipe(folder / "recipe", models)
    with fault_server() as address:
        url = f"{address}/plain/none/0/1/0/v1"
        ask(
            recipe,
            f'backend = "openai"\nurl = "{url}"\nmodel = "pico"\nlicence = "mit"\nsystem = "Be brief."\n',
            f'backend = "transformers"\nmodel = "{models.student}"\n',
            f'model = "{models.teacher}"\nguide = "guide.md"\n',
        )
        run_recipe(recipe, RunSettings(runs=folder / "runs", offline=True), silent)
        yield Taught(*load_run(folder / "runs" / "pico", offline=True), url)


def test_every_teacher_is_scored_and_the_first_is_the_reference(taught: Taught) -> None:
    found = taught.read("evaluate", "evaluation.json")
    assert found["reference"] == "teacher"
    teachers = [one for one in found["candidates"] if one["kind"] == "teacher"]
    assert [one["name"] for one in teachers] == ["teacher", "teacher 2", "teacher 3"] == teacher_names(taught.recipe)
    assert [one["quant"] for one in teachers] == [None, "F16", "F16"]
    assert teachers[0]["size_bytes"] is None
    assert all(one["size_bytes"] > 100_000 for one in teachers[1:])
    assert len({one["sha256"] for one in teachers}) == 3
    assert teachers[0]["eval"]["agreement"] == 1.0
    assert teachers[1]["eval"]["agreement"] < 1.0
    assert all(one["eval"]["valid"] == 1.0 for one in teachers)


def test_a_server_is_asked_each_eval_row_once(taught: Taught) -> None:
    asked = stats_of(taught.url)["asked"]
    timed = 20 + taught.recipe.bench.warmup
    assert len(EVAL) <= sum(asked.get(text, 0) for text in EVAL) <= len(EVAL) + timed


def test_a_backend_is_timed_as_it_answers(taught: Taught) -> None:
    found = {one["name"]: one for one in taught.read("bench", "bench.json")["candidates"]}
    assert list(found) == ["student Q8_0", "teacher", "teacher 2", "teacher 3"]
    for name in ("teacher", "teacher 2"):
        one = found[name]
        assert one["timed"] == "through the backend, one at a time, on 20 prompts"
        assert one["n"] == 20
        assert one["latency_ms"]["e2e"]["p50"] > 0
        assert set(one["latency_ms"]["ttft"].values()) == {None}
        assert one["load_ms"] is one["peak_memory_bytes"] is one["tokens_per_s"] is one["shared_tokens"] is None
    assert "timed" not in found["teacher 3"]
    assert found["teacher 3"]["latency_ms"]["ttft"]["p50"] > 0


def test_the_report_shows_what_is_known_of_each(taught: Taught) -> None:
    found = document(taught.recipe, taught.run)
    assert found["verdict"] == "accepted"
    assert found["reference"] == "teacher"
    assert list(found["models"]) == ["teacher", "teacher 2", "teacher 3", "student"]
    assert found["models"]["teacher"]["source"] == f"server:{taught.url}"
    assert [found["models"][role]["licence"] for role in found["models"]][:2] == ["mit", "apache-2.0"]
    json.dumps(found, allow_nan=False)
    html = page(found, training_points(taught.run))
    assert "teacher was timed through the backend, one at a time, on 20 prompts." in html
    assert "None" not in html
    assert "teacher 3 F16" in html


def test_the_payoff_counts_a_servers_prompt_as_one(taught: Taught) -> None:
    run = measured(document(taught.recipe, taught.run))
    assert run.shared_tokens == 0
    found = payoff(run, Prices(1000, 1.0, 2.0))
    assert "tokens of instructions, examples and request together, at 1 a million" in found["assumptions"][0]


def test_the_package_names_all_teachers_and_has_their_licences(taught: Taught) -> None:
    folder = taught.run.folder("package") / "pico"
    names = {path.name for path in folder.iterdir()}
    assert {"LICENSE.teacher", "LICENSE.teacher-2", "LICENSE.teacher-3", "LICENSE.student"} <= names
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "taught by what a server calls `pico` and `student` (sha256 `" in card
    assert "answered by 3 teachers" in card
    assert "- teacher `pico`: MIT" in card
    assert "- teacher 2 `student`: Apache License 2.0 (`LICENSE.teacher-2`)" in card
    assert verify(folder)["golden"] == 3
    licences = taught.run.summary("package")["licences"]
    assert licences == {"teacher": "mit", "teacher 2": "apache-2.0", "teacher 3": "apache-2.0", "student": "apache-2.0"}


def test_another_eval_file_asks_them_too_and_leaves_the_run_alone(taught: Taught, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in taught.run.path.rglob("*")}
    other = tmp_path / "other.jsonl"
    row = {"messages": [{"role": "user", "content": "A question of its own"}]}
    other.write_text(json.dumps(row) + "\n", encoding="utf-8")
    found = evaluate_on(taught.recipe, taught.run, other, tmp_path / "results.sqlite", silent)
    assert [one["name"] for one in found["candidates"]] == [*teacher_names(taught.recipe), "student Q8_0"]
    assert {path: path.stat().st_mtime_ns for path in taught.run.path.rglob("*")} == before


def test_a_teacher_answers_the_eval_set_greedily_and_once(pico_recipe: Path) -> None:
    teach(pico_recipe, 'samples = 4\ntemperature = 0.8\ntargets = "top_k"')
    settings = greedy(load_recipe(pico_recipe))
    assert (settings.temperature, settings.samples, settings.targets, settings.max_tokens) == (0.0, 1, "none", 40)
    assert settings.slots == 4
