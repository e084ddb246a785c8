"""A recipe that does not hold is refused with every fault, its path and what was meant."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from edgedistill import contract, learning, prompting, vetting
from edgedistill import recipe as recipe_module
from edgedistill.errors import InvalidInput
from edgedistill.explain import did_you_mean
from edgedistill.recipe import TABLES, Recipe, load_recipe
from edgedistill.schema import load_schema

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
SHIPPED = sorted(RECIPES.rglob("recipe.toml"))
LEAST = """
name = "least"
[teacher]
model = "t.gguf"
[student]
model = "s"
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return path


def refused(tmp_path: Path, text: str) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        load_recipe(write(tmp_path, text))
    assert str(tmp_path / "recipe.toml") in caught.value.message
    assert caught.value.hint
    return caught.value


def test_two_models_and_a_name_are_a_recipe(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, LEAST))
    assert recipe.name == "least"
    assert recipe.teach.temperature == 0.0
    assert recipe.path == tmp_path / "recipe.toml"
    assert recipe.file("prompts.jsonl") == tmp_path / "prompts.jsonl"


def test_a_folder_stands_for_the_recipe_in_it(tmp_path: Path) -> None:
    write(tmp_path, LEAST)
    assert load_recipe(tmp_path) == load_recipe(tmp_path / "recipe.toml")


def test_a_recipe_cannot_be_changed(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, LEAST))
    with pytest.raises(ValidationError):
        recipe.seed = 1
    with pytest.raises(ValidationError):
        recipe.train.epochs = 1


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("[train]\nlearning_rat = 1e-3", "unknown key 'train.learning_rat'. Did you mean 'learning_rate'?"),
        ("[traim]\nepochs = 3", "unknown key 'traim'. Did you mean 'train'?"),
        ("[accept]\nzzz = 1.0", "unknown key 'accept.zzz'"),
        ('[quantize]\ntypes = ["Q4_K"]', "unknown quant type 'Q4_K'. Did you mean 'Q4_K_"),
        ("[quantize]\ntypes = []", "quantize.types: "),
        ("[train]\nepochs = 0", "train.epochs: "),
        ('[train]\nepochs = "3"', "train.epochs: "),
        ("[train]\nepochs = 2.5", "train.epochs: "),
        ("[train]\nlearning_rate = -1.0", "train.learning_rate: "),
        ('[train]\nmethod = "prefix"', "train.method: "),
        ("[bench]\ntarget_ms = [500, 100]", "target_ms must be [low, high]"),
        ("[bench]\ntarget_ms = [500]", "bench.target_ms"),
        ("[bench]\npercentile = 96", "bench.percentile: "),
        ("[bench]\nskip_forced = true\noutput_tokens = 9", "skip_forced: answers of a stated length"),
        ("[accept]\nvalid = 1.5", "accept.valid: "),
        ("[evaluate]\nconstrained = 1", "evaluate.constrained: "),
        ('[export]\nversion = "latest"', "export.version: "),
    ],
)
def test_a_wrong_setting_is_refused_with_its_path(tmp_path: Path, line: str, words: str) -> None:
    message = refused(tmp_path, f"{LEAST}\n{line}\n").message
    assert words in message
    assert "\n" not in message


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "white space", "x" * 65])
def test_a_name_that_is_no_folder_name_is_refused(tmp_path: Path, name: str) -> None:
    assert "name: " in refused(tmp_path, LEAST.replace("least", name)).message


def test_all_problems_are_listed_at_once(tmp_path: Path) -> None:
    error = refused(tmp_path, 'nam = "x"\n[teacher]\nmodell = "t"\n[train]\nepochs = 0\n')
    lines = error.message.splitlines()
    assert len(lines) == 6
    for words in ("'nam'", "'name'", "'student'", "'teacher.model'", "'teacher.modell'. Did you mean", "train.epochs"):
        assert any(words in line for line in lines), words
    assert error.hint.startswith("6 problems")


@pytest.mark.parametrize("text", ["name = ", "[teacher\n", 'name = "a"\nname = "b"'])
def test_what_is_no_toml_is_refused_with_its_place(tmp_path: Path, text: str) -> None:
    assert "(at " in refused(tmp_path, text).message


def test_a_recipe_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"none/recipe\.toml: No such file") as caught:
        load_recipe(tmp_path / "none" / "recipe.toml")
    assert "edgedistill init" in caught.value.hint


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_bytes(b'name = "\xff"')
    with pytest.raises(InvalidInput, match=r"recipe\.toml"):
        load_recipe(tmp_path)


