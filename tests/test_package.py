"""package: a folder that proves itself, on a pico model that really answers."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from fabricated_run import bench, candidate, evaluation, fabricated_run, timed
from pico import pico_gguf, silent

from edgedistill.cli import cli
from edgedistill.errors import GateMissed, InvalidInput, Unsafe
from edgedistill.llamacpp.quantize import quantize
from edgedistill.llamacpp.writer import NAME
from edgedistill.models import vet_licence
from edgedistill.recipe import Recipe
from edgedistill.run import Run, file_sha256
from edgedistill.stages.device_files import Device, model_card, modelfile, serve_script
from edgedistill.stages.package import package, verify

RECIPE = """
name = "home"
description = "A command in, JSON out."
schema_file = "schema.json"
accept_license = "apache-2.0"

[teacher]
model = "{gguf}"

[student]
model = "{gguf}"
system = "Command to JSON."

[train]
max_length = 128

[evaluate]
max_tokens = 24

[quantize]
types = ["Q8_0"]

[accept]
must_pass = false
exact_of_teacher = {ratio}
"""

Packed = tuple[Recipe, Run, dict[str, Any]]


def finished_run(folder: Path, ratio: float = 0.9, text: str = RECIPE) -> tuple[Recipe, Run]:
    """A run up to the bench whose chosen quant is a pico model."""
    gguf = pico_gguf(folder / "pico.gguf")
    recipe, run = fabricated_run(folder, text.format(gguf=gguf, ratio=ratio))
    run.begin("quantize", "key", afresh=True)
    quantized = run.folder("quantize") / "home-Q8_0.gguf"
    quantize(gguf, quantized, "Q8_0", threads=1)
    run.finish("quantize", "key", {"files": {"Q8_0": quantized.name}}, 1.0)
    size, sha256 = quantized.stat().st_size, file_sha256(quantized)
    scored, times = evaluation(), bench()
    scored["candidates"][3:] = [{**candidate("student Q8_0", "student", "Q8_0", size, 0.88), "sha256": sha256}]
    times["candidates"][1:] = [{**timed("student Q8_0", "student", "Q8_0", size, 200.0), "sha256": sha256}]
    (run.folder("evaluate") / "evaluation.json").write_text(json.dumps(scored), encoding="utf-8")
    (run.folder("bench") / "bench.json").write_text(json.dumps(times), encoding="utf-8")
    return recipe, run


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    recipe, run = finished_run(tmp_path_factory.mktemp("run"))
    return recipe, run, package(recipe, run, run.begin("package", "key", afresh=True), silent)


@pytest.fixture
def copy(packed: Packed, tmp_path: Path) -> Path:
    """A package of one's own to damage."""
    _, run, summary = packed
    return Path(shutil.copytree(run.folder("package") / summary["folder"], tmp_path / "home"))


def test_a_package_holds_what_a_device_needs(packed: Packed, copy: Path) -> None:
    _, run, summary = packed
    names = {path.name for path in copy.iterdir()}
    assert names == {
        summary["file"],
        "recipe.toml",
        "schema.json",
        "README.md",
        "Modelfile",
        "serve.sh",
        "golden.json",
        "LICENSE.teacher",
        "LICENSE.student",
        "SHA256SUMS",
    }
    assert summary["folder"] == "home"
    assert NAME.match(summary["file"])
    assert summary["file"].endswith("-home-v1.0-Q8_0.gguf")
    assert summary["licences"] == {"teacher": "apache-2.0", "student": "apache-2.0"}
    assert (copy / "recipe.toml").read_bytes() == (run.path / "recipe.toml").read_bytes()
    assert "Apache License" in (copy / "LICENSE.teacher").read_text(encoding="utf-8")
    assert file_sha256(copy / summary["file"]) == summary["sha256"]


