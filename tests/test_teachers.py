"""What every teacher promises, over every backend that is installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from pico_recipe import SCHEMA, PicoModels, write_pico_recipe

from edgedistill.errors import InvalidInput, MissingRequirement
from edgedistill.recipe import TeacherSettings, TeachSettings, load_recipe
from edgedistill.records import Completion, Message, Prompt
from edgedistill.run import file_sha256
from edgedistill.teachers import BACKENDS, Teacher, TeacherTask, load_teacher, preamble

REQUIRED = os.environ.get("EDGEDISTILL_REQUIRE", "").split(",")


def required_or_skipped(backend: str, libraries: tuple[str, ...]) -> None:
    """Skip the test where a library is missing; fail it where the backend is required here."""
    missing = [library for library in libraries if find_spec(library) is None]
    if missing:
        reason = f"'{backend}' needs {missing[0]}, which is not installed"
        pytest.fail(reason) if backend in REQUIRED else pytest.skip(reason)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    libraries = BACKENDS[request.param][0]
    required_or_skipped(request.param, (libraries,) if isinstance(libraries, str) else tuple(libraries))
    return str(request.param)


def teacher_of(backend: str, models: PicoModels, schema: bool = True) -> Teacher:
    settings = TeacherSettings(backend=backend, model=str(models.teacher))  # type: ignore[arg-type]
    task = TeacherTask(
        model=models.teacher,
        sha256=file_sha256(models.teacher),
        preamble=(Message("system", "You turn a command into JSON."),),
        schema=SCHEMA if schema else None,
        scratch=models.teacher.parent / "scratch",
    )
    return load_teacher(settings, task)


def prompts(count: int) -> list[Prompt]:
    texts = ("light on", "", "\nhall off, please", "🚀", "hello " * 30)
    return [Prompt(f"{number:08x}", (Message("user", f"{texts[number % 5]}{number}"),)) for number in range(count)]


def asked(teacher: Teacher, count: int, settings: TeachSettings, seed: int = 0) -> dict[str, Completion]:
    found = list(teacher.complete(prompts(count), settings, seed))
    assert sorted(one.prompt_id for one in found) == [prompt.id for prompt in prompts(count)]
    return {one.prompt_id: one for one in found}


def test_every_prompt_is_answered_once(backend: str, models: PicoModels) -> None:
    teacher = teacher_of(backend, models)
    for one in asked(teacher, 20, TeachSettings(max_tokens=40, slots=4)).values():
        assert one.finish_reason == "stop"
        assert json.loads(one.text).keys() == {"action", "room"}
        assert one.prompt_tokens > 0
        assert 0 < one.completion_tokens <= 40
        assert one.seconds > 0
    teacher.close()


def test_greedy_answers_do_not_depend_on_how_many_are_asked_at_once(backend: str, models: PicoModels) -> None:
    teacher = teacher_of(backend, models, schema=False)
    alone, together = (asked(teacher, 12, TeachSettings(max_tokens=8, slots=slots)) for slots in (1, 5))
    assert {k: one.text for k, one in alone.items()} == {k: one.text for k, one in together.items()}
    teacher.close()


def test_a_seed_repeats_what_was_sampled(backend: str, models: PicoModels) -> None:
    teacher = teacher_of(backend, models, schema=False)
    settings = TeachSettings(max_tokens=8, slots=4, temperature=1.0)
    one, same, other = ({k: c.text for k, c in asked(teacher, 8, settings, seed).items()} for seed in (1, 1, 2))
    assert one == same
    assert one != other
    assert len(set(one.values())) > 4, "each prompt has a seed of its own"
    teacher.close()


def test_an_answer_that_is_cut_off_says_so(backend: str, models: PicoModels) -> None:
    teacher = teacher_of(backend, models)
    found = asked(teacher, 4, TeachSettings(max_tokens=3, slots=2))
    assert {one.finish_reason for one in found.values()} == {"length"}
    assert all(one.completion_tokens <= 3 for one in found.values())
    teacher.close()


def test_a_teacher_can_be_asked_again_and_closed_twice(backend: str, models: PicoModels) -> None:
    teacher = teacher_of(backend, models)
    settings = TeachSettings(max_tokens=40, slots=2)
    first = asked(teacher, 3, settings)
    teacher.close()
    teacher.close()
    assert {k: one.text for k, one in asked(teacher, 3, settings).items()} == {k: one.text for k, one in first.items()}
    teacher.close()


def test_no_prompts_are_no_answers(backend: str, models: PicoModels) -> None:
    teacher = teacher_of(backend, models)
    assert asked(teacher, 0, TeachSettings()) == {}
    teacher.close()


def test_the_preamble_is_system_text_guide_and_examples(models: PicoModels, tmp_path: Path) -> None:
    shown = preamble(load_recipe(write_pico_recipe(tmp_path, models)))
    assert shown == (
        Message("system", "You turn a command into JSON.\n\n# Guide\n\nHall is the hall, all is everything else."),
        Message("user", "hall off"),
        Message("assistant", '{"action":"off","room":"hall"}'),
    )


def test_an_example_without_an_answer_is_named_with_its_line(models: PicoModels, tmp_path: Path) -> None:
    recipe = load_recipe(write_pico_recipe(tmp_path, models))
    with (tmp_path / "examples.jsonl").open("a", encoding="utf-8") as file:
        file.write('\n{"messages": [{"role": "user", "content": "x"}]}\n')
    with pytest.raises(InvalidInput, match=r"examples\.jsonl:2: an example must end with the assistant's answer"):
        preamble(recipe)


def test_a_guide_that_is_no_text_or_not_there_is_named(models: PicoModels, tmp_path: Path) -> None:
    recipe = load_recipe(write_pico_recipe(tmp_path, models))
    for spoil in (lambda path: path.write_bytes(b"gr\xfc\xdfe"), Path.unlink):
        spoil(tmp_path / "guide.md")
        with pytest.raises(InvalidInput, match=r"guide\.md"):
            preamble(recipe)


def test_a_backend_that_is_not_installed_says_what_to_install() -> None:
    code = (
        "import sys\n"
        "sys.modules['llama_cpp'] = None\n"
        "from edgedistill.errors import MissingRequirement\n"
        "from edgedistill.recipe import TeacherSettings\n"
        "from edgedistill.teachers import require_teacher\n"
        "try:\n"
        "    require_teacher(TeacherSettings(model='x.gguf'))\n"
        "except MissingRequirement as error:\n"
        "    sys.stdout.write(f'{error.message} / {error.hint}')\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == "the 'llamacpp' teacher needs llama_cpp / pip install llama-cpp-python"
    assert MissingRequirement.exit_code == 6
