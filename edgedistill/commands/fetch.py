"""`edgedistill fetch`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import click

from ..models import Format, fetch
from .progress import Bars

__all__ = ["fetch_model"]


def fetch_model(model: str, wanted: str, offline: bool, as_json: bool) -> None:
    """Bring a model to this machine and print where it is."""
    with Bars(quiet=False) as bars:
        weights = fetch(model, (cast(Format, wanted),), offline, bars)
    found = {
        "name": weights.name,
        "path": str(Path(weights.path)),
        "sha256": weights.sha256,
        "licence": weights.licence,
        "source": weights.source,
        "size_bytes": weights.size_bytes,
    }
    click.echo(json.dumps(found) if as_json else str(weights.path))
