"""The tables of a recipe that say what the student must hold: sizes, scores, times and the bars for them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StrictBool, StrictFloat, StrictInt, field_validator

from .explain import did_you_mean
from .tables import Count, RecipeFile, Share, Table

__all__ = ["QUANT_TYPES", "AcceptSettings", "BenchSettings", "EvaluateSettings", "QuantizeSettings"]

QUANT_TYPES = ("Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "Q4_0", "Q3_K_M", "Q2_K")


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
