"""The command line: what is right is said in one document on request, and nothing heavy is needed for --help."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from command_line import document, edgedistill, refused, run
from conftest import Finished
from pico_recipe import PicoModels, edit, rows

from edgedistill.cli import cli
from edgedistill.run import Run
from edgedistill.stages import STAGES

COMMANDS = sorted(cli.commands)
NAMES = [stage.name for stage in STAGES]


# -- help


HELP = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(f"{name} is heavy")

sys.meta_path.insert(0, Blocked())
from click.testing import CliRunner
from edgedistill.cli import cli

for command in [[], *([name] for name in cli.commands)]:
    result = CliRunner().invoke(cli, [*command, "--help"])
    assert result.exit_code == 0, (command, result.output, result.exception)
    assert "Usage: " in result.output and len(result.output) > 200, command
    assert "Error" not in result.output
assert CliRunner().invoke(cli, ["--version"]).output.startswith("edgedistill, version ")
"""
HEAVY: tuple[str, ...] = (
    "pydantic",
    "numpy",
    "torch",
    "llama_cpp",
    "transformers",
    "peft",
    "huggingface_hub",
    "gguf",
    "llguidance",
)
HEAVY += (
    "matplotlib",
    "jinja2",
    "minijinja",
    "tokenizers",
    "safetensors",
    "rensa",
    "jsonschema_rs",
    "psutil",
    "filelock",
)


def test_the_help_of_every_command_needs_no_heavy_library() -> None:
    code = f"BLOCKED = {set(HEAVY)!r}\n{HELP}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_there_is_a_command_for_every_stage() -> None:
    assert set(NAMES) <= set(COMMANDS)
    others = {
        "run",
        "check",
        "status",
        "init",
        "fetch",
        "adapter",
        "report",
        "payoff",
        "compare",
        "answer",
        "tune",
        "fit",
    }
    assert set(COMMANDS) - set(NAMES) == others


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_and_every_option_is_described(command: str) -> None:
    assert cli.commands[command].get_short_help_str(200)
    for parameter in cli.commands[command].params:
        assert parameter.param_type_name == "argument" or getattr(parameter, "help", None), parameter.name


@pytest.mark.parametrize(
    "arguments", [["runn"], ["run"], ["run", "x", "--no-such"], ["run", "x", "--from", "y"], ["payoff", "x"]]
)
def test_wrong_usage_is_code_2(arguments: list[str]) -> None:
    assert edgedistill(*arguments).exit_code == 2


# -- what is right


def test_a_run_prints_its_verdict_and_nothing_on_stdout_but_that(finished: Finished) -> None:
    result = run(finished)
    assert result.exit_code == 0
    assert "accepted: student Q8_0" in result.stdout
    assert result.stderr == ""


def test_a_rejected_run_ends_in_4_with_its_reasons(copy: Finished) -> None:
    edit(copy.recipe / "recipe.toml", "speedup = 0.0", "speedup = 1000.0")
    result = run(copy, "--from", "package", "--json")
    found = document(result)
    assert result.exit_code == 4
    assert (found["verdict"], found["chosen"]) == ("rejected", None)
    assert any("factor of 1000" in reason for reason in found["reasons"])
    assert run(copy).exit_code == 4, "and again"


def test_the_report_as_json_holds_what_scripts_rely_on(finished: Finished) -> None:
    for result in (edgedistill("report", finished.run, "--json"), run(finished, "--json")):
        found = document(result)
        assert (found["verdict"], found["chosen"]) == ("accepted", "student Q8_0")
        assert found["reasons"]
        for one in found["candidates"]:
            assert {"name", "kind", "quant", "size_bytes", "eval", "edge", "latency_ms", "tokens_per_s"} <= one.keys()
            assert {"valid", "exact", "agreement", "fields", "n", "ci95"} <= one["eval"].keys()
            assert {"valid", "exact", "agreement", "fields", "n", "ci95"} <= one["edge"].keys()
        student = found["candidates"][-1]
        assert {"p50", "p95"} <= student["latency_ms"]["ttft"].keys()
        assert {"p50", "p90", "p95", "p99"} <= student["latency_ms"]["e2e"].keys()
        assert student["tokens_per_s"] > 0


@pytest.mark.parametrize("stage", NAMES)
def test_a_stage_that_is_done_prints_one_document(finished: Finished, stage: str) -> None:
    found = document(run(finished, "--json", command=stage))
    assert (found["stage"], found["ran"]) == (stage, False)
    assert found["summary"] == Run(finished.run).summary(stage)
    result = run(finished, command=stage)
    assert result.exit_code == 0
    assert result.stdout.startswith(f"{stage}: was done already")


def test_check_names_every_requirement(pico_recipe: Path, tmp_path: Path) -> None:
    arguments = ["check", pico_recipe, "--runs", tmp_path / "runs", "--offline"]
    found = document(edgedistill(*arguments, "--json"))
    assert (found["recipe"], found["ok"]) == ("pico", True)
    assert {"files", "prompts", "schema", "eval set", "backends", "models", "licences", "memory", "disk"} <= found[
        "found"
    ].keys()
    result = edgedistill(*arguments)
    assert result.exit_code == 0
    assert result.stdout.endswith("can run\n")
    assert not (tmp_path / "runs").exists()


