"""Bits moved between groups of tensors, the best of several sizes, and sizes of any GGUF without a run."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from pico import pico_gguf, silent

from edgedistill.cli import cli
from edgedistill.contract import QuantizeSettings
from edgedistill.errors import InvalidInput
from edgedistill.llamacpp import allotment, reader
from edgedistill.llamacpp.allotment import Option, cheapest, exact_pattern, groups_of
from edgedistill.llamacpp.blocks import block_of, quantized_rows, rounding_error, tensor_bytes
from edgedistill.llamacpp.comparison import ScoredText
from edgedistill.llamacpp.importance import read_importance
from edgedistill.llamacpp.speed import token_ms
from edgedistill.stages import quantizing
from edgedistill.stages.any_gguf import quantize_gguf, texts_of
from edgedistill.stages.quantizing import QuantizingTask, make, pareto, require_quantizable

needs_llama_cpp = pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason="llama_cpp is not installed")
TEXTS = [ScoredText(tuple(range(start, start + 40)), 10) for start in (3, 60, 120, 180)]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pico_gguf(tmp_path_factory.mktemp("pico") / "pico-f16.gguf", size=256)


options = st.lists(
    st.lists(st.builds(Option, st.just("x"), st.integers(1, 50), st.floats(0, 9)), min_size=1, max_size=4),
    min_size=1,
    max_size=4,
)


@settings(max_examples=150, deadline=None)
@given(options, st.integers(0, 120))
def test_bits_are_allotted_within_the_limit_and_never_worse_than_the_smallest(
    groups: list[list[Option]], limit: int
) -> None:
    chosen = cheapest(groups, limit)
    smallest = [min(group, key=lambda one: (one.size, one.damage)) for group in groups]
    assert all(option in group for option, group in zip(chosen, groups, strict=True))
    assert sum(one.size for one in chosen) <= max(limit, sum(one.size for one in smallest))
    assert sum(one.damage for one in chosen) <= sum(one.damage for one in smallest)


@settings(max_examples=60, deadline=None)
@given(options)
def test_with_room_enough_every_group_has_the_least_damage(groups: list[list[Option]]) -> None:
    chosen = cheapest(groups, 10**6)
    assert sum(one.damage for one in chosen) == pytest.approx(sum(min(o.damage for o in group) for group in groups))


def test_a_byte_goes_where_it_takes_most_away() -> None:
    dull = [Option("small", 10, 1.0), Option("large", 20, 0.9)]
    keen = [Option("small", 10, 5.0), Option("large", 20, 1.0)]
    assert [one.kind for one in cheapest([dull, keen], 30)] == ["small", "large"]
    assert [one.kind for one in cheapest([dull, keen], 40)] == ["large", "large"]
    assert [one.kind for one in cheapest([dull, keen], 0)] == ["small", "small"]


def test_groups_are_roles_in_quarters_of_the_layers() -> None:
    names = [f"blk.{layer}.{role}.weight" for layer in range(8) for role in ("attn_q", "ffn_up")]
    groups = groups_of([*names, "token_embd.weight"])
    assert len(groups) == 9
    assert sorted(name for group in groups for name in group) == sorted([*names, "token_embd.weight"])
    assert ["blk.6.ffn_up.weight", "blk.7.ffn_up.weight"] in groups


def test_a_pattern_matches_its_own_tensor_alone() -> None:
    assert re.search(exact_pattern("blk.1.attn_q.weight"), "blk.1.attn_q.weight")
    assert not re.search(exact_pattern("blk.1.attn_q.weight"), "blk.11.attn_q.weight")
    assert not re.search(exact_pattern("output.weight"), "attn_output.weight")


@needs_llama_cpp
@pytest.mark.parametrize("kind", ["Q3_K", "IQ4_XS", "IQ4_NL", "Q4_K", "Q5_0", "Q6_K", "Q8_0"])
def test_rows_have_the_bytes_of_the_quantizer_itself(tmp_path: Path, source: Path, kind: str) -> None:
    name = "blk.0.ffn_down.weight"
    quantizing.quantize(source, tmp_path / "q.gguf", "Q8_0", 1, quantizing.Mixture(None, {"ffn_down": kind}))
    before, after = (reader.read_gguf(path).tensors[name] for path in (source, tmp_path / "q.gguf"))
    rows = reader.dequantized_rows(source, before, 0, before.shape[0])
    with (tmp_path / "q.gguf").open("rb") as file:
        file.seek(after.offset)
        assert file.read(after.size) == quantized_rows(rows, kind).tobytes()
    assert tensor_bytes(before, kind) == after.size


@needs_llama_cpp
def test_the_rounding_error_falls_with_the_bits_and_heeds_the_importance(source: Path) -> None:
    tensor = reader.read_gguf(source).tensors["blk.0.ffn_up.weight"]
    errors = [rounding_error(source, tensor, kind, None) for kind in ("Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0")]
    assert errors == sorted(errors, reverse=True)
    keen = np.where(np.arange(256) < 32, 100.0, 1e-3).astype(np.float32)
    assert rounding_error(source, tensor, "Q4_K", keen) < errors[1] * keen.mean()


def test_blocks_have_ggmls_sizes() -> None:
    assert block_of("Q8_0") == (32, 34)
    assert block_of("Q4_K") == (256, 144)


@needs_llama_cpp
def test_what_a_mixture_rounds_finely_is_weighed_where_something_shows(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgedistill.llamacpp.allotment.QUARTERS", 1)
    mixture = tmp_path / "q.gguf"
    quantizing.quantize(source, mixture, "Q4_K_M", 1)
    weighed: dict[str, str] = {}

    def noting(source: Path, out: Path, name: str, threads: int, how: quantizing.Mixture) -> None:
        weighed.update(how.tensor_types)
        quantizing.quantize(source, out, name, threads, how)

    monkeypatch.setattr(allotment, "quantize", noting)
    by = allotment.Weighed(TEXTS[:2], None, 1)
    allotment.allotted(source, mixture, mixture.stat().st_size, by, silent)
    has = {name: tensor.kind for name, tensor in reader.read_gguf(mixture).tensors.items() if tensor.kind != "F32"}
    assert {"Q4_K", "Q6_K"} <= set(has.values())
    assert weighed == {exact_pattern(name): "Q4_K" if kind == "Q6_K" else kind for name, kind in has.items()}


@needs_llama_cpp
def test_moved_bits_are_nearer_to_the_source_within_the_limit(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of random weights no tensor matters much more than others, so more room is given than a user would."""
    monkeypatch.setattr("edgedistill.llamacpp.allotment.QUARTERS", 1)
    plain, moved = (
        make(
            QuantizingTask(source, tmp_path / name, QuantizeSettings(types=("Q4_K_S",), growth=growth), TEXTS, "t"),
            silent,
        )
        for name, growth in (("plain", 1.0), ("moved", 1.3))
    )
    assert (tmp_path / "imatrix.gguf").is_file()
    sizes = [one["Q4_K_S"].path.stat().st_size for one in (plain, moved)]
    assert sizes[0] < sizes[1] <= 1.3 * sizes[0]
    types = moved["Q4_K_S"].tensor_types
    kinds = {name: tensor.kind for name, tensor in reader.read_gguf(moved["Q4_K_S"].path).tensors.items()}
    assert types
    assert all(
        kinds[name] == next(kind for p, kind in types.items() if re.search(p, name))
        for name in kinds
        if "attn_q" in name
    )
    found = quantizing.divergence_between(source, [plain["Q4_K_S"].path, moved["Q4_K_S"].path], TEXTS, 1, silent)
    assert found[1].mean < found[0].mean
    assert not list(tmp_path.glob("*.moved")) + list(tmp_path.glob(".mixtures-*"))


