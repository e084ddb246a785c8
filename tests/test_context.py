"""A conversation that a model cannot hold is refused, or its candidate left out: never cut in silence."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pico import edited, pico_hf_folder, reconfigured, silent
from pico_recipe import PicoModels, write_pico_recipe
from tiny_models import TINY, tiny_folder

from edgedistill.errors import EdgeDistillError, InvalidInput
from edgedistill.llamacpp.answer import Answerer, AnswererSettings, fits_context
from edgedistill.llamacpp.context import Context, ContextSettings
from edgedistill.llamacpp.layout import Layout
from edgedistill.llamacpp.model import LlamaModel
from edgedistill.llamacpp.prefix import PREFIX, ROWS, decode_prefix
from edgedistill.llamacpp.sampling import Sampling
from edgedistill.llamacpp.writer import GgufMetadata, write_gguf
from edgedistill.preflight import check
from edgedistill.recipe import load_recipe
from edgedistill.records import Message, Prompt, user_prompt
from edgedistill.run import Run

LIMIT = 192  # tokens that the pico model of these tests was trained on


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = pico_hf_folder(tmp_path_factory.mktemp("small") / "hf")
    reconfigured(folder, lambda config: config.update(max_position_embeddings=LIMIT))
    out = folder.with_suffix(".gguf")
    write_gguf(folder, out, GgufMetadata(name="Small"), silent)
    return out


def test_a_prompt_longer_than_the_models_context_is_refused(small: Path) -> None:
    prompt = Prompt("0" * 16, (Message("user", "turn on the light " * 90),))
    with (
        Answerer(small, (), None, AnswererSettings(1)) as answerer,
        pytest.raises(InvalidInput, match=f"the model knows {LIMIT}"),
    ):
        list(answerer.complete([prompt], Sampling(8), slots=1))


def test_a_preamble_fits_only_where_prompt_and_answer_fit_behind_it(small: Path) -> None:
    assert fits_context(small, (Message("system", "Be brief."),), max_tokens=8)
    assert not fits_context(small, (Message("system", "Be brief. " * 40),), max_tokens=8)


def test_a_teacher_without_a_chat_template_is_refused_by_check(models: PicoModels, tmp_path: Path) -> None:
    folder = pico_hf_folder(tmp_path / "hf", "qwen2")
    edited(folder, "tokenizer_config.json", lambda settings: settings.pop("chat_template", None))
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    write_gguf(folder, tmp_path / "plain.gguf", GgufMetadata(name="Plain"), silent)
    recipe = write_pico_recipe(tmp_path / "recipe", models)
    text = (recipe / "recipe.toml").read_text(encoding="utf-8")
    teacher = load_recipe(recipe).teacher.model
    (recipe / "recipe.toml").write_text(text.replace(teacher, str(tmp_path / "plain.gguf")), encoding="utf-8")
    with pytest.raises(InvalidInput, match="no chat template"):
        check(load_recipe(recipe), Run(tmp_path / "runs" / "pico"))


def test_a_file_that_llama_cpp_cannot_load_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + b"\0" * 60)
    with pytest.raises(EdgeDistillError, match=r"broken\.gguf: llama\.cpp cannot load it") as caught:
        LlamaModel(tmp_path / "broken.gguf")
    assert "\n" not in caught.value.message


@pytest.fixture(scope="module")
def recurrent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose state cannot step back."""
    folder = tmp_path_factory.mktemp("recurrent")
    write_gguf(tiny_folder(folder / "hf", TINY["lfm2"]), folder / "lfm2.gguf", GgufMetadata(name="Tiny"), silent)
    return folder / "lfm2.gguf"


def test_a_recurrent_state_holds_a_shared_prompt_and_nothing_more(recurrent: Path) -> None:
    shared, own = [5 + 7 * place % 100 for place in range(ROWS * 2 + 3)], [7, 9, 11]

    def logits(prefix: list[int], rest: list[int]) -> NDArray[np.float32]:
        with closing(Context(model, ContextSettings(cells=256, sequences=2, threads=1))) as context:
            decode_prefix(context, None, prefix)
            context.copy(PREFIX, 1, len(prefix))
            context.batch.clear()
            end = context.batch.add(rest, len(prefix), 1, 1)
            context.decode()
            return context.logits(end - 1).copy()

    with LlamaModel(recurrent) as model:
        assert np.abs(logits(shared, own) - logits([], [*shared, *own])).max() < 1e-3


def test_a_recurrent_state_is_begun_anew_for_each_prompt(recurrent: Path) -> None:
    texts = ("turn on the light", "turn on the light in the hall", "turn on the radio")
    with Answerer(recurrent, [], None, AnswererSettings(1)) as answerer:
        asked = [answerer.request(user_prompt(text), Sampling(8)) for text in texts]
        with answerer.engine(Layout(1, split=False), asked) as engine:
            together = {one.id: one.tokens for one in engine.run(asked)}
        for request in asked:
            with answerer.engine(Layout(1, split=False), [request]) as engine:
                (answer,) = engine.run([request])
            assert together[request.id] == answer.tokens
