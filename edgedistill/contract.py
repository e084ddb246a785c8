"""The tables of a recipe that say what the student must hold: sizes, scores, times and the bars for them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StrictBool, StrictFloat, StrictInt, ValidationError, field_validator, model_validator

from .errors import InvalidInput
from .explain import did_you_mean
from .tables import LATER, Count, RecipeFile, Table

__all__ = [
    "NEED_IMPORTANCE",
    "QUANT_TYPES",
    "AcceptSettings",
    "BenchSettings",
    "EvaluateSettings",
    "JudgeSettings",
    "QuantizeSettings",
]

Bar = Annotated[StrictFloat, Field(ge=0.0, lt=1.0)]  # no number of rows shows that all of them always pass

QUANT_TYPES = (
    "Q8_0",
    "Q6_K",
    "Q5_K_M",
    "Q5_K_S",
    "Q5_1",
    "Q5_0",
    "Q4_K_M",
    "Q4_K_S",
    "Q4_1",
    "Q4_0",
    "IQ4_NL",
    "IQ4_XS",
    "Q3_K_L",
    "Q3_K_M",
    "Q3_K_S",
    "IQ3_M",
    "IQ3_S",
    "IQ3_XS",
    "IQ3_XXS",
    "Q2_K",
    "Q2_K_S",
    "IQ2_M",
    "IQ2_S",
    "IQ2_XS",
    "IQ2_XXS",
    "IQ1_M",
    "IQ1_S",
)
NEED_IMPORTANCE = ("IQ3_XS", "IQ3_XXS", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S", "Q2_K_S")
"""Types whose mixture has a tensor that llama.cpp quantizes with an importance matrix only."""
AUTO = ("auto",)
TRIED = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_XS", "Q3_K_M")
"""What `types = "auto"` tries."""


class QuantizeSettings(Table):
    """Which sizes are made, and how."""

    types: Annotated[tuple[str, ...], Field(min_length=1)] = ("Q8_0", "Q4_K_M")
    """`"auto"` tries some, and keeps those that no other one beats in size, quality and speed together."""
    imatrix: Annotated[StrictBool, LATER] = True
    """Weigh each weight by how much it matters on rows of the training set."""
    tensor_types: Annotated[dict[str, str] | None, LATER] = None
    """Regular expressions for names of tensors, and the ggml types that these have in every size."""
    growth: Annotated[StrictFloat, Field(ge=1.0, le=2.0), LATER] = 1.0
    """Above 1, bits move to the tensors that matter most, up to so many times the plain type's size."""
    heal: Annotated[StrictBool, LATER] = False
    """Teach each quant beyond `export.max_kl` what the 16-bit student says; keep what measures better."""
    heal_steps: Annotated[Count, LATER] = 100
    """Optimizer steps of that, of `train.batch_size` rows each, in whole passes over the rows."""
    heal_learning_rate: Annotated[StrictFloat, Field(gt=0.0), LATER] = 2e-3
    """Of norms and biases, relative to their own size."""

    @field_validator("types", mode="before")
    @classmethod
    def listed(cls, types: object) -> object:
        return AUTO if types == "auto" else types

    @field_validator("types")
    @classmethod
    def known(cls, types: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(types)) < len(types):
            raise ValueError("a quant type is named twice")
        for name in types if types != AUTO else ():
            if name not in QUANT_TYPES:
                raise ValueError(f"unknown quant type '{name}'{did_you_mean(name, QUANT_TYPES)}")
        return types

    @model_validator(mode="after")
    def weighed(self) -> QuantizeSettings:
        poor = [name for name in self.types if name in NEED_IMPORTANCE]
        if poor and not self.imatrix:
            raise ValueError(f"{poor[0]} needs an importance matrix: leave imatrix out")
        if self.tensor_types and self.growth > 1:
            raise ValueError("growth finds the tensors' types itself: leave tensor_types or growth out")
        return self

    @classmethod
    def of_options(cls, **wanted: object) -> QuantizeSettings:
        """Settings from a command's options. Raises InvalidInput where they break a rule."""
        try:
            return cls.model_validate(wanted)
        except ValidationError as error:
            raise InvalidInput(error.errors()[0]["msg"].removeprefix("Value error, "), "Mend the options.") from error

    @property
    def is_auto(self) -> bool:
        """Whether the measurement decides which types are kept."""
        return self.types == AUTO

    @property
    def made(self) -> tuple[str, ...]:
        """The types that are made, whether or not they are kept."""
        return TRIED if self.is_auto else self.types


class JudgeSettings(Table):
    """A model that says which of two answers is better. Keys are those of a teacher."""

    backend: Literal["llamacpp", "transformers", "mlx", "openai"] = "llamacpp"
    model: str
    criteria: str = "Which answer is more correct and more useful?"
    """What is asked of every pair."""
    url: str | None = None
    api_key_env: str = "OPENAI_API_KEY"
    plain_http: StrictBool = False

    @model_validator(mode="after")
    def has_url(self) -> JudgeSettings:
        if (self.backend == "openai") != (self.url is not None):
            raise ValueError("url belongs to the 'openai' backend, which needs it")
        return self


