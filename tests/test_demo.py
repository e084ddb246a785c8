"""The demo on the real models, in small: about 100 commands, a shorter prompt for the teacher, fewer rows to judge by.

It proves that the chain holds on real weights, that answers are valid and within the latency band; a student that has
seen 100 commands is not judged by its accuracy.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

RECIPE = Path(__file__).parent.parent / "recipes" / "home-commands"
ROWS = {"prompts.jsonl": 100, "examples.jsonl": 16, "eval.jsonl": 40, "edge.jsonl": 10}
BARS = "[accept]\nvalid = 0.9\nagreement = 0.0\nexact_of_teacher = 0.0\nmust_pass = false\nspeedup = 2.0\n"


@pytest.fixture(scope="module")
def short_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "home-commands"
    shutil.copytree(RECIPE, folder)
    for name, count in ROWS.items():
        lines = (RECIPE / name).read_text(encoding="utf-8").splitlines(keepends=True)
        (folder / name).write_text("".join(lines[:count]), encoding="utf-8")
    text = (RECIPE / "recipe.toml").read_text(encoding="utf-8")
    text = re.sub(r"\[accept\].*", BARS, text, flags=re.DOTALL)
    (folder / "recipe.toml").write_text(text, encoding="utf-8")
    return folder


def edgedistill(*arguments: str) -> tuple[int, Any]:
    command = [sys.executable, "-m", "edgedistill.cli", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_demo_answers_in_valid_json_within_the_band_and_a_second_run_redoes_nothing(short_recipe: Path) -> None:
    runs = short_recipe.parent / "runs"
    code, found = edgedistill("run", str(short_recipe), "--runs", str(runs))

    assert (code, found["verdict"]) == (0, "accepted"), found["reasons"]
    chosen = next(one for one in found["candidates"] if one["name"] == found["chosen"])
    assert chosen["eval"]["valid"] >= 0.99
    assert chosen["latency_ms"]["e2e"]["p95"] <= 500
    assert {one["kind"] for one in found["candidates"]} == {"teacher", "base", "student"}

    records = {path: path.read_bytes() for path in runs.rglob("stage.json")}
    assert len(records) == 9
    code, again = edgedistill("run", str(short_recipe), "--runs", str(runs))
    assert (code, again["chosen"]) == (0, found["chosen"])
    assert {path: path.read_bytes() for path in records} == records

    packaged = next((runs / "home-commands" / "package").glob("*/SHA256SUMS")).parent
    assert edgedistill("package", "--verify", str(packaged))[0] == 0
