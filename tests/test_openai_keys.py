"""The key of an API: sent with every request, shown nowhere, quoted by no message."""

from __future__ import annotations

import json
import logging
import os
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from fault_server import stats_of
from hypothesis import given
from hypothesis import strategies as st
from openai_asking import CANARY, SHORT, all_answered, asked, prompts, task_of
from pico_recipe import SCHEMA

from edgedistill.errors import EdgeDistillError, InvalidInput
from edgedistill.recipe import TeachSettings
from edgedistill.teachers.openai import OpenaiTeacher
from edgedistill.teachers.reply import said


@pytest.mark.parametrize("kind", ["none", "echoes_key"])
def test_the_key_shows_up_nowhere(
    kind: str,
    place: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MY_KEY", f"  {CANARY}\n")
    caplog.set_level(logging.DEBUG)
    url = place(kind, "0x", 0.2)
    teacher = OpenaiTeacher(task_of(url, tmp_path, SCHEMA, api_key_env="MY_KEY"), SHORT)
    text = ""
    try:
        text += repr(list(teacher.complete(prompts(20), TeachSettings(), 0)))
    except EdgeDistillError as error:
        text += "".join(traceback.format_exception(error)) + repr(error) + error.hint
    assert stats_of(url)["keys"] == [f"Bearer {CANARY}"], "it was sent with every request"
    text += repr(teacher.failures) + caplog.text + "".join(capfd.readouterr()) + repr(vars(teacher)["_task"])
    text += "".join(path.read_text() + path.name for path in tmp_path.rglob("*") if path.is_file())
    assert "httpx2" in caplog.text
    assert CANARY not in text
    assert CANARY[3:12] not in text


def test_without_a_key_none_is_sent(place: Callable[..., str], tmp_path: Path) -> None:
    url = place()
    all_answered(OpenaiTeacher(task_of(url, tmp_path)), 2)
    assert stats_of(url)["keys"] == [""]


def test_a_key_that_is_wrong_or_missing_is_said_without_it(
    place: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = place(dialect="wants_key")
    with pytest.raises(EdgeDistillError, match="HTTP 401: it asks for a key") as caught:
        asked(OpenaiTeacher(task_of(url, tmp_path)), 1)
    assert "teacher.api_key_env" in caught.value.hint
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    with pytest.raises(EdgeDistillError, match=r"^the server answers HTTP 401: it does not accept the key$"):
        asked(OpenaiTeacher(task_of(url, tmp_path)), 1)
    monkeypatch.setenv("OPENAI_API_KEY", "right-key-1234")
    all_answered(OpenaiTeacher(task_of(url, tmp_path)), 1)


@pytest.mark.parametrize("key", ["sk-1\nX-Header: 1", "two words", "schlüssel", "sk\x00"])
def test_what_is_no_key_is_not_sent(key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {**os.environ, "OPENAI_API_KEY": key})
    with pytest.raises(InvalidInput, match=r"^the environment variable OPENAI_API_KEY holds no key$"):
        OpenaiTeacher(task_of("http://127.0.0.1/v1", tmp_path))


@given(st.text(min_size=8, max_size=40), st.text(max_size=60), st.text(max_size=60), st.integers(0, 30))
def test_no_piece_of_a_key_is_quoted(key: str, before: str, after: str, start: int) -> None:
    piece = key[start % (len(key) - 7) :][:8]
    body = json.dumps({"error": {"message": before + piece + after}}, ensure_ascii=False)
    assert piece not in said(body.encode("utf-8", "surrogatepass"), key)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ('{"error": {"message": "too\\nlong", "code": 1}}', "too long"),
        ('{"error": "no"}', "no"),
        ('{"detail": [{"loc": ["x"]}]}', '[{"loc": ["x"]}]'),
        ("<html>nginx</html>", ""),
        ("plain \x1b[31m text", "plain  [31m text"),
        ("", ""),
    ],
)
def test_a_servers_words_are_one_plain_line(body: str, text: str) -> None:
    assert said(body.encode(), "sk-key-123456") == text
