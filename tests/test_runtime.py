"""The runtime of a device: the same answers as the batch engine, in fewer steps, piece by piece; and its settings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from pico import pico_gguf
from pico_recipe import EVAL, SCHEMA, PicoModels

from edgedistill.cli import cli
from edgedistill.errors import InvalidInput
from edgedistill.llamacpp.answer import Answerer, AnswererSettings
from edgedistill.llamacpp.prefix import PrefixCache
from edgedistill.llamacpp.runtime import Reply, Runtime, RuntimeSettings
from edgedistill.llamacpp.sampling import Sampling
from edgedistill.llamacpp.tuning import Case, tune, tuned, with_layout
from edgedistill.records import Message, Prompt
from edgedistill.run import cores

OPEN: dict[str, Any] = {**SCHEMA, "properties": {**SCHEMA["properties"], "level": {"type": ["integer", "null"]}}}
OPEN["required"] = list(OPEN["properties"])
SYSTEM = (Message("system", "You turn a command into JSON. " * 6),)
TEXTS = EVAL[:6]
PLAIN = RuntimeSettings(1, flash_attention="off")  # as the batch engine computes on a CPU


def asked(text: str) -> tuple[Message, ...]:
    return (Message("user", text),)


@pytest.fixture(scope="module")
def opened(models: PicoModels) -> Iterator[Runtime]:
    with Runtime(models.teacher, SYSTEM, OPEN, PLAIN) as runtime:
        yield runtime


@pytest.mark.parametrize("jump", [True, False])
def test_answers_are_those_of_the_batch_engine(opened: Runtime, models: PicoModels, jump: bool) -> None:
    prompts = [Prompt(f"{number:08x}", asked(text)) for number, text in enumerate(TEXTS)]
    with Answerer(models.teacher, SYSTEM, OPEN, AnswererSettings(1)) as answerer:
        expected = {one.prompt_id: one for one in answerer.complete(prompts, Sampling(40), 1, jump)}
    for prompt in prompts:
        pieces: list[str] = []
        reply = opened.answer(prompt.messages, 40, pieces.append, jump)
        one = expected[prompt.id]
        assert (reply.text, reply.finish_reason) == (one.text, one.finish_reason)
        assert (reply.tokens, reply.prompt_tokens + reply.shared_tokens) == (one.completion_tokens, one.prompt_tokens)
        assert "".join(pieces) == reply.text
        assert 0 < reply.ttft_ms <= reply.e2e_ms
        assert reply.steps == reply.tokens - reply.forced
        assert (reply.forced > 10) is jump


def test_an_answer_of_a_finite_set_has_the_probability_that_ranking_gives_it(models: PicoModels) -> None:
    prompts = [Prompt(f"{number:08x}", asked(text)) for number, text in enumerate(TEXTS)]
    answers = [
        json.dumps({"action": a, "room": r}, separators=(",", ":"))
        for a in ("on", "off", "none")
        for r in ("hall", "all")
    ]
    with Answerer(models.teacher, SYSTEM, None, AnswererSettings(1)) as answerer:
        ranked = list(answerer.rank(prompts, answerer.trie(answers)))
    with Runtime(models.teacher, SYSTEM, SCHEMA, PLAIN) as runtime:
        assert runtime.closed
        for prompt, one in zip(prompts, ranked, strict=True):
            reply = runtime.answer(prompt.messages, 40)
            assert reply.probability == pytest.approx(one.probabilities[answers.index(reply.text)], rel=0.02)
            assert reply.steps <= 4
    with Runtime(models.teacher, SYSTEM, {"const": "yes"}, PLAIN) as runtime:
        sure = runtime.answer(asked("well?"), 8)
        assert (sure.text, sure.probability, sure.steps) == ('"yes"', 1.0, 0)


def test_free_text_is_cut_at_its_longest_and_a_long_prompt_gets_a_larger_context(models: PicoModels) -> None:
    with Runtime(models.teacher, (), None, PLAIN) as runtime:
        for text in ("x", "light on " * 300):
            reply = runtime.answer(asked(text), 5)
            assert reply.tokens <= 5
            assert (reply.finish_reason == "length") is (reply.tokens == 5)
        with pytest.raises(InvalidInput, match="the model knows 4096"):
            runtime.answer(asked("x " * 3000), 5)


def test_guessing_ahead_changes_no_answer_and_saves_steps_where_guesses_hold(models: PicoModels) -> None:
    def replies(drafted: int) -> list[Reply]:
        how = RuntimeSettings(1, flash_attention="off", drafted=drafted)
        with Runtime(models.teacher, (), None, how) as runtime:
            found = []
            for text in ("hello world " * 12, "light", *TEXTS):
                pieces: list[str] = []
                found.append(runtime.answer(asked(text), 48, pieces.append))
                assert "".join(pieces) == found[-1].text
            return found

    plain, guessed = replies(0), replies(3)
    assert [(one.text, one.tokens, one.finish_reason) for one in guessed] == [
        (one.text, one.tokens, one.finish_reason) for one in plain
    ]
    assert all(one.forced == 0 for one in guessed)
    assert sum(one.steps for one in guessed) < sum(one.steps for one in plain)


def test_a_saved_state_is_read_back_where_model_and_layout_are_the_same(models: PicoModels, tmp_path: Path) -> None:
    def started(sha256: str = "0" * 64, **changes: Any) -> tuple[bool, str]:
        caches = [PrefixCache(tmp_path / "packed", sha256, writes=False), PrefixCache(tmp_path, sha256, single=True)]
        how = RuntimeSettings(1, prefixes=lambda: caches, **changes)
        with Runtime(models.teacher, SYSTEM, OPEN, how) as runtime:
            text = runtime.answer(asked(TEXTS[0]), 40).text
            return runtime.restored, text

    assert started()[0] is False
    restored, text = started()
    assert restored
    assert started("1" * 64) == (False, text)  # another model's: computed, and kept in the place of the first
    assert len(list(tmp_path.glob("*.kv"))) == 1
    assert started("1" * 64) == (True, text)
    assert started("1" * 64, flash_attention="off")[0] is False


def test_tuned_settings_are_kept_and_damaged_ones_are_not_believed(models: PicoModels, tmp_path: Path) -> None:
    case = Case(SYSTEM, OPEN, 24, tuple(asked(text) for text in TEXTS[:2]))
    found = tune(models.teacher, case, tmp_path, lambda what, done, total: None)
    settings = tuned(models.teacher, tmp_path)
    assert settings is not None
    assert settings.threads in range(1, cores() + 1)
    assert found["settings"]["kv_type"] == settings.kv_type
    assert set(found["measured"]["step_ms_by_rows"]) == {1, 2, 3, 4, 5, 8}
    assert found["speculation"]["why"] == "tokens that must follow are skipped already"
    (kept,) = tmp_path.glob("*.json")
    for damage in ("{", '{"settings": {}}', kept.read_text().replace('"threads": ', '"threads": -')):
        kept.write_text(damage)
        assert tuned(models.teacher, tmp_path) is None


def test_a_layout_that_changes_an_answer_is_not_taken_however_fast(tmp_path: Path) -> None:
    model = pico_gguf(tmp_path / "pico.gguf", size=128)  # with heads that can be rounded to 8 bits
    case = Case(SYSTEM, None, 24, tuple(asked(text) for text in TEXTS))

    def answers(settings: RuntimeSettings) -> list[str]:
        with Runtime(model, SYSTEM, None, settings) as runtime:
            return [runtime.answer(turns, 24).text for turns in case.prompts]

    plain = RuntimeSettings(1)
    rounded = answers(RuntimeSettings(1, kv_type="q8_0", flash_attention="on"))
    for expected in (rounded, ["otherwise", *rounded[1:]]):
        times = {"f16-auto": 10.0, "f16-off": 9.9, "q8_0-on": 5.0}
        best, refused = with_layout(model, case, plain, times, expected)
        assert (best.kv_type, refused) == (("q8_0", []) if expected == rounded else ("f16", ["q8_0-on"]))
    assert with_layout(model, replace(case, prompts=()), plain, times, [])[0] == plain


def test_the_command_answers_a_text_lines_and_json(models: PicoModels, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps(SCHEMA), encoding="utf-8")
    command = ["answer", str(models.teacher), "--schema", str(schema), "--system", "JSON."]
    plain = CliRunner().invoke(cli, [*command, "light on"])
    assert plain.exit_code == 0, plain.output
    lines = CliRunner().invoke(cli, [*command, "--lines", "--json"], input="light on\n\nlight off\n")
    documents = [json.loads(line) for line in lines.stdout.splitlines()]
    assert documents[0]["answer"] + "\n" == plain.stdout
    assert len(documents) == 2
    assert {"ttft_ms", "e2e_ms", "tokens", "forced_tokens", "probability"} <= documents[0].keys()
    cut = CliRunner().invoke(cli, ["answer", str(models.teacher), "--max-tokens", "2"], input="hello\n")
    assert "cut at 2 tokens" in cut.stderr
    for wrong, code in (([*command, "x", "--lines"], 3), (["answer", str(tmp_path), "x"], 3)):
        assert CliRunner().invoke(cli, wrong).exit_code == code
