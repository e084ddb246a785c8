"""Prompts in other people's forms: recognised by content, nothing of them lost, every bad line named."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from foreign_rows import TOOL, Turn, asked, openai_row, written
from hypothesis import given, settings
from hypothesis import strategies as st
from required import required_or_skipped

from edgedistill.errors import InvalidInput, MissingRequirement
from edgedistill.records import json_lines
from edgedistill.sources import Columns, Conversation, conversations, recognised
from edgedistill.sources import containers as containers_module

CALL = {"id": "call_1", "type": "function", "function": {"name": "light", "arguments": '{"on": true}'}}

words = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20).filter(
    lambda text: text.strip()
)
texts = st.lists(words, min_size=1, max_size=3).map("\n".join)
pairs = st.lists(st.tuples(texts, texts), max_size=3)


def read(path: Path, name: str | None = None, columns: Columns | None = None) -> list[Conversation]:
    found = list(conversations(recognised(path, name, columns or Columns())))
    assert [one.problem for one in found if one.problem] == []
    return [one.conversation for one in found if one.conversation is not None]


def sharegpt_row(turns: Sequence[Turn], system: str) -> dict[str, Any]:
    names = {"user": "human", "assistant": "gpt"}
    said = [{"from": names[one["role"]], "value": one["content"]} for one in turns]
    return {"conversations": said, "system": system}


def body(turns: Sequence[Turn], system: str) -> dict[str, Any]:
    return {"model": "m", **openai_row(turns, system)}


def litellm(turns: Sequence[Turn], system: str) -> dict[str, Any]:
    return {"id": "1", "call_type": "acompletion", "model": "m", "startTime": 1.0, **openai_row(turns, system)}


def batch(turns: Sequence[Turn], system: str) -> dict[str, Any]:
    return {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": body(turns, system)}


def nested(turns: Sequence[Turn], system: str) -> dict[str, Any]:
    return {"ts": 1, "request": {"path": "/v1/chat/completions", "body": json.dumps(body(turns, system))}}


Write = Callable[[Sequence[Turn], str], dict[str, Any]]
FORMS: dict[str, tuple[str, Write]] = {
    "openai": ("openai", openai_row),
    "sharegpt": ("sharegpt", sharegpt_row),
    "a request's body": ("log", body),
    "litellm": ("log", litellm),
    "a batch": ("log", batch),
    "a body as text": ("log", nested),
}


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=40, deadline=None)
@given(before=pairs, last=texts, answer=texts, system=st.one_of(st.just(""), texts))
def test_a_conversation_comes_back_as_it_was_written(
    form: str,
    tmp_path_factory: pytest.TempPathFactory,
    before: list[tuple[str, str]],
    last: str,
    answer: str,
    system: str,
) -> None:
    name, write = FORMS[form]
    turns = asked(*(text for pair in before for text in pair), last, answer)
    folder = tmp_path_factory.mktemp("source")
    for kind, data in (
        ("rows.jsonl", json_lines([write(turns, system)] * 2)),
        ("rows.json", json.dumps([write(turns, system)] * 2, indent=1).encode()),
    ):
        source = recognised(written(folder / kind, data))
        assert source.format == name
        first, second = read(source.path)
        assert first == second
        assert (first.messages, first.answer, first.system) == (turns[:-1], turns[-1:], system)
        assert first.tools == ([] if name == "sharegpt" else [TOOL])


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(texts, texts), min_size=1, max_size=5), sign=st.sampled_from([",", "\t", ";"]))
def test_a_table_comes_back_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], sign: str
) -> None:
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=sign)
    writer.writerows([("question", "kind"), *rows])
    path = written(tmp_path_factory.mktemp("source") / "table", out.getvalue())
    found = read(path, columns=Columns(prompt="question", tags=("kind",)))
    assert [(one.messages, one.tags) for one in found] == [(asked(text), (kind,)) for text, kind in rows]


@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(st.dictionaries(words, st.recursive(texts, lambda inner: st.lists(inner, max_size=3))), max_size=5)
)
@pytest.mark.parametrize("size", [1, 7, 1 << 20])
def test_the_objects_of_a_list_are_found_however_it_is_cut_into_blocks(
    tmp_path_factory: pytest.TempPathFactory, size: int, rows: list[dict[str, Any]]
) -> None:
    path = written(tmp_path_factory.mktemp("source") / "list.json", "\ufeff" + json.dumps(rows, indent=2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(containers_module, "READ", size)
        assert [one.value for one in containers_module.records(path, "json")] == rows


@given(data=st.binary(max_size=300))
@settings(max_examples=150, deadline=None)
@pytest.mark.parametrize("start", [b"", b"[", b'{"messages": [', b"a,b\n", b'[{"a": "'])
def test_no_content_whatever_it_is_ends_in_another_error_than_ours(
    tmp_path_factory: pytest.TempPathFactory, start: bytes, data: bytes
) -> None:
    path = written(tmp_path_factory.mktemp("source") / "file", start + data)
    for name in (None, "openai", "log", "text", "columns", "alpaca", "sharegpt"):
        with suppress(InvalidInput, MissingRequirement):  # one of ours, which says what is wrong
            source = recognised(path, name)
            found = conversations(source) if source.format != "rows" else ()
            assert all(one.where.startswith(f"{path}:") for one in found)


def test_alpaca_is_read_with_its_input_history_and_answer(tmp_path: Path) -> None:
    row = {
        "instruction": "Translate",
        "input": "Hund",
        "output": "dog",
        "system": "Be brief.",
        "history": [["Hi", "Hello"]],
    }
    (one,) = read(written(tmp_path / "alpaca.json", json.dumps([row])))
    assert one.messages == asked("Hi", "Hello", "Translate\n\nHund")
    assert (one.answer, one.system) == ([{"role": "assistant", "content": "dog"}], "Be brief.")


def test_tool_calls_and_their_results_are_kept_in_every_form(tmp_path: Path) -> None:
    wanted = [
        {"role": "user", "content": "light"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "done", "tool_call_id": "call_1"},
        {"role": "assistant", "content": "It is on."},
        {"role": "user", "content": "Thanks"},
    ]
    openai = {"messages": [{**one, "content": one["content"] or None} for one in wanted] + asked("x", "Bye")[1:]}
    old = {
        "messages": [
            wanted[0],
            {"role": "assistant", "content": None, "function_call": CALL["function"]},
            {"role": "function", "name": "light", "content": "done"},
            *wanted[3:],
            {"role": "assistant", "content": "Bye"},
        ],
        "functions": [TOOL["function"]],
    }
    sharegpt = {
        "conversations": [
            {"from": "human", "value": "light"},
            {"from": "function_call", "value": json.dumps(CALL["function"] | {"arguments": {"on": True}})},
            {"from": "observation", "value": "done"},
            {"from": "gpt", "value": "It is on."},
            {"from": "human", "value": "Thanks"},
        ],
        "tools": json.dumps([TOOL["function"]]),
    }
    (one,) = read(written(tmp_path / "a.jsonl", json_lines([openai])))
    assert one.messages == wanted
    for row in (old, sharegpt):
        (one,) = read(written(tmp_path / "b.jsonl", json_lines([row])))
        assert [turn["role"] for turn in one.messages] == [turn["role"] for turn in wanted]
        assert one.messages[1]["tool_calls"][0]["function"] == CALL["function"]
        assert one.tools == [TOOL]


def test_a_log_is_read_with_its_answers_and_without_what_is_no_request(tmp_path: Path) -> None:
    response = {"choices": [{"message": {"role": "assistant", "content": "Yes.", "refusal": None}}]}
    lines = [
        json.dumps({"request_body": body(asked("Is it on?"), "Be brief."), "response": response}),
        json.dumps({"path": "/health", "status": 200}),
        json.dumps(
            {"body": {"model": "m", "input": [{"role": "user", "content": [{"type": "input_text", "text": "Hi"}]}]}}
        ),
        json.dumps({"prompt": "Once upon"}),
    ]
    source = recognised(written(tmp_path / "log.jsonl", "\n".join(lines)))
    found = list(conversations(source))
    assert source.format == "log"
    assert [one.conversation is None for one in found] == [False, True, False, False]
    kept = [one.conversation for one in found if one.conversation]
    assert [one.messages for one in kept] == [asked("Is it on?"), asked("Hi"), asked("Once upon")]
    assert (kept[0].answer, kept[0].system) == ([{"role": "assistant", "content": "Yes."}], "Be brief.")


def test_the_requests_are_found_in_what_llama_server_prints(tmp_path: Path) -> None:
    lines = [
        "main: server is listening on http://127.0.0.1:8080",
        f"srv  log_server_r: request:  {json.dumps({'messages': asked('Hi')})}",
        "srv  log_server_r: request: POST /v1/chat/completions 127.0.0.1 200",
    ]
    path = written(tmp_path / "server.log", "\n".join(lines))
    assert [one.messages for one in read(path, "log")] == [asked("Hi")]


def test_a_folder_of_texts_is_a_prompt_a_file_and_a_text_file_one_a_line(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    (folder / "inner").mkdir(parents=True)
    for name, text in (("b.txt", "two\nlines\n"), ("inner/a.md", "# One"), ("c.png", "no text")):
        (folder / name).write_text(text, encoding="utf-8")
    assert [one.messages for one in read(folder)] == [asked("two\nlines"), asked("# One")]
    path = written(tmp_path / "lines.txt", "first line\n\nsecond, with a comma\n")
    assert [one.messages for one in read(path)] == [asked("first line"), asked("second, with a comma")]


def test_parquet_is_read_batch_by_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    required_or_skipped("parquet", ("pyarrow",))
    import pyarrow as pa  # type: ignore[import-not-found,unused-ignore]
    import pyarrow.parquet  # type: ignore[import-not-found,unused-ignore]

    monkeypatch.setattr(containers_module, "BATCH", 2)
    rows = [{"conversations": [{"from": "human", "value": f"{number} \u00e9"}]} for number in range(5)]
    pa.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    found = list(conversations(recognised(tmp_path / "rows.parquet")))
    assert [one.conversation and one.conversation.messages for one in found] == [asked(f"{n} \u00e9") for n in range(5)]
    assert found[-1].where.endswith("rows.parquet:5")
    damaged = (tmp_path / "rows.parquet").read_bytes()[:-20]
    with pytest.raises(InvalidInput, match=r"bad\.parquet: row 1"):
        read(written(tmp_path / "bad.parquet", damaged))


BAD = {
    "openai": (
        json_lines([openai_row(asked("one", "yes"), "")])
        + b'{"messages": [{"role": "user"\n{"messages": []}\n[1]\n\xff\xfe\n'
        + json_lines(
            [
                {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
                {"messages": asked("a", "b")[1:]},
                {"messages": [{"role": "narrator", "content": "x"}]},
                {"messages": [1]},
                openai_row(asked("two", "yes"), ""),
            ]
        ),
        [2, 3, 4, 5, 6, 7, 8, 9],
    ),
    "columns": (b'question,label\r\n"two\r\nlines",a\r\nb\r\nc,d,e\r\n,x\r\nlast,y\r\n', [4, 5, 6]),
}


@pytest.mark.parametrize("form", BAD)
def test_every_bad_line_is_named_and_the_good_ones_are_read(form: str, tmp_path: Path) -> None:
    data, bad = BAD[form]
    path = written(tmp_path / "rows", data)
    found = list(conversations(recognised(path)))
    assert [one.where for one in found if one.problem] == [f"{path}:{number}" for number in bad]
    assert sum(one.conversation is not None for one in found) == 2


def test_an_object_of_a_list_that_is_broken_does_not_hide_the_next(tmp_path: Path) -> None:
    path = written(
        tmp_path / "list.json",
        '[{"instruction": "a", "output": "b"},\n {"instruction": b},\n 7,\n {"instruction": "c", "output": "d"}',
    )
    found = list(conversations(recognised(path)))
    assert [(one.where[-1], one.problem.partition(" (")[0]) for one in found if one.problem] == [
        ("2", "not a line of JSON"),
        ("4", "a record must be a JSON object"),
        ("4", "the list does not end"),
    ]
    assert len([one for one in found if one.conversation]) == 2


@pytest.mark.parametrize(
    ("data", "words_in_it"),
    [
        (b"\x1f\x8b\x08\x00", "compressed"),
        (b"x,y\n1,2\n3,4\n", "not known which column is the prompt; there are x, y"),
        (b"x,x\n1,2\n3,4\n", "two columns have one name"),
    ],
)
def test_what_cannot_be_read_at_all_is_refused(tmp_path: Path, data: bytes, words_in_it: str) -> None:
    with pytest.raises(InvalidInput, match=words_in_it):
        recognised(written(tmp_path / "file", data))