def test_a_whole_package_verifies_anywhere(packed: Packed, copy: Path) -> None:
    assert verify(copy) == {"files": 9, "golden": 3, "model": packed[2]["file"], "state": "none"}
    golden = json.loads((copy / "golden.json").read_text(encoding="utf-8"))
    assert golden["prompts"][0]["messages"][0] == {"role": "system", "content": "Command to JSON."}
    assert [row["messages"][1]["content"] for row in golden["prompts"]] == [
        "turn on the light",
        "light on",
        "hello world",
    ]
    for row in golden["prompts"]:
        assert row["answer"].startswith('{"action":"turn_o')


def test_the_state_of_a_long_system_text_is_packed_and_read_and_one_that_does_not_fit_is_not(tmp_path: Path) -> None:
    text = RECIPE.replace('"Command to JSON."', f'"{"Turn the light on and off. " * 20}"')
    recipe, run = finished_run(tmp_path / "long", text=text)
    summary = package(recipe, run, run.begin("package", "key", afresh=True), silent)
    folder = run.folder("package") / summary["folder"]
    (state,) = folder.glob("prefix-*.kv")
    assert summary["state"] == verify(folder)["state"] == "read"
    assert f"  {state.name}\n" in (folder / "SHA256SUMS").read_text(encoding="utf-8")
    for path in (state, state.with_suffix(".sha256")):  # as another version of llama.cpp would look for it
        other = path.with_name("prefix-" + "0" * 24 + path.suffix)
        path.rename(other)
        sums = (folder / "SHA256SUMS").read_text(encoding="utf-8").replace(path.name, other.name)
        (folder / "SHA256SUMS").write_text(sums, encoding="utf-8")
    assert verify(folder)["state"] == "not for this build"
    asked = ["answer", str(folder), "light on", "--json"]
    done = CliRunner().invoke(cli, asked)
    assert "saved state is not for this build" in done.stderr
    again = CliRunner().invoke(cli, asked)  # what was computed is kept in the cache
    assert "saved state" not in again.stderr
    assert json.loads(again.stdout)["answer"] == json.loads(done.stdout)["answer"]


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="sha256sum is not installed")
def test_the_sums_are_in_the_form_that_sha256sum_reads(copy: Path) -> None:
    subprocess.run(["sha256sum", "--strict", "-c", "SHA256SUMS"], cwd=copy, check=True, capture_output=True)


def test_a_flipped_byte_in_any_file_is_refused(copy: Path) -> None:
    for path in sorted(copy.iterdir()):
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(Unsafe, match=path.name):
            verify(copy)
        path.write_bytes(whole)
    verify(copy)


def put(name: str, text: str = "x") -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text, encoding="utf-8")


def add_sum(line: str) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        with (folder / "SHA256SUMS").open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    return edit


def link_out(folder: Path) -> None:
    outside = folder.parent / "outside"
    shutil.move(folder / "README.md", outside)
    (folder / "README.md").symlink_to(outside)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (put("extra.sh"), "not listed"),
        (put(".hidden"), "not listed"),
        (lambda folder: (folder / "folder").mkdir(), "not listed"),
        (lambda folder: (folder / "README.md").unlink(), "not there"),
        (link_out, "not there as a file"),
        (add_sum("0" * 64 + "  ../outside"), "not a line of sum and name"),
        (add_sum("0" * 64 + "  .."), "not a line of sum and name"),
        (add_sum("0" * 64 + "  README.md"), "not a line of sum and name"),
        (add_sum("something else"), "not a line of sum and name"),
    ],
    ids=["unlisted", "hidden", "folder", "missing", "link", "path", "parent", "twice", "prose"],
)
def test_every_other_change_to_a_package_is_refused(copy: Path, edit: Callable[[Path], object], words: str) -> None:
    edit(copy)
    with pytest.raises(Unsafe, match=words):
        verify(copy)


def resum(folder: Path) -> None:
    names = sorted(path.name for path in folder.iterdir() if path.name != "SHA256SUMS")
    sums = "".join(f"{file_sha256(folder / name)}  {name}\n" for name in names)
    (folder / "SHA256SUMS").write_text(sums, encoding="utf-8")


