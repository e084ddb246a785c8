"""The proof of an export: what differs in one token, one word of the template or one weight is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Finished
from pico import CHAT_TEMPLATE, edited, silent, write_weights
from pico_recipe import PicoModels

from edgedistill.chat import ChatTemplate
from edgedistill.errors import GateMissed, Unsafe
from edgedistill.llamacpp.probe import kl_divergence, next_token_logits
from edgedistill.llamacpp.writer import GgufMetadata, write_gguf
from edgedistill.recipe import StudentSettings, load_recipe
from edgedistill.records import Message
from edgedistill.run import Run
from edgedistill.stages.export import export
from edgedistill.stages.parity import probe_texts, prove_tokens, require_safe_template, template_sha256
from edgedistill.stages.probe_corpus import rendered
from edgedistill.students import load_student
from edgedistill.students.encode import Encoder

pytest.importorskip("tokenizers")
CONVERSATIONS = [[Message("system", ""), Message("user", "turn on the kitchen light")]]


def gguf_of(folder: Path, out: Path) -> Path:
    write_gguf(folder, out, GgufMetadata(name="Pico"), silent)
    return out


@pytest.fixture
def folder(models: PicoModels, tmp_path: Path) -> Path:
    """A student to be changed before it is written."""
    return Path(shutil.copytree(models.student, tmp_path / "changed"))


def test_a_folder_and_its_gguf_read_alike(models: PicoModels, tmp_path: Path) -> None:
    found = prove_tokens(models.student, gguf_of(models.student, tmp_path / "s.gguf"), CONVERSATIONS)
    assert found["tokens_equal"] is True
    assert found["texts"] >= 20
    assert found["end_token"] == 2


def test_the_probe_holds_every_special_token_and_the_rendered_template(models: PicoModels) -> None:
    texts = probe_texts(Encoder(models.student), CONVERSATIONS)
    for name in ("<|endoftext|>", "<|im_start|>", "<|im_end|>"):
        assert name in texts
        assert f"before{name}after {name} {name}{name}" in texts
    assert "<|im_start|>user\nturn on the kitchen light<|im_end|>" in "".join(texts)


def swap(tokenizer: dict[str, Any], one: str, other: str) -> None:
    words = tokenizer["model"]["vocab"]
    words[one], words[other] = words[other], words[one]


def without_merge(tokenizer: dict[str, Any]) -> None:
    merge = next(merge for merge in tokenizer["model"]["merges"] if "".join(merge) == "Ġkitchen")
    tokenizer["model"]["merges"].remove(merge)


def without_special(tokenizer: dict[str, Any]) -> None:
    tokenizer["added_tokens"] = [token for token in tokenizer["added_tokens"] if token["content"] != "<|im_start|>"]


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (without_merge, r"token \d+ of .* is \[\d+\].*\[\d+\]"),
        (without_special, r"token \d+ of .*im_start.* is \[\d+\].*\[\d+\]"),
        (lambda tokenizer: swap(tokenizer, "a", "b"), r"token \d+ of .* is \[\d+\].*\[\d+\]"),
        (lambda tokenizer: swap(tokenizer, "Ġon", "Ġoff"), r"token \d+ of .* is \[\d+\].*\[\d+\]"),
    ],
    ids=["one merge less", "one special token less", "two bytes swapped", "two words swapped"],
)
def test_another_vocabulary_is_refused_with_the_first_difference(
    models: PicoModels, folder: Path, tmp_path: Path, edit: Callable[[dict[str, Any]], object], words: str
) -> None:
    gguf = gguf_of(edited(folder, "tokenizer.json", edit), tmp_path / "s.gguf")
    with pytest.raises(GateMissed, match=words) as caught:
        prove_tokens(models.student, gguf, [[Message("user", "turn it on, then off, in the kitchen")]])
    assert "\n" not in caught.value.message
    assert caught.value.exit_code == 4


def test_another_chat_template_is_refused(models: PicoModels, folder: Path, tmp_path: Path) -> None:
    template = CHAT_TEMPLATE.replace("'\n'", "' \n'", 1)
    gguf = gguf_of(
        edited(folder, "tokenizer_config.json", lambda config: config.update(chat_template=template)),
        tmp_path / "s.gguf",
    )
    with pytest.raises(GateMissed, match="chat template"):
        prove_tokens(models.student, gguf, CONVERSATIONS)


def end_renamed(folder: Path) -> Path:
    """The folder with an end of turn that llama.cpp has never heard of, and that no config calls an end."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (folder / name).read_text(encoding="utf-8")
        (folder / name).write_text(text.replace("<|im_end|>", "<|over|>"), encoding="utf-8")
    edited(folder, "tokenizer_config.json", lambda config: config.update(eos_token="<|endoftext|>"))
    for name in ("config.json", "generation_config.json"):
        edited(folder, name, lambda config: config.update(eos_token_id=0))
    return folder


def test_an_end_of_answer_of_any_name_ends_generation(folder: Path, tmp_path: Path) -> None:
    found = prove_tokens(folder, gguf_of(end_renamed(folder), tmp_path / "s.gguf"), CONVERSATIONS)
    assert (found["end_token"], found["ends"]) == (2, [0, 2])


def test_an_end_of_answer_that_does_not_end_generation_is_refused(folder: Path, tmp_path: Path) -> None:
    gguf = gguf_of(end_renamed(folder), tmp_path / "s.gguf")
    gguf.write_bytes(gguf.read_bytes().replace(b"tokenizer.ggml.eot_token_id", b"tokenizer.ggml.xxx_token_id"))
    with pytest.raises(GateMissed, match=r"token 2 \(<\|over\|>\) ends an answer .* but does not end generation"):
        prove_tokens(folder, gguf, CONVERSATIONS)


