"""The tables of a recipe that say what is asked: prompts, there or written by a teacher; tools on offer; the user."""

from __future__ import annotations

from itertools import product
from math import prod
from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, StrictFloat, StrictInt, model_validator

from .tables import LATER, Count, RecipeFile, Share, Table

__all__ = ["ColumnSettings", "PromptsSettings", "SynthesizeSettings", "ToolsSettings", "UserSettings"]

Format = Literal["rows", "openai", "sharegpt", "alpaca", "columns", "log", "text"]
IN_A_CELL = 2  # prompts, at the least, that there must be for each combination

Values = tuple[str, ...] | dict[str, str]


class ColumnSettings(Table):
    """Which column of a table is what."""

    prompt: str | None = None
    """What the user says; left out, one of the usual names."""
    answer: str | None = None
    """What the source itself has as an answer."""
    system: str | None = None
    """A system text of the row's own."""
    tags: tuple[str, ...] = ()
    """Columns whose texts become tags."""


class SynthesizeSettings(Table):
    """Prompts that the first teacher writes."""

    task: Annotated[str, Field(min_length=1)]
    """What the prompts are and who writes them, as one would tell a colleague who is to make some up."""
    count: Count = 500
    """So many, if the teacher has so many different ones to give."""
    seeds: RecipeFile | None = None
    """Prompts that show what they are like; they are asked too."""
    axes: Annotated[dict[str, Values], Field(default_factory=dict)]
    """What varies, by name: a list of values, or a table that says what each value means."""
    cells: tuple[str, ...] = ()
    """Axes of which every combination gets the same number of prompts; left out, all of them."""
    without: tuple[dict[str, str], ...] = ()
    """Combinations that make no sense."""
    topics: Annotated[StrictInt, Field(ge=0, le=40)] = 12
    """Topics of each combination that the teacher thinks of before; 0, or an axis named topic, is none."""
    evolve: Share = 0.3
    """Share of the requests that start from a prompt that is there."""
    edge: Share = 0.05
    """Share of edge cases: hardly anything, contradictory, hostile, off topic."""
    novelty: Share = 0.3
    """A prompt of which fewer of its word triples are new is dropped."""
    near_duplicate: Share = 0.7
    """As prompts.near_duplicate, among these and against all others."""
    at_once: Annotated[StrictInt, Field(ge=1, le=20)] = 3
    """Prompts that the teacher writes in one answer."""
    temperature: Annotated[StrictFloat, Field(gt=0.0)] = 0.8
    top_p: Annotated[StrictFloat, Field(gt=0.0, le=1.0)] = 0.95
    longest: Annotated[StrictInt, Field(ge=20, le=8000)] = 600
    """Characters of a prompt."""

    @model_validator(mode="after")
    def axes_hold(self) -> SynthesizeSettings:
        for name, values in self.axes.items():
            if len(values) < 2 or len(set(values)) < len(values) or not all(one.strip() for one in (name, *values)):
                raise ValueError(f"axis '{name}' needs two or more values, all different")
        unknown = [name for name in self.cells if name not in self.axes]
        if unknown:
            raise ValueError(f"cells names '{unknown[0]}', which is no axis")
        for one in self.without:
            wrong = [f"{name} = '{value}'" for name, value in one.items() if value not in self.axes.get(name, ())]
            if wrong or not set(one) <= set(self.cell_axes):
                raise ValueError(f"without: {wrong[0] if wrong else one} is no combination of the cells' axes")
        count = prod(len(self.axes[name]) for name in self.cell_axes)
        if count * IN_A_CELL > self.count:
            raise ValueError(
                f"the axes make {count} combinations, too many for {self.count} prompts; say in cells which axes "
                "must be filled evenly"
            )
        if not self.combinations():
            raise ValueError("without leaves no combination of the axes")
        return self

    @property
    def cell_axes(self) -> tuple[str, ...]:
        """The axes whose combinations are filled."""
        return self.cells or tuple(self.axes)

    def combinations(self) -> list[dict[str, str]]:
        """Every combination that makes sense, by axis; one without any axis where there is none."""
        made: Any = product(*(self.axes[name] for name in self.cell_axes))
        found = [dict(zip(self.cell_axes, values, strict=True)) for values in made]
        return [one for one in found if not any(senseless.items() <= one.items() for senseless in self.without)]