@needs_llama_cpp
def test_what_is_not_nearer_is_not_kept(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantizing, "allotted", lambda *_: {"weight": "Q3_K"})
    task = QuantizingTask(source, tmp_path / "x", QuantizeSettings(types=("Q4_K_S",), growth=1.05), TEXTS, "t")
    made = make(task, silent)["Q4_K_S"]
    assert not made.tensor_types
    assert "Q4_K" in {tensor.kind for tensor in reader.read_gguf(made.path).tensors.values()}


def figure(size: int, kl: float, ms: float) -> dict[str, Any]:
    return {"bytes": size, "kl": kl, "token_ms": ms}


@settings(max_examples=80, deadline=None)
@given(
    st.dictionaries(
        st.text("abc", min_size=1), st.builds(figure, st.integers(1, 4), st.floats(0, 3), st.floats(1, 3)), min_size=1
    )
)
def test_what_is_dropped_is_beaten_and_the_best_of_a_kind_stays(figures: dict[str, dict[str, Any]]) -> None:
    kept = pareto(figures)
    assert kept
    assert (
        min(figures, key=lambda name: (figures[name]["kl"], figures[name]["bytes"], figures[name]["token_ms"])) in kept
    )
    for name in set(figures) - set(kept):
        one = figures[name]
        assert any(
            other["bytes"] <= one["bytes"] and other["kl"] <= one["kl"] and other["token_ms"] <= 1.03 * one["token_ms"]
            for another, other in figures.items()
            if another != name
        )


