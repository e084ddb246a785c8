"""What a table of a recipe is, and the kinds of values in it."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StrictFloat, StrictInt

__all__ = ["FILE", "Count", "Price", "RecipeFile", "Share", "Table"]

FILE = "a file of the recipe"
RecipeFile = Annotated[str, FILE]
Share = Annotated[StrictFloat, Field(ge=0.0, le=1.0)]
Count = Annotated[StrictInt, Field(ge=1)]
Price = Annotated[StrictFloat, Field(ge=0.0)]


class Table(BaseModel):
    """One table of a recipe: frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)
