"""The teacher behind an API, against real servers on pico models."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from openai_asking import asked, gather, prompts, task_of
from pico_recipe import SCHEMA

from edgedistill.errors import EdgeDistillError, InvalidInput
from edgedistill.recipe import TeachSettings
from edgedistill.records import Completion
from edgedistill.teachers.capabilities import Capabilities
from edgedistill.teachers.openai import OpenaiTeacher


@pytest.fixture(params=["llama_server", "mlx_server"])
def real(request: pytest.FixtureRequest) -> tuple[str, str]:
    found: tuple[str, str] = request.getfixturevalue(request.param)
    return found


def of_real(real: tuple[str, str], scratch: Path, schema: dict[str, Any] | None = None) -> OpenaiTeacher:
    return OpenaiTeacher(task_of(real[0], scratch, schema, model=real[1]))


def texts(teacher: OpenaiTeacher, count: int, seed: int = 0, **settings: Any) -> dict[str, str]:
    found = list(teacher.complete(prompts(count), TeachSettings(**settings), seed))
    assert sorted(one.prompt_id for one in found) == sorted(prompt.id for prompt in prompts(count))
    assert all(one.prompt_tokens > 0 for one in found)
    assert all(one.completion_tokens > 0 for one in found)
    return {one.prompt_id: one.text for one in found}


def test_a_real_server_answers_every_prompt_once_and_alike(real: tuple[str, str], tmp_path: Path) -> None:
    teacher = of_real(real, tmp_path)
    alone, together = (texts(teacher, 8, max_tokens=8, slots=slots) for slots in (1, 4))
    assert alone == together
    assert teacher.capabilities == Capabilities()


def test_a_real_server_repeats_what_a_seed_sampled(real: tuple[str, str], tmp_path: Path) -> None:
    teacher = of_real(real, tmp_path)
    sampled = {"max_tokens": 8, "temperature": 1.0, "top_k": 200, "min_p": 0.001, "slots": 1}
    one, same, other = (texts(teacher, 6, seed, **sampled) for seed in (1, 1, 2))
    assert one == same
    assert one != other
    assert len(set(one.values())) > 3, "each prompt has a seed of its own"


def test_a_real_server_says_that_an_answer_is_cut_off(real: tuple[str, str], tmp_path: Path) -> None:
    found = list(of_real(real, tmp_path).complete(prompts(3), TeachSettings(max_tokens=4), 0))
    assert {one.finish_reason for one in found} == {"length"}


def test_a_real_server_holds_its_answers_to_the_schema(llama_server: tuple[str, str], tmp_path: Path) -> None:
    teacher = of_real(llama_server, tmp_path, SCHEMA)
    for text in texts(teacher, 10, max_tokens=60).values():
        row = json.loads(text)
        assert row.keys() == {"action", "room"}
        assert row["room"] in ("hall", "all")
    assert teacher.capabilities == Capabilities(format="json_object with schema")


def test_a_real_server_that_ignores_the_schema_is_found_out(mlx_server: tuple[str, str], tmp_path: Path) -> None:
    teacher = of_real(mlx_server, tmp_path, SCHEMA)
    found: list[Completion] = []
    with suppress(EdgeDistillError):
        gather(teacher.complete(prompts(3), TeachSettings(max_tokens=100, temperature=1.0), 0), found)
    assert len(found) + len(teacher.failures) == 3
    assert all(one.finish_reason == "length" for one in found), "what does not match the schema passes for no answer"
    assert set(teacher.failures.values()) <= {"an answer that does not match the schema", "an empty answer"}
    assert teacher.capabilities == Capabilities(format="prompt")


def test_a_model_that_a_real_server_does_not_have_is_refused(real: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="has no model 'another'"):
        asked(OpenaiTeacher(task_of(real[0], tmp_path, model="another")), 1)
