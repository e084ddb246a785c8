"""A recipe: every setting, its type and its default.

TOML in, frozen values out. Two nouns say who (`[teacher]`, `[student]`), then one table a verb says how. The recipe is
the only source of settings; the flags of a command say where and how to run. Files are named relative to the recipe.
"""

from __future__ import annotations

import difflib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tomli
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, ValidationError, field_validator

from .errors import InvalidInput

__all__ = [
    "AcceptSettings",
    "BenchSettings",
    "CurateSettings",
    "EvaluateSettings",
    "ExportSettings",
    "PackageSettings",
    "PromptsSettings",
    "QuantizeSettings",
    "Recipe",
    "StudentSettings",
    "TeachSettings",
    "TeacherSettings",
    "TrainSettings",
    "load_recipe",
    "load_schema",
]

FILE = "a file of the recipe"
RecipeFile = Annotated[str, FILE]
Share = Annotated[StrictFloat, Field(ge=0.0, le=1.0)]
Count = Annotated[StrictInt, Field(ge=1)]

QUANT_TYPES = ("Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "Q4_0", "Q3_K_M", "Q2_K")


class Table(BaseModel):
    """One table of a recipe: frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


class TeacherSettings(Table):
    """Who is asked."""

    backend: Literal["llamacpp"] = "llamacpp"
    model: str
    """A catalogue name, `org/repo:file` on the hub, or a path."""
    system: str = ""
    """The teacher's system text. It may be long: it is decoded once and shared by all prompts."""
    guide: RecipeFile | None = None
    """A text file that is put after the system text."""
    examples: RecipeFile | None = None
    """Solved examples (chat rows that end with an answer), shown to the teacher as earlier turns."""


class StudentSettings(Table):
    """Who learns."""

    backend: Literal["torch"] = "torch"
    model: str
    """A catalogue name, `org/repo` on the hub, or a path to a Hugging Face folder or a GGUF file."""
    system: str = ""
    """The student's own system text, in training and afterwards. Short is fast."""


class PromptsSettings(Table):
    """What is asked."""

    file: RecipeFile = "prompts.jsonl"
    near_duplicate: Share = 0.9
    """Prompts at least this similar to an earlier one (Jaccard of character 4-grams) are dropped."""


class TeachSettings(Table):
    """How the teacher answers."""

    max_tokens: Count = 256
    temperature: Annotated[StrictFloat, Field(ge=0.0)] = 0.0
    """0 takes the most probable token (greedy)."""
    top_p: Annotated[StrictFloat, Field(gt=0.0, le=1.0)] = 1.0
    slots: Annotated[StrictInt, Field(ge=1, le=128)] = 16
    """Prompts answered at the same time."""
    gpu_layers: StrictInt = -1
    """Layers kept on the GPU where the build has one; -1 is all."""


class CurateSettings(Table):
    """Which answers are worth learning."""

    near_duplicate: Share = 0.85
    """As prompts.near_duplicate; lower, so that a stricter screen does not cost the teacher's answers."""
    eval_overlap: Share = 0.8
    """Prompts at least this similar to one of the eval set are kept out of training."""
    valid_share: Annotated[StrictFloat, Field(ge=0.0, lt=1.0)] = 0.05
    """Share of the kept rows that measures the loss during training, picked by hash."""
    refusals: tuple[str, ...] = ("i'm sorry", "i am sorry", "i cannot", "i can't", "as an ai")
    """Beginnings that mark an answer as a refusal, in lower case."""


class TrainSettings(Table):
    """How the student learns."""

    method: Literal["lora", "full"] = "lora"
    epochs: Count = 3
    learning_rate: Annotated[StrictFloat, Field(gt=0.0)] = 1e-3
    warmup_share: Share = 0.05
    """Share of the steps in which the learning rate rises from 0; then it falls to 0 along a cosine."""
    weight_decay: Annotated[StrictFloat, Field(ge=0.0)] = 0.0
    batch_size: Count = 16
    rank: Count = 16
    alpha: Annotated[StrictFloat, Field(gt=0.0)] = 32.0
    """LoRA weight: the update is scaled by alpha / rank, as in PEFT."""
    dropout: Annotated[StrictFloat, Field(ge=0.0, lt=1.0)] = 0.0
    max_length: Count = 1024
    """Longest example in tokens; a longer one is refused by name, never cut."""
    checkpoint_steps: Count = 25
    """Optimizer steps between two checkpoints."""


class ExportSettings(Table):
    """What the model is called, and how the export is proven."""

    version: Annotated[str, Field(pattern=r"^v?\d+(\.\d+)*$")] = "1.0"
    """In the GGUF's metadata and in the packaged file's name."""
    max_kl: Annotated[StrictFloat, Field(gt=0.0)] = 1e-3
    """Largest mean KL divergence, in nats, between the Hugging Face side and the GGUF on the probe prompts."""


class QuantizeSettings(Table):
    """Which sizes are made."""

    types: Annotated[tuple[str, ...], Field(min_length=1)] = ("Q8_0", "Q4_K_M")

    @field_validator("types")
    @classmethod
    def known(cls, types: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(types)) < len(types):
            raise ValueError("a quant type is named twice")
        for name in types:
            if name not in QUANT_TYPES:
                raise ValueError(f"unknown quant type '{name}'{did_you_mean(name, QUANT_TYPES)}")
        return types


class EvaluateSettings(Table):
    """What is measured, on what."""

    file: RecipeFile = "eval.jsonl"
    edge_file: RecipeFile | None = None
    constrained: StrictBool = True
    """Decode every candidate under the schema's grammar, as the packaged server does."""
    max_tokens: Count = 256


class BenchSettings(Table):
    """The latency target."""

    target_ms: Annotated[tuple[StrictFloat, StrictFloat], Field()] = (100.0, 500.0)
    """From "no need to be faster" to "must not be slower", end to end, in milliseconds."""
    percentile: Literal[50, 90, 95, 99] = 95
    requests: Annotated[StrictInt, Field(ge=20)] = 100
    """Distinct prompts that are timed, after `warmup` others."""
    warmup: Count = 5

    @field_validator("target_ms")
    @classmethod
    def ordered(cls, target: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= target[0] < target[1]:
            raise ValueError("target_ms must be [low, high] with 0 <= low < high")
        return target


class PackageSettings(Table):
    """What the device gets."""

    golden: Annotated[StrictInt, Field(ge=1)] = 3
    """Eval prompts whose answers `package --verify` repeats on the device."""


class AcceptSettings(Table):
    """When a candidate is good enough."""

    valid: Share = 0.99
    """Share of eval answers that match the schema (or are not empty, where there is none)."""
    agreement: Share = 0.0
    """Share of eval answers equal to the teacher's."""
    exact_of_teacher: Annotated[StrictFloat, Field(ge=0.0)] = 0.9
    """Exact matches with the right answers, relative to the teacher's own."""
    must_pass: StrictBool = True
    """Every edge row marked `must_pass` is answered right."""
    speedup: Annotated[StrictFloat, Field(ge=0.0)] = 1.0
    """Times faster than the teacher, end to end, at the median."""


class Recipe(Table):
    """One task: who teaches whom, on what, and when it is good enough."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    """Also the name of the run folder and of the packaged model."""
    description: str = ""
    seed: StrictInt = 0
    """Read by teach (sampling), train (initial weights, order) and bench (order)."""
    schema_file: RecipeFile | None = None
    """A JSON Schema that every answer must match; answers are decoded under it."""
    accept_license: str | None = None
    """The id of a licence that the table does not know and that you have read."""
    teacher: TeacherSettings
    student: StudentSettings
    prompts: PromptsSettings = PromptsSettings()
    teach: TeachSettings = TeachSettings()
    curate: CurateSettings = CurateSettings()
    train: TrainSettings = TrainSettings()
    export: ExportSettings = ExportSettings()
    quantize: QuantizeSettings = QuantizeSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    bench: BenchSettings = BenchSettings()
    package: PackageSettings = PackageSettings()
    accept: AcceptSettings = AcceptSettings()

    _path: Path = Path("recipe.toml")
    _origin: Path | None = None
    """Where the recipe was when it ran, if this is the copy that the run keeps."""

    @property
    def path(self) -> Path:
        """The TOML file that this was read from."""
        return self._path

    def file(self, name: str) -> Path:
        """A file that the recipe names, relative to the recipe's own folder."""
        return self._path.parent / name

    def reference(self, who: Literal["teacher", "student"]) -> str:
        """The model of teacher or student; a path that is there beside the recipe stands for that file or folder."""
        model: str = getattr(self, who).model
        places = (folder / model for folder in (self._path.parent, self._origin) if folder is not None)
        return next((str(place) for place in places if place.exists()), model)

    def files(self, table: str | None = None) -> dict[str, Path]:
        """Files named in one table, or at the top, by `table.key`."""
        settings: BaseModel = getattr(self, table) if table else self
        prefix = f"{table}." if table else ""
        found = {}
        for key, info in type(settings).model_fields.items():
            value = getattr(settings, key)
            if value is not None and (FILE in info.metadata or FILE in _nested_metadata(info.annotation)):
                found[prefix + key] = self.file(value)
        return found


TABLES = tuple(
    name
    for name, info in Recipe.model_fields.items()
    if isinstance(info.annotation, type) and issubclass(info.annotation, Table)
)


def load_recipe(path: Path, origin: Path | None = None) -> Recipe:
    """The recipe in a TOML file, or in `recipe.toml` of a folder; `origin` is where a run's copy came from.

    Raises InvalidInput that lists every unknown, missing and mistyped key with its path.
    """
    path = path / "recipe.toml" if path.is_dir() else path
    try:
        data = tomli.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror}", "Name a recipe, or write one with: edgedistill init") from error
    except (tomli.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path}: {error}", "Mend the TOML there.") from error
    _refuse_secrets(path, data)
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        raise InvalidInput(*_explain(path, error)) from error
    object.__setattr__(recipe, "_path", path)
    object.__setattr__(recipe, "_origin", origin)
    return recipe


def load_schema(recipe: Recipe) -> dict[str, Any] | None:
    """The recipe's JSON Schema, or None where it has none.

    Raises InvalidInput where the file is no schema, or refers to another file or address.
    """
    if recipe.schema_file is None:
        return None
    path = recipe.file(recipe.schema_file)
    try:
        schema = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror}", "Check schema_file in the recipe.") from error
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{path}: not JSON ({error})", "Mend the file.") from error
    if not isinstance(schema, dict):
        raise InvalidInput(f"{path}: a schema must be a JSON object", "Mend the file.")
    if re.search(r'"\$(ref|dynamicRef)":\s*"[^#]', json.dumps(schema)):
        raise InvalidInput(f"{path}: refers to another file or address", "Write the schema into this one file.")
    return schema


