"""The command line: one clear line for each wrong thing, one JSON document on request, nothing heavy for --help."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from conftest import Finished, fill
from pico_recipe import PicoModels, edit, own_copy, rows, untouched, write_pico_recipe

from edgedistill.cli import cli
from edgedistill.commands.progress import Bars
from edgedistill.models.catalogue import CATALOGUE
from edgedistill.run import Run
from edgedistill.stages import STAGES

COMMANDS = sorted(cli.commands)
NAMES = [stage.name for stage in STAGES]


def edgedistill(*arguments: object) -> Result:
    """Call the command in this process, with models of this machine alone."""
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def run(finished: Finished, *arguments: object, command: str = "run") -> Result:
    return edgedistill(command, finished.recipe, "--runs", finished.runs, "--offline", "-q", *arguments)


def refused(result: Result, code: int) -> tuple[str, str]:
    """Message and hint of a command that failed: one line each on stderr, nothing on stdout, no traceback."""
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    message, hint = result.stderr.splitlines()
    assert message.startswith("error: ")
    assert hint.startswith("hint: ")
    return message, hint


def document(result: Result) -> dict[str, Any]:
    """The one JSON document on stdout."""
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.fixture
def copy(finished: Finished, tmp_path: Path) -> Finished:
    return finished.copied(tmp_path)


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


# -- wrong things


def test_an_unknown_key_of_the_recipe(pico_recipe: Path, tmp_path: Path) -> None:
    edit(pico_recipe / "recipe.toml", "learning_rate", "learning_rat")
    message, _ = refused(edgedistill("run", pico_recipe, "--runs", tmp_path / "runs"), 3)
    assert message.endswith("recipe.toml: unknown key 'train.learning_rat'. Did you mean 'learning_rate'?")


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    message, hint = refused(edgedistill("run", tmp_path / "none"), 3)
    assert "No such file" in message
    assert "edgedistill init" in hint


@pytest.mark.parametrize(
    "name", ["guide.md", "examples.jsonl", "prompts.jsonl", "eval.jsonl", "edge.jsonl", "schema.json"]
)
@pytest.mark.parametrize("command", ["check", "run", "teach"])
def test_a_file_that_is_missing(pico_recipe: Path, tmp_path: Path, name: str, command: str) -> None:
    (pico_recipe / name).unlink()
    message, _ = refused(edgedistill(command, pico_recipe, "--runs", tmp_path / "runs"), 3)
    assert name in message


@pytest.mark.parametrize("name", ["prompts.jsonl", "eval.jsonl", "edge.jsonl", "examples.jsonl"])
def test_a_broken_line_37(pico_recipe: Path, tmp_path: Path, name: str) -> None:
    lines = [line for line in (pico_recipe / name).read_bytes().split(b"\n") if line]
    lines = [*(lines * 37)[:36], b'{"messages": [{"role": "user"', *lines]
    (pico_recipe / name).write_bytes(b"\n".join(lines))
    message, _ = refused(edgedistill("run", pico_recipe, "--runs", tmp_path / "runs"), 3)
    assert f"{name}:37: not a line of JSON" in message


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04" + b"\0" * 100, b"<html>not found</html>" * 10])
def test_a_teacher_file_that_is_no_gguf(models: PicoModels, tmp_path: Path, content: bytes) -> None:
    mine = own_copy(models, tmp_path / "models")
    mine.teacher.write_bytes(content)
    recipe = write_pico_recipe(tmp_path / "recipe", mine)
    message, _ = refused(edgedistill("run", recipe, "--runs", tmp_path / "runs"), 3)
    assert "teacher.gguf" in message


def test_a_model_that_is_not_there_or_not_known(models: PicoModels, tmp_path: Path) -> None:
    for name, words in (
        ("none.gguf", "no such file"),
        ("qwen2.5-coder-1.5b-instruc", "Did you mean 'qwen2.5-coder-1.5b"),
    ):
        recipe = write_pico_recipe(tmp_path / name, PicoModels(Path(name), models.student))
        message, _ = refused(edgedistill("run", recipe, "--runs", tmp_path / "runs"), 3)
        assert words in message


def test_a_hash_that_is_not_the_catalogues(models: PicoModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of the right name and size in the cache, but of other content."""
    entry = next(entry for entry in CATALOGUE if entry.name == "smollm2-135m-instruct")
    monkeypatch.setenv("EDGEDISTILL_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "cache" / "models" / f"{entry.gguf.sha256[:12]}-{entry.gguf.name}"
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        file.truncate(entry.gguf.size_bytes)
    recipe = write_pico_recipe(tmp_path / "recipe", PicoModels(Path(entry.name), models.student))
    message, _ = refused(edgedistill("run", recipe, "--runs", tmp_path / "runs", "--offline", "-q"), 5)
    assert entry.gguf.sha256 in message
    assert not path.exists(), "it is not used a second time either"


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "model.safetensors"])
def test_a_student_of_which_a_file_is_missing(models: PicoModels, tmp_path: Path, name: str) -> None:
    mine = own_copy(models, tmp_path / "models")
    (mine.student / name).unlink()
    recipe = write_pico_recipe(tmp_path / "recipe", mine)
    message, _ = refused(edgedistill("run", recipe, "--runs", tmp_path / "runs"), 3)
    assert "student: no " in message


def test_a_student_without_a_chat_template(models: PicoModels, tmp_path: Path) -> None:
    mine = own_copy(models, tmp_path / "models")
    edit(mine.student / "tokenizer_config.json", '"chat_template"', '"no_template"')
    recipe = write_pico_recipe(tmp_path / "recipe", mine)
    message, _ = refused(edgedistill("run", recipe, "--runs", tmp_path / "runs", "-q"), 3)
    assert "no chat template" in message
    assert not (tmp_path / "runs" / "pico" / "teach").exists(), "found before anything is paid for"


