"""quantize: make the sizes that the recipe asks for, and measure what each has lost."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..llamacpp.comparison import Comparison, Side, compare
from ..llamacpp.divergence import Divergence
from ..recipe import Recipe
from ..run import Progress, Run, cores, write_whole
from ..students.encode import Encoder
from .export import F16_NAME
from .healing import heal_quants
from .held_out import WORST, HeldOut, held_out, quoted, told_by
from .quantizing import QuantizingTask, make, pick

__all__ = ["quantize"]


def quantize(recipe: Recipe, run: Run, out: Path, progress: Progress) -> dict[str, Any]:
    """Write `<name>-<QUANT>.gguf` for each type, and `quality.json`: how far teacher, student and quants are apart.

    The importance matrix that they were made with is left as `imatrix.gguf`.
    """
    source = run.folder("export") / F16_NAME
    encoder = Encoder(run.folder("export") / "student")
    rows = held_out(recipe, run, encoder, progress)
    task = QuantizingTask(source, out / recipe.name, recipe.quantize, rows.learnt, "rows of the training set")
    made = make(task, progress)
    paths = {name: one.path for name, one in made.items()}
    healing = heal_quants(recipe, run, paths, rows.texts, progress) if recipe.quantize.heal else {}
    quality = measured(source, paths, rows, encoder, progress)
    for name, one in made.items():
        quality[name]["tensor_types"] = dict(one.tensor_types)
    for name, found in healing.items():
        quality[name]["healed"] = found
    if recipe.quantize.is_auto:
        made = pick(made, quality)
    write_whole(out / "quality.json", json.dumps(quality, indent=1, ensure_ascii=False).encode())
    figures = {name: {key: quality[name][key] for key in ("bytes", "f16_quant")} for name in made}
    return {"files": {name: one.path.name for name, one in made.items()}, "quality": figures}


def measured(
    source: Path, made: Mapping[str, Path], rows: HeldOut, encoder: Encoder, progress: Progress
) -> dict[str, Any]:
    """What each quant has lost on the held-out rows, and where: all models go over the same tokens in one pass."""
    teacher, texts = rows.teacher, rows.texts
    sides = [Side(path, texts) for path in (source, *made.values())]
    quants = range(1, len(sides))
    pairs = [(0, quant) for quant in quants]
    if teacher.model is not None:
        sides.append(Side(teacher.model, teacher.texts))
        pairs += [(len(sides) - 1, student) for student in range(len(made) + 1)]
    kept_for = list(range(len(made) + 1)) if teacher.kept else []
    found = compare(sides, Comparison(pairs, kept_for, teacher.kept), cores(), progress)
    lost, from_teacher = found.pairs[: len(made)], [*found.pairs[len(made) :], *found.kept]
    quality, ids = {}, [row.example.id for row in rows.rows]
    for number, (name, path) in enumerate(made.items()):
        steps: dict[str, Divergence] = {"f16_quant": lost[number]}
        if from_teacher:
            steps = {"teacher_f16": from_teacher[0], **steps, "teacher_quant": from_teacher[number + 1]}
        quality[name] = {
            "bytes": path.stat().st_size,
            "rows": len(rows.rows),
            "of": rows.of,
            **{step: one.summary() for step, one in steps.items()},
            "worst": quoted(lost[number], texts, ids, told_by(encoder), WORST),
        }
    return quality
