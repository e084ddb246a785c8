"""What stands beside the weights in a package: model card, Modelfile for Ollama, script for llama-server."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ..chat import DAY
from ..errors import InvalidInput
from ..models import Licence
from ..models.catalogue import CATALOGUE
from ..models.licences import LICENCES
from ..report.wording import megabytes, milliseconds, one_line, plain, score

__all__ = ["Device", "licence_file", "model_card", "modelfile", "serve_script"]


@dataclass(frozen=True)
class Device:
    """How the packaged model is to be run, and under which licences."""

    name: str
    file: str
    system: str
    schema_file: str | None
    """The schema that answers are decoded under, or None where they are free."""
    context: int
    """Tokens of a whole conversation."""
    max_tokens: int
    stops: tuple[str, ...]
    teacher: Licence
    student: Licence
    others: tuple[Licence, ...] = ()
    """Of the teachers after the first."""
    threads: int = 0
    """Threads that the recipe's latency is promised for; 0 leaves them to the server."""
    tools_file: str | None = None
    """The tools that it calls, or None."""
    shows_tools: bool = True
    """Whether a request must bring them; else the model has learned them."""

    @property
    def licences(self) -> dict[str, Licence]:
        """The licence of each model by its role, as the report names it."""
        more = {f"teacher {number}": licence for number, licence in enumerate(self.others, start=2)}
        return {"teacher": self.teacher, **more, "student": self.student}


def licence_file(role: str) -> str:
    """The name of a licence's file in the package.

    >>> licence_file("teacher 2")
    'LICENSE.teacher-2'
    """
    return f"LICENSE.{role.replace(' ', '-')}"


def modelfile(device: Device, licence_texts: Iterable[str]) -> str:
    """A Modelfile for `ollama create`; the chat template is the one in the GGUF.

    Raises InvalidInput for a text that the format cannot hold.
    """
    lines = [f"FROM ./{device.file}", "PARAMETER temperature 0", f"PARAMETER num_ctx {device.context}"]
    lines.append(f"PARAMETER num_predict {device.max_tokens}")
    if device.threads:
        lines.append(f"PARAMETER num_thread {device.threads}")
    lines += [f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in device.stops]
    if device.system:
        lines.append(f"SYSTEM {_quoted(device.system)}")
    lines += [f"LICENSE {_quoted(text.rstrip() + chr(10))}" for text in dict.fromkeys(licence_texts)]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    if '"""' in text or text.endswith('"'):
        raise InvalidInput("student.system: a Modelfile cannot hold it", 'Leave out """ and a " at its very end.')
    return f'"""{text}"""'


def serve_script(device: Device) -> str:
    """A POSIX shell script that serves the model with llama-server, to this machine alone."""
    schema = f" --json-schema-file {device.schema_file}" if device.schema_file else ""
    threads = f" --threads {device.threads}" if device.threads else ""
    return f"""#!/bin/sh
# Serves {device.name} to this machine: POST http://127.0.0.1:8080/v1/chat/completions
# Another port: PORT=9000 ./serve.sh. Further options of llama-server can follow.
set -eu
cd "$(dirname "$0")"
if ! command -v llama-server >/dev/null 2>&1; then
  echo "serve.sh: llama-server is not on PATH; install llama.cpp" >&2
  exit 6
fi
# Web pages of other sites may not ask, where the server can be told so.
if llama-server --help 2>&1 | grep -q -e --cors-origins; then
  set -- --cors-origins localhost "$@"
fi
exec llama-server -m {device.file} --jinja --temp 0 --ctx-size {device.context} --n-predict {device.max_tokens} \\
  --parallel 1 --no-webui --no-slots{threads}{schema} \\
  --host 127.0.0.1 --port "${{PORT:-8080}}" "$@"
"""