def test_status_names_the_state_of_every_stage(copy: Finished, pico_recipe: Path, tmp_path: Path) -> None:
    assert set(document(run(copy, "--json", command="status"))["stages"].values()) == {"done"}
    fresh = edgedistill("status", pico_recipe, "--runs", tmp_path / "none", "--json")
    assert document(fresh)["stages"] == dict.fromkeys(NAMES, "missing")
    with (copy.recipe / "eval.jsonl").open("ab") as file:
        file.write(rows(("one more",)))
    found = document(run(copy, "--json", command="status"))["stages"]
    assert (found["teach"], found["curate"], found["package"]) == ("done", "stale", "stale")
    assert "curate     stale" in run(copy, command="status").stdout


def test_another_eval_file_is_scored_without_touching_the_run(copy: Finished, tmp_path: Path) -> None:
    (tmp_path / "other.jsonl").write_bytes(rows(("Is it on?", "Hall!"), expected={"action": "on", "room": "hall"}))
    before = {path: path.read_bytes() for path in copy.run.rglob("*") if path.is_file()}
    arguments = ["evaluate", copy.run, "--eval", tmp_path / "other.jsonl", "--offline", "-q"]
    found = document(edgedistill(*arguments, "--json"))
    assert [one["name"] for one in found["candidates"]] == ["teacher", "student Q8_0"]
    assert found["candidates"][1]["eval"]["n"] == 2
    assert edgedistill(*arguments).stdout.splitlines()[0].startswith("teacher: valid 100.0%")
    after = {path: path.read_bytes() for path in copy.run.rglob("*") if path.is_file()}
    assert after == before


def test_any_gguf_is_timed_without_touching_a_run(copy: Finished, models: PicoModels, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in copy.run.rglob("*") if path.is_file()}
    found = document(edgedistill("bench", copy.run, models.teacher, "--json", "-q", "--offline"))
    assert [one["name"] for one in found["candidates"]] == ["pico-Q8_0.gguf", "teacher.gguf"]
    alone = document(edgedistill("bench", models.teacher, "--recipe", copy.recipe, "--json", "-q"))
    assert alone["candidates"][0]["latency_ms"]["e2e"]["p95"] > 0
    assert {path: path.read_bytes() for path in copy.run.rglob("*") if path.is_file()} == before
    message, hint = refused(edgedistill("bench", models.teacher), 3)
    assert "whose prompts" in message
    assert "--recipe" in hint
    refused(edgedistill("bench", tmp_path / "none.gguf", "--recipe", copy.recipe), 3)


def test_a_package_is_verified_and_one_that_was_touched_is_refused(copy: Finished) -> None:
    folder = copy.run / "package" / "pico"
    found = document(edgedistill("package", "--verify", folder, "--json"))
    assert found["golden"] == 3
    assert edgedistill("package", "--verify", folder).exit_code == 0
    (folder / "README.md").write_text("other", encoding="utf-8")
    refused(edgedistill("package", "--verify", folder), 5)
    refused(edgedistill("package"), 3)
    refused(edgedistill("package", copy.recipe, "--verify", folder), 3)


def test_the_payoff_of_a_run_is_one_document(finished: Finished) -> None:
    prices = ["--requests-per-month", 100000, "--api-price-in", 0.5, "--api-price-out", 1.5, "--hardware-cost", 500]
    found = document(edgedistill("payoff", finished.run, *prices, "--json"))
    assert found["assumptions"]
    assert "break-even" in edgedistill("payoff", finished.run, *prices).stdout


def test_a_new_recipe_is_checked_after_its_models_are_named(models: PicoModels, tmp_path: Path) -> None:
    folder = tmp_path / "my-task"
    assert document(edgedistill("init", folder, "--json"))["files"] == ["prompts.jsonl", "eval.jsonl", "recipe.toml"]
    refused(edgedistill("init", folder), 3)
    message, _ = refused(edgedistill("check", folder, "--runs", tmp_path / "runs"), 3)
    assert "path/to/teacher.gguf" in message
    edit(folder / "recipe.toml", "path/to/teacher.gguf", str(models.teacher))
    edit(folder / "recipe.toml", "path/to/student", str(models.student))
    refused(edgedistill("check", folder, "--runs", tmp_path / "runs", "--offline"), 4)
    edit(folder / "recipe.toml", "seed = 0", 'seed = 0\naccept_license = "mit"')
    result = edgedistill("check", folder, "--runs", tmp_path / "runs", "--offline")
    assert result.exit_code == 0, result.output
    refused(edgedistill("init", tmp_path / "no name"), 3)


def test_fetch_prints_where_a_model_lies(models: PicoModels) -> None:
    found = document(edgedistill("fetch", models.teacher, "--offline", "--json"))
    assert found["path"] == str(models.teacher)
    assert edgedistill("fetch", models.student, "--format", "hf", "--offline").stdout == f"{models.student}\n"
    message, hint = refused(edgedistill("fetch", "no/such:file.gguf", "--offline"), 6)
    assert "offline" in message
    assert hint
