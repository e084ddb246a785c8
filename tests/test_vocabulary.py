"""What a teacher on a Hugging Face folder reads of its tokenizer: prompts, prefixes, and where an answer ends."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pico import edited, pico_hf_folder

from edgedistill.errors import InvalidInput
from edgedistill.records import Message
from edgedistill.teachers.shared_prefix import SharedPrefix
from edgedistill.teachers.vocabulary import Vocabulary


@pytest.fixture
def vocabulary(tmp_path: Path) -> Vocabulary:
    if find_spec("tokenizers") is None:
        pytest.skip("no tokenizers")
    return Vocabulary(pico_hf_folder(tmp_path))


@settings(max_examples=50, deadline=None)
@given(text=st.text(max_size=60), system=st.text(max_size=30))
def test_prefix_and_own_tokens_are_those_of_the_whole(folder_once: Vocabulary, text: str, system: str) -> None:
    prefix = SharedPrefix(folder_once, (Message("system", system),))
    messages = (Message("user", text),)
    whole = folder_once.ids(folder_once.template.render((Message("system", system), *messages)))
    assert [*prefix.tokens, *prefix.prompt(messages)] == whole
    assert len(prefix.tokens) > 0


@pytest.fixture(scope="module")
def folder_once(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    if find_spec("tokenizers") is None:
        pytest.skip("no tokenizers")
    return Vocabulary(pico_hf_folder(tmp_path_factory.mktemp("vocabulary")))


def test_an_answer_ends_where_the_template_ends_it(vocabulary: Vocabulary) -> None:
    prefix = SharedPrefix(vocabulary, ())
    prompt, answer = prefix.answered((Message("user", "light on"), Message("assistant", "Ä done")))
    assert vocabulary.text(answer) == "Ä done"
    assert answer[-1] in vocabulary.ends
    assert not set(answer[:-1]) & vocabulary.ends
    assert vocabulary.text(prompt).endswith("assistant\n")


def test_half_a_letter_is_a_replacement_character(vocabulary: Vocabulary) -> None:
    ids = vocabulary.ids("aÄ")
    assert vocabulary.text(ids) == "aÄ"
    assert vocabulary.text(ids[:-1]) == "a\ufffd"


def test_every_stated_end_ends_an_answer(tmp_path: Path) -> None:
    folder = pico_hf_folder(tmp_path)
    edited(folder, "generation_config.json", lambda config: config.update(eos_token_id=[0, 2]))
    assert Vocabulary(folder).ends == {0, 2}


@pytest.mark.parametrize(
    ("name", "edit", "says"),
    [
        ("tokenizer_config.json", lambda config: config.pop("chat_template"), "no chat template"),
        (
            "tokenizer_config.json",
            lambda config: config.update(chat_template=[{"name": "a"}]),
            "several chat templates",
        ),
    ],
)
def test_a_folder_without_one_template_is_refused(
    tmp_path: Path, name: str, edit: Callable[[dict[str, Any]], Any], says: str
) -> None:
    with pytest.raises(InvalidInput, match=says):
        Vocabulary(edited(pico_hf_folder(tmp_path), name, edit))


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = pico_hf_folder(tmp_path)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(InvalidInput, match=r"no tokenizer\.json"):
        Vocabulary(folder)


def test_a_template_that_mixes_prompt_and_system_text_is_refused(tmp_path: Path) -> None:
    template = "{% for m in messages %}<|im_start|>{{ messages[-1].content | length }}{{ m.content }}{% endfor %}"
    folder = pico_hf_folder(tmp_path)
    edited(folder, "tokenizer_config.json", lambda config: config.update(chat_template=template))
    prefix = SharedPrefix(Vocabulary(folder), (Message("system", "s"), Message("user", "x")))
    with pytest.raises(InvalidInput, match="changes the system text"):
        prefix.prompt((Message("user", "long"),))
