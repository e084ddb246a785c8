"""`edgedistill curate RECIPE --explain ROW`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ..errors import InvalidInput
from ..recipe import load_recipe
from ..run import Run
from ..stages.explained import explained

__all__ = ["show_explained"]

LONGEST = 200


def show_explained(recipe: Path, row: str, as_json: bool, runs: Path) -> None:
    """Print what each rule says to a row of the recipe's run, and what became of it; nothing is run or changed."""
    loaded = load_recipe(recipe)
    run = Run(runs / loaded.name)
    if not (run.record("teach") or {}).get("finished"):
        raise InvalidInput(f"{run.path}: no teacher has answered yet", f"Run it first: edgedistill teach {recipe}")
    found = explained(loaded, run, row)
    click.echo(json.dumps(found, ensure_ascii=False)) if as_json else _print(found)


def _print(found: dict[str, Any]) -> None:
    click.echo(f"{found['id']}  {_short(found['prompt'])}")
    for one in found["answers"]:
        click.echo(f"  teacher {one['teacher']}, sample {one['sample']}: {_short(one['text'])}")
        for rule, said in one["rules"].items():
            click.echo(f"    {rule:<22}{'-' if said is None else said}")
        if "judge" in one:
            click.echo(f"    {'judge':<22}worth {one['judge']:.2f}, from 0 to 1")
        if "wrong" in one:
            click.echo(f"    {one['wrong'][0]:<22}{_short(one['wrong'][1])}")
    together = found["combined"]
    click.echo(f"  taken: {_short(together if isinstance(together, str) else ' | '.join(together))}")
    outcome = found["outcome"]
    if outcome["file"] is None:
        click.echo("  curate has not seen it yet")
        return
    if "suspicious" in outcome:
        doubt = outcome["suspicious"]
        shares = f"{doubt['instead_share']:.2f} against {doubt['label_share']:.2f}"
        field = f"{doubt['field']}: " if doubt["field"] else ""
        click.echo(
            f"  suspicious label, number {doubt['rank']}: {field}{doubt['instead']} is likelier than "
            f"{_short(doubt['label'])}, {shares}; {doubt['outcome']}"
        )
    why = [outcome[key] for key in ("reason", "what", "of_text", "of") if outcome.get(key)]
    click.echo(f"  now in {outcome['file']}{': ' + '; '.join(map(_short, why)) if why else ''}")


def _short(text: str) -> str:
    plain = "".join(sign if sign.isprintable() else " " for sign in text)
    return plain if len(plain) <= LONGEST else f"{plain[: LONGEST - 1]}…"