def test_a_student_of_an_architecture_that_cannot_be_exported(models: PicoModels, tmp_path: Path) -> None:
    mine = own_copy(models, tmp_path / "models")
    edit(mine.student / "config.json", "LlamaForCausalLM", "NewForCausalLM")
    recipe = write_pico_recipe(tmp_path / "recipe", mine)
    message, hint = refused(edgedistill("run", recipe, "--runs", tmp_path / "runs", "-q"), 3)
    assert "no GGUF writer for 'NewForCausalLM'; there is one for LlamaForCausalLM" in message
    assert "--llama-cpp" in hint
    assert not (tmp_path / "runs" / "pico" / "teach").exists(), "found before anything is paid for"


def test_an_expected_answer_that_does_not_match_the_schema(pico_recipe: Path, tmp_path: Path) -> None:
    edit(pico_recipe / "eval.jsonl", '"action": "on"', '"action": "onn"')
    message, _ = refused(edgedistill("check", pico_recipe, "--runs", tmp_path / "runs"), 3)
    assert "does not match the schema" in message


@pytest.mark.parametrize("text", ["{", '{"type": 5}', '{"$ref": "https://example.org/x.json"}'])
def test_a_schema_that_does_not_hold(pico_recipe: Path, tmp_path: Path, text: str) -> None:
    (pico_recipe / "schema.json").write_text(text, encoding="utf-8")
    refused(edgedistill("check", pico_recipe, "--runs", tmp_path / "runs"), 3)


def test_a_licence_that_is_not_stated(pico_recipe: Path, tmp_path: Path) -> None:
    edit(pico_recipe / "recipe.toml", 'accept_license = "apache-2.0"\n', "")
    message, _ = refused(edgedistill("check", pico_recipe, "--runs", tmp_path / "runs"), 4)
    assert 'accept_license = "ID"' in message


@pytest.mark.parametrize("word", ["teaching", "merging"])
def test_a_full_disk_in_teach_and_in_export(
    finished: Finished, small_disk: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    disk = small_disk(8 << 20)
    filled: list[Path] = []
    shown = Bars.__call__

    def watch(bars: Bars, what: str, done: int, total: int) -> None:
        shown(bars, what, done, total)
        if what == word and not filled:
            filled.append(fill(disk))

    monkeypatch.setattr(Bars, "__call__", watch)
    full = Finished(finished.recipe, disk / "runs", ())
    message, hint = refused(run(full), 75)
    assert "0 MB free" in message
    assert "run the same command again" in hint
    filled[0].unlink()
    assert run(full).exit_code == 0


@pytest.mark.parametrize(("library", "code"), [("llama_cpp", 6), ("torch", 6), ("peft", 6)])
@pytest.mark.parametrize("command", ["check", "run"])
def test_a_library_that_is_not_installed(
    pico_recipe: Path, tmp_path: Path, library: str, code: int, command: str
) -> None:
    script = f"import sys\nsys.modules[{library!r}] = None\nfrom edgedistill.cli import cli\ncli()\n"
    arguments = [command, str(pico_recipe), "--runs", str(tmp_path / "runs")]
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    message, hint = done.stderr.splitlines()
    assert f"needs {library}" in message
    assert "pip install" in hint


def test_a_second_run_on_the_same_folder(finished: Finished) -> None:
    started = time.monotonic()
    with Run(finished.run).lock():
        message, _ = refused(run(finished), 75)
    assert "is in use by process " in message
    assert time.monotonic() - started < 2


def test_a_changed_recipe(copy: Finished) -> None:
    with (copy.recipe / "prompts.jsonl").open("ab") as file:
        file.write(rows(("one more",)))
    before = untouched(copy.run)
    message, hint = refused(run(copy), 1)
    assert "was made from another recipe" in message
    assert "--from prompts" in hint
    assert untouched(copy.run) == before


def test_a_gate_that_is_missed_is_never_hidden_by_what_an_earlier_run_came_to(copy: Finished) -> None:
    edit(copy.recipe / "recipe.toml", 'accept_license = "apache-2.0"\n', "")
    message, _ = refused(run(copy, "--json"), 4)
    assert "the teacher states no licence" in message


def test_what_was_refused_was_refused_before_anything_began(pico_recipe: Path, tmp_path: Path) -> None:
    (pico_recipe / "eval.jsonl").write_bytes(b"broken\n")
    started = time.monotonic()
    refused(edgedistill("run", pico_recipe, "--runs", tmp_path / "runs"), 3)
    assert time.monotonic() - started < 2
    assert not list((tmp_path / "runs").rglob("stage.json"))


def test_an_error_of_our_own_shows_its_traceback(pico_recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (pico_recipe / "eval.jsonl").write_bytes(b"broken\n")
    monkeypatch.setenv("EDGEDISTILL_DEBUG", "1")
    result = edgedistill("check", pico_recipe)
    assert type(result.exception).__name__ == "InvalidInput"


@pytest.mark.parametrize("command", ["report", "payoff", "evaluate", "bench"])
def test_a_folder_that_is_no_run(tmp_path: Path, command: str) -> None:
    more = {
        "payoff": ["--requests-per-month", 10, "--api-price-in", 1, "--api-price-out", 1],
        "evaluate": ["--eval", tmp_path / "eval.jsonl"],
    }
    result = edgedistill(command, tmp_path / "none", *more.get(command, []))
    assert result.exit_code in (1, 3), result.output
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 2


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
