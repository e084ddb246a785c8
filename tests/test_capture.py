"""What the batch engine keeps besides text: samples, the distribution at each token, the probability of each answer."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pico import pico_gguf

from edgedistill.llamacpp import answer as answering
from edgedistill.llamacpp import layout
from edgedistill.llamacpp.answer import Answerer, AnswererSettings
from edgedistill.llamacpp.branches import AnswerTrie, follow
from edgedistill.llamacpp.context import Context
from edgedistill.llamacpp.layout import COUNTS, Layout, Work, best_layout, fastest, measured_rates
from edgedistill.llamacpp.model import LlamaModel
from edgedistill.llamacpp.probe import next_token_logits
from edgedistill.llamacpp.sampling import Sampling, choose
from edgedistill.records import Completion, Example, Message, Prompt
from edgedistill.schema import closed_answers
from edgedistill.targets import CaptureSettings, decode

SYSTEM = [Message("system", "You answer in JSON.")]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"light": {"enum": ["on", "off", "only one"]}, "sure": {"type": "boolean"}},
    "required": ["light", "sure"],
    "additionalProperties": False,
}
KEEP = CaptureSettings("top_k", 0.999, 64, 50)
TEXTS = ("light on", "", "\nhall off, please", "🚀", "hello " * 30, "is it on?")
PROMPTS = [Prompt(f"{number:08x}", (Message("user", text),)) for number, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pico_gguf(tmp_path_factory.mktemp("capture") / "pico.gguf", "qwen2", tied=False, seed=3)


@pytest.fixture
def free(path: Path) -> Iterator[Answerer]:
    with Answerer(path, SYSTEM, None, AnswererSettings(1)) as answerer:
        yield answerer


@pytest.fixture
def bound(path: Path) -> Iterator[Answerer]:
    with Answerer(path, SYSTEM, SCHEMA, AnswererSettings(1)) as answerer:
        yield answerer


def by_key(completions: Iterator[Completion]) -> dict[tuple[str, int], Completion]:
    found = list(completions)
    assert len({(one.prompt_id, one.sample) for one in found}) == len(found)
    return {(one.prompt_id, one.sample): one for one in found}


def log_softmax(row: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = row.astype(np.float64) - row.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum()))


def exact(path: Path, answerer: Answerer, prompt: Prompt, answer: Sequence[int]) -> NDArray[np.float64]:
    """Log-probabilities after the prompt and after each token of the answer but the last: one plain pass each."""
    shared, own = answerer.shared.split(prompt.messages)
    tokens = [*answerer.shared.tokens[:shared], *own]
    rows = [[*tokens, *answer[:count]] for count in range(len(answer))]
    return np.stack([log_softmax(row) for row in next_token_logits(path, rows, 1)])


@pytest.mark.parametrize("samples", [1, 3, 7])
@pytest.mark.parametrize("slots", [2, 8])
def test_each_prompt_is_answered_as_often_as_asked(free: Answerer, samples: int, slots: int) -> None:
    sampling = Sampling(6, temperature=1.0, samples=samples)
    found = by_key(free.complete(PROMPTS, sampling, slots))
    assert found.keys() == {(prompt.id, number) for prompt in PROMPTS for number in range(samples)}
    if samples > 1:
        assert max(Counter(one.text for one in found.values()).values()) < len(found) / 2, "samples differ"


def test_a_sample_is_the_same_whether_it_shares_its_prompt_or_not(free: Answerer) -> None:
    together = by_key(free.complete(PROMPTS, Sampling(6, temperature=1.0, samples=4), 8))
    few = by_key(free.complete(PROMPTS, Sampling(6, temperature=1.0, samples=4), 2))
    assert sum(together[key].text == few[key].text for key in together) >= 0.8 * len(together)


def test_samples_cost_their_prompt_once(free: Answerer) -> None:
    prompt = PROMPTS[4]
    request = free.request(prompt, Sampling(4, temperature=1.0, samples=8))
    with free.engine(Layout(8, False), [request]) as engine:
        before = engine.decoded_tokens
        found = list(engine.run([request]))
        written = sum(len(answer.tokens) for answer in found)
        assert engine.decoded_tokens - before <= len(request.tokens) + written


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("slots", [1, 3, 12])
def test_split_and_shared_cells_give_the_same_answers(free: Answerer, split: bool, slots: int) -> None:
    prompts = [replace(prompt, id=f"{n:04x}{prompt.id[4:]}") for n in range(8) for prompt in PROMPTS]
    requests = [free.request(prompt, Sampling(8)) for prompt in prompts]
    with free.engine(Layout(1, False), requests) as engine:
        expected = {answer.id: answer.text for answer in engine.run(requests)}
    with free.engine(Layout(slots, split), requests) as engine:
        found = {answer.id: answer.text for answer in engine.run(requests)}
    assert found.keys() == expected.keys()
    assert sum(found[key] != expected[key] for key in expected) <= len(expected) // 8


@pytest.mark.parametrize("split", [False, True])
def test_what_is_kept_on_the_way_is_the_models_own_distribution(free: Answerer, path: Path, split: bool) -> None:
    requests = [free.request(prompt, Sampling(8, capture=KEEP)) for prompt in PROMPTS]
    with free.engine(Layout(3, split), requests) as engine:
        for answer in engine.run(requests):
            prompt = next(one for one in PROMPTS if one.id == answer.id)
            targets = decode(answer.targets or b"")
            assert tuple(targets.tokens[: len(answer.tokens)]) == answer.tokens
            assert len(targets.tokens) == len(answer.tokens) + (answer.finish_reason == "stop")
            for place, row in enumerate(exact(path, free, prompt, list(targets.tokens))):
                kept = slice(targets.offsets[place], targets.offsets[place + 1])
                assert targets.ids[kept][0] == row.argmax() or abs(row.max() - row[targets.ids[kept][0]]) < 0.01
                assert np.abs(targets.logprobs[kept] - row[targets.ids[kept]]).max() < 0.14


@pytest.mark.parametrize("slots", [1, 4])
def test_forced_tokens_have_their_distribution_too(bound: Answerer, slots: int) -> None:
    jumped = by_key(bound.complete(PROMPTS, Sampling(40, capture=KEEP), slots))
    plain = by_key(bound.complete(PROMPTS, Sampling(40, capture=KEEP), slots, jump=False))
    for key, one in jumped.items():
        mine, other = decode(one.targets or b""), decode(plain[key].targets or b"")
        assert json.loads(one.text).keys() == {"light", "sure"}
        assert list(mine.tokens) == list(other.tokens)
        assert list(mine.offsets) == list(other.offsets) or np.allclose(mine.tail, other.tail, atol=0.02)


def test_scoring_given_text_keeps_the_distribution_at_each_token_of_it(free: Answerer, path: Path) -> None:
    texts = ("light on", "the hall", "x", "", "user and kitchen, turn off the light " * 3, "🚀!")
    rows = zip(PROMPTS, texts, strict=True)
    examples = [Example(prompt.id, (*prompt.messages, Message("assistant", text))) for prompt, text in rows]
    scored = by_key(free.score(iter(examples), Sampling(8, capture=KEEP)))
    for prompt, text in zip(PROMPTS, texts, strict=True):
        one = scored[prompt.id, 0]
        assert (one.text, one.finish_reason) == (text, "stop")
        targets = decode(one.targets or b"")
        assert list(targets.tokens) == [*free.model.tokenize(text, special=False), free.model.end_of_turn]
        for place, row in enumerate(exact(path, free, prompt, list(targets.tokens))):
            kept = slice(targets.offsets[place], targets.offsets[place + 1])
            assert np.abs(targets.logprobs[kept] - row[targets.ids[kept]]).max() < 0.14


def test_every_answer_of_a_closed_set_has_the_probability_of_drawing_it(bound: Answerer, path: Path) -> None:
    answers = closed_answers(SCHEMA)
    assert answers is not None
    tokens = [[*bound.model.tokenize(answer, special=False), bound.model.end_of_turn] for answer in answers]
    ranked = {one.id: one for one in bound.rank(PROMPTS, bound.trie(answers))}
    for prompt in PROMPTS:
        expected = np.zeros(len(answers))
        for number, answer in enumerate(tokens):
            rows = exact(path, bound, prompt, answer)
            for place, row in enumerate(rows):
                follow = sorted({other[place] for other in tokens if other[:place] == answer[:place]})
                allowed = np.exp(row[follow])
                expected[number] += np.log(allowed[follow.index(answer[place])] / allowed.sum())
        assert np.allclose(ranked[prompt.id].probabilities, np.exp(expected), atol=2e-3)
        assert abs(sum(ranked[prompt.id].probabilities) - 1) < 1e-9


def test_the_most_probable_answer_is_at_least_as_probable_as_the_greedy_one(bound: Answerer) -> None:
    answers = closed_answers(SCHEMA) or ()
    greedy = by_key(bound.complete(PROMPTS, Sampling(40), 4))
    for one in bound.rank(PROMPTS, bound.trie(answers)):
        sampled = one.probabilities[answers.index(greedy[one.id, 0].text)]
        assert sampled <= max(one.probabilities)


def test_many_prompts_are_ranked_in_their_order_whatever_fits_a_batch(bound: Answerer) -> None:
    prompts = [replace(prompt, id=f"{n:04x}{prompt.id[4:]}") for n in range(80) for prompt in PROMPTS]
    found = list(bound.rank(iter(prompts), bound.trie(closed_answers(SCHEMA) or ())))
    assert [one.id for one in found] == [prompt.id for prompt in prompts]
    for number, one in enumerate(found[: 3 * len(PROMPTS)]):
        assert np.allclose(one.probabilities, found[number % len(PROMPTS)].probabilities, atol=5e-3)


def test_a_prompt_longer_than_all_that_were_looked_at_is_answered_too(
    free: Answerer, bound: Answerer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answering, "AHEAD", 2)
    long = [Prompt(f"{number:08x}", (Message("user", "hello " * number),)) for number in (1, 2, 90, 3, 250, 251, 4)]
    assert by_key(free.complete(iter(long), Sampling(4), 2)).keys() == {(prompt.id, 0) for prompt in long}
    ranked = bound.rank(iter(long), bound.trie(closed_answers(SCHEMA) or ()))
    assert [one.id for one in ranked] == [prompt.id for prompt in long]


def test_a_trie_computes_only_what_leads_to_a_place_where_answers_part() -> None:
    trie = AnswerTrie([[1, 2, 3, 4], [1, 2, 5, 6], [1, 2, 5, 7, 8]], end=0)
    assert trie.forced == (1, 2)
    assert list(trie.root.children) == [3, 5]
    assert follow(trie.root.children[3])[1].answer == 0
    assert list(follow(trie.root.children[5])[1].children) == [6, 7]
    one = AnswerTrie([[4, 5]], end=0)
    assert (one.forced, one.root.children) == ((4, 5, 0), {})


def test_a_set_of_one_answer_is_certain(bound: Answerer) -> None:
    assert [one.probabilities for one in bound.rank(PROMPTS, bound.trie(["{}"]))] == [(1.0,)] * len(PROMPTS)


def test_a_floor_spreads_what_is_improbable_and_saves_its_branches(bound: Answerer) -> None:
    answers = closed_answers(SCHEMA) or ()
    trie = bound.trie(answers)
    for whole, floored in zip(bound.rank(PROMPTS, trie), bound.rank(PROMPTS, trie, 0.2), strict=True):
        assert abs(sum(floored.probabilities) - 1) < 1e-9
        gap = np.abs(np.subtract(whole.probabilities, floored.probabilities))
        assert gap.max() <= 0.2
        assert any(gap < 1e-9) or gap.max() < 1e-3 or max(whole.probabilities) < 0.4


def test_an_answer_may_begin_another() -> None:
    trie = AnswerTrie([[7], [7, 8]], end=0)
    assert trie.forced == (7,)
    assert sorted(trie.root.children) == [0, 8]


@pytest.mark.parametrize(
    ("changes", "allowed"),
    [({"top_k": 2}, {1, 3}), ({"top_p": 0.5}, {3}), ({"min_p": 0.2}, {1, 3}), ({"temperature": 1e-4}, {3}), ({}, None)],
)
def test_what_is_drawn_stays_in_the_set_that_was_asked_for(changes: dict[str, Any], allowed: set[int] | None) -> None:
    logits = np.log(np.array([0.05, 0.25, 0.1, 0.6], dtype=np.float32))
    random = np.random.default_rng(0)
    sampling = Sampling(1, **{"temperature": 1.0, **changes})
    drawn = Counter(choose(logits, sampling, random) for _ in range(400))
    assert drawn.keys() <= (allowed or {0, 1, 2, 3})
    if not changes:
        assert abs(drawn[3] / 400 - 0.6) < 0.1
        assert len(drawn) == 4


def test_the_layout_is_measured_once_and_kept(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "_was_disturbed", lambda *_: False)
    work = Work(shared=20, own=10, answer=8, chunks=False)
    with LlamaModel(path) as model:
        rates = measured_rates(model, work, 1, False, (1, 4))
        assert rates.keys() <= {1, 4}
        best = best_layout(model, work, 1, tmp_path)
        assert best.slots in COUNTS
        (kept,) = tmp_path.iterdir()
        told = kept.read_text(encoding="utf-8")
        kept.write_text(told.replace(f'"slots": {best.slots}', '"slots": 99', 1), encoding="utf-8")
        assert best_layout(model, work, 1, tmp_path) == Layout(99, best.split), "what is kept is used"
        kept.write_text("damaged", encoding="utf-8")
        assert best_layout(model, work, 1, tmp_path).slots in COUNTS


def test_the_prefix_is_computed_once_for_all_numbers_of_slots(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    plain = Context.decode
    monkeypatch.setattr(Context, "decode", lambda self: (sizes.append(self.batch.size), plain(self)))
    monkeypatch.setattr(layout, "GIVE_UP", 0.0)
    with LlamaModel(path) as model:
        measured_rates(model, Work(shared=20, own=10, answer=8, chunks=False), 1, False, (1, 4, 8))
    assert sum(sizes) == 20 + 14 + (1 + 4 + 8) * (layout.STEPS + 1)


@pytest.mark.parametrize(
    ("rates", "tried"),
    [((20, 30, 24, 45, 50, 40, 41), 7), ((20, 30, 24, 25, 50, 40, 41), 4), ((20, 30, 28, 26, 28, 24, 23), 7)],
    ids=["a dip", "two in a row", "by turns"],
)
def test_more_slots_are_tried_until_two_numbers_are_clearly_slower(
    rates: tuple[int, ...], tried: int, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = iter(rates)
    monkeypatch.setattr(layout, "_rate", lambda *_: float(next(given)))
    with LlamaModel(path) as model:
        found = measured_rates(model, Work(shared=20, own=10, answer=8, chunks=False), 1, False)
    assert list(found.values()) == list(rates[:tried])


def test_a_layout_that_was_measured_beside_other_work_is_not_kept(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "_was_disturbed", lambda *_: True)
    with LlamaModel(path) as model:
        assert best_layout(model, Work(shared=20, own=10, answer=8, chunks=False), 1, tmp_path).slots in COUNTS
    assert not list(tmp_path.iterdir())


def test_a_larger_number_of_slots_is_chosen_only_where_it_is_faster() -> None:
    rates = {Layout(4, False): 53.0, Layout(8, False): 48.0, Layout(16, False): 53.5, Layout(16, True): 52.0}
    assert fastest(rates) == Layout(4, False)