@needs_llama_cpp
def test_a_token_takes_time(source: Path) -> None:
    assert all(taken > 0 for taken in token_ms([source, source], 1))


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"types": ("IQ2_XS",), "imatrix": False}, "IQ2_XS needs an importance matrix"),
        ({"tensor_types": {"attn_v": "Q6_K"}, "growth": 1.05}, "growth finds the tensors' types itself"),
        ({"types": ("auto", "Q8_0")}, "unknown quant type 'auto'"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(wanted: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        QuantizeSettings(**wanted)


def test_auto_is_a_word() -> None:
    found = QuantizeSettings(types="auto")  # type: ignore[arg-type]
    assert found.is_auto
    assert "Q4_K_M" in found.made
    assert require_quantizable(found).startswith("the best of Q8_0")


def test_a_rule_for_a_tensor_is_checked_before_anything_runs() -> None:
    with pytest.raises(InvalidInput, match="'attn_v': unknown tensor type 'Q4_K_M'"):
        require_quantizable(QuantizeSettings(tensor_types={"attn_v": "Q4_K_M"}))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    lines = []
    for number in range(8):
        turns = [{"role": "user", "content": f"turn on light {number}"}]
        if number % 2:
            turns.append({"role": "assistant", "content": f'{{"action":"on","light":{number}}}'})
        lines.append(json.dumps({"messages": turns}))
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@needs_llama_cpp
def test_rows_are_rendered_with_special_tokens_and_answers_are_scored(source: Path, rows: Path) -> None:
    asked, answered = texts_of(source, None, rows)[:2]
    assert asked.start == 1
    assert asked.tokens[0] == answered.tokens[0] == 1, "<|im_start|> is one token"
    assert answered.tokens[answered.start :].count(2) == 1, "the answer with the token that ends it"
    assert answered.start > 5


@needs_llama_cpp
def test_any_gguf_is_quantized_on_prompts_of_its_task(tmp_path: Path, source: Path, rows: Path) -> None:
    out = tmp_path / "out"
    arguments = ["quantize", str(source), "--types", "Q8_0,IQ2_XS", "--prompts", str(rows), "--out", str(out)]
    done = CliRunner().invoke(cli, [*arguments, "--json", "-q"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert sorted(path.name for path in out.iterdir()) == [
        "imatrix.gguf",
        "pico-IQ2_XS.gguf",
        "pico-Q8_0.gguf",
        "quality.json",
    ]
    assert json.loads((out / "quality.json").read_text(encoding="utf-8")) == found["quality"]
    lost = {name: one["f16_quant"]["mean"] for name, one in found["quality"].items()}
    assert 0 <= lost["Q8_0"] < lost["IQ2_XS"]
    assert found["quality"]["IQ2_XS"]["worst"][0]["kl"] == pytest.approx(
        found["quality"]["IQ2_XS"]["f16_quant"]["max"], abs=1e-3
    )
    assert read_importance(out / "imatrix.gguf").rows > 0


@needs_llama_cpp
def test_the_best_of_several_sizes_are_kept(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgedistill.contract.TRIED", ("Q8_0", "Q4_K_M", "Q4_0"))
    monkeypatch.setattr(quantizing, "token_ms", lambda paths, threads: [1.0] * len(paths))
    found = quantize_gguf(source, tmp_path / "out", QuantizeSettings(types="auto"), TEXTS, silent)  # type: ignore[arg-type]
    quality = found["quality"]
    beaten = [
        name
        for name, one in quality.items()
        if any(
            other["bytes"] <= one["bytes"] and other["f16_quant"]["mean"] < one["f16_quant"]["mean"]
            for other in quality.values()
        )
    ]
    assert sorted(found["files"]) == sorted(set(quality) - set(beaten))
    assert {path.name for path in (tmp_path / "out").glob("pico-*.gguf")} == {
        f"pico-{name}.gguf" for name in found["files"]
    }
    assert {name: one["kept"] for name, one in quality.items()} == {name: name not in beaten for name in quality}


@needs_llama_cpp
def test_without_texts_sizes_are_made_and_nothing_is_measured(tmp_path: Path, source: Path) -> None:
    done = CliRunner().invoke(cli, ["quantize", str(source), "--types", "Q8_0", "--out", str(tmp_path), "-q"])
    assert done.exit_code == 0, done.output
    assert "add --text or --prompts" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["pico-Q8_0.gguf"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--types", "IQ2_XS"], "IQ2_XS needs an importance matrix"),
        (["--types", "Q9"], "unknown quant type 'Q9'"),
        (["--types", "auto"], "--types auto and --growth measure on texts"),
        (["--growth", "1.1"], "--types auto and --growth measure on texts"),
    ],
)
def test_what_cannot_be_done_with_a_file_is_said_before_it_is_tried(
    source: Path, arguments: list[str], words: str
) -> None:
    done = CliRunner().invoke(cli, ["quantize", str(source), *arguments])
    assert done.exit_code == 3
    assert words in done.stderr


def test_a_files_options_are_not_a_recipes(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["quantize", str(tmp_path), "--types", "Q8_0"])
    assert done.exit_code == 3
    assert "--types is for a .gguf file" in done.stderr


@needs_llama_cpp
def test_too_little_text_is_said(tmp_path: Path, source: Path) -> None:
    (tmp_path / "text.txt").write_text("hello", encoding="utf-8")
    with pytest.raises(InvalidInput, match=r"text\.txt: too little text"):
        texts_of(source, tmp_path / "text.txt", None)
    (tmp_path / "text.txt").write_text("hello world, turn on the light. " * 40, encoding="utf-8")
    chunks = texts_of(source, tmp_path / "text.txt", None)
    assert len(chunks) >= 2
    assert all(chunk.start == len(chunk.tokens) // 2 for chunk in chunks)
