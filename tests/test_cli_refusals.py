"""The command line refuses: each wrong thing is one clear line with a hint, before anything has begun."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import edgedistill, refused, run
from conftest import Finished, fill
from pico_recipe import PicoModels, edit, own_copy, rows, untouched, write_pico_recipe

from edgedistill.commands.progress import Bars
from edgedistill.models.catalogue import CATALOGUE
from edgedistill.run import Run


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


def test_a_full_disk(finished: Finished, small_disk: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    disk = small_disk(8 << 20)
    filled: list[Path] = []
    shown = Bars.__call__

    def watch(bars: Bars, what: str, done: int, total: int) -> None:
        shown(bars, what, done, total)
        if what == "teaching" and not filled:
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
    with Run(finished.run).lock():
        message, _ = refused(run(finished), 75)
    assert "is in use by process " in message


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
    refused(edgedistill("run", pico_recipe, "--runs", tmp_path / "runs"), 3)
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