def test_another_answer_misses_the_gate(copy: Path) -> None:
    golden = json.loads((copy / "golden.json").read_text(encoding="utf-8"))
    golden["prompts"][1]["answer"] = "{}"
    (copy / "golden.json").write_text(json.dumps(golden), encoding="utf-8")
    resum(copy)
    with pytest.raises(GateMissed, match="'light on'"):
        verify(copy)


@pytest.mark.parametrize("text", ["[]", "{", '{"schema":null,"prompts":[],"max_tokens":9}', '{"schema":null}'])
def test_golden_prompts_of_another_form_are_refused_by_name(copy: Path, text: str) -> None:
    (copy / "golden.json").write_text(text, encoding="utf-8")
    resum(copy)
    with pytest.raises(InvalidInput, match=r"golden\.json"):
        verify(copy)


def test_a_hostile_model_in_a_package_is_stopped_at_the_gate(packed: Packed, copy: Path) -> None:
    (copy / packed[2]["file"]).write_bytes(b"GGUF" + b"\xff" * 64)
    resum(copy)
    with pytest.raises(Unsafe):
        verify(copy)


def test_a_folder_that_is_no_package_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no SHA256SUMS"):
        verify(tmp_path)


def test_where_nothing_passes_nothing_is_packaged(tmp_path: Path) -> None:
    recipe, run = finished_run(tmp_path, ratio=1.2)
    out = run.begin("package", "key", afresh=True)
    with pytest.raises(GateMissed, match="home is rejected: No student passes every bar") as error:
        package(recipe, run, out, silent)
    assert "the bar is 120 % of the teacher's 92.7 %" in error.value.message
    assert [path.name for path in out.iterdir()] == ["stage.json"]


def test_another_file_than_the_evaluated_one_is_not_packaged(tmp_path: Path) -> None:
    recipe, run = finished_run(tmp_path)
    with (run.folder("quantize") / "home-Q8_0.gguf").open("ab") as file:
        file.write(b"\0")
    out = run.begin("package", "key", afresh=True)
    with pytest.raises(Unsafe, match="has changed since it was evaluated"):
        package(recipe, run, out, silent)
    assert not list(out.rglob("*.gguf*"))


def device(**changes: Any) -> Device:
    licence = vet_licence("apache-2.0", "student", None)
    plain: dict[str, Any] = {
        "name": "home",
        "file": "home-1M-home-v1.0-Q8_0.gguf",
        "system": 'Say\n"JSON".',
        "schema_file": "schema.json",
        "context": 512,
        "max_tokens": 24,
        "stops": ("<|im_end|>", 'a"b'),
        "teacher": licence,
        "student": licence,
    }
    return Device(**{**plain, **changes})


def test_the_modelfile_says_how_to_run_it() -> None:
    assert modelfile(device(), ["The licence", "The licence"]) == (
        "FROM ./home-1M-home-v1.0-Q8_0.gguf\n"
        "PARAMETER temperature 0\n"
        "PARAMETER num_ctx 512\n"
        "PARAMETER num_predict 24\n"
        'PARAMETER stop "<|im_end|>"\n'
        'PARAMETER stop "a\\"b"\n'
        'SYSTEM """Say\n"JSON"."""\n'
        'LICENSE """The licence\n"""\n'
    )
    assert "PARAMETER num_predict 24\nPARAMETER num_thread 3\n" in modelfile(device(threads=3), [])
    with pytest.raises(InvalidInput, match="Modelfile"):
        modelfile(device(system='a """ b'), [])


