"""A recipe: every setting, its type and its default.

TOML in, frozen values out. Two nouns say who (`[teacher]`, `[student]`), then one table a verb says how. The recipe is
the only source of settings; the flags of a command say where and how to run. Files are named relative to the recipe.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tomli
from pydantic import (
    BaseModel,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    ValidationError,
    model_validator,
)

from .contract import AcceptSettings, BenchSettings, EvaluateSettings, QuantizeSettings
from .errors import InvalidInput
from .explain import explained, refuse_secrets
from .learning import StudentSettings, TrainSettings
from .prompting import PromptsSettings, ToolsSettings, UserSettings
from .tables import FILE, LATER, Count, Price, RecipeFile, Table
from .vetting import CurateSettings

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
    "ToolsSettings",
    "TrainSettings",
    "UserSettings",
    "load_recipe",
]


class TeacherSettings(Table):
    """Who is asked."""

    backend: Literal["llamacpp", "transformers", "mlx", "openai"] = "llamacpp"
    model: str
    """A catalogue name, `org/repo:file` or `org/repo` on the hub, or a path; for `openai` the server's model id."""
    system: str = ""
    """The teacher's system text. It may be long: it is decoded once and shared by all prompts."""
    guide: RecipeFile | None = None
    """A text file that is put after the system text."""
    examples: RecipeFile | None = None
    """Solved examples (chat rows that end with an answer), shown to the teacher as earlier turns."""
    url: str | None = None
    """For `openai`: where the server's API begins, such as `http://127.0.0.1:8080/v1`."""
    api_key_env: str = "OPENAI_API_KEY"
    """For `openai`: the environment variable that holds the key; without one no key is sent."""
    plain_http: StrictBool = False
    """For `openai`: allow http to another machine. Prompts and key then cross the network in the clear."""
    licence: str | None = None
    """For `openai`: the licence of the server's model, which no API tells."""
    price_in: Price | None = None
    """For `openai`: price of a million prompt tokens, for the estimate."""
    price_out: Price | None = None
    """For `openai`: price of a million completion tokens, in the same currency."""

    @model_validator(mode="after")
    def has_url(self) -> TeacherSettings:
        if (self.backend == "openai") != (self.url is not None):
            raise ValueError("url belongs to the 'openai' backend, which needs it")
        return self


class TeachSettings(Table):
    """How the teacher answers."""

    max_tokens: Count = 256
    temperature: Annotated[StrictFloat, Field(ge=0.0)] = 0.0
    """0 takes the most probable token (greedy)."""
    top_p: Annotated[StrictFloat, Field(gt=0.0, le=1.0)] = 1.0
    top_k: Annotated[StrictInt, Field(ge=0)] = 0
    """Sample from so many of the most probable tokens; 0 is all."""
    min_p: Annotated[StrictFloat, Field(ge=0.0, lt=1.0)] = 0.0
    """Sample from tokens at least this probable, relative to the most probable one."""
    samples: Annotated[StrictInt, Field(ge=1, le=64)] = 1
    """Answers to each prompt; more than one needs a temperature. `curate.combine` makes one of them."""
    retries: Annotated[StrictInt, Field(ge=0, le=8), LATER] = 0
    """Times that the teacher tries a wrong answer again (by `curate.right_by` and `verifier`), told what is wrong."""
    closed: StrictBool = True
    """Where the schema allows a finite set of answers, keep the probability of each instead of sampling one."""
    closed_floor: Annotated[StrictFloat, Field(ge=0.0, lt=1.0)] = 0.001
    """Answers behind a branch less probable than this have equal parts of it; 0 computes every branch."""
    calibrate: Annotated[Literal["none", "batch"], LATER] = "none"
    """`batch` divides the probability of each closed answer by its mean over the prompts: takes out what the teacher
    prefers whatever it is asked, where no answer should be much more frequent than another."""
    answers: RecipeFile | None = None
    """Chat rows that end with an answer: given answers, taken as they are and, with `targets`, scored."""
    targets: Literal["none", "top_k", "sampled"] = "none"
    """The teacher's distribution at each token, kept for a soft loss: the most probable tokens, or drawn ones."""
    target_mass: Annotated[StrictFloat, Field(gt=0.0, le=1.0)] = 0.995
    """For `top_k`: the smallest set of tokens that reaches this probability is kept, without those that have less than
    a sixteenth of what may be missing (0.0003 at 0.995) ..."""
    target_tokens: Annotated[StrictInt, Field(ge=1, le=256)] = 128
    """... but no more than so many."""
    target_draws: Annotated[StrictInt, Field(ge=1, le=1000)] = 50
    """For `sampled`: tokens drawn at each position."""
    slots: Annotated[StrictInt, Field(ge=0, le=255)] = 0
    """Prompts answered at the same time; 0 finds the best number for model and machine (for a server: adapts)."""
    gpu_layers: StrictInt = -1
    """Layers kept on the GPU where the build has one; -1 is all."""
    flash_attention: Literal["auto", "on", "off"] = "auto"
    """`auto` lets llama.cpp choose for the build."""

    @model_validator(mode="after")
    def samples_differ(self) -> TeachSettings:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError("samples > 1 need a temperature above 0")
        return self


class ExportSettings(Table):
    """What the model is called, and how the export is proven."""

    version: Annotated[str, Field(pattern=r"^v?\d+(\.\d+)*$")] = "1.0"
    """In the GGUF's metadata and in the packaged file's name."""
    max_kl: Annotated[StrictFloat, Field(gt=0.0)] = 1e-3
    """Largest mean KL divergence, in nats, between the Hugging Face side and the GGUF on the probe prompts."""
    allow_template: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")] | None = None
    """A chat template that reacts to what a message says, or is not the base's, is exported only if it is this one."""


