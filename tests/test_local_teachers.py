"""What is special to teachers on a Hugging Face folder: ragged batches, shared prefixes, tries of answers."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from opened_teachers import answered_example, prompts, teacher_of
from pico import edited, pico_hf_folder
from required import required_or_skipped
from tiny_models import SHAPE

from edgedistill.errors import InvalidInput
from edgedistill.recipe import TeachSettings
from edgedistill.records import Message, Prompt
from edgedistill.teachers import decoder as decoding
from edgedistill.teachers import weighing
from edgedistill.teachers.answer_trie import AnswerTrie
from edgedistill.teachers.decoder import Chunk, Decoder, Pending, feed, next_chunks

BACKENDS = ("transformers", "mlx")
WINDOW = 20
BASE = {"vocab_size": 300, **SHAPE}
# what an attention may have beyond the plain one: norms, windows, soft caps, sinks, layers without positions
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "qwen3": ("Qwen3Config", {"head_dim": 16}),
    "mistral": ("MistralConfig", {"sliding_window": WINDOW}),
    "gemma2": ("Gemma2Config", {"head_dim": 16, "sliding_window": WINDOW}),
    "gemma3": ("Gemma3TextConfig", {"head_dim": 16, "sliding_window": WINDOW, "num_hidden_layers": 6}),
    "gpt_oss": (
        "GptOssConfig",
        {"head_dim": 16, "sliding_window": WINDOW, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "smollm3": ("SmolLM3Config", {"pad_token_id": 0, "num_hidden_layers": 4}),
}


@pytest.fixture(params=BACKENDS)
def local(request: pytest.FixtureRequest) -> str:
    required_or_skipped(request.param, ("transformers", "torch") if request.param == "transformers" else ("mlx_lm",))
    return str(request.param)


def opened(local: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Decoder:
    """The decoder of a backend, in float32."""
    if local == "mlx":
        from edgedistill.teachers.mlx import MlxDecoder

        return MlxDecoder(folder)

    from edgedistill.teachers import transformers

    monkeypatch.setattr(transformers, "compute_dtype", lambda torch: torch.float32)
    return transformers.TorchDecoder(folder)


def tokens(count: int, seed: int) -> list[int]:
    return [int(number) for number in np.random.default_rng(seed).integers(3, 290, count)]


def alone(decoder: Decoder, text: Sequence[int]) -> NDArray[np.float32]:
    """The logits behind a text that the decoder's model is shown whole, by the library's own means."""
    model: Any = decoder._model  # type: ignore[attr-defined]
    if type(decoder).__name__ == "MlxDecoder":
        import mlx.core as mx

        return np.array(model(mx.array([list(text)]))[0, -1].astype(mx.float32))
    import torch

    implementation = model.config._attn_implementation
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([list(text)]), use_cache=False).logits[0, -1].float().numpy()
    model.set_attn_implementation(implementation)
    return np.asarray(logits)


def must_be_as_alone(decoder: Decoder, prefix: Sequence[int]) -> None:
    """Texts that come and go at different lengths, a copy among them, are what each is alone."""
    texts = {slot: tokens(length, slot) for slot, length in enumerate((40, 5, 33, 60))}
    decoder.start(prefix)
    begun = {0: 17, 1: 1, 2: 4, 3: 45}
    decoder.step({slot: Chunk(texts[slot][:count], 0) for slot, count in begun.items()})
    decoder.fork(0, [7, 9])
    decoder.free([0, 9])
    texts[7], begun[7] = texts.pop(0), begun.pop(0)
    texts[0] = tokens(9, 11)
    rest = {slot: Chunk(text[begun.get(slot, 0) :], 2) for slot, text in texts.items()}
    found = feed(decoder, rest)
    for slot, text in texts.items():
        assert found[slot].shape == (2, decoder.vocab_size)
        np.testing.assert_allclose(found[slot][1], alone(decoder, [*prefix, *text]), atol=2e-4)
        np.testing.assert_allclose(found[slot][0], alone(decoder, [*prefix, *text[:-1]]), atol=2e-4)


@pytest.mark.parametrize("length", [0, 30])
def test_texts_in_a_ragged_batch_are_what_each_is_alone(
    local: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    must_be_as_alone(opened(local, pico_hf_folder(tmp_path, "qwen2"), monkeypatch), tokens(length, 99))


@pytest.fixture(scope="module")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Writes a small model of an architecture, with random weights, through transformers."""
    required_or_skipped("transformers", ("transformers", "torch"))
    import torch
    import transformers

    def write(name: str) -> Path:
        kind, more = ARCHITECTURES[name]
        torch.manual_seed(0)
        config = getattr(transformers, kind)(**{**BASE, **more})
        model = transformers.AutoModelForCausalLM.from_config(config).float()
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(4 if weight.dim() > 1 else 1)  # so that attention is not nearly even
        folder = tmp_path_factory.mktemp(name)
        model.save_pretrained(folder)
        return folder

    return write


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_shared_attention_is_that_of_the_architecture(
    name: str, random_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    must_be_as_alone(opened("transformers", random_model(name), monkeypatch), tokens(30, 99))


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3"])
def test_mlx_batches_windows_too(
    name: str, random_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    required_or_skipped("mlx", ("mlx_lm",))
    must_be_as_alone(opened("mlx", random_model(name), monkeypatch), tokens(30, 99))


def test_an_attention_that_keeps_more_than_keys_and_values_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    required_or_skipped("transformers", ("transformers", "torch"))
    import transformers

    config = transformers.Qwen3NextConfig(**BASE, head_dim=16, num_experts=2, num_experts_per_tok=1)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(InvalidInput, match="Qwen3NextForCausalLM cannot share a prefix"):
        opened("transformers", tmp_path, monkeypatch)


def test_an_attention_that_says_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    required_or_skipped("transformers", ("transformers", "torch"))
    from edgedistill.teachers import ragged_attention

    scored = ragged_attention.Options.scored
    monkeypatch.setattr(ragged_attention.Options, "scored", lambda self, products: 2 * scored(self, products))
    with pytest.raises(InvalidInput, match="cannot share a prefix"):
        opened("transformers", pico_hf_folder(tmp_path), monkeypatch)


def test_an_unknown_architecture_is_one_clear_line(local: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = edited(pico_hf_folder(tmp_path), "config.json", lambda config: config.update(model_type="unheard_of"))
    with pytest.raises(InvalidInput, match="unheard_of") as caught:
        opened(local, folder, monkeypatch)
    assert "\n" not in caught.value.message.strip()
    assert "llamacpp" in caught.value.hint


def test_a_long_prefix_and_a_long_prompt_take_several_steps(
    local: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = opened(local, pico_hf_folder(tmp_path), monkeypatch)
    for module in (decoding, sys.modules[type(decoder).__module__]):
        monkeypatch.setattr(module, "STEP_TOKENS", 16)
    prefix, text = tokens(50, 1), tokens(70, 2)
    decoder.start(prefix)
    found = feed(decoder, {3: Chunk(text, 5), 4: Chunk(text[:3])})
    assert found[3].shape[0] == 5
    np.testing.assert_allclose(found[3][-1], alone(decoder, [*prefix, *text]), atol=2e-4)
    np.testing.assert_allclose(found[4][-1], alone(decoder, [*prefix, *text[:3]]), atol=2e-4)


def test_answers_with_more_ways_than_rows_are_weighed_in_turns(
    local: str, models: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {name: {"enum": ["ab", "cd", "ce"]} for name in ("x", "y")}
    schema = {"type": "object", "properties": fields, "required": ["x", "y"], "additionalProperties": False}
    teacher = teacher_of(local, models, schema)
    many = {one.prompt_id: one for one in teacher.complete(prompts(5), TeachSettings(slots=4), 0)}
    monkeypatch.setattr(weighing, "ROWS", 1)
    few = {one.prompt_id: one for one in teacher.complete(prompts(5), TeachSettings(slots=1), 0)}
    for key, one in many.items():
        assert one.answers is not None
        assert len(one.answers) == 9
        assert one.answers == pytest.approx(few[key].answers, rel=0.05)
    teacher.close()


def test_a_prompt_that_the_model_is_too_short_for_is_refused(local: str, models: Any) -> None:
    teacher = teacher_of(local, models)
    long = Prompt("00000000", (Message("user", "hello " * 6000),))
    for closed in (True, False):
        with pytest.raises(InvalidInput, match="the model knows 4096"):
            list(teacher.complete([long], TeachSettings(closed=closed), 0))
    teacher.close()


def test_the_backends_agree(models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for local in BACKENDS:
        required_or_skipped(local, ("mlx_lm",) if local == "mlx" else ("transformers", "torch"))
        if local == "transformers":
            from edgedistill.teachers import transformers

            monkeypatch.setattr(transformers, "compute_dtype", lambda torch: torch.float32)
        teacher = teacher_of(local, models)
        found.append({one.prompt_id: one.answers for one in teacher.complete(prompts(4), TeachSettings(), 0)})
        teacher.close()
    for key, answers in found[0].items():
        assert answers == pytest.approx(found[1][key], rel=1e-3)


def test_the_decoders_are_imported_only_when_they_are_asked() -> None:
    code = (
        "import sys, edgedistill.teachers, edgedistill.teachers.folder\n"
        "heavy = {'torch', 'transformers', 'mlx', 'mlx_lm', 'tokenizers', 'llguidance', 'llama_cpp'}\n"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(0, 40)), min_size=1, max_size=6),
    st.integers(4, 30),
    st.integers(2, 12),
)
def test_everything_is_fed_once_and_in_order(shapes: list[tuple[int, int]], room: int, rows: int) -> None:
    texts = {slot: list(range(100 * slot, 100 * slot + count)) for slot, (count, _) in enumerate(shapes)}
    waiting = {slot: Pending(list(texts[slot]), min(shapes[slot])) for slot in texts}
    wanted = {slot: pending.wanted for slot, pending in waiting.items()}
    fed: dict[int, list[tuple[int, bool]]] = {slot: [] for slot in texts}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "STEP_TOKENS", room)
        patch.setattr(decoding, "STEP_LOGITS", rows)
        while any(pending.tokens for pending in waiting.values()):
            chunks = next_chunks(waiting)
            assert 0 < sum(len(chunk.tokens) for chunk in chunks.values()) <= room
            assert sum(chunk.wanted for chunk in chunks.values()) <= rows
            for slot, chunk in chunks.items():
                asked = range(len(chunk.tokens)).__getitem__(slice(len(chunk.tokens) - chunk.wanted, None))
                fed[slot] += [(token, place in asked) for place, token in enumerate(chunk.tokens)]
    for slot, text in texts.items():
        assert [token for token, _ in fed[slot]] == text
        assert [asked for _, asked in fed[slot]] == [False] * (len(text) - wanted[slot]) + [True] * wanted[slot]


Ways = st.sets(st.lists(st.integers(0, 5), max_size=5).map(tuple), min_size=1, max_size=20)


@settings(deadline=None)
@given(Ways, st.integers(0, 2**32 - 1))
def test_probabilities_are_those_of_drawing_under_the_trie(ways: set[tuple[int, ...]], seed: int) -> None:
    trie = AnswerTrie({str(way): way for way in ways})
    ends = {6, 7}
    rows: dict[tuple[int, ...], NDArray[np.float32]] = {}

    def row(node: tuple[int, ...]) -> NDArray[np.float32]:
        number = np.random.default_rng([seed, len(node), *node])
        return rows.setdefault(node, number.standard_normal(8).astype(np.float32) * 3)

    def weighed(floor: float) -> tuple[dict[str, float], dict[tuple[int, ...], float]]:
        """The probabilities, and the share of each node that was asked."""
        waiting = {} if trie.stem is None else {trie.stem: 1.0}
        shares: dict[tuple[int, ...], float] = {}
        choices = {}
        while waiting:
            node, share = waiting.popitem()
            shares[node] = share
            choices[node] = trie.choice(node, row(node), ends)
            waiting |= trie.onward(node, choices[node], share, floor)
        return trie.probabilities(choices), shares

    found, shares = weighed(0.0)
    assert set(found) == {str(way) for way in ways}
    assert math.isclose(sum(found.values()), 1, rel_tol=1e-9)
    assert all(node[: len(trie.stem or ())] == trie.stem for node in shares)
    floored, asked = weighed(0.1)
    assert asked == {node: share for node, share in shares.items() if share >= 0.1 or node == trie.stem}
    for node, share in shares.items():
        if any(other not in asked and node[: len(other)] == other for other in shares if other != node):
            continue  # behind one that was not asked already
        behind = [str(way) for way in ways if way[: len(node)] == node]
        assert math.isclose(sum(floored[text] for text in behind), share, rel_tol=1e-9)
        if node not in asked:
            assert len({round(floored[text], 12) for text in behind}) == 1
    for way in ways:
        expected = 1.0
        for end in range(len(way) + 1):
            onward = {other[end] for other in ways if other[:end] == way[:end] and len(other) > end}
            masses = {token: math.exp(row(way[:end])[token]) for token in onward}
            ended = sum(math.exp(row(way[:end])[token]) for token in ends) if way[:end] in ways else 0.0
            mine = masses[way[end]] if end < len(way) else ended
            expected *= mine / (sum(masses.values()) + ended)
        assert math.isclose(found[str(way)], expected, rel_tol=1e-5)


def test_the_texts_of_scored_answers_are_kept_as_they_are(local: str, models: Any) -> None:
    teacher = teacher_of(local, models, None)
    texts = ["", " two  spaces ", "🚀" * 3, json.dumps({"a": [1, 2]})]
    examples = [answered_example(text, number) for number, text in enumerate(texts)]
    found = {one.prompt_id: one for one in teacher.score(examples, TeachSettings(slots=2), 0)}
    assert [found[example.id].text for example in examples] == texts
    assert all(one.targets for one in found.values())
    teacher.close()
