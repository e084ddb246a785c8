"""Tools that a recipe offers in every row: who is shown them, and answers that are held to them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conversation_templates import BRACKETS, CHATML, HEADERS, TURNS
from hypothesis import given
from hypothesis import strategies as st
from pico import edited, pico_hf_folder, silent, written
from pico_recipe import EVAL, PROMPTS, PicoModels, edit, own_copy, rows, write_pico_recipe
from test_tools import CALLS, LIGHT, NOW, ON, TOOLS

from edgedistill.chat import ChatTemplate
from edgedistill.errors import InvalidInput
from edgedistill.llamacpp.call_grammar import FORMS, Form, call_grammar, calls_rule, form_of
from edgedistill.llamacpp.grammar import Grammar
from edgedistill.llamacpp.model import LlamaModel
from edgedistill.messages import Message, ToolCall, messages_of, with_calls
from edgedistill.pipeline import RunSettings, run_recipe, stage_keys
from edgedistill.preflight import check
from edgedistill.recipe import load_recipe
from edgedistill.records import Prompt, json_lines, read_prompts, read_rows
from edgedistill.run import Run
from edgedistill.stages import room
from edgedistill.stages.answering import package_subject, runtime_of
from edgedistill.stages.offers import require_tools
from edgedistill.stages.on_offer import is_fine, recipe_tools, shown_to, teacher_rule
from edgedistill.stages.package import verify
from edgedistill.stages.scoring import same_calls
from edgedistill.stages.tool_calls import fault, said
from edgedistill.teachers.vocabulary import Vocabulary

OWN = {"messages": [{"role": "user", "content": "Is it late?"}], "tools": [NOW]}
PLAIN = "{% for message in messages %}{{ message.role + ': ' + message.content + '\n' }}{% endfor %}"
ALLOWED = st.one_of(
    st.tuples(st.sampled_from(["hall", "all"]), st.booleans()).map(lambda a: ("light", {"room": a[0], "on": a[1]})),
    st.just(("now", {})),
)


# -- the form in which calls are written


@pytest.mark.parametrize(
    ("template", "form"),
    [(CHATML, "hermes"), (BRACKETS, "mistral"), (HEADERS, "llama3"), (TURNS, "json"), (PLAIN, "hermes")],
    ids=["chatml", "brackets", "headers", "turns", "plain"],
)
def test_the_form_of_calls_is_seen_in_the_template(template: str, form: str) -> None:
    assert form_of(ChatTemplate(template, "<s>", "</s>")) == FORMS[form]


def test_a_template_that_writes_no_calls_is_given_them_as_text() -> None:
    call = Message("assistant", "Wait.", (ToolCall("now", "{}"),))
    asked = Message("user", "Is it late?")
    assert ChatTemplate(PLAIN).render((asked, call)) == f"user: Is it late?\nassistant: {with_calls(call)}\n"
    assert not ChatTemplate(PLAIN).shows_tools
    assert ChatTemplate(CHATML).shows_tools
    assert ChatTemplate(CHATML).render((asked, call)).count("<tool_call>") == 1


# -- answers that are held to tools


@pytest.fixture(scope="module")
def grammars(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """By the form, a pico model that writes it, and the grammar of the tools for it."""
    found, models = {}, []
    for name, template in (("hermes", CHATML), ("mistral", BRACKETS), ("llama3", HEADERS), ("json", TURNS)):
        folder = pico_hf_folder(tmp_path_factory.mktemp("grammar") / name, "qwen2")
        edited(folder, "tokenizer_config.json", lambda settings, text=template: settings.update(chat_template=text))
        models.append(LlamaModel(written(folder).path, vocab_only=True))
        found[name] = models[-1], Grammar(models[-1], calls_rule(TOOLS))
    yield found
    for model in models:
        model.close()


def is_allowed(model: LlamaModel, grammar: Grammar, answer: str) -> bool:
    """Whether a model under the grammar may answer so, and end there."""
    state = grammar.begin()
    for token in model.tokenize(answer, special=False):
        if token not in state.allowed():
            return False
        state.accept(token)
    return state.finished or model.end_of_turn in state.allowed()


def as_written(form: Form, calls: Sequence[tuple[str, Any]]) -> str:
    texts = [
        f'{form.before}{{"name": {json.dumps(name)}, "{form.arguments}": {json.dumps(arguments)}}}{form.after}'
        for name, arguments in calls
    ]
    return form.opening + (form.between or "").join(texts) + form.closing


@pytest.mark.parametrize("name", FORMS)
@given(calls=st.lists(ALLOWED, min_size=1, max_size=3))
def test_a_call_that_its_tool_allows_may_be_written_and_is_read_back(
    grammars: Any, name: str, calls: list[tuple[str, Any]]
) -> None:
    calls = calls[:1] if FORMS[name].between is None else calls
    text = as_written(FORMS[name], calls)
    assert is_allowed(*grammars[name], text)
    assert list(said(text).calls) == calls
    assert fault(text, TOOLS) is None


@pytest.mark.parametrize("name", ["hermes", "mistral"])
@given(calls=st.lists(ALLOWED, min_size=1, max_size=3))
def test_a_family_may_leave_its_marks_out(grammars: Any, name: str, calls: list[tuple[str, Any]]) -> None:
    text = as_written(FORMS["json"], calls)
    assert is_allowed(*grammars[name], text)
    assert list(said(text).calls) == calls


@pytest.mark.parametrize("name", FORMS)
@given(calls=CALLS)
def test_what_no_tool_allows_cannot_be_written(grammars: Any, name: str, calls: list[tuple[str, Any]]) -> None:
    text = as_written(FORMS[name], calls[:1])
    if is_allowed(*grammars[name], text):
        assert fault(text, TOOLS) is None


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize(
    ("answer", "may"),
    [("No tool of mine does that.", True), ("It is < 4 km.", True), ("", False), ('{"name"', False)],
)
def test_where_no_tool_fits_there_are_words(grammars: Any, name: str, answer: str, may: bool) -> None:
    assert is_allowed(*grammars[name], answer) == may


def test_a_mark_that_is_one_token_stands_as_that_token() -> None:
    text = call_grammar([NOW], FORMS["hermes"], {"<tool_call>": 5, "</tool_call>": 6}.get)
    assert "<[5]>" in text
    assert "<[6]>" in text
    assert '"<tool_call>' not in text
    with pytest.raises(InvalidInput, match="no tools"):
        call_grammar([], FORMS["hermes"], lambda mark: None)


def test_a_folder_of_hugging_face_has_the_same_grammar(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    folder = pico_hf_folder(tmp_path / "pico", "qwen2")
    edited(folder, "tokenizer_config.json", lambda settings: settings.update(chat_template=CHATML))
    words = Vocabulary(folder)
    state = words.grammar(calls_rule(TOOLS), words.size).begin()
    text = as_written(FORMS["hermes"], [("light", ON["arguments"])])
    for token in words.ids(text):
        assert token in state.allowed()
        state.accept(token)
    assert words.ends & set(state.allowed().tolist())


@given(st.lists(ALLOWED, min_size=1, max_size=3), st.randoms())
def test_the_same_calls_in_another_order_say_the_same(calls: list[tuple[str, Any]], chance: Any) -> None:
    other = list(calls)
    chance.shuffle(other)
    one, two = (as_written(FORMS["hermes"], some) for some in (calls, other))
    assert same_calls(one, two)
    assert not same_calls(one, two + as_written(FORMS["hermes"], calls[:1]))


# -- in a recipe


@pytest.fixture
def folder(models: PicoModels, tmp_path: Path) -> Path:
    """A recipe whose rows all offer two tools, which the student learns."""
    return write_tools_recipe(tmp_path / "recipe", own_copy(models, tmp_path / "models"))


def write_tools_recipe(folder: Path, models: PicoModels) -> Path:
    changes = {
        'schema_file = "schema.json"\n': "",
        "[teach]\n": '[tools]\nfile = "tools.json"\nstudent = false\n\n[teach]\n',
        'file = "eval.jsonl"\n': 'file = "eval.jsonl"\nscorer = "tool"\n',
        "max_tokens = 40\nslots": "max_tokens = 48\nslots",
        "must_pass = false": "must_pass = false\nof_whole_prompt = 0.0",
        "valid = 0.9": "valid = 0.0",
        "max_length = 128": "max_length = 256",
    }
    write_pico_recipe(folder, models, changes)
    (folder / "tools.json").write_bytes(json.dumps([LIGHT, NOW]).encode())
    (folder / "eval.jsonl").write_bytes(rows(EVAL, expected=ON))
    (folder / "edge.jsonl").write_bytes(rows(("hm",), expected=[]))
    call = {"type": "function", "function": {"name": "light", "arguments": json.dumps(ON["arguments"])}}
    example = {"role": "assistant", "content": "", "tool_calls": [call]}
    turns = [{"role": "user", "content": "hall on"}, example]
    (folder / "examples.jsonl").write_bytes(json_lines([{"messages": turns}]))
    return folder


def test_rows_get_the_tools_of_the_recipe_unless_they_bring_their_own(folder: Path, tmp_path: Path) -> None:
    (folder / "prompts.jsonl").write_bytes(rows(PROMPTS[:2]) + json_lines([{**OWN, "tools": [NOW, LIGHT]}]))
    run, _ = run_recipe(folder, RunSettings(runs=tmp_path / "runs", offline=True, only="prompts"), silent)
    found = read_prompts(run.folder("prompts") / "prompts.jsonl")
    assert [prompt.tools for prompt in found] == [TOOLS, TOOLS, (NOW, LIGHT)]
    recipe = load_recipe(folder)
    plain = Prompt("p", (Message("user", "Hi"),))
    assert shown_to(recipe, "teacher")(plain).tools == TOOLS
    assert shown_to(recipe, "student")(plain).tools == ()
    assert shown_to(recipe, "student")(found[-1]).tools == (NOW, LIGHT)
    edit(folder / "recipe.toml", "student = false\n", "")
    assert shown_to(load_recipe(folder), "student")(plain).tools == TOOLS


@pytest.mark.parametrize("name", ["prompts.jsonl", "eval.jsonl"])
def test_a_row_with_other_tools_than_answers_are_held_to_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    recipe, run = load_recipe(folder), Run(tmp_path / "run", offline=True)
    before = (folder / name).read_bytes()
    (folder / name).write_bytes(b"\n" + before + json_lines([OWN]))
    line = before.count(b"\n") + 2
    with pytest.raises(
        InvalidInput, match=rf"{name}:{line}: the row 'Is it late\?' brings other tools than tools.file"
    ):
        require_tools(recipe, run)
    row = read_prompts(folder / name)[-1]
    with pytest.raises(InvalidInput, match="brings other tools than"):
        shown_to(recipe, "teacher")(row)


def test_where_nobody_is_held_a_row_may_bring_its_own_tools(folder: Path, tmp_path: Path) -> None:
    (folder / "prompts.jsonl").write_bytes(rows(PROMPTS[:2]) + json_lines([OWN]))
    server = load_recipe(folder).teacher.model_copy(update={"backend": "openai", "url": "http://127.0.0.1:1/v1"})
    recipe = load_recipe(folder).model_copy(update={"teacher": server, "teachers": (server,)})
    recipe = recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"constrained": False})})
    assert require_tools(recipe, Run(tmp_path / "run", offline=True)).startswith("2 tools, in different sets")
    row = read_prompts(folder / "prompts.jsonl")[-1]
    assert shown_to(recipe, "student")(row).tools == (NOW,)


def test_the_file_of_tools_is_read_once_and_not_for_every_row(folder: Path) -> None:
    look = shown_to(load_recipe(folder), "student")
    (folder / "tools.json").unlink()
    assert {look(prompt).tools for prompt in read_prompts(folder / "prompts.jsonl")} == {()}


def test_an_answer_is_valid_by_the_tools_on_offer(folder: Path) -> None:
    check, asked = is_fine(load_recipe(folder)), Prompt("p", (Message("user", "Hi"),))
    assert check(asked, "I have no tool for that.")
    assert check(asked, as_written(FORMS["hermes"], [("now", {})]))
    assert not check(asked, as_written(FORMS["hermes"], [("light", {"room": "attic", "on": True})]))
    assert not check(asked, " ")


def test_check_looks_at_the_tools_of_a_recipe(folder: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "run", offline=True)
    told = "2 tools, the same in all rows; the student is not shown them, it learns them; calls are not run: "
    assert require_tools(load_recipe(folder), run) == f"{told}they are the answer"
    (folder / "eval.jsonl").write_bytes(rows(EVAL[:1], expected={"name": "door", "arguments": {}}))
    with pytest.raises(InvalidInput, match=r"eval\.jsonl: the expected answer of .*door is not on offer"):
        require_tools(load_recipe(folder), run)
    for text, problem in (("{}", "tools must be a list"), ("[]", "no tools"), ("[", "not JSON")):
        (folder / "tools.json").write_text(text, encoding="utf-8")
        with pytest.raises(InvalidInput, match=rf"tools\.json: {problem}"):
            require_tools(load_recipe(folder), run)


def test_check_says_that_calls_on_the_way_are_not_counted(folder: Path, tmp_path: Path) -> None:
    def student() -> str:
        findings = check(load_recipe(folder), Run(tmp_path / "run", offline=True))
        return next(one.found for one in findings if one.what == "student")

    assert "not counted" not in student()
    edit(folder / "recipe.toml", 'file = "tools.json"\n', 'file = "tools.json"\nresults = "teacher"\nsteps = 3\n')
    assert " tokens (and up to 3 answers with calls, and their results, which are not counted)" in student()


def test_a_teacher_that_plays_its_tools_is_in_memory_twice(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_student_size", lambda recipe, run: 0)
    run = Run(tmp_path / "run", offline=True)
    once = room.estimated_memory(load_recipe(folder), run) - room.GIGABYTE
    edit(folder / "recipe.toml", 'file = "tools.json"\n', 'file = "tools.json"\nresults = "teacher"\n')
    assert room.estimated_memory(load_recipe(folder), run) - room.GIGABYTE == pytest.approx(2 * once, abs=1)
    (teacher,) = room._asked(load_recipe(folder), run)
    assert teacher.size_bytes is not None
    judge = replace(teacher, size_bytes=3 * teacher.size_bytes)  # plays no tools
    monkeypatch.setattr(room, "_asked", lambda recipe, run: [teacher, judge])
    assert room.estimated_memory(load_recipe(folder), run) - room.GIGABYTE == pytest.approx(3 * once, abs=3)


def test_a_student_whose_template_shows_no_tools_must_learn_them(folder: Path, tmp_path: Path) -> None:
    recipe = load_recipe(folder)
    assert not ChatTemplate(PLAIN).shows_tools
    edited(Path(recipe.student.model), "tokenizer_config.json", lambda settings: settings.update(chat_template=PLAIN))
    require_tools(recipe, Run(tmp_path / "run", offline=True))
    edit(folder / "recipe.toml", "student = false\n", "")
    with pytest.raises(InvalidInput, match="the student's chat template does not write tools"):
        require_tools(load_recipe(folder), Run(tmp_path / "run", offline=True))


def test_a_schema_and_tools_are_refused_together(folder: Path) -> None:
    edit(folder / "recipe.toml", "seed = 7\n", 'seed = 7\nschema_file = "schema.json"\n')
    with pytest.raises(InvalidInput, match="calls are held to the schemas of their tools"):
        load_recipe(folder)


def test_a_server_is_given_tools_and_no_schema(folder: Path) -> None:
    recipe = load_recipe(folder)
    assert teacher_rule(recipe, recipe.teacher) == calls_rule(recipe_tools(recipe))
    server = recipe.teacher.model_copy(update={"backend": "openai", "url": "http://127.0.0.1:1/v1"})
    assert teacher_rule(recipe, server) is None


def test_runs_of_recipes_without_tools_stay_what_they_are(models: PicoModels, tmp_path: Path) -> None:
    folder, run = write_pico_recipe(tmp_path / "recipe", models), Run(tmp_path / "run", offline=True)
    before = stage_keys(load_recipe(folder), run)
    edit(folder / "recipe.toml", "[teach]\n", "[tools]\nstudent = true\n\n[teach]\n")
    assert stage_keys(load_recipe(folder), run) == before


def test_a_whole_run_learns_the_tools_and_its_package_is_held_to_them(folder: Path, tmp_path: Path) -> None:
    call = as_written(FORMS["hermes"], [("light", ON["arguments"])])  # the pico teacher would only babble
    answer = {"role": "assistant", "content": call}
    given_rows = ({"messages": [{"role": "user", "content": text}, answer]} for text in PROMPTS)
    (folder / "answers.jsonl").write_bytes(json_lines(given_rows))
    edit(folder / "recipe.toml", "[teach]\n", '[teach]\nanswers = "answers.jsonl"\n')
    run, _ = run_recipe(folder, RunSettings(runs=tmp_path / "runs", offline=True), silent)
    learnt = [row for _, row in read_rows(run.folder("curate") / "train.jsonl")]
    assert learnt
    assert not any("tools" in row for row in learnt)
    evaluation = json.loads((run.folder("evaluate") / "evaluation.json").read_text(encoding="utf-8"))
    assert evaluation["scorer"] == "tool"
    assert {one["kind"] for one in evaluation["candidates"]} == {"teacher", "base", "student"}
    assert all(messages_of("row", row)[-1].tool_calls for row in learnt)
    package = run.folder("package") / run.summary("package")["folder"]
    assert verify(package)["golden"] == 3
    subject = package_subject(package)
    assert subject.schema == calls_rule(TOOLS)
    assert subject.tools == ()
    with runtime_of(subject) as runtime:
        reply = runtime.answer((Message("user", "Light!"),), 48)
    assert reply.finish_reason == "length" or fault(reply.text, TOOLS) is None
    assert "which it has learned: a request brings none" in (package / "README.md").read_text(encoding="utf-8")
