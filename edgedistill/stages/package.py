"""package: what a device needs in one folder, and the proof that it is whole and answers as it did here."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ..chat import with_system
from ..errors import GateMissed, InvalidInput, Unsafe
from ..llamacpp.prefix import PrefixCache
from ..llamacpp.reader import read_gguf
from ..llamacpp.runtime import Runtime, RuntimeSettings
from ..llamacpp.writer import gguf_file_name
from ..models import Licence, check_gguf, identify, licence_text, vet_licence
from ..recipe import Recipe
from ..records import Tool, read_prompts
from ..report.summary import document
from ..run import Progress, Run, cores, file_sha256, stop_if_asked, whole_file, write_whole
from ..teachers.identity import identify_teacher
from .device_files import Device, licence_file, model_card, modelfile, serve_script
from .dialogue import parts
from .golden import GOLDEN, SCHEMA, TOOLS, Golden, answers_of, read_golden, saved_states, weights_of
from .on_offer import device_rule, recipe_tools

__all__ = ["Rejected", "package", "verify"]

SUMS = "SHA256SUMS"
SUM_LINE = re.compile(r"([0-9a-f]{64}) [ *]([^/\\\0]+)")
BLOCK = 1 << 22
CONTEXT_STEP = 256


class Rejected(GateMissed):
    """No quant passes every bar of the recipe: that is the verdict, not a fault."""


def package(recipe: Recipe, run: Run, out: Path, progress: Progress) -> dict[str, Any]:
    """Write the folder of the chosen quant, `SHA256SUMS` last, and verify it.

    Raises Rejected where no quant passes, GateMissed where a licence does not allow it, Unsafe where the file is not
    the one that was evaluated.
    """
    found = document(recipe, run)
    chosen = next((one for one in found["candidates"] if one["name"] == found["chosen"]), None)
    if chosen is None:
        raise Rejected(
            f"{recipe.name} is {found['verdict']}: {' '.join(found['reasons'])}",
            f"Read the report: edgedistill report {run.path}",
        )
    source = run.folder("quantize") / run.summary("quantize")["files"][chosen["quant"]]
    device = _device(recipe, run, source, chosen["quant"])
    folder = out / device.name
    folder.mkdir()
    _copy(source, folder / device.file, chosen["sha256"], progress)
    for name, text in _texts(recipe, run, device, found).items():
        write_whole(folder / name, text.encode())
    (folder / "serve.sh").chmod(0o755)
    _write_golden(recipe, device, folder)
    _write_state(device, folder, chosen["sha256"], recipe_tools(recipe) if recipe.tools.student else ())
    names = sorted(path.name for path in folder.iterdir())
    sums = "".join(f"{file_sha256(folder / name)}  {name}\n" for name in names)
    write_whole(folder / SUMS, sums.encode())
    progress("verifying", 0, 1)
    checked = verify(folder)
    progress("verifying", 1, 1)
    return {
        "folder": device.name,
        "file": device.file,
        "quant": chosen["quant"],
        "size_bytes": chosen["size_bytes"],
        "sha256": chosen["sha256"],
        "golden": checked["golden"],
        "state": checked["state"],
        "verdict": found["verdict"],
        "licences": {role: licence.id for role, licence in device.licences.items()},
    }


def verify(folder: Path) -> dict[str, Any]:
    """What a package holds, once every sum holds, no other file is there, and the golden answers are given again.

    `state` says what became of the saved state of its system text: "none", "read", or "not for this build" of
    llama.cpp, which computes it itself. Raises InvalidInput for a folder that is no package, Unsafe for a file that is
    missing, changed or not listed, GateMissed for another answer.
    """
    names = _check_sums(folder)
    weights, golden = weights_of(folder), read_golden(folder)
    check_gguf(weights)
    states = saved_states(folder, weights)
    answers, restored = answers_of(weights, golden, states)
    for messages, expected, answer in zip(golden.conversations, golden.answers, answers, strict=True):
        if answer != expected:
            raise GateMissed(
                f"{folder}: to {messages[-1].content[:60]!r} the model answers {answer[:120]!r}, but when it was "
                f"packaged {expected[:120]!r}",
                "The files are whole; this build of llama.cpp computes otherwise. Evaluate it here before use.",
            )
    state = "none" if states is None else "read" if restored else "not for this build"
    return {"files": len(names), "golden": len(answers), "model": weights.name, "state": state}


def _device(recipe: Recipe, run: Run, source: Path, quant: str) -> Device:
    """Names, limits and licences of the package."""
    student = identify(recipe.reference("student"), ("hf", "gguf"), run.offline)
    taught = [
        vet_licence(identify_teacher(recipe, one, run.offline).licence, "teacher", recipe.accept_license)
        for one in recipe.teachers
    ]
    learnt = vet_licence(student.licence, "student", recipe.accept_license)
    prefix = max((licence.name_prefix or "" for licence in (*taught, learnt)), key=len)
    metadata = read_gguf(source).metadata
    size = metadata.get("general.size_label") or "0B"
    base = _named(_without_size(student.name, size), prefix)
    limit = metadata[f"{metadata['general.architecture']}.context_length"]
    wanted = recipe.train.max_length + recipe.evaluate.max_tokens
    return Device(
        name=_named(recipe.name, prefix),
        file=gguf_file_name(base, size, recipe.name, recipe.export.version, quant),
        system=recipe.student.system,
        schema_file=SCHEMA if recipe.schema_file and recipe.evaluate.constrained else None,
        context=min(limit, -(-wanted // CONTEXT_STEP) * CONTEXT_STEP),
        max_tokens=recipe.evaluate.max_tokens,
        stops=_stops(metadata),
        teacher=taught[0],
        student=learnt,
        others=tuple(taught[1:]),
        threads=recipe.bench.threads,
        tools_file=TOOLS if recipe.tools.file else None,
        shows_tools=recipe.tools.student,
    )


def _named(name: str, prefix: str) -> str:
    """The name, behind the prefix that a licence asks for.

    >>> _named("home", "Llama 3"), _named("llama-3-home", "Llama 3"), _named("home", "")
    ('Llama-3-home', 'llama-3-home', 'home')
    """
    prefix = prefix.replace(" ", "-")
    return name if name.lower().startswith(prefix.lower()) else f"{prefix}-{name}"


def _without_size(name: str, size_label: str) -> str:
    """The base name of a model: what stands before its size.

    >>> _without_size("smollm2-135m-instruct", "135M"), _without_size("Pico", "0.1M")
    ('smollm2', 'Pico')
    """
    base = re.split(rf"[-_. ]{re.escape(size_label)}(?![a-z0-9])", name, maxsplit=1, flags=re.IGNORECASE)[0]
    return base or name


def _stops(metadata: dict[str, Any]) -> tuple[str, ...]:
    """The texts of the tokens that end an answer."""
    tokens = metadata.get("tokenizer.ggml.tokens", [])
    numbers = (metadata.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot"))
    return tuple(dict.fromkeys(tokens[number] for number in numbers if number is not None and number < len(tokens)))


def _copy(source: Path, out: Path, sha256: str, progress: Progress) -> None:
    """Copy a file whole or not at all.

    Raises Unsafe where its content is not the expected one, Stopped where the disk is full or a stop was asked for.
    """
    size = source.stat().st_size
    with whole_file(out) as writer, source.open("rb") as reader:
        while block := reader.read(BLOCK):
            stop_if_asked()
            writer.write(block)
            progress("copying the weights", writer.tell(), size)
        writer.flush()
        if file_sha256(Path(writer.name)) != sha256:
            raise Unsafe(f"{source}: has changed since it was evaluated", "Redo with --from quantize.")


def _texts(recipe: Recipe, run: Run, device: Device, found: dict[str, Any]) -> dict[str, str]:
    """The text files of the package by name."""
    licences = device.licences
    papers = {licence_file(role): licence_text(licence.id) for role, licence in licences.items()}
    papers |= {notice: text for notice, text in map(_notice, licences.values()) if notice}
    texts = {
        **papers,
        "recipe.toml": (run.path / "recipe.toml").read_text(encoding="utf-8"),
        "README.md": model_card(device, found),
        "Modelfile": modelfile(device, papers.values()),
        "serve.sh": serve_script(device),
    }
    if recipe.schema_file:
        texts[SCHEMA] = recipe.file(recipe.schema_file).read_text(encoding="utf-8")
    if recipe.tools.file:
        texts[TOOLS] = recipe.file(recipe.tools.file).read_text(encoding="utf-8")
    return texts


def _notice(licence: Licence) -> tuple[str, str]:
    return licence.notice_file or "", licence.notice or ""


def _write_golden(recipe: Recipe, device: Device, folder: Path) -> None:
    """Ask the packaged file the first eval prompts, and keep what it answers."""
    prompts = read_prompts(recipe.file(recipe.evaluate.file))[: recipe.package.golden]
    conversations = tuple(with_system(device.system, parts(prompt)[0].messages) for prompt in prompts)
    tools = recipe_tools(recipe) if recipe.tools.student else ()
    asked = Golden(conversations, device_rule(recipe), device.max_tokens, tools=tools)
    answers, _ = answers_of(folder / device.file, asked)
    calls = {"shown": recipe.tools.student, "held": recipe.evaluate.constrained}
    golden = {
        "schema": device.schema_file,
        **({"tools": calls} if recipe.tools.file else {}),
        "max_tokens": device.max_tokens,
        "prompts": [
            {"messages": [message.as_dict() for message in messages], "answer": answer}
            for messages, answer in zip(conversations, answers, strict=True)
        ],
    }
    write_whole(folder / GOLDEN, json.dumps(golden, indent=1, ensure_ascii=False).encode())


def _write_state(device: Device, folder: Path, sha256: str, tools: tuple[Tool, ...]) -> None:
    """Keep the state of the system text and of the tools that the model is shown, where it is worth it."""
    settings = RuntimeSettings(cores(), prefixes=lambda: [PrefixCache(folder, sha256)])
    with Runtime(folder / device.file, with_system(device.system, ()), None, settings, tools) as runtime:
        runtime.prepare(1, 1)


def _check_sums(folder: Path) -> list[str]:
    """The names that `SHA256SUMS` lists, once they are all the files there are and every sum holds."""
    path = folder / SUMS
    if not path.is_file():
        raise InvalidInput(f"{folder}: no {SUMS}", "Name a folder that edgedistill has packaged.")
    sums: dict[str, str] = {}
    lines = path.read_bytes().decode("utf-8", errors="replace").removesuffix("\n").split("\n")
    for number, line in enumerate(lines, start=1):
        found = SUM_LINE.fullmatch(line)
        if not found or found[2] in (".", "..") or found[2] in sums:
            raise Unsafe(f"{path}:{number}: not a line of sum and name: {line[:80]!r}", "Fetch the package again.")
        sums[found[2]] = found[1]
    for extra in sorted(entry.name for entry in folder.iterdir() if entry.name not in sums and entry.name != SUMS):
        raise Unsafe(f"{folder / extra}: is not listed in {SUMS}", "Remove it, or fetch the package again.")
    for name, expected in sums.items():
        file = folder / name
        if file.is_symlink() or not file.is_file():
            raise Unsafe(f"{file}: is listed in {SUMS}, but is not there as a file", "Fetch the package again.")
        if file_sha256(file) != expected:
            raise Unsafe(f"{file}: its sum is not the one in {SUMS}", "Fetch the package again.")
    return list(sums)