class PromptsSettings(Table):
    """What is asked."""

    file: RecipeFile | None = "prompts.jsonl"
    """A file or a folder: our own rows, or what `format` names. With `synthesize`, none but one that is named."""
    format: Annotated[Format | None, LATER] = None
    """How the file is read; left out, its first records show it."""
    columns: Annotated[ColumnSettings | None, LATER] = None
    """For tables: which column is what."""
    limit: Count | None = None
    """Read so many of the file's prompts, evenly from all over it."""
    near_duplicate: Share = 0.9
    """Prompts at least this similar to an earlier one (Jaccard of character 4-grams) are dropped."""
    scrub: Annotated[StrictBool | None, LATER] = None
    """Replace personal data and secrets before a teacher sees them; left out, in logs alone."""
    synthesize: Annotated[SynthesizeSettings | None, LATER] = None
    """Prompts that the first teacher writes, behind those of the file."""

    @model_validator(mode="before")
    @classmethod
    def file_is_named_or_not(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("synthesize") is not None and "file" not in data:
            return {**data, "file": None}
        return data


class ToolsSettings(Table):
    """Tools that all prompts offer."""

    file: Annotated[RecipeFile | None, LATER] = None
    """A JSON list of tools as OpenAI writes them, on offer in every row that brings none of its own."""
    student: Annotated[StrictBool, LATER] = True
    """Whether the student is shown them too; else it learns them, and its prompt stays short."""

    results: Annotated[Literal["none", "table", "command", "teacher"], LATER] = "none"
    """Where the results of calls come from; `none` runs no tools: the first calls are the answer."""
    table: Annotated[RecipeFile | None, LATER] = None
    """For `table`: JSON lines with name, arguments and result of a call."""
    command: Annotated[tuple[str, ...] | None, LATER] = None
    """For `command`: reads {"name", "arguments"} as JSON and prints the result as JSON; no shell is involved."""
    command_seconds: Annotated[StrictFloat, Field(gt=0.0), LATER] = 10.0
    """... for at most so long a call ..."""
    command_memory_mb: Annotated[StrictInt, Field(ge=64), LATER] = 2048
    """... in so much memory."""
    steps: Annotated[Count, LATER] = 4
    """Answers with calls at the most, before a final one."""
    admissions: Annotated[tuple[str, ...], LATER] = (
        *("could not", "couldn't", "cannot", "can't", "unable", "fail", "error", "not possible", "not available"),
        *("unavailable", "not found", "sorry", "unfortunately", "did not work", "didn't work", "problem"),
    )
    """Words, in lower case, by which an answer admits that a tool has failed."""

    @property
    def are_run(self) -> bool:
        """Whether calls are run; otherwise they are the answer."""
        return self.results != "none"

    @model_validator(mode="after")
    def results_have_their_own(self) -> ToolsSettings:
        for key in ("table", "command"):
            if (self.results == key) != (getattr(self, key) is not None):
                raise ValueError(f"{key} belongs to results = '{key}', which needs it")
        return self

    @model_validator(mode="after")
    def has_file(self) -> ToolsSettings:
        if self.file is None and self.deciding():
            raise ValueError("the other keys of [tools] need file, which names the tools")
        return self


class UserSettings(Table):
    """A model that plays the user, and goes on with each conversation until its goal is reached."""

    turns: Annotated[StrictInt, Field(ge=0, le=30), LATER] = 0
    """Messages at the most that it writes behind those of a row; 0 is none: an answer ends the conversation."""
    goal: Annotated[str | None, Field(min_length=1), LATER] = None
    """What the user wants, in rows that bring no `goal` of their own."""
    personas: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], LATER] = ()
    """Who the user is, one of these by seed and row, in rows that bring no `persona` of their own."""
    temperature: Annotated[StrictFloat, Field(ge=0.0), LATER] = 0.7
    """Of what the user says; evaluate takes the most probable."""
    max_tokens: Annotated[Count, LATER] = 120
    """Longest message of the user, with what stands around it."""
    model: Annotated[str | None, LATER] = None
    """Who plays it, where it is not the first teacher."""
    backend: Annotated[Literal["llamacpp", "transformers", "mlx", "openai"], LATER] = "llamacpp"
    url: Annotated[str | None, LATER] = None
    """For `openai`: where the server's API begins."""
    api_key_env: Annotated[str, LATER] = "OPENAI_API_KEY"
    """For `openai`: the environment variable that holds the key."""
    plain_http: Annotated[StrictBool, LATER] = False
    """For `openai`: allow http to another machine."""
    licence: Annotated[str | None, LATER] = None
    """For `openai`: the licence of the server's model."""

    @model_validator(mode="after")
    def is_one_model(self) -> UserSettings:
        if self.model is None and self.model_fields_set & {"backend", "url", "api_key_env", "plain_http", "licence"}:
            raise ValueError("backend and url belong to a model of its own: name it")
        if (self.backend == "openai") != (self.url is not None):
            raise ValueError("url belongs to the 'openai' backend, which needs it")
        return self