class EvaluateSettings(Table):
    """What is measured, on what."""

    file: RecipeFile = "eval.jsonl"
    edge_file: RecipeFile | None = None
    constrained: StrictBool = True
    """Decode every candidate under the schema's grammar, as the packaged server does."""
    max_tokens: Count = 256
    scorer: Literal[
        "exact", "json", "label", "regex", "chrf", "f1", "tool", "number", "choice", "tests", "command", "judge", "goal"
    ] = "exact"
    """How an answer is scored, from 0 to 1."""
    right_from: Annotated[StrictFloat, Field(gt=0.0, le=1.0)] = 1.0
    """The score from which on a row counts as right."""
    command: tuple[str, ...] | None = None
    """For `command`: reads {"messages", "answer", "expected", "tags"} as JSON, prints a score; no shell is involved."""
    command_seconds: Annotated[StrictFloat, Field(gt=0.0)] = 10.0
    """... for at most so long an answer, and so the code for `tests` ..."""
    command_memory_mb: Count = 2048
    """... in so much memory."""
    judge: JudgeSettings | None = None
    """For `judge`: the model that compares."""
    whole_prompt: StrictBool = True
    """Ask the 16-bit student with the teacher's whole prompt too: whether its own short one loses anything."""

    @model_validator(mode="after")
    def scorer_has_its_own(self) -> EvaluateSettings:
        for key in ("command", "judge"):
            if (self.scorer == key) != (getattr(self, key) is not None):
                raise ValueError(f"{key} belongs to scorer = '{key}', which needs it")
        return self


class BenchSettings(Table):
    """The latency target, and how it is measured."""

    target_ms: Annotated[tuple[StrictFloat, StrictFloat], Field()] = (100.0, 500.0)
    """From "no need to be faster" to "must not be slower", in milliseconds."""
    metric: Literal["e2e", "ttft"] = "e2e"
    """What the target is for: the whole answer, or its first text."""
    percentile: Literal[50, 90, 95, 99] = 95
    requests: Annotated[StrictInt, Field(ge=20)] | None = None
    """The most distinct prompts that are timed; it ends as soon as the verdict stands. Left out, as many as prove the
    percentile with 6 of them over the target, as far as the files hold them."""
    warmup: Count = 5
    """Prompts that are answered before, and thrown away."""
    prompt_tokens: Count | None = None
    """Tokens of every prompt as a whole; left out, the prompts are the eval set's own."""
    output_tokens: Count | None = None
    """Tokens of every answer, whatever the model would write; left out, answers end by themselves."""
    cache: Literal["warm", "cold", "cached-prefix"] = "cached-prefix"
    """What a request finds: the model and what all prompts begin with, the model alone (`warm`), or not even that."""
    threads: Annotated[StrictInt, Field(ge=0)] = 0
    """Threads that compute, here and in the packaged server; 0 is all physical cores here, and its own choice there."""
    skip_forced: Annotated[StrictBool, LATER] = False
    """Time GGUFs as `edgedistill answer` decodes under a schema: tokens that can only be one come in one chunk."""

    @model_validator(mode="after")
    def skipping_what_is_forced(self) -> BenchSettings:
        if self.skip_forced and self.output_tokens:
            raise ValueError("skip_forced: answers of a stated length are under no schema, which would force tokens")
        return self

    @field_validator("target_ms")
    @classmethod
    def ordered(cls, target: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= target[0] < target[1]:
            raise ValueError("target_ms must be [low, high] with 0 <= low < high")
        return target


class AcceptSettings(Table):
    """When a candidate is good enough. A bar at 0 is no bar.

    A score's bar is what you allow at the least: it is passed when the eval rows show, at `confidence`, that the
    candidate is above it.
    """

    confidence: Annotated[StrictFloat, Field(ge=0.5, lt=1.0)] = 0.95
    """How sure the rows must make us, one-sided, of every bar on a score."""
    valid: Bar = 0.95
    """Share of answers that match the schema (or are not empty, where there is none)."""
    agreement: Bar = 0.0
    """Share of answers equal to the teacher's."""
    score: Bar = 0.0
    """Mean score (by `evaluate.scorer`: by default, share of right answers)."""
    exact_of_teacher: Annotated[StrictFloat, Field(ge=0.0)] = 0.9
    """Mean score relative to the teacher's own, compared row by row."""
    of_whole_prompt: Annotated[StrictFloat, Field(ge=0.0)] = 0.9
    """Mean score of the 16-bit student with its own prompt, relative to the same student's with the teacher's whole
    prompt, compared row by row."""
    must_pass: StrictBool = True
    """Every row marked `must_pass` is answered right."""
    speedup: Annotated[StrictFloat, Field(ge=0.0)] = 1.0
    """Times faster than the teacher, end to end, at the median."""
    max_bytes: Count | None = None
    """Largest file."""
    max_memory_bytes: Count | None = None
    """Highest peak of memory while it answers."""
