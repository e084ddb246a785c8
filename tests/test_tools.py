"""Tools on offer, from a row to the teacher's prompt, and the calls in its answers, from its text to the row."""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from conversation_templates import CHATML, family_folder
from hypothesis import given
from hypothesis import strategies as st
from pico import edited, pico_hf_folder, silent, written
from pico_recipe import PicoModels, edit, write_pico_recipe

from edgedistill.errors import InvalidInput
from edgedistill.llamacpp.answer import SharedPrompt
from edgedistill.llamacpp.model import LlamaModel
from edgedistill.messages import messages_of, tools_of
from edgedistill.pipeline import RunSettings, run_recipe
from edgedistill.recipe import TeachSettings, load_recipe
from edgedistill.records import Message, Tool, json_lines, read_rows
from edgedistill.run import Run
from edgedistill.stages.offers import require_tools
from edgedistill.stages.scorers import tool_call
from edgedistill.stages.tool_calls import fault, message_of, paired, said
from edgedistill.teachers.capabilities import Capabilities, Question
from edgedistill.teachers.http import Reply
from edgedistill.teachers.reply import Answer, Failure, answer_of, complaint
from edgedistill.teachers.shared_prefix import SharedPrefix
from edgedistill.teachers.vocabulary import Vocabulary

ARGUMENTS = st.dictionaries(st.text(max_size=5), st.none() | st.booleans() | st.integers() | st.text(), max_size=3)
CALLS = st.lists(st.tuples(st.sampled_from(["light", "door", "now"]), ARGUMENTS), min_size=1, max_size=3)


def tool(name: str, **properties: Any) -> Tool:
    schema = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "description": "What it does.", "parameters": schema}}


LIGHT = tool("light", room={"enum": ["hall", "all"]}, on={"type": "boolean"})
NOW = tool("now")
TOOLS = tools_of("tools", [LIGHT, NOW])
ON = {"name": "light", "arguments": {"room": "hall", "on": True}}


