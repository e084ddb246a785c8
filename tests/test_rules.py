"""Each fault of an answer has its name, and what only looks like one has none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgedistill.chat import answer_text
from edgedistill.curation import RULES, Given, broken_rule
from edgedistill.curation.languages import known_languages, other_language
from edgedistill.curation.loops import repeats
from edgedistill.curation.signs import invisible, special_token
from edgedistill.pipeline import settings_of
from edgedistill.recipe import CurateSettings, load_recipe
from edgedistill.records import Completion, Message, Prompt, read_prompts
from edgedistill.schema import load_schema, schema_validator
from edgedistill.vetting import Rule

RECIPES = sorted(path.parent for path in Path(__file__).parents[1].glob("recipes/*/recipe.toml"))
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
GOOD = '{"a": 1}'
ASKED = Prompt("id", (Message("user", "What is it?"),))
DEFAULT = CurateSettings()
ENGLISH = CurateSettings(languages=("en",))


def completion(text: str, finish_reason: str = "stop") -> Completion:
    return Completion("id", text, finish_reason, 1, 1, 0.1)


def reason_of(text: str, settings: CurateSettings = DEFAULT, prompt: Prompt = ASKED) -> str | None:
    found = broken_rule(Given(prompt, completion(text)), settings)
    return None if found is None else found[0]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (completion(GOOD), None),
        (completion(GOOD, "length"), "cut off"),
        (completion(" \n"), "empty"),
        (completion("not json"), "schema"),
        (completion('{"a": "1"}'), "schema"),
        (completion('{"a": NaN}'), "schema"),
        (completion(r'{"\ud800": 1}'), "schema"),
        (completion("[" * 100_000), "schema"),
    ],
)
def test_each_fault_of_an_answer_has_its_name(answer: Completion, reason: str | None) -> None:
    found = broken_rule(Given(ASKED, answer, schema_validator(SCHEMA)), CurateSettings())
    assert (found and found[0]) == reason


@pytest.mark.parametrize(
    "text",
    ["I'm sorry, but no.", "I’m sorry.", '{"reply": "I cannot do that."}', "As an AI, I cannot do that", "  i can't"],
)
def test_a_refusal_is_known_by_its_beginning(text: str) -> None:
    assert reason_of(text) == "refusal"
    assert reason_of("Well. I'm sorry.") is None


def test_a_recipe_may_name_no_refusals_at_all() -> None:
    assert reason_of("I'm sorry", CurateSettings(refusals=())) is None


@given(st.text(min_size=1, max_size=20), st.integers(2, 60))
def test_repeats_never_fails_whatever_the_text(text: str, times: int) -> None:
    assert repeats(text * times) in (True, False)


@pytest.mark.parametrize(
    ("text", "repeated"),
    [
        ("no no no", False),
        ("no " * 30, True),
        ("the light is on and " * 10, True),
        (" ".join(str(number) for number in range(50)), False),
        ("", False),
    ],
)
def test_only_a_long_text_of_the_same_words_is_a_repetition(text: str, repeated: bool) -> None:
    assert repeats(text) is repeated


def test_a_loop_that_begins_late_or_has_no_words_is_a_repetition() -> None:
    fine = "The kitchen light is on, the blinds are closed, and the radio plays what you asked for this morning. "
    assert repeats(fine + "ha" * 400)
    assert repeats("是的" * 200)
    assert repeats("=" * 300)
    assert not repeats("=" * 300, share=0.0)


@given(st.lists(st.sampled_from(["the", "light", "lamp", "kitchen", "hall", "blue", "set", "dim"])))
def test_a_text_of_many_different_words_is_no_repetition(words: list[str]) -> None:
    numbered = " ".join(f"{word}{number * 7919 % 1000}" for number, word in enumerate(words))
    assert not repeats(numbered)


@pytest.mark.parametrize(
    "sign", ["\x00", "\x1b", "\u200b", "\u202e", "\u2066", "\ufeff", "\U000e0041", "\ufffd", "\x9b"]
)
@given(before=st.text("abc ä"), after=st.text("abc ä"))
def test_every_invisible_sign_is_found_wherever_it_is(sign: str, before: str, after: str) -> None:
    assert invisible(f"{before}{sign}{after}") == f"U+{ord(sign):04X}"


@pytest.mark.parametrize(
    "text", ["👩\u200d🍳 kocht", "می\u200cخواهم", "क्\u200dष", "a\tb\r\nc", "❤\ufe0f", "naïve café 東京", "\u00ad"]
)
def test_signs_that_a_script_needs_are_no_fault(text: str) -> None:
    assert invisible(text) is None


def test_a_joiner_between_plain_letters_hides_something() -> None:
    assert invisible("pass\u200dword") == "U+200D"


@pytest.mark.parametrize(
    "token",
    [
        "<|im_start|>",
        "<|eot_id|>",
        "</s>",
        "[INST]",
        "<<SYS>>",
        "<start_of_turn>",
        "<｜end▁of▁sentence｜>",
        "<filename>",
    ],
)
def test_the_name_of_a_special_token_is_found_in_any_turn(token: str) -> None:
    assert special_token(f"say {token}") == token
    assert reason_of(f"say {token}") == "special tokens"
    asked = Prompt("id", (Message("user", f"ignore {token} this"),))
    assert reason_of("fine", prompt=asked) == "special tokens"


@pytest.mark.parametrize(
    "text", ["a < b | c > d", "<b>bold</b>", "x[0] and [see]", "<think>so</think>", "if (a <| b |> c)"]
)
def test_what_only_has_brackets_is_no_special_token(text: str) -> None:
    assert special_token(text) is None


def test_every_assistant_turn_is_looked_at() -> None:
    turns = (Message("user", "hi"), Message("assistant", "I cannot help."), Message("user", "why?"))
    assert reason_of("Because.", prompt=Prompt("id", turns)) == "refusal"


def test_personal_data_may_be_repeated_or_allowed_but_not_made_up() -> None:
    text = "Call +49 30 901820."
    assert reason_of(text) == "personal data"
    assert reason_of(text, CurateSettings(allow=("phone",))) is None
    assert reason_of(text, prompt=Prompt("id", (Message("user", "I am on +49 (30) 90 18 20"),))) is None


def test_a_secret_is_found_in_the_prompt_too_and_not_said() -> None:
    key = "hf_" + "aB1" * 12
    found = broken_rule(Given(Prompt("id", (Message("user", f"use {key}"),)), completion("fine")), CurateSettings())
    assert found == ("secret", "API key")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Das Licht in der Küche ist jetzt eingeschaltet, die Rollläden sind unten.", "de"),
        ("La lumière de la cuisine est maintenant allumée et les volets sont fermés.", "fr"),
        ("厨房的灯现在已经打开了，百叶窗也已经关上了。还有什么需要帮忙的吗？", "zh"),
        ("Свет на кухне теперь включен, а жалюзи в спальне закрыты.", "ru"),
    ],
)
def test_another_language_is_known(text: str, code: str) -> None:
    assert other_language(text, ("en",)) == code
    assert other_language(text, ("en", code)) is None
    assert reason_of(text, ENGLISH) == "wrong language"
    assert reason_of(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "ok",
        "Der Die Das",
        '{"category": "billing", "urgency": "high"}',
        "The light in the kitchen is on now, and the blinds of the bedroom are closed.",
    ],
)
def test_a_short_text_and_the_right_language_pass(text: str) -> None:
    assert reason_of(text, ENGLISH) is None


def test_the_recipe_knows_the_rules_that_it_may_skip() -> None:
    assert set(get_args(Rule)) == set(RULES) - {"cut off", "empty", "low confidence"}
    assert {"en", "de", "zh"} <= known_languages()
    assert reason_of("Done.<|im_end|>", CurateSettings(skip=("special tokens",))) is None


@given(st.text(max_size=300), st.text(max_size=50))
def test_no_text_makes_a_rule_fail(text: str, asked: str) -> None:
    shown = Given(Prompt("id", (Message("user", asked),)), replace(completion(text), answers={text: 1.0}))
    for rule in RULES.values():
        said = rule(shown, ENGLISH)
        assert said is None or said


@pytest.mark.parametrize("folder", RECIPES, ids=lambda folder: folder.name)
def test_no_right_answer_of_a_shipped_recipe_breaks_a_rule(folder: Path) -> None:
    recipe = load_recipe(folder)
    settings = recipe.curate.model_copy(update={"languages": ("en",)})
    prompts = read_prompts(recipe.file(recipe.evaluate.file))
    assert prompts
    is_valid = schema_validator(load_schema(recipe))
    for prompt in prompts:
        shown = Given(prompt, completion(answer_text(prompt.expected)), is_valid)
        assert broken_rule(shown, settings) is None, prompt.text


def test_a_setting_that_came_later_is_in_a_stages_key_only_once_it_is_changed() -> None:
    recipe = load_recipe(RECIPES[0])
    changed = recipe.model_copy(update={"curate": recipe.curate.model_copy(update={"languages": ("en",)})})
    assert not {"languages", "skip", "allow", "repetition"} & set(settings_of(recipe, "curate"))
    assert settings_of(changed, "curate")["languages"] == ["en"]


def test_signs_that_json_escapes_are_found_as_what_they_stand_for() -> None:
    assert reason_of(r'{"reply": "tea\u200btime"}') == "invisible characters"
    assert reason_of(r'{"reply": "\u003c|im_end|\u003e"}') == "special tokens"
    assert reason_of(r'{"reply": "first\nsecond \"third\""}') is None
