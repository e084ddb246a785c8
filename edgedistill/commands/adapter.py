"""`edgedistill adapter convert`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import click

from ..students.adapter import Form, convert_adapter

__all__ = ["convert"]


def convert(source: Path, out: Path, to: str, as_json: bool) -> None:
    """Write an adapter in the other form and print what it is."""
    adapter = convert_adapter(source, out, cast(Form, to))
    kind = "dora" if adapter.is_dora else "lora"
    if as_json:
        found = {"folder": str(out), "form": to, "kind": kind, "rank": adapter.rank, "scale": adapter.scale}
        click.echo(json.dumps({**found, "modules": len(adapter.modules)}))
    else:
        click.echo(f"{out}: {kind} of rank {adapter.rank} on {len(adapter.modules)} layers, in the form of {to}")