# -- what a teacher is shown


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A pico model whose template knows tools."""
    folder = pico_hf_folder(tmp_path_factory.mktemp("tools") / "pico", "qwen2")
    edited(folder, "tokenizer_config.json", lambda settings: settings.update(chat_template=CHATML))
    with LlamaModel(written(folder).path, vocab_only=True) as model:
        yield model


def test_a_prompt_with_tools_is_what_the_template_writes_and_shares_what_it_can(model: LlamaModel) -> None:
    system, question = Message("system", "Be brief."), (Message("user", "Is it late?"),)
    shared = SharedPrompt(model, (system,), TOOLS)
    counts = {}
    for name, tools in (("same", TOOLS), ("other", TOOLS[:1]), ("none", ())):
        counts[name], own = shared.split(question, tools)
        whole = model.chat_template().render((system, *question), tools=tools)
        assert ("# Tools" in whole) == bool(tools)
        assert [*shared.tokens[: counts[name]], *own] == model.tokenize(whole, add_bos=False)
        assert own
    assert counts["same"] == len(shared.tokens) > counts["other"] > counts["none"] > 0


def test_a_backend_that_shares_one_beginning_refuses_rows_with_other_tools(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    prefix = SharedPrefix(Vocabulary(family_folder(tmp_path / "chatml", "chatml")), (Message("system", "s"),), TOOLS)
    prefix.require_tools(TOOLS)
    with pytest.raises(InvalidInput, match="rows offer different tools"):
        prefix.require_tools(TOOLS[:1])


def test_a_server_is_given_the_tools_and_its_calls_are_read() -> None:
    question = Question((Message("user", "Light!"),), 10, tools=TOOLS)
    assert Capabilities().body("m", question, None)["tools"] == list(TOOLS)
    assert "tools" not in Capabilities().body("m", Question.of(question.messages, TeachSettings(), 0), None)
    call = {"index": 0, "id": "c1", "type": "function", "function": {"name": "now", "arguments": "{}"}}
    answer = reply(content=None, tool_calls=[call])
    assert isinstance(answer, Answer)
    assert message_of(answer.text, TOOLS).tool_calls[0].name == "now"
    assert complaint(answer, None, has_tools=True) is None
    assert complaint(answer, None) is not None
    broken = reply(content="", tool_calls=[{**call, "function": {"name": "now", "arguments": "{"}}])
    assert isinstance(broken, Failure)


def reply(**message: Any) -> Answer | Failure:
    choice = {"message": {"role": "assistant", **message}, "finish_reason": "tool_calls"}
    return answer_of(Reply(200, {}, json.dumps({"choices": [choice]}).encode()))


# -- the calls in an answer


FAMILIES = {
    "hermes": lambda calls: "".join(f"<tool_call>\n{json.dumps(one)}\n</tool_call>\n" for one in calls),
    "mistral": lambda calls: f"[TOOL_CALLS] {json.dumps(calls)}",
    "llama3": lambda calls: (
        "<|python_tag|>" + "; ".join(json.dumps({"name": o["name"], "parameters": o["arguments"]}) for o in calls)
    ),
    "fenced": lambda calls: "\n".join(f"```json\n{json.dumps(one, indent=2)}\n```" for one in calls),
    "plain": json.dumps,
    "plain, one a line": lambda calls: "\n".join(map(json.dumps, calls)),
}


@pytest.mark.parametrize("family", FAMILIES)
@given(calls=CALLS)
def test_calls_are_read_in_the_form_of_each_family(family: str, calls: list[tuple[str, dict[str, Any]]]) -> None:
    text = FAMILIES[family]([{"name": name, "arguments": arguments} for name, arguments in calls])
    found = said(text)
    assert list(found.calls) == calls
    assert not found.is_broken
    assert [(one.name, json.loads(one.arguments)) for one in message_of(text, TOOLS).tool_calls] == calls


@given(st.text())
def test_any_text_is_taken_apart(text: str) -> None:
    found = said(text)
    assert found.calls or found.is_broken or found.text == text
    assert message_of(text, ()) == Message("assistant", text)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("It is late.", None),
        ('<tool_call>{"name": "now"}</tool_call>', None),
        (f"Yes. <tool_call>{json.dumps(ON)}</tool_call>", None),
        ('<tool_call>{"name": "door", "arguments": {}}</tool_call>', "unknown tool"),
        ('{"name": "light", "arguments": {"room": "hall", "on": "true"}}', "invalid call"),
        ('{"name": "light", "arguments": {"room": "hall"}}', "invalid call"),
        ('<tool_call>{"name": "light", "arguments": {"room"', "invalid call"),
    ],
)
def test_a_call_that_its_tool_does_not_allow_has_its_reason(answer: str, reason: str | None) -> None:
    found = fault(answer, TOOLS)
    assert (found and found[0]) == reason


def test_check_tells_the_tools_and_refuses_what_is_no_schema(models: PicoModels, tmp_path: Path) -> None:
    folder = write_pico_recipe(tmp_path / "recipe", models)
    recipe, run = load_recipe(folder), Run(tmp_path / "run", offline=True)
    assert require_tools(recipe, run) == "none"
    rows = [{"messages": [{"role": "user", "content": text}], "tools": list(TOOLS)} for text in ("a", "b")]
    (folder / "prompts.jsonl").write_bytes(json_lines(rows))
    assert require_tools(recipe, run) == "2 tools, the same in all rows; calls are not run: they are the answer"
    (folder / "prompts.jsonl").write_bytes(json_lines([rows[0], {**rows[1], "tools": [LIGHT]}]))
    assert require_tools(recipe, run) == "2 tools, in different sets; calls are not run: they are the answer"
    edit(folder / "recipe.toml", "[teacher]", '[teacher]\nbackend = "mlx"')
    with pytest.raises(InvalidInput, match=r"prompts\.jsonl: rows offer different tools, which the 'mlx' backend"):
        require_tools(load_recipe(folder), run)
    bad = {"type": "function", "function": {"name": "bad", "parameters": {"type": 7}}}
    (folder / "prompts.jsonl").write_bytes(json_lines([{**rows[0], "tools": [bad]}]))
    with pytest.raises(InvalidInput, match=r"prompts\.jsonl: tool 'bad'"):
        require_tools(recipe, run)


def test_a_tool_whose_parameters_are_no_schema_is_named() -> None:
    bad = {"type": "function", "function": {"name": "bad", "parameters": {"type": 7}}}
    with pytest.raises(InvalidInput, match="tool 'bad'"):
        fault('{"name": "bad", "arguments": {}}', [bad])


# -- scores


@given(st.integers(0, 4), st.integers(0, 4), st.data())
def test_calls_are_paired_for_the_largest_sum(rows: int, columns: int, data: st.DataObject) -> None:
    share = st.sampled_from([0.0, 0.25, 0.5, 1.0])
    scores = [[data.draw(share) for _ in range(columns)] for _ in range(rows)]
    small, large = sorted((rows, columns))
    lines = scores if rows <= columns else [list(column) for column in zip(*scores, strict=True)]
    every = (sum(lines[r][c] for r, c in enumerate(chosen)) for chosen in permutations(range(large), small))
    assert paired(scores) == pytest.approx(max(every, default=0.0) if rows and columns else 0.0)


@pytest.mark.parametrize(
    ("answer", "expected", "score"),
    [
        ([ON, {"name": "now", "arguments": {}}], [{"name": "now", "arguments": {}}, ON], 1.0),
        ([ON], [ON, {"name": "now", "arguments": {}}], 0.5),
        ([ON, ON], [ON], 0.5),
        ([{"name": "light", "arguments": {"room": "hall", "on": "true"}}], [ON], 0.5),
        ([{"name": "light", "arguments": {"room": "hall", "on": 1}}], [ON], 0.5),
        ([], [ON], 0.0),
        ([ON], [], 0.0),
        ([{"name": str(n), "arguments": {}} for n in range(12)], [{"name": str(11 - n)} for n in range(12)], 1.0),
    ],
)
def test_parallel_calls_count_in_any_order_and_arguments_by_type(answer: Any, expected: Any, score: float) -> None:
    assert tool_call(json.dumps(answer), expected) == pytest.approx(score)


def test_where_no_tool_fits_an_answer_in_words_is_right() -> None:
    assert tool_call("I have no tool for that.", []) == 1.0
    assert tool_call("", []) == 0.0
    assert tool_call("<tool_call>hm</tool_call>", []) == 0.0


# -- through the stages


def test_answers_become_rows_with_calls_and_bad_calls_are_rejected(models: PicoModels, tmp_path: Path) -> None:
    answers = {
        "Put the light in the hall on, please": f"<tool_call>{json.dumps(ON)}</tool_call>",
        "What is the capital of France?": "No tool of mine tells that.",
        "Unlock that green door for grandmother": '{"name": "door", "arguments": {}}',
        "Dim everything upstairs a little": '{"name": "light", "arguments": {"room": "upstairs", "on": true}}',
    }
    changes = {'schema_file = "schema.json"\n': "", "[teach]": '[teach]\nanswers = "answers.jsonl"'}
    folder = write_pico_recipe(tmp_path / "recipe", models, {**changes, "valid_share = 0.2": "valid_share = 0.0"})
    asked = [{"messages": [{"role": "user", "content": text}], "tools": list(TOOLS)} for text in answers]
    given_rows = [
        {**row, "messages": [*row["messages"], {"role": "assistant", "content": text}]}
        for row, text in zip(asked, answers.values(), strict=True)
    ]
    (folder / "prompts.jsonl").write_bytes(json_lines(asked))
    (folder / "answers.jsonl").write_bytes(json_lines(given_rows))
    for stage in ("prompts", "teach", "curate"):
        run, _ = run_recipe(folder, RunSettings(runs=tmp_path / "runs", offline=True, only=stage), silent)
    rows = [row for _, row in read_rows(run.folder("curate") / "train.jsonl")]
    first, second = (messages_of("row", row)[-1] for row in rows)
    assert [json.loads(call.arguments) for call in first.tool_calls] == [ON["arguments"]]
    assert first.content == ""
    assert second == Message("assistant", "No tool of mine tells that.")
    assert all(tools_of("row", row["tools"]) == TOOLS for row in rows)
    reasons = [row["_ed"]["reason"] for _, row in read_rows(run.folder("curate") / "rejected.jsonl")]
    assert reasons == ["unknown tool", "invalid call"]