def model_card(device: Device, document: dict[str, Any]) -> str:
    """README.md: a model card with YAML front matter, as the Hugging Face hub reads it."""
    parts = [
        _front_matter(device, document),
        f"# {device.name}\n\n{_what_it_is(document)}",
        f"## Use\n\n{_use(device, document['parity'].get('dated', False))}",
        f"## Evaluation\n\n{_evaluation(document)}",
        f"## Latency\n\n{_latency(document)}",
        f"## Data\n\n{_data(document)}",
        f"## Licences\n\n{_licences(device, document)}",
        "## Check\n\n`sha256sum -c SHA256SUMS` compares every file; `edgedistill package --verify .` does so too and "
        "asks the model the prompts in `golden.json`.",
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(device: Device, document: dict[str, Any]) -> str:
    lines = ["---"]
    base = _hub_name(document["models"]["student"])
    if base:
        lines += [f"base_model: {json.dumps(base)}", "base_model_relation: finetune"]
    if device.student.id in LICENCES:
        lines.append(f"license: {json.dumps(device.student.id)}")
    else:
        lines += ["license: other", f"license_name: {json.dumps(device.student.id)}"]
    lines += [
        "library_name: gguf",
        "pipeline_tag: text-generation",
        "tags:",
        "- distillation",
        "- edgedistill",
        "- gguf",
    ]
    return "\n".join([*lines, "---"])


def _hub_name(base: dict[str, Any]) -> str | None:
    """The hub's name of the student's base, where it has one."""
    on_hub = re.match(r"hub:([^@:]+)", base["source"] or "")
    if on_hub:
        return on_hub[1]
    return next((entry.hf for entry in CATALOGUE if entry.name == base["name"]), None)


def _what_it_is(document: dict[str, Any]) -> str:
    student = document["models"]["student"]
    teachers = [_teacher(model) for role, model in document["models"].items() if role != "student"]
    text = f"{one_line(document['recipe']['description'])}\n\n" if document["recipe"]["description"] else ""
    text += f"`{student['name']}`, taught by {' and '.join(teachers)} for this one task."
    if student["imported_from_quant"]:
        text += (
            f" Its base was only to be had as {student['imported_from_quant']}: the weights that were trained had been "
            "rounded to that type before."
        )
    text += (
        f" Recipe: `recipe.toml`, sha256 `{document['recipe']['sha256']}`.\n\nVerdict: **{document['verdict']}**.\n\n"
    )
    return text + "\n".join(f"- {one_line(reason, 1000)}" for reason in document["reasons"])


def _teacher(model: dict[str, Any]) -> str:
    """Who taught: weights by their sha256; of a server nobody knows what it runs."""
    if (model["source"] or "").startswith("server:"):
        return f"what a server calls `{model['name']}`"
    return f"`{model['name']}` (sha256 `{model['sha256']}`)"


def _use(device: Device, dated: bool) -> str:
    system = json.dumps({"role": "system", "content": device.system}, ensure_ascii=False)
    text = (
        "`sh serve.sh` serves it with llama.cpp's llama-server; "
        f"`ollama create {device.name.lower()} -f Modelfile` hands it to Ollama; "
        '`edgedistill answer . "text"` answers here, and the fastest.\n\n'
        f"Every conversation begins with the system message it was trained with:\n\n```json\n{system}\n```"
    )
    if device.schema_file:
        text += (
            f"\n\nAnswers were measured while decoded under `{device.schema_file}`. `serve.sh` does that by itself; "
            "Ollama does it when a request has the schema as its `format`."
        )
    if device.tools_file:
        text += (
            f"\n\nIt calls the tools of `{device.tools_file}`, "
            f"{'which each request brings' if device.shows_tools else 'which it has learned: a request brings none'}. "
            "`edgedistill answer` holds calls to their schemas where that was measured so; with a server, look at the "
            "name and the arguments of each call before it is made."
        )
    if dated:
        text += (
            f"\n\nThe chat template writes the day into the prompt. It was {DAY.isoformat()} in training and in every "
            "measurement, as it is in `edgedistill answer`; a server writes the real one, which the model has not seen."
        )
    return text


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    heads = list(heads)
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _evaluation(document: dict[str, Any]) -> str:
    files = document["files"]
    names = [f"{kind}: {file['n']} rows, sha256 `{file['sha256']}`" for kind, file in files.items() if file]
    rows = (
        [
            one["name"] + (" (this file)" if one["name"] == document["chosen"] else ""),
            *(score(one["eval"], name) for name in ("valid", "exact", "agreement")),
            score(one["edge"], "exact"),
        ]
        for one in document["candidates"]
    )
    table = _table(["", "valid", "right", "as the teacher", "edge cases right"], rows)
    return f"{'; '.join(names)}. In brackets, 95 % intervals in per cent.\n\n{table}"


def _latency(document: dict[str, Any]) -> str:
    rows = (
        [
            one["name"],
            megabytes(one["size_bytes"]),
            milliseconds(one["latency_ms"]["ttft"]["p50"]),
            *(milliseconds(one["latency_ms"]["e2e"][name]) for name in ("p50", "p90", "p95", "p99")),
        ]
        for one in document["candidates"]
        if one["latency_ms"]
    )
    machine, conditions = document["machine"], document["conditions"]
    where = f"{machine.get('cpu')}, {machine.get('cores')} cores, {machine.get('system')} {machine.get('arch')}"
    how = "; ".join(f"{key.replace('_', ' ')}: {plain(value)}" for key, value in conditions.items())
    table = _table(["", "size", "first token p50", "end to end p50", "p90", "p95", "p99"], rows)
    return f"On {where}. {how}.\n\n{table}"


def _data(document: dict[str, Any]) -> str:
    data, teachers = document["data"], len(document["models"]) - 1
    taught = "the teacher" if teachers == 1 else f"{teachers} teachers"
    thrown = ", ".join(f"{count} for {reason}" for reason, count in data["rejected"].items()) or "none"
    return (
        f"{data['prompts']} prompts ({data['repeated'] or 0} near-duplicates dropped before), each answered by "
        f"{taught}. Thrown out: {thrown}. Left to learn from: {data['train']}; to measure the loss on: "
        f"{data['valid']}."
    )


def _licences(device: Device, document: dict[str, Any]) -> str:
    lines = []
    for role, licence in device.licences.items():
        model = document["models"][role]
        lines.append(f"- {role} `{model['name']}`: {licence.name} (`{licence_file(role)}`); {licence.conditions}.")
    return "\n".join(lines) + "\n\nThis is a reminder of what to read, not legal advice."
