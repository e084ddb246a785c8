"""The batch engine against one plain loop over llama.cpp's own API, on pico models that really compute."""

from __future__ import annotations

import ctypes
import json
import random
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema_rs
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pico import edited, pico_gguf, pico_hf_folder, reconfigured, written

from edgedistill.errors import InvalidInput
from edgedistill.llamacpp.answer import Answerer, AnswererSettings, SharedPrompt
from edgedistill.llamacpp.engine import BatchEngine, EngineSettings
from edgedistill.llamacpp.grammar import Grammar
from edgedistill.llamacpp.model import LlamaModel, load_llama_cpp
from edgedistill.llamacpp.prefix import ROWS, PrefixCache
from edgedistill.llamacpp.probe import next_token_logits
from edgedistill.llamacpp.requests import Answer, Request
from edgedistill.llamacpp.sampling import Sampling
from edgedistill.records import Message, Prompt, common_length

WORDS = ("the", "and", "user", "light", "kitchen", "turn", "on", "off", "hello", "world", "ünï", "🚀", "{}", "\n", "!")
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "action": {"enum": ["turn_on", "turn_off", "none"]},
        "lights": {"type": "array", "items": {"enum": ["hall", "kitchen"]}, "maxItems": 2},
        "sure": {"type": "boolean"},
    },
    "required": ["action", "lights", "sure"],
    "additionalProperties": False,
}
NEAR_TIE = 0.01  # of logits: flips were seen up to 0.005
PREFIX = "<|im_start|>system\nYou turn a command into JSON, as briefly as can be.<|im_end|>\n<|im_start|>"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaModel]:
    with LlamaModel(pico_gguf(tmp_path_factory.mktemp("engine") / "pico.gguf", "qwen2", tied=False, seed=3)) as model:
        yield model


def some_texts(count: int, seed: int = 0) -> list[str]:
    """Texts of 1 to 40 words."""
    source = random.Random(seed)
    return [" ".join(source.choices(WORDS, k=source.choice((1, 2, 5, 12, 40)))) for _ in range(count)]


def chat(text: str) -> str:
    return f"user\n{text}<|im_end|>\n<|im_start|>assistant\n"


def requests_for(model: LlamaModel, texts: Sequence[str], shared: int = 0, **changes: Any) -> list[Request]:
    return [
        Request(str(number), shared, model.tokenize(chat(text)), Sampling(12, **changes))
        for number, text in enumerate(texts)
    ]


Opened = Callable[..., BatchEngine]


@pytest.fixture
def opened(model: LlamaModel) -> Iterator[Opened]:
    """Opens engines, and closes them after the test."""
    engines = []

    def open_engine(
        slots: int, prefix: Sequence[int] = (), grammar: Grammar | None = None, **changes: Any
    ) -> BatchEngine:
        engines.append(
            BatchEngine(model, EngineSettings(slots, **{"context": 2048, "threads": 1, **changes}), prefix, grammar)
        )
        return engines[-1]

    yield open_engine
    for engine in engines:
        engine.close()


def answers(engine: BatchEngine, requests: Sequence[Request]) -> dict[str, Answer]:
    """Answers by id; every request is answered once."""
    found = list(engine.run(requests))
    assert sorted(answer.id for answer in found) == sorted(request.id for request in requests)
    return {answer.id: answer for answer in found}


def texts_of(found: dict[str, Answer]) -> dict[str, str]:
    return {identity: answer.text for identity, answer in found.items()}


