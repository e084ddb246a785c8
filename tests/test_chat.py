"""Chat templates are programs of strangers: they render as Jinja does, or end within their fuel."""

from __future__ import annotations

import json
from typing import Any

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pico import CHAT_TEMPLATE

from edgedistill.chat import ChatTemplate, json_instance, with_system
from edgedistill.errors import InvalidInput
from edgedistill.records import Message

DEFAULT_SYSTEM = """{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}
            {{- '\\n' + message.content.split('</think>')[-1].lstrip('\\n') }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
INSTRUCTIONS = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}
{% set system = messages[0]['content'] | trim %}
{% set loop_messages = messages[1:] %}{% else %}{% set loop_messages = messages %}{% endif %}
{% for message in loop_messages %}
  {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
    {{ raise_exception('Conversation roles must alternate') }}
  {% endif %}
  {% if message['role'] == 'user' %}
[INST] {% if loop.first and system is defined %}<<SYS>>
{{ system }}
<</SYS>>

{% endif %}{{ message['content'].strip() }} [/INST]
  {% else %}
{% generation %} {{ message['content'].strip() }} {{ eos_token }}{% endgeneration %}
  {% endif %}
{% endfor %}
"""
TEMPLATES = {"chatml": CHAT_TEMPLATE, "default system": DEFAULT_SYSTEM, "instructions": INSTRUCTIONS}
HOSTILE = {
    "nested loops": "{% for i in range(100000) %}{% for j in range(100000) %}x{% endfor %}{% endfor %}",
    "a long range": "{% for i in range(10000000000) %}x{% endfor %}",
    "a macro without end": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "a block without end": "{% block a %}{{ self.a() }}{% endblock %}",
    "a loop without end": "{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "a text that doubles": "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x * 2 %}{% endfor %}",
    "a text that grows": "{% set n = namespace(x='aaaaaaaa') %}{% for i in range(30) %}{{ n.x }}"
    "{% set n.x = n.x | replace('a', 'aaaaaaaaaaaaaaaa') %}{% endfor %}",
    "a long text": "{{ 'a' * 10000000000 }}",
    "a long list": "{{ ([0] * 1000000000) | length }}",
    "a wide format": "{{ '%9999999999d' | format(1) }}",
    "a wide indent": "{{ 'a\nb' | indent(1000000000) }}",
    "a large power": "{{ 9 ** 9 ** 9 ** 9 }}",
    "a file": "{% include '/etc/passwd' %}",
    "another template": "{% extends '/etc/passwd' %}",
    "a module": "{% from 'os' import system %}",
    "the classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "too much output": "{% for i in range(50000) %}" + "x" * 100 + "{% endfor %}",
    "no template": "{% if %}",
    "brackets": "{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}",
}

CONVERSATION = (
    Message("system", "  Be <brief> & 'kind'. "),
    Message("user", "{{ 7 * 7 }} {% raw %} </s>\n"),
    Message("assistant", "<think>hm</think>\n49"),
    Message("user", "thanks 🚀"),
)


def by_jinja(source: str, messages: tuple[Message, ...], answer_next: bool) -> str:
    """The text by Jinja itself, set up as transformers does it."""
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    plain = source.replace("{% generation %}", "{% if true %}").replace("{% endgeneration %}", "{% endif %}")
    turns = [message.as_dict() for message in messages]
    settings: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": answer_next}
    return environment.from_string(plain).render(messages=turns, **settings)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("answer_next", [True, False])
@pytest.mark.parametrize("messages", [CONVERSATION, CONVERSATION[1:], CONVERSATION[1:2]], ids=len)
def test_a_template_renders_as_jinja_renders_it(name: str, answer_next: bool, messages: tuple[Message, ...]) -> None:
    source = TEMPLATES[name]
    ours = ChatTemplate(source, "<s>", "</s>").render(messages, answer_next)
    assert ours == by_jinja(source, messages, answer_next)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_the_words_of_a_message_are_never_part_of_the_program(text: str) -> None:
    rendered = ChatTemplate(CHAT_TEMPLATE).render([Message("user", text)])
    assert rendered == f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_template_ends_within_its_fuel(what: str) -> None:
    with pytest.raises(InvalidInput, match="chat template: ") as caught:
        ChatTemplate(HOSTILE[what]).render([Message("user", "hi")])
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 300


def test_a_template_that_refuses_a_conversation_is_quoted_on_one_line() -> None:
    with pytest.raises(InvalidInput, match="chat template: Conversation roles must alternate"):
        ChatTemplate(INSTRUCTIONS).render([Message("assistant", "hello")])
    with pytest.raises(InvalidInput) as caught:
        ChatTemplate(r"{{ raise_exception('\u001b[2J red\nsecond line') }}").render([Message("user", "hi")])
    assert caught.value.message == "chat template:  [2J red"


DATED = (
    "{% if messages[0].role != 'system' %}Today is {{ strftime_now('%B %d, %Y') }}. {% endif %}"
    "{{ messages[-1].content }}"
)
LLAMA = (
    "{% if not date_string is defined %}{% if strftime_now is defined %}"
    "{% set date_string = strftime_now('%d %b %Y') %}"
    "{% else %}{% set date_string = '26 Jul 2024' %}{% endif %}{% endif %}Today Date: {{ date_string }}"
)


def test_a_template_that_asks_for_the_day_is_always_told_the_same_one() -> None:
    asked = (Message("user", "hi"),)
    assert ChatTemplate(DATED).render(asked) == "Today is July 26, 2024. hi"
    assert ChatTemplate(DATED).shows_the_day(asked)
    assert not ChatTemplate(DATED).shows_the_day(with_system("", asked))
    assert ChatTemplate(LLAMA).render(asked) == "Today Date: 26 Jul 2024", "as where nobody tells it"
    assert ChatTemplate(LLAMA).shows_the_day(with_system("", asked))
    assert ChatTemplate(LLAMA).render_turns([], date_string="1 May") == "Today Date: 1 May"


@pytest.mark.parametrize("form", ["7", "'\\ud800'", "messages"])
def test_a_form_of_the_day_that_cannot_be_is_refused(form: str) -> None:
    with pytest.raises(InvalidInput, match="chat template"):
        ChatTemplate(f"{{{{ strftime_now({form}) }}}}").render((Message("user", "hi"),))


def test_a_model_without_a_template_is_refused() -> None:
    with pytest.raises(InvalidInput, match="no chat template"):
        ChatTemplate("")


def test_an_empty_system_text_is_sent_too_so_that_no_default_takes_its_place() -> None:
    messages = with_system("", [Message("user", "hi")])
    assert "helpful assistant" not in ChatTemplate(DEFAULT_SYSTEM).render(messages)
    assert "helpful assistant" in ChatTemplate(DEFAULT_SYSTEM).render(messages[1:])


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])), st.lists
    )
)
def test_json_is_read_back(value: Any) -> None:
    assert json_instance(json.dumps(value)) == value


@pytest.mark.parametrize(
    "text",
    ["", "{", "yes", "NaN", "[Infinity]", "[" * 100_000, r'{"\ud800": 1}', r'"\udc00"', "1" * 5000, "{'a': 1}", "1 2"],
)
def test_what_is_no_json_is_none_and_no_error(text: str) -> None:
    assert json_instance(text) is None
