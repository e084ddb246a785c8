"""The settings of curate: which answers are worth learning, and who says so."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StrictBool, StrictFloat, StrictInt, model_validator

from .tables import LATER, Count, Share, Table

__all__ = ["CurateSettings", "NoiseSettings", "RubricSettings", "Rule"]

# the rules of `curation.rules` that a recipe may do without
Rule = Literal[
    "schema",
    "refusal",
    "repetition",
    "special tokens",
    "invisible characters",
    "secret",
    "personal data",
    "wrong language",
    "turn limit",
    "user gave up",
]


class RubricSettings(Table):
    """A model that says how good an answer is by itself: one of the recipe's teachers, or a model of its own."""

    teacher: Count = 1
    """Which of the recipe's teachers, where `model` names no other."""
    model: str | None = None
    backend: Literal["llamacpp", "transformers", "mlx", "openai"] = "llamacpp"
    url: str | None = None
    api_key_env: str = "OPENAI_API_KEY"
    plain_http: StrictBool = False
    rubric: str = "Is the answer right, complete and to the point?"
    """What is asked of every answer."""
    verdict: Literal["score", "pass", "both"] = "score"
    """What is said of it: 0 to 10, whether it passes, or both, where one that does not pass is worth 0."""
    least: Share = 0.5
    """The least that an answer must be worth, from 0 to 1."""

    @model_validator(mode="after")
    def is_one_model(self) -> RubricSettings:
        if self.model is None and self.model_fields_set & {"backend", "url", "api_key_env", "plain_http"}:
            raise ValueError("backend and url belong to a model of its own: name it")
        if self.model is not None and "teacher" in self.model_fields_set:
            raise ValueError("teacher and model name two judges: leave one out")
        if (self.backend == "openai") != (self.url is not None):
            raise ValueError("url belongs to the 'openai' backend, which needs it")
        return self


class NoiseSettings(Table):
    """What is done about labels that the other rows speak against."""

    label: Literal["answer", "tags"] = "answer"
    """What is a label: the answer, of a JSON object each field, or the row's tags together."""
    action: Literal["drop", "ask again", "keep"] = "keep"
    """Suspicious rows are thrown out, get more answers of the first teacher and a vote, or are only listed."""
    times: Annotated[StrictFloat, Field(gt=1.0)] = 10.0
    """How many times as probable other labels must be."""
    samples: Annotated[StrictInt, Field(ge=1, le=64)] = 4
    """For `ask again`: new answers to each suspicious row, which vote together with the one that is there ..."""
    temperature: Annotated[StrictFloat, Field(gt=0.0)] = 0.7
    """... drawn at this temperature."""

    @model_validator(mode="after")
    def tags_are_no_answer(self) -> NoiseSettings:
        if self.label == "tags" and self.action == "ask again":
            raise ValueError("no teacher is asked for tags: drop such rows, or keep them")
        return self


# the scorers of `evaluate` that tell a right answer from a wrong one without anybody's help
RightBy = Literal["exact", "json", "label", "regex", "tool", "number", "choice", "tests"]


class CurateSettings(Table):
    """Which answers are worth learning."""

    combine: Literal["vote", "agree", "best", "shortest", "union"] = "vote"
    """What becomes of several answers (samples, teachers): the most frequent, only where all agree, the best by
    `verifier`, `judge` or schema, the shortest that is right, or every different one."""
    right_by: Annotated[RightBy | None, LATER] = None
    """The scorer that holds an answer against the `expected` of its prompt's row; wrong ones are not learned."""
    vote_by: Literal["answer", "field"] = "answer"
    """Whether a vote is on whole answers, or on each field of a JSON object."""
    agreement: Share = 0.0
    """For `vote`: the least share of the votes that an answer needs."""
    confidence: Share = 0.0
    """For closed answers: the least probability that the teacher gives its answer."""
    reasoning: Annotated[Literal["keep", "strip", "shorten"], LATER] = "keep"
    """What becomes of the trace before an answer: learned too, taken out, or written again by the teacher, shorter."""
    reasoning_tokens: Annotated[Count, LATER] = 100
    """For `shorten`: most tokens of the teacher that an answer may have with its trace."""
    reasoning_over: Annotated[Literal["keep", "drop"], LATER] = "keep"
    """For `shorten`: what becomes of a longer one of which no shorter one holds."""
    verifier: tuple[str, ...] | None = None
    """A command that reads {"messages", "answer"} as JSON and prints a score or `false`; no shell is involved. With
    `best` it chooses; otherwise it passes what was chosen."""
    verifier_seconds: Annotated[StrictFloat, Field(gt=0.0), LATER] = 10.0
    """... for at most so long an answer ..."""
    verifier_memory_mb: Annotated[StrictInt, Field(ge=64), LATER] = 2048
    """... in so much memory."""
    judge: Annotated[RubricSettings | None, LATER] = None
    """A model that says how good each answer is. With `best` and no verifier it chooses; otherwise it passes."""
    near_duplicate: Share = 0.85
    """As prompts.near_duplicate; lower, so that a stricter screen does not cost the teacher's answers."""
    eval_overlap: Share = 0.8
    """Prompts at least this similar to one of the eval set are kept out of training."""
    valid_share: Annotated[StrictFloat, Field(ge=0.0, lt=1.0)] = 0.05
    """Share of the kept rows that measures the loss during training, picked by hash."""
    refusals: tuple[str, ...] = ("i'm sorry", "i am sorry", "i cannot", "i can't", "as an ai")
    """Beginnings that mark an answer as a refusal, in lower case."""
    repetition: Annotated[Share, LATER] = 0.12
    """An answer that compresses to less than this share of its bytes says the same over and over; 0 does not look."""
    languages: Annotated[tuple[str, ...], LATER] = ()
    """ISO 639-1 codes of the languages that answers may be in; empty does not look."""
    allow: Annotated[tuple[Literal["e-mail", "IBAN", "card", "phone"], ...], LATER] = ()
    """Kinds of personal data that answers may hold although the prompt does not."""
    length_factor: Annotated[StrictFloat, Field(ge=0.0), LATER] = 0.0
    """Answers so many times as long, or as short, as the median of their cell are thrown out; 0 does not look."""
    per_cell: Annotated[Count | None, LATER] = None
    """At most so many rows of each cell are kept, picked by hash."""
    cell: Annotated[Literal["tags", "answer"], LATER] = "tags"
    """What the rows of a cell have in common."""
    noise: Annotated[NoiseSettings | None, LATER] = None
    """Look for wrong labels: closed answers, or tags, that the other rows speak against."""
    skip: Annotated[tuple[Rule, ...], LATER] = ()
    """Rules that are not asked."""

    @property
    def judge_chooses(self) -> bool:
        """Whether the judge takes the best of several answers, which else only have to be good enough."""
        return self.judge is not None and self.combine == "best" and self.verifier is None

    @property
    def combining(self) -> CurateSettings:
        """How several answers are combined before a judge sees them: one that chooses sees all of them."""
        return self.model_copy(update={"combine": "union"}) if self.judge_chooses else self

    @model_validator(mode="after")
    def noise_has_one_answer(self) -> CurateSettings:
        if self.noise is not None and self.combine == "union":
            raise ValueError("noise looks for the one right answer to a prompt, combine = 'union' keeps several")
        return self

    @model_validator(mode="after")
    def shortest_of_the_right(self) -> CurateSettings:
        if self.combine == "shortest" and self.right_by is None and self.verifier is None:
            raise ValueError('combine = "shortest" needs right_by or verifier: the shortest answer may be wrong')
        return self
