"""Rows in and out of JSON lines: every fault has a file, a line and a word of help."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgedistill.errors import InvalidInput
from edgedistill.messages import ROLES
from edgedistill.records import (
    Example,
    Message,
    Place,
    Prompt,
    digest,
    iter_prompts,
    json_lines,
    longest_prompt,
    placed_prompts,
    read_prompts,
    read_rows,
)

ROW = {"messages": [{"role": "user", "content": "hello"}]}
MESSAGES = st.lists(
    st.builds(Message, st.sampled_from(ROLES), st.text(st.characters(exclude_categories=["Cs"]))), max_size=3
)


def prompts_of(tmp_path: Path, *lines: bytes) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b"\n".join(lines))
    return path


def as_bytes(**changes: Any) -> bytes:
    return json.dumps({**ROW, **changes}).encode()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"messages": [', "not a line of JSON"),
        (b"[1, 2]", "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b'{"messages": "\xff"}', "not a line of JSON"),
        (as_bytes(prompt="x"), "unknown key 'prompt'"),
        (as_bytes(messages=[]), "needs messages"),
        (as_bytes(messages="hello"), "needs messages"),
        (as_bytes(messages=["hello"]), "needs a role"),
        (as_bytes(messages=[{"role": "human", "content": "x"}]), "needs a role"),
        (as_bytes(messages=[{"role": "user", "content": None}]), "content that is text"),
        (as_bytes(messages=[{"role": "user"}]), "content that is text"),
        (as_bytes(messages=[*ROW["messages"], {"role": "assistant", "content": "hi"}]), "must be the user's"),
        (as_bytes(tags="curt"), "tags must be a list"),
        (as_bytes(tags=[1]), "tags must be a list"),
        (as_bytes(must_pass="false"), "must_pass must be true or false"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "surrogates not allowed"),
        (b"[" * 100_000, "not a line of JSON"),
        (b'{"expected": ' + b"1" * 5000 + b"}", "not a line of JSON"),
    ],
)
def test_a_broken_line_37_is_named_with_its_fault(tmp_path: Path, line: bytes, words: str) -> None:
    path = prompts_of(tmp_path, *[as_bytes()] * 36, line, as_bytes())
    with pytest.raises(InvalidInput, match=f"prompts.jsonl:37: .*{words}") as caught:
        read_prompts(path)
    assert "\n" not in caught.value.message
    assert caught.value.hint


def test_blank_lines_are_skipped_and_still_counted(tmp_path: Path) -> None:
    path = prompts_of(tmp_path, b"", as_bytes(), b"  \r", as_bytes(), b"")
    assert [number for number, _ in read_rows(path)] == [2, 4]


def test_lines_of_windows_and_texts_with_every_line_break_are_read(tmp_path: Path) -> None:
    text = "one\u2028two\x85three\x0bfour"
    row = json.dumps({"messages": [{"role": "user", "content": text}]}, ensure_ascii=False).encode()
    assert read_prompts(prompts_of(tmp_path, row + b"\r", row))[1].text == text


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"nowhere\.jsonl: No such file"):
        list(read_rows(tmp_path / "nowhere.jsonl"))


def test_the_id_of_a_prompt_depends_on_its_messages_alone(tmp_path: Path) -> None:
    plain, rich = read_prompts(
        prompts_of(tmp_path, as_bytes(), as_bytes(expected={"a": 1}, tags=["t"], must_pass=True))
    )
    assert plain.id == rich.id
    assert rich == Prompt(plain.id, plain.messages, {"a": 1}, ("t",), True)


@given(st.lists(MESSAGES, max_size=4))
def test_prompts_survive_the_round_trip_through_a_file(
    tmp_path_factory: pytest.TempPathFactory, conversations: list[list[Message]]
) -> None:
    conversations = [[*messages, Message("user", "last")] for messages in conversations]
    path = tmp_path_factory.mktemp("rows") / "prompts.jsonl"
    path.write_bytes(json_lines({"messages": [m.as_dict() for m in messages]} for messages in conversations))
    assert [list(prompt.messages) for prompt in read_prompts(path)] == conversations


def test_reading_goes_on_from_any_place(tmp_path: Path) -> None:
    path = prompts_of(
        tmp_path, as_bytes(), b"", as_bytes(tags=["t"]), as_bytes(messages=[{"role": "user", "content": "ü"}])
    )
    whole = list(placed_prompts(path))
    assert [place.line for place, _ in whole] == [1, 3, 4]
    assert whole[-1][0] == Place(path.stat().st_size, 4)
    for number, (place, _) in enumerate(whole, start=1):
        assert list(placed_prompts(path, place)) == whole[number:]


@given(st.lists(MESSAGES, min_size=1, max_size=5), st.booleans())
def test_the_longest_prompt_is_found_however_its_text_is_written(
    tmp_path_factory: pytest.TempPathFactory, conversations: list[list[Message]], is_ascii: bool
) -> None:
    rows = [{"messages": [m.as_dict() for m in [*messages, Message("user", "")]]} for messages in conversations]
    path = tmp_path_factory.mktemp("rows") / "prompts.jsonl"
    lines = [json.dumps(row, ensure_ascii=is_ascii, separators=(",", ":")) for row in rows]
    path.write_bytes("\n\n".join(lines).encode())
    assert longest_prompt(path) == max(iter_prompts(path), key=lambda prompt: len(prompt.text))


def test_there_is_no_longest_prompt_of_none(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"prompts\.jsonl: no prompts"):
        longest_prompt(prompts_of(tmp_path, b"", b" "))


def test_a_faulty_line_is_met_only_when_it_is_reached(tmp_path: Path) -> None:
    rows = iter_prompts(prompts_of(tmp_path, as_bytes(), b"{"))
    assert next(rows).text == "hello"
    with pytest.raises(InvalidInput, match=r"prompts\.jsonl:2"):
        next(rows)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=5))
def test_equal_values_have_equal_digests(value: Any) -> None:
    assert digest(value) == digest(json.loads(json.dumps(value)))


def test_another_order_of_keys_is_the_same_digest_and_another_order_of_parts_is_not() -> None:
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest("a", "b") != digest("b", "a")
    assert digest("ab") != digest("a", "b")


def test_an_example_is_the_fields_chat_row_with_our_own_under_one_key() -> None:
    row = Example("id1", (Message("user", "q"), Message("assistant", "a"))).as_row()
    assert set(row) == {"messages", "_ed"}
    assert row["_ed"] == {"id": "id1"}