class PackageSettings(Table):
    """What the device gets."""

    golden: Annotated[StrictInt, Field(ge=1)] = 3
    """Eval prompts whose answers `package --verify` repeats on the device."""


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
    teachers: tuple[TeacherSettings, ...] = ()
    """`[[teachers]]`, asked one after another; `[teacher]` alone is a list of one. `teacher` is the first of them."""
    student: StudentSettings
    prompts: PromptsSettings = PromptsSettings()
    tools: ToolsSettings = ToolsSettings()
    user: UserSettings = UserSettings()
    teach: TeachSettings = TeachSettings()
    curate: CurateSettings = CurateSettings()
    train: TrainSettings = TrainSettings()
    export: ExportSettings = ExportSettings()
    quantize: QuantizeSettings = QuantizeSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    bench: BenchSettings = BenchSettings()
    package: PackageSettings = PackageSettings()
    accept: AcceptSettings = AcceptSettings()

    @model_validator(mode="after")
    def calls_or_schema(self) -> Recipe:
        if self.schema_file is not None and self.tools.file is not None:
            raise ValueError("schema_file and tools.file: calls are held to the schemas of their tools")
        return self

    @model_validator(mode="after")
    def retries_what_is_wrong(self) -> Recipe:
        if self.teach.retries and self.curate.right_by is None and self.curate.verifier is None:
            raise ValueError("teach.retries needs curate.right_by or curate.verifier: nothing else tells what is wrong")
        if self.tools.are_run and (self.teach.retries or self.curate.reasoning == "shorten"):
            raise ValueError("tools.results: answers that ran tools are neither tried again nor shortened")
        if self.user.turns and (self.teach.retries or self.curate.reasoning == "shorten"):
            raise ValueError("user.turns: answers in a conversation with a user are neither tried again nor shortened")
        return self

    @model_validator(mode="after")
    def user_can_go_on(self) -> Recipe:
        several = self.teach.samples * len(self.teachers) > 1
        if self.user.turns and several and self.curate.combine in ("vote", "agree"):
            raise ValueError(
                f"user.turns: conversations differ, none can {self.curate.combine} for another; write combine = "
                "'best', 'shortest' or 'union'"
            )
        if self.user.turns and self.tools.file is not None and not self.tools.are_run:
            raise ValueError("user.turns: a user waits for what comes of a call: say in tools.results how it is run")
        if self.evaluate.scorer == "goal" and not self.user.turns:
            raise ValueError("evaluate.scorer = 'goal' is told by who plays the user: write turns in [user]")
        return self

    @model_validator(mode="before")
    @classmethod
    def one_or_many(cls, data: Any) -> Any:
        """`[teacher]` is `[[teachers]]` with one entry; only one of the two may be written."""
        if not isinstance(data, dict) or not ("teachers" in data) ^ ("teacher" in data):
            if isinstance(data, dict) and "teachers" in data:
                raise ValueError("write [teacher] or [[teachers]], not both")
            return data
        many = data["teachers"] if "teachers" in data else [data["teacher"]]
        if not isinstance(many, list) or not many:
            raise ValueError("[[teachers]] is a list of tables")
        return {**data, "teachers": many, "teacher": many[0]}

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

    @property
    def folders(self) -> tuple[Path, ...]:
        """Where what lies beside the recipe is: its own folder and, for a run's copy, the one that it came from."""
        return tuple(folder for folder in (self._path.parent, self._origin) if folder is not None)

    def reference(self, who: Literal["teacher", "student"]) -> str:
        """The model of the first teacher or of the student, as `located` finds it."""
        return self.located(getattr(self, who))

    def located(self, settings: TeacherSettings | StudentSettings) -> str:
        """The model that a table names; a path that is there beside the recipe stands for that file or folder."""
        places = (folder / settings.model for folder in self.folders)
        return next((str(place) for place in places if place.exists()), settings.model)

    def files(self, table: str | None = None) -> dict[str, Path]:
        """Files named in one table, or at the top, by `table.key`; in a list of tables by `table.number.key`."""
        settings: Any = getattr(self, table) if table else self
        if isinstance(settings, tuple):
            return {
                f"{table}.{number}.{key}": path
                for number, one in enumerate(settings)
                for key, path in self._files_of(one).items()
            }
        return {f"{table}.{key}" if table else key: path for key, path in self._files_of(settings).items()}

    def _files_of(self, settings: BaseModel) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for key, info in type(settings).model_fields.items():
            value = getattr(settings, key)
            if isinstance(value, Table) and not isinstance(settings, Recipe):
                found |= {f"{key}.{inner}": path for inner, path in self._files_of(value).items()}
            elif value is not None and (FILE in info.metadata or FILE in _nested_metadata(info.annotation)):
                found[key] = self.file(value)
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
    refuse_secrets(path, data)
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        raise InvalidInput(*explained(path, error.errors(), Recipe)) from error
    object.__setattr__(recipe, "_path", path)
    object.__setattr__(recipe, "_origin", origin)
    return recipe


def _nested_metadata(annotation: Any) -> tuple[Any, ...]:
    """The metadata inside an optional annotation such as `RecipeFile | None`."""
    return tuple(extra for part in get_args(annotation) for extra in getattr(part, "__metadata__", ()))