@pytest.mark.parametrize("secret", ["sk-" + "a1" * 12, "hf_" + "A1" * 12, "AKIA" + "A1" * 8, "ghp_" + "a1" * 12])
@pytest.mark.parametrize(
    "place", ['description = "{}"', '[teach]\n[teacher.x]\nkey = "{}"', '[curate]\nrefusals = ["{}"]']
)
def test_a_secret_is_refused_and_not_repeated(tmp_path: Path, secret: str, place: str) -> None:
    top = place.format(secret) if place.startswith("description") else ""
    rest = "" if top else place.format(secret)
    error = refused(tmp_path, f"{top}\n{LEAST}\n{rest}\n")
    assert "looks like a secret" in error.message
    assert secret not in error.message + error.hint


def test_the_files_of_a_table_are_found_by_their_type(tmp_path: Path) -> None:
    text = 'schema_file = "s.json"\n' + LEAST.replace('"t.gguf"', '"t.gguf"\nguide = "g.md"')
    recipe = load_recipe(write(tmp_path, text))
    assert recipe.files() == {"schema_file": tmp_path / "s.json"}
    assert recipe.files("teacher") == {"teacher.guide": tmp_path / "g.md"}
    assert recipe.files("prompts") == {"prompts.file": tmp_path / "prompts.jsonl"}
    assert recipe.files("evaluate") == {"evaluate.file": tmp_path / "eval.jsonl"}
    assert recipe.files("train") == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "No such file"),
        ("{", "not JSON"),
        ("[]", "must be a JSON object"),
        (json.dumps({"$ref": "https://example.org/s.json"}), "another file or address"),
        (json.dumps({"properties": {"a": {"$ref": "file.json#/x"}}}), "another file or address"),
        (json.dumps({"$dynamicRef": "https://example.org/s.json"}), "another file or address"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_schema_that_does_not_hold_is_refused(tmp_path: Path, text: str | None, words: str) -> None:
    recipe = load_recipe(write(tmp_path, 'schema_file = "s.json"\n' + LEAST))
    if text is not None:
        (tmp_path / "s.json").write_text(text, encoding="utf-8")
    with pytest.raises(InvalidInput, match=words):
        load_schema(recipe)


def test_a_schema_may_refer_to_itself_and_may_be_missing(tmp_path: Path) -> None:
    assert load_schema(load_recipe(write(tmp_path, LEAST))) is None
    schema = {"$ref": "#/$defs/a", "$defs": {"a": {"type": "string"}}}
    (tmp_path / "s.json").write_text(json.dumps(schema), encoding="utf-8")
    assert load_schema(load_recipe(write(tmp_path, 'schema_file = "s.json"\n' + LEAST))) == schema


def test_there_are_recipes_to_begin_with() -> None:
    assert SHIPPED


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.parent.name)
def test_every_shipped_recipe_loads_with_all_its_files(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.parent.name
    for table in (None, *TABLES):
        for key, file in recipe.files(table).items():
            assert file.is_file(), key
    load_schema(recipe)


def described(tree: ast.Module) -> set[tuple[str, str]]:
    """Class and name of every setting with a text behind it."""
    found = set()
    for kind in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        for one, behind in zip(kind.body, kind.body[1:], strict=False):
            text = isinstance(behind, ast.Expr) and isinstance(behind.value, ast.Constant)
            if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name) and text:
                found.add((kind.name, one.target.id))
    return found


OBVIOUS = {
    "name",
    "description",
    "backend",
    "file",
    "edge_file",
    "max_tokens",
    "top_p",
    "near_duplicate",
    "constrained",
}
OBVIOUS |= {"method", "epochs", "learning_rate", "weight_decay", "batch_size", "rank", "dropout", "types", "version"}
OBVIOUS |= {"percentile", "warmup"}


def test_every_setting_is_described_or_obvious() -> None:
    modules = (Path(module.__file__ or "") for module in (recipe_module, learning, contract, prompting, vetting))
    texts = set().union(*(described(ast.parse(path.read_text(encoding="utf-8"))) for path in modules))
    for table in (None, *TABLES):
        kind: Any = Recipe if table is None else Recipe.model_fields[table].annotation
        for name in kind.model_fields:
            assert name in TABLES or name in OBVIOUS or (kind.__name__, name) in texts, f"{kind.__name__}.{name}"


def test_only_a_close_word_is_suggested() -> None:
    assert did_you_mean("epoch", ["epochs", "rank"]) == ". Did you mean 'epochs'?"
    assert did_you_mean("zzz", ["epochs", "rank"]) == ""
