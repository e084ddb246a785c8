"""preflight: refuse in the first second what would fail in the third hour.

Each requirement of a stage has a line here. `check` prints them; `run` begins with them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .chat import ChatTemplate, folder_template, with_system
from .curation.languages import require_languages
from .errors import InvalidInput, MissingRequirement
from .hardware import has_slow_blas
from .llamacpp.answer import fits_context
from .llamacpp.grammar import require_decodable
from .llamacpp.importer import require_importable
from .llamacpp.writer import require_writable
from .models import Identity, check_gguf, identify, vet_licence
from .recipe import Recipe, TeacherSettings
from .records import Example, Message, Prompt, read_prompts
from .report.statistics import fewest_rows
from .run import Run
from .schema import closed_answers, kept_answers, load_schema, schema_validator
from .stages.again import noise_plan
from .stages.calibration import asks_calibration, require_odds
from .stages.combine import verifier_command
from .stages.dialogue import parts, woven
from .stages.exam import unmarked
from .stages.fitting import require_fit
from .stages.healing import require_healing
from .stages.imported import require_prunable
from .stages.judging import judge_teacher
from .stages.lengths import require_timed
from .stages.offers import require_tools
from .stages.on_offer import shown_to
from .stages.parity import day_note, require_safe_template
from .stages.privacy import require_private
from .stages.prompt_source import longest_source_prompt
from .stages.quantizing import require_quantizable
from .stages.questions import require_prompts
from .stages.rating import rating_teacher
from .stages.retries import TOLD
from .stages.rightness import require_rightness
from .stages.room import GIGABYTE, require_disk, require_memory, target_bytes
from .stages.sandbox import confinement, scorer_command
from .stages.scorers import require_expected
from .stages.simulated_user import examples, require_user, user_teacher
from .stages.synthesis import require_synthesis
from .stages.taught import require_taught
from .stages.teach import WHOLE, row_count
from .stages.thinking import require_switch
from .stages.tokenizers import require_tokenizers
from .stages.tracking import require_tracker
from .students import require_student
from .students.encode import Encoder
from .teachers import BACKENDS, require_teacher
from .teachers.address import endpoint_of, refuse_endpoint
from .teachers.identity import TeacherIdentity, identify_teacher, identify_teachers

__all__ = ["Finding", "check"]


@dataclass(frozen=True)
class Finding:
    """One requirement that holds, and what was found."""

    what: str
    found: str


def check(recipe: Recipe, run: Run) -> list[Finding]:
    """Everything that a run of the recipe needs, as found.

    Raises the EdgeDistillError of the first requirement that does not hold.
    """
    findings = []
    for what, requirement in REQUIREMENTS.items():
        found = requirement(recipe, run)
        findings.append(Finding(what, found))
    return findings


def _files(recipe: Recipe, run: Run) -> str:
    teachers = "teacher" if len(recipe.teachers) == 1 else "teachers"
    tables = (None, teachers, "prompts", "tools", "teach", "evaluate")
    files = {key: path for table in tables for key, path in recipe.files(table).items()}
    for key, path in files.items():
        if not (path.is_file() or (key == "prompts.file" and path.is_dir())):
            raise InvalidInput(f"{recipe.path}: {key}: no file {path}", "Write the file, or correct the recipe.")
    return f"{len(files)} files"


def _schema(recipe: Recipe, run: Run) -> str:
    schema = load_schema(recipe)
    require_odds(recipe, schema)
    schema_validator(schema)
    if schema is None:
        return "none: answers are free text" if recipe.tools.file is None else "none: answers are calls, or free text"
    require_decodable(schema)
    answers = closed_answers(schema)
    if answers is None:
        return f"{recipe.schema_file}"
    found = f"{recipe.schema_file}; closed set of {len(answers)} answers"
    weigh = [BACKENDS[teacher.backend].scores for teacher in recipe.teachers]
    if kept_answers(schema, recipe.teach) is None or not any(weigh):
        return f"{found}, of which one is written out"
    if asks_calibration(recipe):
        found += ", calibrated by their mean over the prompts"
    return f"{found}, each with its probability{'' if all(weigh) else '; a server writes one out'}"


def _several(recipe: Recipe, run: Run) -> str:
    """How many answers a prompt gets, and what becomes of them."""
    settings = recipe.curate
    has_verifier, passes = settings.verifier is not None, ""
    if has_verifier:
        command = f"{' '.join(verifier_command(settings, recipe.path.parent))}: {confinement()}"
        passes = f" by {command}" if settings.combine == "best" else f", if it passes {command}"
    count = recipe.teach.samples * len(recipe.teachers)
    if count == 1:
        return f"one to each prompt{passes.replace(' by ', ', if it passes ', 1)}"
    best = "the judge's choice" if settings.judge_chooses else "the first valid one"
    how = {
        "vote": f"a vote on {'whole answers' if settings.vote_by == 'answer' else 'each field'}"
        + (f", at least {settings.agreement:g} of the votes" if settings.agreement else ""),
        "agree": "kept where all are equal",
        "best": "the best" if has_verifier else best,
        "shortest": "the shortest that is right",
        "union": "every different one is kept",
    }
    of = f" of each of {len(recipe.teachers)} teachers" if len(recipe.teachers) > 1 else ""
    return f"{recipe.teach.samples}{of} to each prompt; {how[settings.combine]}{passes}"


def _targets(recipe: Recipe, run: Run) -> str:
    """Whether every teacher tells the distribution at each token, where it is asked for."""
    if recipe.teach.targets == "none":
        return "none"
    rounded = []
    for teacher in recipe.teachers:
        if not BACKENDS[teacher.backend].scores:
            raise InvalidInput(
                f"{recipe.path}: teach.targets is '{recipe.teach.targets}', but the '{teacher.backend}' backend does "
                "not tell the distribution at each token",
                'Write targets = "none", or choose another backend for this teacher.',
            )
        quant = identify_teacher(recipe, teacher, run.offline).quant
        rounded += [quant] if quant is not None and quant not in WHOLE else []
    found = f"{recipe.teach.targets}, about {target_bytes(recipe) / GIGABYTE:.1f} GB"
    if rounded:
        found += f"; warning: weights in {' and '.join(rounded)} blur the distribution, 8 bits or more keep it"
    return found


def _eval(recipe: Recipe, run: Run) -> str:
    counts = []
    is_valid = schema_validator(load_schema(recipe))
    for path in recipe.files("evaluate").values():
        rows = read_prompts(path)
        if not rows:
            raise InvalidInput(f"{path}: no rows", "Write rows with the right answers.")
        for prompt in rows:
            _expected(recipe, prompt, is_valid, str(path))
            require_expected(recipe.evaluate.scorer, prompt, str(path))
        counts.append(f"{len(rows)} in {path.name}")
    require_timed(recipe)
    return ", ".join(counts) + _too_few(recipe)


def _too_few(recipe: Recipe) -> str:
    """A warning where so few eval rows cannot show what a bar asks for, however good the answers are."""
    accept, rows = recipe.accept, row_count(recipe.file(recipe.evaluate.file))
    bars = {name: getattr(accept, name) for name in ("valid", "agreement", "score", "exact_of_teacher")}
    needed = {name: fewest_rows(bar, accept.confidence) for name, bar in bars.items()}
    name = max(needed, key=lambda one: needed[one])
    if needed[name] <= rows:
        return ""
    return f"; warning: too few to show accept.{name} = {bars[name]:g}, which takes {needed[name]} or more"


def _scorer(recipe: Recipe, run: Run) -> str:
    """Whether the scorer can work: its command is a program, its judge a model that is there."""
    found: str = recipe.evaluate.scorer
    if found == "command":
        found = f"{' '.join(scorer_command(recipe))}: {confinement()}"
    elif found == "judge":
        found = f"a judge, {_asked(recipe, judge_teacher(recipe), run)}"
    elif found == "tests":
        found = f"tests, run as Python: {confinement()}"
    idle = unmarked(recipe)
    return f"{found}; warning: {idle}" if idle else found


def _judge(recipe: Recipe, run: Run) -> str:
    """Whether the judge of curate can be asked."""
    judge = recipe.curate.judge
    if judge is None:
        return "none"
    takes = ", the best is taken" if recipe.curate.judge_chooses else ""
    return f"{_asked(recipe, rating_teacher(recipe), run)}; an answer must be worth {judge.least:g}{takes}"


def _user(recipe: Recipe, run: Run) -> str:
    """Who plays the user, and for how long."""
    found = require_user(recipe)
    if not recipe.user.turns:
        return found
    player = user_teacher(recipe)
    told = f"{_asked(recipe, player, run)}; {found}"
    path = identify_teacher(recipe, player, run.offline).path
    shown = with_system(player.system, examples())
    if player.backend == "llamacpp" and path is not None and not fits_context(path, shown, recipe.user.max_tokens):
        raise InvalidInput(
            f"{recipe.path}: {path.name} knows too few tokens to play the user, who is shown how others went on",
            "Name another model in [user].",
        )
    return told


def _asked(recipe: Recipe, teacher: TeacherSettings, run: Run) -> str:
    """A model that is asked, as found."""
    require_teacher(teacher)
    if teacher.url is not None:
        return _server(teacher, run)
    return _model(recipe.located(teacher), identify_teacher(recipe, teacher, run.offline), run)


def _expected(recipe: Recipe, prompt: Prompt, is_valid: Callable[[object], bool] | None, where: str) -> None:
    if recipe.evaluate.scorer not in ("exact", "json") or prompt.expected is None or is_valid is None:
        return
    if not is_valid(prompt.expected):
        raise InvalidInput(
            f"{where}: the expected answer of {prompt.text[:60]!r} does not match the schema",
            "Correct the answer, or the schema.",
        )


def _backends(recipe: Recipe, run: Run) -> str:
    for teacher in recipe.teachers:
        require_teacher(teacher)
    require_student(recipe.student, recipe.train)
    require_tracker(run)
    backends = " and ".join(dict.fromkeys(teacher.backend for teacher in recipe.teachers))
    uses_mlx = "mlx" in (recipe.student.backend, *(teacher.backend for teacher in recipe.teachers))
    slow = "; warning: MLX's own BLAS is slow on Linux, preload OpenBLAS (see the README)"
    return f"teacher {backends}, student {recipe.student.backend}{slow if uses_mlx and has_slow_blas() else ''}"


def _licences(recipe: Recipe, run: Run) -> str:
    teachers = identify_teachers(recipe, run.offline)
    if recipe.user.turns and recipe.user.model is not None:  # what it writes is in the rows, too
        teachers.append(identify_teacher(recipe, user_teacher(recipe), run.offline))
    taught = [vet_licence(teacher.licence, "teacher", recipe.accept_license).id for teacher in teachers]
    student = identify(recipe.reference("student"), ("hf", "gguf"), run.offline)
    learnt = vet_licence(student.licence, "student", recipe.accept_license)
    return f"teacher {' and '.join(dict.fromkeys(taught))}, student {learnt.id}"


def _models(recipe: Recipe, run: Run) -> str:
    student = recipe.reference("student")
    found = [_asked(recipe, teacher, run) for teacher in recipe.teachers]
    return ", ".join([*found, _model(student, identify(student, ("hf", "gguf"), run.offline), run)])


def _model(ref: str, identity: Identity | TeacherIdentity, run: Run) -> str:
    if run.offline and not identity.cached:
        raise MissingRequirement(f"{ref}: not on this machine, and offline", f"Fetch it first: edgedistill fetch {ref}")
    if identity.path is not None and identity.path.is_file() and identity.source == "local":
        _template(identity.path)
    return f"{identity.name} ({identity.source}{'' if identity.cached else ', to be fetched'})"


def _template(path: Path) -> None:
    if not check_gguf(path).metadata.get("tokenizer.chat_template"):
        raise InvalidInput(f"{path}: no chat template", "Use an instruct model.")


def _server(teacher: TeacherSettings, run: Run) -> str:
    """Whether a server may be asked, as far as its address tells: nothing is connected to, no name is looked up."""
    endpoint = endpoint_of(teacher)
    refuse_endpoint(endpoint)
    if run.offline and not endpoint.is_here:
        raise MissingRequirement(
            f"{endpoint.url}: not this machine, and offline", "Leave --offline out, or name a server on this machine."
        )
    key = f"key from {teacher.api_key_env}" if os.environ.get(teacher.api_key_env) else "no key"
    return f"{teacher.model} (at {endpoint.url}, {key})"


def _student(recipe: Recipe, run: Run) -> str:
    """Whether the student can be trained on the prompts and written as a GGUF, as far as it is on this machine."""
    identity = identify(recipe.reference("student"), ("hf", "gguf"), run.offline)
    if identity.path is None:
        return "to be looked at when it is here"
    stays = require_prunable(recipe.student, identity)
    stays = f"; {stays}" if stays else ""
    in_gguf = check_gguf(identity.path).metadata if identity.format == "gguf" else {}
    template = (
        ChatTemplate(str(in_gguf.get("tokenizer.chat_template", ""))) if in_gguf else folder_template(identity.path)
    )
    require_safe_template(str(identity.path), template, template, recipe.export.allow_template)
    stays += day_note(template, recipe.student.system) + require_switch(template, recipe.student.thinking)
    if identity.format == "gguf":
        return f"{require_importable(identity.path)}, to be imported from a GGUF{stays}"
    longest = shown_to(recipe, "student")(longest_source_prompt(recipe))
    asked = parts(longest)
    turns = woven(longest.messages, [Message("assistant", "yes")] * len(asked))
    row = Encoder(identity.path).example(Example(longest.id, with_system(recipe.student.system, turns), longest.tools))
    user = recipe.user
    answers = len(asked) + recipe.teach.retries + user.turns
    heard = recipe.teach.retries * TOLD + user.turns * user.max_tokens
    if row.start + answers * recipe.teach.max_tokens + heard > recipe.train.max_length:
        said = f" and {user.turns} x user.max_tokens ({user.max_tokens})" if user.turns else ""
        raise InvalidInput(
            f"{recipe.path}: the longest prompt ({row.start} tokens) and {answers} x teach.max_tokens "
            f"({recipe.teach.max_tokens}){said} exceed train.max_length ({recipe.train.max_length}): "
            f"{longest.text[:60]!r}",
            "Raise train.max_length, or shorten the prompt.",
        )
    steps = f" (and up to {recipe.tools.steps} answers with calls, and their results, which are not counted)"
    uncounted = steps if recipe.tools.are_run else ""
    writer = "by a llama.cpp checkout" if run.llama_cpp else require_writable(identity.path)
    return f"{writer}; the longest prompt is {row.start} tokens{uncounted}{stays}"


def _loss(recipe: Recipe, run: Run) -> str:
    """Whether the student can learn what its loss asks for."""
    found = require_taught(recipe)
    if recipe.train.loss == "hard" or recipe.teach.targets == "none":
        return found
    student = identify(recipe.reference("student"), ("hf", "gguf"), run.offline).path
    teachers = [teacher.path for teacher in identify_teachers(recipe, run.offline)]
    return f"{found}; {require_tokenizers(recipe, teachers, student)}"


Requirement = Callable[[Recipe, Run], str]
REQUIREMENTS: dict[str, Requirement] = {
    "files": _files,
    "prompts": require_prompts,
    "synthesis": require_synthesis,
    "personal data": require_private,
    "schema": _schema,
    "tools": require_tools,
    "eval set": _eval,
    "scorer": _scorer,
    "backends": _backends,
    "user": _user,
    "answers": _several,
    "judge": _judge,
    "wrong labels": noise_plan,
    "right answers": require_rightness,
    "languages": require_languages,
    "targets": _targets,
    "loss": _loss,
    "models": _models,
    "student": _student,
    "quants": lambda recipe, run: require_quantizable(recipe.quantize),
    "healing": require_healing,
    "latency": require_fit,
    "licences": _licences,
    "memory": require_memory,
    "disk": require_disk,
}
