"""What a table of a recipe is, and the kinds of values in it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictFloat, StrictInt

__all__ = ["FILE", "LATER", "Count", "Price", "RecipeFile", "Share", "Table"]

FILE = "a file of the recipe"
LATER = "a key of a later version"
"""Marks a key that, at its default, leaves what is made as it was before there was such a key."""
RecipeFile = Annotated[str, FILE]
Share = Annotated[StrictFloat, Field(ge=0.0, le=1.0)]
Count = Annotated[StrictInt, Field(ge=1)]
Price = Annotated[StrictFloat, Field(ge=0.0)]


class Table(BaseModel):
    """One table of a recipe: frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    def deciding(self) -> dict[str, Any]:
        """What the table says about what is made, as JSON, for the keys of stages: a key marked `LATER` is left out at
        its default, so that runs of an earlier version stay what they are."""
        fields = type(self).model_fields
        unchanged = {
            name for name, info in fields.items() if LATER in info.metadata and getattr(self, name) == info.default
        }
        return self.model_dump(mode="json", exclude=unchanged)
