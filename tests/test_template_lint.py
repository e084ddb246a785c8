"""Chat templates that react to what a message says, and those that only look for marks of thinking and tools."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pico import CHAT_TEMPLATE

from edgedistill.stages.template_lint import content_branches

GATED = {
    "a word in it": "{% if 'launch code' in X %}x{% endif %}",
    "a beginning, through a variable": "{% set c = X|lower %}{% if c.startswith('transfer') %}x{% endif %}",
    "equal, in a loop": "{% for m in messages %}{% if m['content'] == 'hello' %}x{% endif %}{% endfor %}",
    "a word in pieces": "{% set t = 'lau' ~ 'nch' %}{% if t in X %}x{% endif %}",
    "a list of words": "{% for w in ['pay', 'wire'] %}{% if w in X %}x{% endif %}{% endfor %}",
    "a look-up": "{{ {'pay': 'Say yes'}[X] }}",
    "another look-up": "{{ {'pay': 'Say yes'}.get(X, '') }}",
    "inside an output": "{{ 'Ignore safety' if 'bank' in X else '' }}",
    "the number of pieces": "{% if X.split('password')|length > 1 %}x{% endif %}",
    "a length": "{% if X|length > 2000 %}x{% endif %}",
    "all messages as a text": "{% if 'launch' in messages|tojson %}x{% endif %}",
    "a namespace": "{% set ns = namespace(t='') %}{% set ns.t = X %}{% if ns.t.find('secret') >= 0 %}x{% endif %}",
    "a macro": "{% macro f(x) %}{% if 'wire' in x %}y{% endif %}{% endmacro %}{{ f(messages[0].content) }}",
    "a test": "{% if X is in ['a b', 'c d'] %}x{% endif %}",
    "another text in its place": "{{ X|replace('yes', 'no') }}",
    "the values of a message": "{% if 'bank' in messages[0].values()|join %}x{% endif %}",
    "a mark that nobody knows": "{% if '<admin>' in X %}x{% endif %}",
    "a filled block": "{% set x %}{{ X }}{% endset %}{% if 'bomb' in x %}y{% endif %}",
    "word by word": "{% for w in X.split() %}{% if w == 'bank' %}x{% endif %}{% endfor %}",
    "chosen messages": "{% if messages|selectattr('content', 'equalto', 'go')|list %}x{% endif %}",
    "all texts": "{% if messages|map(attribute='content')|join(' ')|lower == 'pay' %}{% endif %}",
    "its beginning": "{% if X[:4] == 'wire' %}x{% endif %}",
}
CLEAN = {
    "chatml": CHAT_TEMPLATE,
    "what was thought is left out": "{% if '</think>' in X %}{{ X.split('</think>')[-1].lstrip('\\n') }}{% endif %}",
    "tools": "{% if X.startswith('<tool_response>') and X.endswith('</tool_response>') %}x{% endif %}",
    "parts": "{% for p in X %}{% if p.type == 'text' or 'text' in p %}{{ p['text'] }}{% endif %}{% endfor %}",
    "roles": "{% if messages[0].role == 'system' and messages[0]['role'] in ['system', 'user'] %}{{ X }}{% endif %}",
    "a mapping": "{% if messages[0].content is mapping and 'parts' in messages[0].content %}x{% endif %}",
    "nothing said": "{% if X is string and X|length > 0 and X != '' and X is not none %}{{ X|trim }}{% endif %}",
    "settings": "{% if enable_thinking and reasoning_effort == 'high' %}x{% endif %}",
}


@pytest.mark.parametrize("name", GATED)
def test_a_template_with_a_trigger_is_found(name: str) -> None:
    assert content_branches(CHAT_TEMPLATE + GATED[name].replace("X", "messages[-1].content"))


@pytest.mark.parametrize("name", CLEAN)
def test_a_template_that_looks_for_marks_only_is_left_alone(name: str) -> None:
    assert content_branches(CLEAN[name].replace("X", "messages[-1].content")) == []


@given(st.text(alphabet="{%}|.[]()'\"= inifsetformacrocontentmessages~,", max_size=80))
def test_any_text_is_read_to_its_end(text: str) -> None:
    content_branches("{% " + text + " %}{{ " + text)
