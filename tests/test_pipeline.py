"""A whole run on pico models: from prompts to package, once and again, changed and damaged in between."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from conftest import Finished
from pico import silent
from pico_recipe import PicoModels, edit, rows, untouched, write_pico_recipe
from pico_runs import NAMES, answered, run_again, states

import edgedistill
from edgedistill.errors import EdgeDistillError, GateMissed, InvalidInput
from edgedistill.pipeline import RunSettings, keep_file, run_recipe, stage_keys
from edgedistill.recipe import load_recipe
from edgedistill.records import read_json, read_rows
from edgedistill.run import Run
from edgedistill.stages.package import Rejected, verify

# -- once


def test_a_run_goes_from_prompts_to_a_package_that_verifies(finished: Finished) -> None:
    run = edgedistill.open_run(finished.run)
    assert set(states(finished).values()) == {"done"}
    assert run.summary("prompts")["kept"] == 40 == run.summary("teach")["rows"]
    assert run.summary("curate")["train"] + run.summary("curate")["valid"] <= 40
    assert run.summary("train")["valid_loss"] is not None
    assert run.summary("export")["kl_mean"] < 1e-3
    assert set(run.summary("quantize")["files"]) == {"Q8_0"}
    package = run.folder("package") / run.summary("package")["folder"]
    assert verify(package)["golden"] == 3
    assert run.summary("package")["verdict"] == "accepted"


def test_the_documents_name_every_candidate(finished: Finished) -> None:
    found = edgedistill.document(load_recipe(finished.recipe), edgedistill.open_run(finished.run))
    names = [one["name"] for one in found["candidates"]]
    assert names == [
        "teacher",
        "untrained student, teacher's prompt",
        "untrained student",
        "student F16, teacher's prompt",
        "student F16",
        "student Q8_0",
    ]
    assert found["verdict"] == "accepted"
    assert found["chosen"] == "student Q8_0"
    for one in found["candidates"]:
        assert one["eval"]["n"] == 36
        assert one["edge"]["n"] == 4
        assert one["eval"]["valid"] == 1.0, "answers are decoded under the schema"
    timed = [one["name"] for one in found["candidates"] if one["latency_ms"]]
    assert timed == ["teacher", "student Q8_0"]
    assert found["candidates"][0]["eval"]["agreement"] == 1.0
    assert [bar["passed"] for bar in found["bars"]["student Q8_0"] if bar["name"] == "own_prompt"] == [True]
    page = (finished.run / "report.html").read_text(encoding="utf-8")
    assert "pico" in page
    assert "quantizing: 16-bit student to this" in page, "the report reads what quantize has measured"
    timed = json.loads((finished.run / "bench" / "bench.json").read_text(encoding="utf-8"))["candidates"]
    assert timed[0]["n"] == 20
    assert [one["kind"] for one in timed if one["forced_skipped"]] == ["student"] * (len(timed) - 1)
    assert timed[0]["forced_skipped"]["pairs"] == 20


def test_the_verdict_on_latency_may_be_on_decoding_that_skips_what_is_forced(
    finished: Finished, tmp_path: Path
) -> None:
    copy = finished.copied(tmp_path)
    edit(copy.recipe / "recipe.toml", "[bench]\n", "[bench]\nskip_forced = true\n")
    run, _ = run_recipe(copy.recipe, RunSettings(runs=copy.runs, offline=True, only="bench", redo_from="bench"), silent)
    found = read_json(run.folder("bench") / "bench.json")
    assert "as edgedistill answer decodes" in found["conditions"]["decoding"]
    plain = read_json(finished.run / "bench" / "bench.json")["candidates"]
    for skipping, other in zip(found["candidates"], plain, strict=True):
        assert skipping["completion_tokens_mean"] == other["completion_tokens_mean"]
        assert "forced_skipped" not in skipping


def test_every_long_stage_reports_its_progress(finished: Finished) -> None:
    for word in ("reading prompts", "teaching", "curating", "training", "merging", "proving", "quantizing"):
        assert word in finished.seen
    assert any(phase.startswith("evaluating teacher") for phase in finished.seen)
    assert any(phase.startswith("timing student Q8_0") for phase in finished.seen)


def test_the_run_keeps_its_recipe_as_it_was(finished: Finished) -> None:
    assert (finished.run / "recipe.toml").read_bytes() == (finished.recipe / "recipe.toml").read_bytes()
    recipe, run = edgedistill.load_run(finished.run)
    assert recipe == load_recipe(finished.recipe)
    assert run.path == finished.run
    for name in ("prompts.jsonl", "eval.jsonl", "edge.jsonl", "schema.json", "guide.md", "examples.jsonl"):
        assert (recipe.path.parent / name).read_bytes() == (finished.recipe / name).read_bytes()


def test_a_file_is_kept_once_and_again_when_it_changes(tmp_path: Path) -> None:
    path, kept = tmp_path / "prompts.jsonl", tmp_path / "recipe" / "this" / "prompts.jsonl"
    path.write_bytes(b"one\n")
    keep_file(path, kept)
    before = kept.stat()
    keep_file(path, kept)
    assert (kept.stat().st_ino, kept.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    path.write_bytes(b"two\n")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # the content counts, not when it was written
    keep_file(path, kept)
    assert kept.read_bytes() == b"two\n"
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(EdgeDistillError, match="file/prompts"):
        keep_file(path, tmp_path / "file" / "prompts.jsonl")


# -- twice


def test_a_second_run_does_nothing(copy: Finished) -> None:
    before = untouched(copy.run)
    assert run_again(copy) == []
    assert untouched(copy.run) == before


def test_a_run_in_another_place_does_nothing_either(copy: Finished, tmp_path: Path) -> None:
    moved = Finished(copy.recipe, Path(shutil.move(copy.runs, tmp_path / "elsewhere")), ())
    before = untouched(moved.run)
    assert run_again(moved) == []
    assert untouched(moved.run) == before


@pytest.mark.parametrize(
    ("file", "text", "stage"),
    [
        ("prompts.jsonl", rows(("one more command",)), "prompts"),
        ("schema.json", b" ", "prompts"),
        ("guide.md", b"\n- And so on.\n", "teach"),
        ("eval.jsonl", rows(("one more question",)), "curate"),
        ("edge.jsonl", rows(("one more hard question",)), "curate"),
        ("recipe.toml", b"[export]\nmax_kl = 2e-3\n", "export"),
        ("recipe.toml", b"[package]\ngolden = 2\n", "package"),
    ],
)
def test_a_change_makes_what_hangs_on_it_stale_and_refuses_to_redo_it_unasked(
    copy: Finished, file: str, text: bytes, stage: str
) -> None:
    before = untouched(copy.run)
    report = (copy.run / "report.html").read_bytes()
    with (copy.recipe / file).open("ab") as out:
        out.write(text)
    at = NAMES.index(stage)
    assert [name for name, state in states(copy).items() if state == "stale"] == NAMES[at:]
    with pytest.raises(EdgeDistillError, match=f"'{stage}' in .* was made from another recipe") as caught:
        run_again(copy)
    assert caught.value.hint == f"Redo it with --from {stage}, or give the recipe a new name."
    assert untouched(copy.run) == before
    assert (copy.run / "report.html").read_bytes() == report, "a refusal changes nothing"


def test_a_changed_model_file_is_another_run(copy: Finished, models: PicoModels, tmp_path: Path) -> None:
    student = Path(shutil.copytree(models.student, tmp_path / "student"))
    edit(copy.recipe / "recipe.toml", str(models.student), str(student))
    edit(student / "generation_config.json", '"pad_token_id": 0', '"pad_token_id": 1')
    with pytest.raises(EdgeDistillError, match=r"'train' in .* was made from another recipe"):
        run_again(copy)


def test_redoing_from_a_stage_redoes_it_and_the_rest(copy: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    before = untouched(copy.run)
    returned: list[int] = []
    monkeypatch.setattr("edgedistill.pipeline.give_back_memory", lambda: returned.append(1))
    assert run_again(copy, redo_from="quantize") == NAMES[NAMES.index("quantize") :]
    assert len(returned) == len(NAMES) - NAMES.index("quantize")  # behind each: the next one has other models
    after = untouched(copy.run)
    for name in NAMES:
        assert (after[name] == before[name]) is (NAMES.index(name) < NAMES.index("quantize")), name
    assert set(states(copy).values()) == {"done"}


def test_a_new_prompt_costs_one_answer(copy: Finished) -> None:
    """Answers that were paid for outlive a redo."""
    with (copy.recipe / "prompts.jsonl").open("ab") as file:
        file.write(rows(("Bring the humidifier of the cellar to life",)))
    assert run_again(copy, only="prompts", redo_from="prompts") == ["prompts"]
    with pytest.raises(EdgeDistillError, match="'teach'"):
        run_again(copy, only="teach")
    assert run_again(copy, only="teach", redo_from="teach") == ["teach"]
    assert (Run(copy.run).summary("teach")["rows"], Run(copy.run).summary("teach")["asked"]) == (41, 1)


def test_progress_counts_the_prompts_and_not_what_else_the_store_holds(copy: Finished) -> None:
    lines = (copy.recipe / "prompts.jsonl").read_bytes().splitlines(keepends=True)
    changed = rows(("Bring the humidifier of the cellar to life", "The scale has run out of battery"))
    (copy.recipe / "prompts.jsonl").write_bytes(b"".join(lines[:20]) + changed)
    seen: list[tuple[int, int]] = []

    def progress(what: str, done: int, total: int) -> None:
        if what.startswith("teaching"):
            seen.append((done, total))

    for stage in ("prompts", "teach"):
        run_again(copy, progress, only=stage, redo_from=stage)
    assert seen == [(20, 22), (21, 22), (22, 22)]


def test_a_file_that_was_damaged_is_made_again_with_all_that_hangs_on_it(copy: Finished) -> None:
    wanted = (copy.run / "quantize" / "pico-Q8_0.gguf").read_bytes()
    (copy.run / "quantize" / "pico-Q8_0.gguf").write_bytes(wanted[:-1] + b"\x00")
    assert run_again(copy) == NAMES[NAMES.index("quantize") :]
    assert (copy.run / "quantize" / "pico-Q8_0.gguf").read_bytes() == wanted


def test_a_stage_alone_needs_the_ones_before_it(copy: Finished) -> None:
    assert run_again(copy, only="curate") == []
    shutil.rmtree(copy.run / "prompts")
    with pytest.raises(InvalidInput, match="'curate' needs 'prompts', which is missing") as caught:
        run_again(copy, only="curate")
    assert "edgedistill prompts RECIPE" in caught.value.hint


def test_nothing_passes_is_a_verdict_and_leaves_no_package(copy: Finished) -> None:
    edit(copy.recipe / "recipe.toml", "speedup = 0.0", "speedup = 1000.0")
    with pytest.raises(Rejected, match=r"pico is rejected: .* the bar is a factor of 1000"):
        run_again(copy, redo_from="package")
    assert states(copy)["package"] == "partial"
    with pytest.raises(Rejected):
        run_again(copy)
    edit(copy.recipe / "recipe.toml", "speedup = 1000.0", "speedup = 0.0")
    assert run_again(copy, redo_from="package") == ["package"]


def test_a_licence_that_is_not_accepted_stops_before_anything_else(copy: Finished) -> None:
    edit(copy.recipe / "recipe.toml", 'accept_license = "apache-2.0"\n', "")
    before = untouched(copy.run)
    with pytest.raises(GateMissed, match="the teacher states no licence"):
        run_again(copy)
    assert untouched(copy.run) == before


def test_a_recipe_without_a_schema_asks_for_free_text(models: PicoModels, tmp_path: Path) -> None:
    changes = {'schema_file = "schema.json"\n': "", "max_tokens = 40": "max_tokens = 8"}
    recipe = write_pico_recipe(tmp_path / "recipe", models, changes)
    for stage in ("prompts", "teach"):
        run, _ = run_recipe(recipe, RunSettings(runs=tmp_path / "runs", offline=True, only=stage), silent)
    assert len(set(answered(run.path).values())) > 20, "a random teacher says something else to each"
    with pytest.raises(InvalidInput, match="no row is left to learn from"):
        run_recipe(recipe, RunSettings(runs=tmp_path / "runs", offline=True), silent)
    assert {row["_ed"]["reason"] for _, row in read_rows(run.folder("curate") / "rejected.jsonl")} == {"cut off"}


def test_models_may_lie_beside_the_recipe_and_the_student_may_be_a_gguf(
    models: PicoModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base is imported into the cache once, and the run says that it came from a GGUF."""
    monkeypatch.setenv("EDGEDISTILL_CACHE", str(tmp_path / "cache"))
    beside = PicoModels(Path("teacher.gguf"), Path("models/student.gguf"))
    recipe = write_pico_recipe(tmp_path / "recipe", beside, {"epochs = 2": "epochs = 1"})
    shutil.copyfile(models.teacher, recipe / "teacher.gguf")
    (recipe / "models").mkdir()
    shutil.copyfile(models.teacher, recipe / "models" / "student.gguf")
    run, ran = run_recipe(recipe, RunSettings(runs=tmp_path / "runs", offline=True), silent)
    assert ran == NAMES
    assert run.summary("train")["base"]["imported_from_quant"] == "F16"
    imported = [path for path in (tmp_path / "cache" / "imported").iterdir() if path.is_dir()]
    assert len(imported) == 1
    assert (imported[0] / "config.json").is_file()
    loaded, again = edgedistill.load_run(run.path, offline=True)
    assert stage_keys(loaded, again)["train"] == stage_keys(load_recipe(recipe), run)["train"]


