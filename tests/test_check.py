"""What `check` finds in a recipe, without asking anyone: answers, targets, teachers that are no GGUF."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from pico import pico_gguf, silent
from pico_recipe import PicoModels, edit, write_pico_recipe
from required import required_or_skipped

from edgedistill.errors import GateMissed, InvalidInput, MissingRequirement, Unsafe
from edgedistill.hardware import has_slow_blas
from edgedistill.preflight import check
from edgedistill.recipe import load_recipe
from edgedistill.run import Run
from edgedistill.stages import questions
from edgedistill.stages.prompts import prompts
from edgedistill.stages.room import estimated_disk, estimated_memory

SERVER = 'backend = "openai"\nurl = "{url}"\nmodel = "big"\nlicence = "apache-2.0"\n'
HTTPS = "https://models.example.org/v1"


def found(recipe: Path, offline: bool = False) -> dict[str, str]:
    return {finding.what: finding.found for finding in check(load_recipe(recipe), run_of(recipe, offline))}


def run_of(recipe: Path, offline: bool = False) -> Run:
    return Run(recipe.parent / "runs" / "pico", offline)


def ask(recipe: Path, *teachers: str) -> Path:
    """Put other teachers in the place of the one of the pico recipe, each the lines of its table."""
    text = (recipe / "recipe.toml").read_text(encoding="utf-8")
    head, _, tail = text.partition("[teacher]\n")
    table = "[teacher]" if len(teachers) == 1 else "[[teachers]]"
    tables = "\n".join(f"{table}\n{lines}" for lines in teachers)
    (recipe / "recipe.toml").write_text(f"{head}{tables}\n[student]{tail.partition('[student]')[2]}", encoding="utf-8")
    return recipe


def teach(recipe: Path, lines: str, curate: str = "") -> Path:
    edit(recipe / "recipe.toml", "[teach]\n", f"[teach]\n{lines}\n")
    edit(recipe / "recipe.toml", "[curate]\n", f"[curate]\n{curate}\n")
    return recipe


def test_a_closed_set_of_answers_is_counted(pico_recipe: Path) -> None:
    assert found(pico_recipe)["schema"] == "schema.json; closed set of 6 answers, each with its probability"
    teach(pico_recipe, "closed = false")
    assert found(pico_recipe)["schema"] == "schema.json; closed set of 6 answers, of which one is written out"
    schema = json.loads((pico_recipe / "schema.json").read_text(encoding="utf-8"))
    schema["properties"]["room"] = {"type": "string"}
    (pico_recipe / "schema.json").write_text(json.dumps(schema), encoding="utf-8")
    assert found(pico_recipe)["schema"] == "schema.json"


@pytest.mark.parametrize(
    ("curate", "words"),
    [
        ("", "3 to each prompt; a vote on whole answers"),
        ('vote_by = "field"\nagreement = 0.6', "a vote on each field, at least 0.6 of the votes"),
        ('combine = "agree"', "kept where all are equal"),
        ('combine = "union"', "every different one is kept"),
        ('combine = "best"', "the first valid one"),
        ('combine = "shortest"\nverifier = ["true"]', "the shortest that is right, if it passes /"),
        ('combine = "best"\nverifier = ["true"]', "the best by /"),
    ],
)
def test_what_becomes_of_several_answers_is_said(pico_recipe: Path, curate: str, words: str) -> None:
    teach(pico_recipe, "samples = 3\ntemperature = 0.7", curate)
    assert words in found(pico_recipe)["answers"]


def test_one_answer_needs_no_vote(pico_recipe: Path) -> None:
    assert found(pico_recipe)["answers"] == "one to each prompt"
    assert found(pico_recipe)["targets"] == "none"


def test_a_verifier_that_is_no_program_is_refused(pico_recipe: Path) -> None:
    teach(pico_recipe, "", 'combine = "best"\nverifier = ["./verify"]')
    with pytest.raises(InvalidInput, match=r"'\./verify' is no program"):
        found(pico_recipe)
    (pico_recipe / "verify").write_text("#!/bin/sh\necho 1\n", encoding="utf-8")
    (pico_recipe / "verify").chmod(0o755)
    assert found(pico_recipe)["answers"].startswith(f"one to each prompt, if it passes {pico_recipe / 'verify'}: ")


def test_targets_of_rounded_weights_bring_a_warning(pico_recipe: Path, tmp_path: Path, models: PicoModels) -> None:
    teach(pico_recipe, 'targets = "top_k"')
    assert found(pico_recipe)["targets"] == "top_k, about 0.0 GB"
    rounded = pico_gguf(tmp_path / "rounded.gguf", "qwen2", tied=False, seed=3)
    data = rounded.read_bytes()
    mark = b"general.file_type"
    place = data.index(mark) + len(mark) + 4
    rounded.write_bytes(data[:place] + (15).to_bytes(4, "little") + data[place + 4 :])
    edit(pico_recipe / "recipe.toml", str(models.teacher), str(rounded))
    assert "warning: weights in Q4_K_M blur the distribution" in found(pico_recipe)["targets"]


def test_targets_are_not_had_from_a_server(pico_recipe: Path) -> None:
    teach(ask(pico_recipe, SERVER.format(url=HTTPS)), 'targets = "sampled"')
    with pytest.raises(InvalidInput, match="the 'openai' backend does not tell the distribution"):
        found(pico_recipe)


def test_targets_take_room_on_the_disk(pico_recipe: Path) -> None:
    before = estimated_disk(load_recipe(pico_recipe), run_of(pico_recipe))
    teach(pico_recipe, 'targets = "top_k"\nsamples = 2\ntemperature = 1.0')
    after = estimated_disk(load_recipe(pico_recipe), run_of(pico_recipe))
    lines = (pico_recipe / "prompts.jsonl").read_bytes().count(b"\n")
    assert after - before == lines * 2 * 96 * 40 // 2


def test_a_server_is_named_with_its_key_and_not_asked(pico_recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    ask(pico_recipe, SERVER.format(url=HTTPS))
    assert f"big (at {HTTPS}, no key)" in found(pico_recipe)["models"]
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    assert f"big (at {HTTPS}, key from OPENAI_API_KEY)" in found(pico_recipe)["models"]
    assert "sk-secret" not in str(found(pico_recipe))
    assert found(pico_recipe)["licences"] == "teacher apache-2.0, student apache-2.0"
    assert found(pico_recipe)["backends"] == "teacher openai, student torch"
    memory = estimated_memory(load_recipe(pico_recipe), run_of(pico_recipe))
    assert memory < 1.1 * 2**30


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/v1", "http://[::1]:9/v1", "http://localhost:9/v1"])
def test_a_server_on_this_machine_may_be_used_offline_and_over_plain_http(pico_recipe: Path, url: str) -> None:
    ask(pico_recipe, SERVER.format(url=url))
    assert f"at {url}" in found(pico_recipe, offline=True)["models"]


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("http://models.example.org/v1", Unsafe),
        ("http://10.0.0.7:8000/v1", Unsafe),
        ("https://169.254.169.254/v1", Unsafe),
        ("https://user:word@models.example.org/v1", InvalidInput),
        ("ftp://models.example.org/v1", InvalidInput),
        ("https://models.example.org/v1?key=1", InvalidInput),
    ],
)
def test_an_address_that_may_not_be_asked_is_refused(pico_recipe: Path, url: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        found(ask(pico_recipe, SERVER.format(url=url)))


def test_plain_http_may_be_allowed(pico_recipe: Path) -> None:
    ask(pico_recipe, f"{SERVER.format(url='http://10.0.0.7:8000/v1')}plain_http = true\n")
    assert "at http://10.0.0.7:8000/v1" in found(pico_recipe)["models"]


def test_a_prompt_file_that_was_read_to_its_end_is_not_parsed_again(
    pico_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_line(path: Path) -> None:
        raise AssertionError("parsed again")

    before = found(pico_recipe)
    recipe, run = load_recipe(pico_recipe), run_of(pico_recipe)
    summary = prompts(recipe, run, run.begin("prompts", "key", afresh=True), silent)
    with monkeypatch.context() as patch:
        patch.setattr(questions, "source_prompts", no_line)
        with pytest.raises(AssertionError):  # the stage has not finished
            found(pico_recipe)
        run.finish("prompts", "key", summary, 1.0)
        assert found(pico_recipe) == before
    path = pico_recipe / "prompts.jsonl"
    whole = path.read_bytes()
    for spoilt, words in (
        (whole.replace(b'"role"', b'"rule"', 1), r"prompts\.jsonl:1: a message needs a role"),  # of the same size
        (whole + b"{\n", rf"prompts\.jsonl:{summary['kept'] + summary['dropped'] + 1}: not a line of JSON"),
        (b"", r"prompts\.jsonl: no prompts"),
    ):
        path.write_bytes(spoilt)
        with pytest.raises(InvalidInput, match=words):
            found(pico_recipe)
    path.write_bytes(whole + whole.replace(b'content": "', b'content": "And '))
    assert found(pico_recipe)["prompts"].startswith(f"{2 * (summary['kept'] + summary['dropped'])} prompts; ")


def test_another_machine_is_not_asked_offline(pico_recipe: Path) -> None:
    with pytest.raises(MissingRequirement, match="not this machine, and offline"):
        found(ask(pico_recipe, SERVER.format(url=HTTPS)), offline=True)


def test_a_server_tells_no_probabilities_of_closed_answers(pico_recipe: Path, models: PicoModels) -> None:
    server = SERVER.format(url=HTTPS)
    schema = "schema.json; closed set of 6 answers"
    assert found(ask(pico_recipe, server))["schema"] == f"{schema}, of which one is written out"
    seen = found(ask(pico_recipe, server, f'model = "{models.teacher}"\n'))
    assert seen["schema"] == f"{schema}, each with its probability; a server writes one out"


def test_check_says_that_answers_are_calibrated_and_refuses_where_they_cannot_be(pico_recipe: Path) -> None:
    teach(pico_recipe, 'calibrate = "batch"')
    assert "calibrated by their mean over the prompts" in found(pico_recipe)["schema"]
    with pytest.raises(InvalidInput, match="the backend 'openai' tells no probabilities"):
        found(ask(pico_recipe, SERVER.format(url=HTTPS)))


def test_check_refuses_calibration_of_answers_that_are_written_out(pico_recipe: Path) -> None:
    teach(pico_recipe, 'calibrate = "batch"\nclosed = false')
    with pytest.raises(InvalidInput, match="needs closed answers with their probabilities"):
        found(pico_recipe)


def test_a_server_without_a_licence_is_no_teacher_until_one_is_accepted(pico_recipe: Path) -> None:
    ask(pico_recipe, SERVER.format(url=HTTPS).replace('licence = "apache-2.0"\n', ""))
    assert found(pico_recipe)["licences"] == "teacher apache-2.0, student apache-2.0"
    edit(pico_recipe / "recipe.toml", 'accept_license = "apache-2.0"\n', "")
    with pytest.raises(GateMissed, match="the teacher states no licence"):
        found(pico_recipe)


def test_every_teacher_is_looked_at(models: PicoModels, tmp_path: Path) -> None:
    recipe = write_pico_recipe(tmp_path / "recipe", models)
    gguf = f'model = "{models.teacher}"\nguide = "guide.md"\nexamples = "examples.jsonl"\n'
    folder = f'backend = "transformers"\nmodel = "{models.student}"\n'
    ask(recipe, gguf, folder, SERVER.format(url=HTTPS))
    seen = found(recipe)
    assert seen["backends"] == "teacher llamacpp and transformers and openai, student torch"
    assert seen["models"].startswith("teacher (local), student (local), big (at https://")
    assert seen["prompts"].endswith("the teachers are shown 1 and 0 and 0 examples")
    assert seen["answers"] == "1 of each of 3 teachers to each prompt; a vote on whole answers"
    edit(recipe / "recipe.toml", folder, f'{folder}guide = "no-guide.md"\n')
    with pytest.raises(InvalidInput, match=r"teachers\.1\.guide: no file"):
        found(recipe)


def test_a_folder_is_no_gguf_and_a_gguf_no_folder(models: PicoModels, tmp_path: Path) -> None:
    recipe = write_pico_recipe(tmp_path / "recipe", models)
    with pytest.raises((InvalidInput, Unsafe)):
        found(ask(recipe, f'model = "{models.student}"\n'))
    with pytest.raises((InvalidInput, Unsafe)):
        found(ask(recipe, f'backend = "transformers"\nmodel = "{models.teacher}"\n'))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere MLX brings a fast one")
def test_mlx_without_a_fast_blas_is_warned_of(pico_recipe: Path) -> None:
    required_or_skipped("mlx", ("mlx_lm",))
    edit(pico_recipe / "recipe.toml", "[student]", '[student]\nbackend = "mlx"')
    said = found(pico_recipe)["backends"]
    assert said.startswith("teacher llamacpp, student mlx")
    assert ("preload OpenBLAS" in said) == has_slow_blas()


def test_odds_that_no_server_tells_are_not_learned(pico_recipe: Path) -> None:
    ask(pico_recipe, SERVER.format(url=HTTPS))
    edit(pico_recipe / "recipe.toml", "[train]\n", '[train]\nloss = "soft"\n')
    with pytest.raises(InvalidInput, match="the odds of every answer, which the 'openai' backend does not tell"):
        check(load_recipe(pico_recipe), run_of(pico_recipe))


def test_a_language_that_is_not_known_is_refused(pico_recipe: Path) -> None:
    teach(pico_recipe, "", 'languages = ["english"]')
    with pytest.raises(InvalidInput, match=r"curate\.languages: unknown code 'english'"):
        found(pico_recipe)
    edit(pico_recipe / "recipe.toml", '["english"]', '["en"]')
    assert found(pico_recipe)["languages"] == "en"
