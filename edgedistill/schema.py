"""The schema of a recipe's answers, and, where it allows a finite set of them, the set: closed answers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

from .errors import InvalidInput
from .recipe import Recipe, TeachSettings

__all__ = ["LARGEST", "closed_answers", "kept_answers", "load_schema", "read_schema", "schema_validator"]

LARGEST = 256  # answers; a larger set is sampled under the grammar instead

# keys that say no more than these do; any other key may forbid answers in ways that are not looked into here
PLAIN = {"title", "description", "$schema", "$id", "$comment", "examples", "default"}
KNOWN = {
    "enum": PLAIN | {"enum", "type"},
    "const": PLAIN | {"const", "type"},
    "boolean": PLAIN | {"type"},
    "null": PLAIN | {"type"},
    "object": PLAIN | {"type", "properties", "required", "additionalProperties"},
    "choice": PLAIN | {"anyOf", "oneOf"},
}
TYPES: dict[Any, Any] = {
    "string": str,
    "boolean": bool,
    "null": type(None),
    "integer": int,
    "number": (int, float),
    "object": dict,
}


def load_schema(recipe: Recipe) -> dict[str, Any] | None:
    """The recipe's JSON Schema, or None where it has none; raises what `read_schema` raises."""
    if recipe.schema_file is None:
        return None
    return read_schema(recipe.file(recipe.schema_file), "Check schema_file in the recipe.")


def read_schema(path: Path, hint: str = "Name a file with a JSON Schema.") -> dict[str, Any]:
    """The JSON Schema in a file.

    Raises InvalidInput where it is not there (with the hint), is no schema, or refers to another file or address.
    """
    try:
        schema = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror}", hint) from error
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{path}: not JSON ({error})", "Mend the file.") from error
    if not isinstance(schema, dict):
        raise InvalidInput(f"{path}: a schema must be a JSON object", "Mend the file.")
    if re.search(r'"\$(ref|dynamicRef)":\s*"[^#]', json.dumps(schema)):
        raise InvalidInput(f"{path}: refers to another file or address", "Write the schema into this one file.")
    return schema


def kept_answers(schema: dict[str, Any] | None, settings: TeachSettings) -> tuple[str, ...] | None:
    """The closed set whose probabilities a teacher keeps instead of writing one answer; None where it writes one."""
    is_asked = settings.closed and settings.samples == 1 and settings.targets == "none"
    return closed_answers(schema) if is_asked else None


def schema_validator(schema: dict[str, Any] | None) -> Callable[[Any], bool] | None:
    """A check of JSON values against the schema; None where there is no schema."""
    if schema is None:
        return None
    import jsonschema_rs

    try:
        validator = jsonschema_rs.validator_for(schema)
    except (ValueError, jsonschema_rs.ValidationError) as error:
        raise InvalidInput(f"schema: {str(error).splitlines()[0]}", "Mend the schema.") from error
    return validator.is_valid


def closed_answers(schema: dict[str, Any] | None, largest: int = LARGEST) -> tuple[str, ...] | None:
    """Every answer that the schema allows, as compact JSON in the order of its properties; None where not finite.

    None too where there are more than `largest`, or where the schema says something that is not understood here:
    enums, constants, booleans, null, choices of these, and objects of these are.

    >>> fields = {"a": {"enum": ["x", "y"]}, "b": {"type": "boolean"}}
    >>> whole = {"type": "object", "properties": fields, "required": ["a", "b"], "additionalProperties": False}
    >>> closed_answers(whole)[1]
    '{"a":"x","b":false}'
    >>> closed_answers({"type": "string"}) is None
    True
    """
    if schema is None:
        return None
    values = _values(schema, largest)
    if values is None:
        return None
    texts = dict.fromkeys(json.dumps(value, ensure_ascii=False, separators=(",", ":")) for value in values)
    return tuple(texts) if 0 < len(texts) <= largest else None


def _values(schema: Any, largest: int) -> list[Any] | None:
    kind = _kind(schema)
    if kind is None or not set(schema) <= KNOWN[kind]:
        return None
    if kind == "enum":
        return [value for value in schema["enum"] if _of_type(value, schema.get("type"))]
    if kind == "const":
        return [schema["const"]]
    if kind == "boolean":
        return [True, False]
    if kind == "null":
        return [None]
    if kind == "choice":
        branches = [_values(branch, largest) for branch in schema.get("anyOf") or schema["oneOf"]]
        return None if None in branches else [value for branch in branches for value in branch or ()]
    return _objects(schema, largest)


def _kind(schema: Any) -> str | None:
    if not isinstance(schema, dict):
        return None
    for key, kind in (("enum", "enum"), ("const", "const"), ("anyOf", "choice"), ("oneOf", "choice")):
        if key in schema:
            return kind
    return schema["type"] if schema.get("type") in ("boolean", "null", "object") else None


def _objects(schema: dict[str, Any], largest: int) -> list[Any] | None:
    properties: dict[str, Any] = schema.get("properties", {})
    required = set(schema.get("required", ()))
    if schema.get("additionalProperties", True) is not False or not required <= set(properties):
        return None
    columns = []
    count = 1
    for name, inner in properties.items():
        values = _values(inner, largest)
        if values is None:
            return None
        column: list[Any] = [(name, value) for value in values]
        if name not in required:
            column.append(None)
        columns.append(column)
        count *= len(column)
        if count > largest:
            return None
    return [dict(pair for pair in row if pair is not None) for row in product(*columns)]


def _of_type(value: Any, name: Any) -> bool:
    if name is None:
        return True
    names = name if isinstance(name, list) else [name]
    return any(
        isinstance(value, TYPES.get(one, object)) and not (isinstance(value, bool) and one in ("integer", "number"))
        for one in names
    )