def test_a_damaged_store_of_answers_says_how_to_go_on(copy: Finished) -> None:
    path = copy.run / "teach" / "teacher.sqlite"
    path.write_bytes(b"no database" * 1000)
    for settings in ({}, {"redo_from": "teach"}):
        with pytest.raises(EdgeDistillError, match=r"teacher\.sqlite: ") as caught:
            run_again(copy, **settings)
        assert "delete it" in caught.value.hint
    path.unlink()
    assert run_again(copy, only="teach") == ["teach"]
    assert Run(copy.run).summary("teach")["asked"] == 40


def test_a_closed_answer_brings_the_probability_of_each_into_the_training_set(finished: Finished) -> None:
    for _, row in read_rows(finished.run / "curate" / "train.jsonl"):
        shares = row["_ed"]["answers"]
        assert len(shares) == 6
        assert sum(shares.values()) == pytest.approx(1.0, abs=1e-5)
        assert max(shares, key=shares.__getitem__) == row["messages"][-1]["content"]


def test_what_was_made_from_a_stage_that_ran_again_counts_no_more(copy: Finished) -> None:
    assert run_again(copy, only="train", redo_from="train") == ["train"]
    assert list(states(copy).values()) == ["done"] * 4 + ["missing"] * 5
    assert run_again(copy) == NAMES[4:]


def test_a_refused_run_leaves_the_report_of_the_last_one(copy: Finished) -> None:
    before = (copy.run / "report.html").read_bytes()
    with (copy.recipe / "prompts.jsonl").open("ab") as file:
        file.write(rows(("Bring the humidifier of the cellar to life",)))
    with pytest.raises(EdgeDistillError, match="made from another recipe"):
        run_again(copy)
    assert (copy.run / "report.html").read_bytes() == before