def assert_same(
    model: LlamaModel, requests: Sequence[Request], found: dict[str, Answer], expected: dict[str, Answer]
) -> None:
    """The same answers, but where two tokens are as good as equal: other neighbours in a batch round otherwise."""
    for request in requests:
        mine, other = found[request.id].tokens, expected[request.id].tokens
        if mine == other:
            continue
        place = common_length(mine, other)
        whole = [*model.tokenize(PREFIX)[: request.shared], *request.tokens, *mine[:place]]
        row = next_token_logits(model.path, [whole], 1)
        best, second = np.sort(row[0])[[-1, -2]]
        assert best - second < NEAR_TIE, (request.id, place, best, second)
    same = sum(found[request.id].tokens == expected[request.id].tokens for request in requests)
    assert same >= len(requests) - max(1, len(requests) // 12)


def one_by_one(model: LlamaModel, tokens: list[int], max_tokens: int) -> list[int]:
    """Greedy decoding of one prompt with nothing but llama.cpp: the prompt, then token after token."""
    lib = load_llama_cpp()
    wanted = lib.llama_context_default_params()
    wanted.n_ctx, wanted.n_batch, wanted.n_threads, wanted.n_threads_batch = 2048, 2048, 1, 1
    context = lib.llama_init_from_model(model.handle, wanted)
    answer: list[int] = []
    chunk = tokens
    while len(answer) < max_tokens:
        array = (ctypes.c_int32 * len(chunk))(*chunk)
        assert lib.llama_decode(context, lib.llama_batch_get_one(array, len(chunk))) == 0
        logits = np.ctypeslib.as_array(lib.llama_get_logits_ith(context, -1), shape=(model.vocab_size,))
        chunk = [int(logits.argmax())]
        if lib.llama_vocab_is_eog(model.vocab, chunk[0]):
            break
        answer += chunk
    lib.llama_free(context)
    return answer


def test_one_slot_answers_as_plain_sequential_decoding_does(model: LlamaModel, opened: Opened) -> None:
    requests = requests_for(model, some_texts(30))
    found = answers(opened(1), requests)
    for request in requests:
        assert list(found[request.id].tokens) == one_by_one(model, list(request.tokens), 12)


def test_many_slots_give_the_same_answers_behind_a_shared_prefix(model: LlamaModel, opened: Opened) -> None:
    prefix = model.tokenize(PREFIX)
    requests = requests_for(model, some_texts(40, seed=1), shared=len(prefix))
    found = answers(opened(4, prefix), requests)
    assert_same(model, requests, found, answers(opened(1, prefix), requests))
    for request in requests[:10]:
        assert list(found[request.id].tokens) == one_by_one(model, [*prefix, *request.tokens], 12)
        assert found[request.id].prompt_tokens == len(prefix) + len(request.tokens)


@pytest.mark.parametrize("batch_tokens", [16, 33, 512])
def test_a_small_batch_cuts_prompts_into_pieces_and_changes_nothing(
    model: LlamaModel, opened: Opened, batch_tokens: int
) -> None:
    prefix = model.tokenize(PREFIX)
    requests = requests_for(model, some_texts(12, seed=2), shared=len(prefix))
    small = answers(opened(12, prefix, batch_tokens=batch_tokens), requests)
    assert_same(model, requests, small, answers(opened(1, prefix), requests))


def test_the_prefix_is_decoded_once_and_every_other_token_once(model: LlamaModel, opened: Opened) -> None:
    prefix = model.tokenize(PREFIX)
    requests = requests_for(model, some_texts(20, seed=3), shared=len(prefix))
    engine = opened(4, prefix)
    once = -(-len(prefix) // ROWS) * ROWS  # in whole groups
    assert engine.decoded_tokens == once
    found = answers(engine, requests)
    own = sum(len(request.tokens) for request in requests)
    # the last token of an answer that is cut off is not decoded any more
    fed = sum(len(answer.tokens) - (answer.finish_reason == "length") for answer in found.values())
    assert engine.decoded_tokens == once + own + fed


def test_one_slot_computes_of_a_prompt_what_begins_otherwise_than_the_one_before(
    model: LlamaModel, opened: Opened
) -> None:
    prefix = model.tokenize(PREFIX)
    texts = ["turn on the light", "turn on the kitchen light", "hello", "hello"]
    requests = requests_for(model, texts, shared=len(prefix))
    plain, engine = opened(1, prefix), opened(1, prefix, reuse=True)
    expected = answers(plain, requests)
    assert_same(model, requests, answers(engine, requests), expected)
    saved = plain.decoded_tokens - engine.decoded_tokens
    tokens = [request.tokens for request in requests]
    assert saved == sum(min(common_length(one, two), len(two) - 1) for one, two in pairwise(tokens))
    assert_same(model, requests, answers(engine, requests), expected)


def test_a_slot_is_refilled_the_step_it_frees(model: LlamaModel, opened: Opened) -> None:
    requests = [Request(str(n), 0, model.tokenize("hello"), Sampling(1 + n % 7)) for n in range(28)]
    engine = opened(4)
    found = answers(engine, requests)
    longest = sum(max(1, len(answer.tokens) + (answer.finish_reason == "stop")) for answer in found.values())
    assert engine.steps <= -(-longest // 4) + 7


def test_requests_are_taken_as_they_are_needed(model: LlamaModel, opened: Opened) -> None:
    taken = []

    def endless() -> Iterator[Request]:
        for number in range(10**6):
            taken.append(number)
            yield Request(str(number), 0, model.tokenize("hello"), Sampling(3))

    running = opened(4).run(endless())
    for _ in range(6):
        next(running)
    assert len(taken) <= 4 + 6 + 2 * 4


@pytest.mark.parametrize("jump", [True, False])
def test_an_answer_under_a_grammar_always_matches_the_schema(model: LlamaModel, opened: Opened, jump: bool) -> None:
    validator = jsonschema_rs.validator_for(SCHEMA)
    requests = requests_for(model, some_texts(30, seed=4))
    roomy = [Request(r.id, 0, r.tokens, Sampling(120, t)) for r, t in zip(requests, [0.0, 2.0] * 15, strict=True)]
    found = answers(opened(8, grammar=Grammar(model, SCHEMA), jump=jump, context=4096), roomy)
    for answer in found.values():
        assert answer.finish_reason == "stop"
        assert validator.is_valid(json.loads(answer.text))
        assert " " not in answer.text
        assert list(json.loads(answer.text)) == ["action", "lights", "sure"]


def test_jumping_over_forced_tokens_changes_no_answer_and_saves_steps(model: LlamaModel, opened: Opened) -> None:
    requests = [Request(r.id, 0, r.tokens, Sampling(120)) for r in requests_for(model, some_texts(20, seed=5))]
    jumping, plain = (opened(4, grammar=Grammar(model, SCHEMA), jump=jump) for jump in (True, False))
    assert texts_of(answers(jumping, requests)) == texts_of(answers(plain, requests))
    assert jumping.steps < plain.steps / 2


@pytest.mark.parametrize("jump", [True, False])
@pytest.mark.parametrize(
    "schema", [{"const": "x"}, {"const": {"a": [1, None]}}, {"type": "null"}, {"enum": ["one"]}], ids=json.dumps
)
def test_a_schema_of_one_answer_gives_that_answer(
    model: LlamaModel, opened: Opened, schema: dict[str, Any], jump: bool
) -> None:
    only = schema.get("const", schema.get("enum", [None])[0])
    requests = [Request(r.id, 0, r.tokens, Sampling(40)) for r in requests_for(model, some_texts(5))]
    for answer in answers(opened(2, grammar=Grammar(model, schema), jump=jump), requests).values():
        assert json.loads(answer.text) == only
        assert answer.finish_reason == "stop"


@pytest.mark.parametrize("jump", [True, False])
def test_an_answer_that_is_cut_off_says_so(model: LlamaModel, opened: Opened, jump: bool) -> None:
    requests = [
        Request(r.id, 0, r.tokens, Sampling(n)) for n, r in enumerate(requests_for(model, some_texts(20)), start=1)
    ]
    found = answers(opened(4, grammar=Grammar(model, SCHEMA), jump=jump), requests)
    for request in requests:
        answer = found[request.id]
        assert len(answer.tokens) <= request.sampling.max_tokens
        assert answer.finish_reason == "length"
    free = answers(opened(4), requests_for(model, some_texts(20)))
    for answer in free.values():
        assert answer.finish_reason == ("length" if len(answer.tokens) == 12 else "stop")


def test_a_schema_that_cannot_be_decoded_under_is_refused(model: LlamaModel) -> None:
    with pytest.raises(InvalidInput, match="schema: ") as caught:
        Grammar(model, {"type": "string", "pattern": "("})
    assert "\n" not in caught.value.message


def test_a_request_that_does_not_fit_is_refused_with_its_beginning(model: LlamaModel, opened: Opened) -> None:
    engine = opened(2, context=256)
    long = Request("long", 0, model.tokenize("hello world " * 200), Sampling(12))
    with pytest.raises(InvalidInput, match="do not fit the context of 256: 'hello world") as caught:
        list(engine.run([long]))
    assert caught.value.hint


def test_requests_wait_for_room_instead_of_failing(model: LlamaModel, opened: Opened) -> None:
    requests = [Request(str(n), 0, model.tokenize("hello world " * (5 + n)), Sampling(12)) for n in range(12)]
    tight = answers(opened(8, context=256), requests)
    assert_same(model, requests, tight, answers(opened(1), requests))


def test_sampling_is_repeated_by_its_seed(model: LlamaModel, opened: Opened) -> None:
    def sampled(slots: int, seed: int) -> dict[str, str]:
        return texts_of(
            answers(opened(slots), requests_for(model, some_texts(20), temperature=1.0, top_p=0.9, seed=seed))
        )

    first = sampled(4, 1)
    assert sampled(4, 1) == first
    assert sampled(4, 2) != first
    # other neighbours in the batch round the logits otherwise, which may turn a draw that was close
    alone = sampled(1, 1)
    assert sum(alone[identity] == first[identity] for identity in first) >= 15


def test_a_narrow_top_p_is_greedy(model: LlamaModel, opened: Opened) -> None:
    texts = some_texts(12)
    narrow = answers(opened(4), requests_for(model, texts, temperature=1.0, top_p=1e-6, seed=5))
    assert texts_of(narrow) == texts_of(answers(opened(4), requests_for(model, texts)))


def test_an_engine_answers_again_after_it_was_left_in_the_middle(model: LlamaModel, opened: Opened) -> None:
    requests = requests_for(model, some_texts(12))
    engine = opened(1)
    for request in requests:
        next(engine.run([request]))
    assert texts_of(answers(engine, requests)) == texts_of(answers(opened(1), requests))


def test_a_kept_prefix_is_read_back_and_changes_no_answer(model: LlamaModel, opened: Opened, tmp_path: Path) -> None:
    prefix = model.tokenize(PREFIX + "light on, hall. " * 40)
    cache = PrefixCache(tmp_path / "cache", "0" * 64)
    requests = requests_for(model, some_texts(12), shared=len(prefix))
    first, second, plain = (opened(4, prefix, prefix_cache=kept) for kept in (cache, cache, None))
    once = -(-len(prefix) // ROWS) * ROWS
    assert (first.decoded_tokens, second.decoded_tokens) == (once, 0)
    expected = texts_of(answers(plain, requests))
    assert texts_of(answers(first, requests)) == expected
    assert texts_of(answers(second, requests)) == expected
    for path in (tmp_path / "cache").glob("*.kv"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    damaged = opened(4, prefix, prefix_cache=cache)
    assert damaged.decoded_tokens == once
    assert texts_of(answers(damaged, requests)) == expected


BEGINNINGS = ["", "\n", "\n\n", " ", "  x", "\t", "a", "the", " the", "\u200b", "<|im_end|>", "🚀", "\r\n", "user", "1"]


@pytest.mark.parametrize("text", BEGINNINGS)
def test_shared_and_own_tokens_are_those_of_the_whole_text(model: LlamaModel, text: str) -> None:
    check_split(model, text)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_shared_and_own_tokens_are_those_of_the_whole_text_for_any_prompt(model: LlamaModel, text: str) -> None:
    check_split(model, text)


def test_a_prompt_that_merges_with_the_line_break_before_it_shares_less(tmp_path: Path) -> None:
    """In a vocabulary with a token for two line breaks, a prompt that begins with one changes the tokens before it."""

    def two_line_breaks(tokenizer: dict[str, Any]) -> None:
        tokenizer["model"]["vocab"]["ĊĊ"] = len(tokenizer["model"]["vocab"])
        tokenizer["model"]["merges"].append(["Ċ", "Ċ"])

    folder = edited(pico_hf_folder(tmp_path / "pico", "qwen2"), "tokenizer.json", two_line_breaks)
    reconfigured(folder, lambda config: config.update(vocab_size=config["vocab_size"] + 1))
    with LlamaModel(written(folder).path) as model:
        for text in BEGINNINGS:
            check_split(model, text)
        shared = SharedPrompt(model, [Message("system", "Be brief.")])
        assert shared.split([Message("user", "light")])[0] == len(shared.tokens)
        assert shared.split([Message("user", "\nlight")])[0] < len(shared.tokens)


def check_split(model: LlamaModel, text: str) -> None:
    preamble = (Message("system", "Be brief."), Message("user", "hi"), Message("assistant", "ok"))
    for shown in (preamble, preamble[:1], ()):
        shared = SharedPrompt(model, shown)
        count, own = shared.split([Message("user", text)])
        whole = model.chat_template().render([*shown, Message("user", text)])
        assert [*shared.tokens[:count], *own] == model.tokenize(whole, add_bos=False)
        assert count <= len(shared.tokens)
    assert len(SharedPrompt(model, preamble).tokens) > 20


def test_an_answerer_speaks_in_prompts_and_completions(model: LlamaModel) -> None:
    prompts = [Prompt(f"{number:08x}", (Message("user", text),)) for number, text in enumerate(some_texts(8))]
    with Answerer(model.path, [Message("system", "Be brief.")], SCHEMA, settings=AnswererSettings(1)) as answerer:
        found = {one.prompt_id: one for one in answerer.complete(prompts, Sampling(80), slots=4)}
        again = {one.prompt_id: one for one in answerer.complete(prompts, Sampling(80), slots=1)}
    assert found.keys() == {prompt.id for prompt in prompts}
    for identity, one in found.items():
        assert one.text == again[identity].text
        assert one.completion_tokens > 0
        assert one.seconds > 0


@pytest.mark.parametrize("slots", [1, 4])
def test_a_prompt_of_any_length_is_answered_whatever_the_slots(model: LlamaModel, slots: int) -> None:
    long = Prompt("00000001", (Message("user", "hello world " * 450),))
    short = [Prompt(f"{number:08x}", (Message("user", text),)) for number, text in enumerate(some_texts(6), start=2)]
    with Answerer(model.path, (), None, settings=AnswererSettings(1)) as answerer:
        found = {one.prompt_id: one for one in answerer.complete([*short, long], Sampling(8), slots)}
        assert list(answerer.complete([], Sampling(8), slots)) == []
    assert found["00000001"].prompt_tokens > 900
    assert len(found) == 7


def test_the_first_text_comes_before_the_last(model: LlamaModel, opened: Opened) -> None:
    for answer in answers(opened(2), requests_for(model, some_texts(10))).values():
        assert 0 < answer.first_seconds <= answer.seconds