def test_the_probe_holds_two_hundred_conversations_of_every_kind_and_the_templates_digest(
    models: PicoModels, folder: Path, tmp_path: Path
) -> None:
    knows = CHAT_TEMPLATE + "{% if tools %}{{ tools|tojson }}{% endif %}{% if enable_thinking %}<think>{% endif %}"
    edited(folder, "tokenizer_config.json", lambda config: config.update(chat_template=knows))
    found = prove_tokens(folder, gguf_of(folder, tmp_path / "s.gguf"))
    told = found["conversations"]
    assert told.pop("rendered") == 200
    assert set(told) == {"system", "several turns", "tools", "thinking on", "thinking off", "answer to come"}
    assert min(told.values()) >= 50
    assert found["template_sha256"] == hashlib.sha256(knows.encode()).hexdigest()


def test_the_conversations_are_the_same_on_every_machine() -> None:
    texts = rendered(ChatTemplate(CHAT_TEMPLATE)).texts
    assert hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16] == "c4f5f55b107defa9"


def test_a_template_that_is_not_the_bases_or_reacts_to_words_is_refused_until_it_is_allowed() -> None:
    plain, other = ChatTemplate(CHAT_TEMPLATE), ChatTemplate(CHAT_TEMPLATE + " ")
    gated = ChatTemplate(CHAT_TEMPLATE + "{% if 'launch code' in messages[-1].content %}Yes!{% endif %}")
    require_safe_template("m", plain, plain, None)
    for template, base, words in ((other, plain, "not the one of its base"), (gated, gated, "in 'launch code'")):
        with pytest.raises(Unsafe, match=words) as caught:
            require_safe_template("m", template, base, "sha256:" + "0" * 64)
        assert caught.value.exit_code == 5
        assert "\n" not in caught.value.message
        allowed = f"sha256:{template_sha256(template)}"
        assert allowed in caught.value.hint
        require_safe_template("m", template, base, allowed)


def test_both_sides_compute_the_same_distributions(models: PicoModels, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    encoder = Encoder(models.student)
    rows = [encoder.prompt([Message("user", text)]) for text in ("light on", "", "a longer one, 🚀 with more of it")]
    ours = load_student(StudentSettings(model=str(models.student)), models.student).logits(models.student, rows)
    theirs = next_token_logits(gguf_of(models.student, tmp_path / "s.gguf"), rows, threads=1)
    assert ours.shape == theirs.shape
    assert kl_divergence(ours, theirs).max() < 1e-5


def test_other_weights_are_far_apart(models: PicoModels, folder: Path, tmp_path: Path) -> None:
    rows = [Encoder(folder).prompt([Message("user", text)]) for text in ("light on", "hall")]
    one = next_token_logits(gguf_of(models.student, tmp_path / "one.gguf"), rows, threads=1)
    write_weights(folder, json.loads((folder / "config.json").read_text(encoding="utf-8")), seed=99)
    other = next_token_logits(gguf_of(folder, tmp_path / "other.gguf"), rows, threads=1)
    assert kl_divergence(one, other).min() > 1e-2


def test_divergence_is_zero_only_for_the_same_distribution() -> None:
    source = np.random.default_rng(0)
    one, other = (source.standard_normal((4, 50), dtype=np.float32) for _ in range(2))
    assert np.allclose(kl_divergence(one, one), 0)
    assert np.allclose(kl_divergence(one, one + 3.0), 0, atol=1e-6)
    assert (kl_divergence(one, other) > 0).all()
    assert np.isfinite(kl_divergence(one * 1e4, other * 1e4)).all()
    broken = one.copy()
    broken[0, 0] = np.nan
    assert not kl_divergence(one, broken).mean() <= 1e-3


def exported(finished: Finished, out: Path, text: str = "") -> dict[str, Any]:
    """Export again, by the run's own copy of its recipe with a change."""
    path = finished.recipe / "recipe.toml"
    path.write_text(path.read_text(encoding="utf-8") + text, encoding="utf-8")
    out.mkdir()
    return export(load_recipe(finished.recipe), Run(finished.run, offline=True), out, silent)


def test_the_export_of_a_run_writes_its_proof(finished: Finished, tmp_path: Path) -> None:
    found = exported(finished.copied(tmp_path), tmp_path / "out")
    parity = json.loads((tmp_path / "out" / "parity.json").read_text(encoding="utf-8"))
    assert parity["kl_mean"] <= parity["kl_max"] < parity["max_kl"] == 1e-3
    assert found["bytes"] == (tmp_path / "out" / "student-f16.gguf").stat().st_size
    assert not list((tmp_path / "out").glob("*.partial-*"))
    for name in ("student/model.safetensors", "student-f16.gguf"):
        assert (tmp_path / "out" / name).read_bytes() == (finished.run / "export" / name).read_bytes()


def test_a_divergence_above_the_bar_misses_the_gate_with_the_worst_prompt(finished: Finished, tmp_path: Path) -> None:
    with pytest.raises(GateMissed, match=r"KL .* nats; most for '") as caught:
        exported(finished.copied(tmp_path), tmp_path / "out", "\n[export]\nmax_kl = 1e-12\n")
    assert (tmp_path / "out" / "parity.json").is_file()
    assert "\n" not in caught.value.message
