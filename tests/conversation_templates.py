"""Chat templates of five families, as they write turns, tools and reasoning, with the marks that transformers reads.

Written for the tests: `{% generation %}` stands round what the assistant writes, its end token included.
"""

from __future__ import annotations

import json
from pathlib import Path

from pico import SPECIAL, pico_tokenizer

HERMES_TOOLS = """{%- if tools %}
{{- '<|im_start|>system\\n' + (messages[0].content if messages[0].role == 'system' else '') + '\\n# Tools\\n<tools>' }}
{%- for tool in tools %}{{- '\\n' + tool | tojson }}{%- endfor %}
{{- '\\n</tools><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
"""
HERMES_CALLS = """{%- for call in message.tool_calls or [] %}
{{- '\\n' if message.content or not loop.first }}
{{- '<tool_call>\\n{"name": ' + call.function.name | tojson }}
{{- ', "arguments": ' + call.function.arguments | tojson + '}\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>' }}{%- endgeneration %}{{- '\\n' }}
"""
HERMES_OTHERS = """{%- elif message.role == 'tool' %}
{{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
{%- elif message.role == 'user' or not loop.first %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
CHATML = f"""{HERMES_TOOLS}{{%- for message in messages %}}
{{%- if message.role == 'assistant' %}}
{{{{- '<|im_start|>assistant\\n' }}}}{{%- generation %}}{{{{- message.content }}}}
{HERMES_CALLS}{HERMES_OTHERS}"""
# reasoning stays only behind the user's last question, as Qwen3 has it
THINKING = f"""{HERMES_TOOLS}{{%- set last = namespace(question=0) %}}
{{%- for message in messages %}}
{{%- if message.role == 'user' %}}{{%- set last.question = loop.index0 %}}{{%- endif %}}
{{%- endfor %}}
{{%- for message in messages %}}
{{%- if message.role == 'assistant' %}}
{{{{- '<|im_start|>assistant\\n' }}}}{{%- generation %}}
{{%- if loop.index0 > last.question and (loop.last or message.reasoning_content) %}}
{{{{- '<think>\\n' + (message.reasoning_content or '').strip() + '\\n</think>\\n\\n' }}}}
{{%- endif %}}
{{{{- message.content }}}}
{HERMES_CALLS}{HERMES_OTHERS}"""
HEADERS = """{{- bos_token }}
{%- for message in messages %}
{%- set role = 'ipython' if message.role == 'tool' else message.role %}
{{- '<|start_header_id|>' + role + '<|end_header_id|>\\n\\n' }}
{%- if message.role == 'assistant' %}{%- generation %}{{- message.content | trim }}
{%- for call in message.tool_calls or [] %}
{{- '{"name": ' + call.function.name | tojson + ', "parameters": ' + call.function.arguments | tojson + '}' }}
{%- endfor %}
{{- '<|eot_id|>' }}{%- endgeneration %}
{%- else %}
{%- if tools and loop.first %}{{- 'Functions: ' + tools | tojson + '\\n' }}{%- endif %}
{{- message.content | trim + '<|eot_id|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
"""
TURNS = """{{- bos_token }}
{%- for message in messages %}
{{- '<start_of_turn>' + ('model' if message.role == 'assistant' else 'user') + '\\n' }}
{%- if message.role == 'assistant' %}{%- generation %}{{- message.content | trim }}
{%- for call in message.tool_calls or [] %}{{- call.function | tojson }}{%- endfor %}
{{- '<end_of_turn>' }}{%- endgeneration %}{{- '\\n' }}
{%- else %}{{- message.content | trim + '<end_of_turn>\\n' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{%- endif %}
"""
# tools stand before the user's last question alone, as Mistral has it
BRACKETS = """{{- bos_token }}
{%- set last = namespace(question=0) %}
{%- for message in messages %}
{%- if message.role == 'user' %}{%- set last.question = loop.index0 %}{%- endif %}
{%- endfor %}
{%- for message in messages %}
{%- if message.role == 'assistant' %}{%- generation %}
{%- if message.tool_calls %}{{- '[TOOL_CALLS] [' }}
{%- for call in message.tool_calls %}{{- call.function | tojson + ('' if loop.last else ', ') }}{%- endfor %}
{{- ']' }}
{%- else %}{{- ' ' + message.content }}{%- endif %}
{{- eos_token }}{%- endgeneration %}
{%- elif message.role == 'tool' %}{{- '[TOOL_RESULTS] ' + message.content + '[/TOOL_RESULTS]' }}
{%- else %}
{%- if tools and loop.index0 == last.question %}
{{- '[AVAILABLE_TOOLS] ' + tools | tojson + '[/AVAILABLE_TOOLS]' }}
{%- endif %}
{{- '[INST] ' + message.content + '[/INST]' }}
{%- endif %}
{%- endfor %}
"""
BRACKET_TOKENS = tuple(
    f"[{slash}{name}]" for name in ("INST", "AVAILABLE_TOOLS", "TOOL_RESULTS") for slash in ("", "/")
)
# name -> (template, bos, eos, special tokens, what ends a turn)
FAMILIES = {
    "chatml": (CHATML, "", "<|im_end|>", (), "<|im_end|>"),
    "thinking": (THINKING, "", "<|im_end|>", ("<think>", "</think>", "<tool_call>", "</tool_call>"), "<|im_end|>"),
    "headers": (
        HEADERS,
        "<|begin_of_text|>",
        "<|end_of_text|>",
        ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|eot_id|>",
    ),
    "turns": (TURNS, "<bos>", "<eos>", ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"), "<end_of_turn>"),
    "brackets": (BRACKETS, "<s>", "</s>", ("<s>", "</s>", "[TOOL_CALLS]", *BRACKET_TOKENS), "</s>"),
}


def family_folder(folder: Path, name: str) -> Path:
    """A folder with tokenizer and template of a family, and no weights. Returns `folder`."""
    template, bos, eos, specials, _ = FAMILIES[name]
    tokenizer = pico_tokenizer()
    tokenizer["post_processor"] = {**tokenizer["post_processor"], "trim_offsets": False}  # or a space has no place
    like, first = tokenizer["added_tokens"][0], len(tokenizer["model"]["vocab"])
    tokenizer["added_tokens"] += [
        {**like, "id": first + number, "content": token} for number, token in enumerate(specials)
    ]
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos or SPECIAL[1],
        "eos_token": eos,
        "pad_token": SPECIAL[0],
        "chat_template": template,
    }
    folder.mkdir(parents=True)
    for file, content in (("tokenizer.json", tokenizer), ("tokenizer_config.json", settings)):
        (folder / file).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return folder