def test_the_model_card_has_front_matter_and_all_tables(packed: Packed, copy: Path) -> None:
    card = (copy / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\n")
    front = card.split("---\n")[1]
    assert 'license: "apache-2.0"\nlibrary_name: gguf\npipeline_tag: text-generation\n' in front
    for words in (
        "only to be had as Q4_1",
        "| student Q8_0 (this file) | 100 % (94.9–100.0) | 88 % (82.9–93.1) |",
        "| teacher | 1,117 MB | 500 ms | 2000 ms |",
        "Thrown out: 31 for overlap with eval",
        "LICENSE.teacher",
        "Verdict: **accepted**",
        file_sha256(packed[1].path / "recipe.toml"),
    ):
        assert words in card, words


def test_a_name_of_a_licence_outside_the_table_goes_into_the_card(packed: Packed) -> None:
    from edgedistill.report.summary import document

    licence = vet_licence("my-terms", "student", "my-terms")
    card = model_card(device(student=licence), document(packed[0], packed[1]))
    assert 'license: other\nlicense_name: "my-terms"' in card


def test_the_card_says_where_the_prompt_has_the_day_in_it(packed: Packed) -> None:
    from edgedistill.report.summary import document

    found = document(packed[0], packed[1])
    assert "2024-07-26" not in model_card(device(), found)
    assert "It was 2024-07-26 in training" in model_card(device(), {**found, "parity": {"dated": True}})


def fake_server(folder: Path, help_text: str) -> dict[str, str]:
    """An environment whose llama-server writes its arguments to `folder`/args."""
    folder.mkdir()
    server = folder / "llama-server"
    server.write_text(
        f'#!/bin/sh\nif [ "$1" = --help ]; then echo "{help_text}"; exit; fi\nprintf "%s\\n" "$@" > "{folder}/args"\n',
        encoding="utf-8",
    )
    server.chmod(0o755)
    return {"PATH": f"{folder}:/usr/bin:/bin"}


@pytest.mark.skipif(os.name != "posix", reason="a shell script")
def test_the_server_is_started_for_this_machine_alone(copy: Path, tmp_path: Path) -> None:
    assert (copy / "serve.sh").stat().st_mode & stat.S_IXUSR
    environment = fake_server(tmp_path / "bin", "--cors-origins ORIGINS")
    subprocess.run(["sh", str(copy / "serve.sh"), "--verbose"], env=environment, check=True)
    arguments = (tmp_path / "bin" / "args").read_text(encoding="utf-8").split()
    model = arguments[arguments.index("-m") + 1]
    assert (copy / model).is_file()
    assert arguments[arguments.index("--host") + 1] == "127.0.0.1"
    assert arguments[arguments.index("--json-schema-file") + 1] == "schema.json"
    assert arguments[arguments.index("--ctx-size") + 1] == "256"
    assert arguments[-3:] == ["--cors-origins", "localhost", "--verbose"]
    assert "--jinja" in arguments


@pytest.mark.skipif(os.name != "posix", reason="a shell script")
def test_an_older_server_is_not_given_options_it_does_not_know(tmp_path: Path) -> None:
    (tmp_path / "serve.sh").write_text(serve_script(device(schema_file=None)), encoding="utf-8")
    environment = fake_server(tmp_path / "bin", "--host HOST")
    subprocess.run(["sh", str(tmp_path / "serve.sh")], env={**environment, "PORT": "9000"}, check=True)
    arguments = (tmp_path / "bin" / "args").read_text(encoding="utf-8").split()
    assert "--cors-origins" not in arguments
    assert "--json-schema-file" not in arguments
    assert "--threads" not in arguments
    assert arguments[-1] == "9000"


@pytest.mark.skipif(os.name != "posix", reason="a shell script")
def test_a_server_has_the_threads_that_its_latency_was_promised_for(tmp_path: Path) -> None:
    (tmp_path / "serve.sh").write_text(serve_script(device(threads=3)), encoding="utf-8")
    subprocess.run(["sh", str(tmp_path / "serve.sh")], env=fake_server(tmp_path / "bin", "--host HOST"), check=True)
    arguments = (tmp_path / "bin" / "args").read_text(encoding="utf-8").split()
    assert arguments[arguments.index("--threads") + 1] == "3"


@pytest.mark.skipif(os.name != "posix", reason="a shell script")
def test_without_a_server_the_script_says_so_in_one_line(copy: Path) -> None:
    done = subprocess.run(
        ["sh", str(copy / "serve.sh")], env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 6
    assert done.stderr == "serve.sh: llama-server is not on PATH; install llama.cpp\n"