def did_you_mean(word: str, known: Any) -> str:
    """A suggestion to end a message with, or nothing.

    >>> did_you_mean("teechers", ["teacher", "student"])
    ". Did you mean 'teacher'?"
    """
    close = difflib.get_close_matches(word, list(known), n=1)
    return f". Did you mean '{close[0]}'?" if close else ""


def _explain(path: Path, error: ValidationError) -> tuple[str, str]:
    problems = [_problem(item) for item in error.errors()]
    hint = f"{len(problems)} problems; every key is described in the README." if len(problems) > 1 else ""
    return "\n".join(f"{path}: {problem}" for problem in problems), hint or "Every key is described in the README."


def _problem(item: Any) -> str:
    where = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        fields = Recipe.model_fields
        if len(item["loc"]) > 1 and item["loc"][0] in TABLES:
            fields = fields[item["loc"][0]].annotation.model_fields  # type: ignore[union-attr]
        return f"unknown key '{where}'{did_you_mean(str(item['loc'][-1]), fields)}"
    if item["type"] == "missing":
        return f"missing key '{where}'"
    return f"{where}: {item['msg'].removeprefix('Value error, ')} (it is {item['input']!r})"


def _nested_metadata(annotation: Any) -> tuple[Any, ...]:
    """The metadata inside an optional annotation such as `RecipeFile | None`."""
    return tuple(extra for part in get_args(annotation) for extra in getattr(part, "__metadata__", ()))


SECRET = re.compile(r"\b(sk-[A-Za-z0-9_-]{16,}|hf_[A-Za-z0-9]{20,}|AKIA[A-Z0-9]{16}|gh[pousr]_[A-Za-z0-9]{20,})")


def _refuse_secrets(path: Path, value: Any) -> None:
    if isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            _refuse_secrets(path, item)
    elif isinstance(value, str) and SECRET.search(value):
        raise InvalidInput(f"{path}: a value looks like a secret key", "Keep keys in the environment, not in recipes.")
