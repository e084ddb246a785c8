"""Sparse distributions come back as they were, from few bytes, and damage never does more than be refused."""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgedistill.errors import InvalidInput
from edgedistill.records import Completion
from edgedistill.store import Store
from edgedistill.targets import HEADER, WORTH, Capture, CaptureSettings, Targets, decode, encode, sampled, top_k

TOP_K = CaptureSettings("top_k", 0.995, 64, 50)
SAMPLED = CaptureSettings("sampled", 0.995, 64, 50)
DOCUMENT = Path(__file__).parents[1] / "docs" / "targets.md"


def rows(seed: int, vocabulary: int, count: int, spread: float) -> NDArray[np.float32]:
    """Rows of logits; a large spread makes them peaked."""
    drawn = np.random.default_rng(seed).standard_normal((count, vocabulary)).astype(np.float32) * np.float32(spread)
    if seed % 3 == 0:
        drawn[:, vocabulary // 2 + 1 :] = -np.inf
    return drawn


def log_softmax(row: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = row.astype(np.float64) - row.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum()))


def captured(settings: CaptureSettings, logits: NDArray[np.float32]) -> Capture:
    capture = Capture(settings, logits.shape[1], seed=1)
    for row in logits:
        capture.add(int(row.argmax()), row)
    return capture


@settings(max_examples=60)
@given(
    st.integers(0, 999),
    st.sampled_from([2, 3, 17, 1000, 262_144]),
    st.integers(1, 4),
    st.floats(0, 12),
    st.sampled_from([1, 64]),
)
def test_what_is_kept_comes_back_within_its_error(
    seed: int, vocabulary: int, count: int, spread: float, largest: int
) -> None:
    logits = rows(seed, vocabulary, count, spread)
    found = decode(captured(replace(TOP_K, largest=largest), logits).encoded())
    assert found.profile == "top_k"
    assert list(found.tokens) == [int(row.argmax()) for row in logits]
    for place, row in enumerate(logits):
        kept = slice(found.offsets[place], found.offsets[place + 1])
        exact = log_softmax(row)[found.ids[kept]]
        near = exact > exact.max() - 10
        assert np.abs(found.logprobs[kept] - exact)[near].max() < 0.13
        assert abs(np.exp(found.logprobs[kept].astype(np.float64)).sum() + found.tail[place] - 1) < 1e-3
        assert list(np.argsort(-exact, kind="stable")) == list(range(len(exact)))


@settings(max_examples=60)
@given(st.integers(0, 999), st.sampled_from([2, 50, 4000]), st.floats(0, 8), st.floats(0.1, 1.0), st.integers(1, 64))
def test_the_kept_set_is_the_smallest_that_reaches_the_mass_without_what_is_not_worth_it(
    seed: int, vocabulary: int, spread: float, mass: float, largest: int
) -> None:
    row = rows(seed, vocabulary, 1, spread)[0]
    ids, logprobs, tail = top_k(row, mass, largest)
    shares = np.exp(logprobs.astype(np.float64))
    assert len(set(ids.tolist())) == len(ids) <= largest
    assert abs(shares.sum() + tail - 1) < 1e-4
    if len(ids) > 1:
        assert shares[:-1].sum() < mass + 1e-4
    assert np.all(np.diff(logprobs) <= 0)
    least = (1 - mass) * WORTH
    assert len(ids) == 1 or shares[-1] > least * 0.999
    if len(ids) < min(largest, vocabulary) and shares.sum() < mass - 1e-4:
        following = np.sort(np.exp(log_softmax(row)))[::-1][len(ids)]
        assert following < least * 1.001, "there is nothing more that is worth its bytes"


@pytest.mark.parametrize("tail", [0.0, 1e-9, 1.25e-7, 1e-6, 1e-3, 0.5, 0.99, 0.99999994, 1.0])
def test_tails_of_every_size_come_back(tail: float) -> None:
    one = np.zeros(1, np.int32)
    logprob = np.log(np.array([max(1 - tail, 1e-7)], np.float32))
    found = decode(encode(Targets("top_k", one, np.array([0, 1]), one, logprob, np.array([tail], np.float32)), 9))
    assert found.tail[0] == pytest.approx(tail, rel=0.07, abs=2e-7)
    assert np.exp(found.logprobs[0]) + found.tail[0] == pytest.approx(1, abs=1e-6)


def test_what_is_left_out_of_a_flat_distribution_is_in_its_tail() -> None:
    row = np.log(np.array([0.9, *[0.1 / 5000] * 5000], np.float32))
    ids, _, tail = top_k(row, 0.99, 64)
    assert (ids.tolist(), round(tail, 4)) == ([0], 0.1)
    ids, _, tail = top_k(row, 0.9999, 64)
    assert len(ids) == 64
    flat = np.zeros(100_000, np.float32)
    flat[7] = 1e-3
    assert top_k(flat, 0.995, 64)[0].tolist() == [7], "the most probable one is always kept"


def test_draws_are_unbiased() -> None:
    row = np.log(np.array([0.6, 0.3, 0.08, 0.02], dtype=np.float32))
    random = np.random.default_rng(0)
    mean = np.zeros(4)
    for _ in range(400):
        ids, logprobs, tail = sampled(row, 50, random)
        assert tail == 0.0
        mean[ids] += np.exp(logprobs) / 400
    assert np.abs(mean - np.exp(row)).max() < 0.01


@settings(max_examples=40)
@given(st.integers(0, 999), st.sampled_from([2, 1000, 49_152]), st.integers(1, 5))
def test_counts_come_back_exactly(seed: int, vocabulary: int, count: int) -> None:
    after = decode(captured(SAMPLED, rows(seed, vocabulary, count, 2.0)).encoded())
    hits = np.exp(after.logprobs.astype(np.float64)) * SAMPLED.draws
    assert np.allclose(hits, np.rint(hits), atol=1e-3)
    assert [round(part.sum()) for part in np.split(hits, after.offsets[1:-1])] == [SAMPLED.draws] * count
    assert encode(after, vocabulary) == encode(decode(encode(after, vocabulary)), vocabulary)


@settings(max_examples=150)
@given(st.integers(0, 5000), st.integers(0, 255), st.sampled_from([TOP_K, SAMPLED]), st.booleans())
def test_damage_is_refused(at: int, value: int, settings: CaptureSettings, cut: bool) -> None:
    blob = bytearray(captured(settings, rows(1, 500, 4, 2.0)).encoded())
    at %= len(blob)
    whole = bytes(blob)
    blob[at] = value
    damaged = whole[:at] if cut else bytes(blob)
    if damaged == whole:
        return
    with pytest.raises(InvalidInput):
        decode(damaged)


@settings(max_examples=300)
@given(st.integers(1, 5000), st.integers(0, 255), st.sampled_from([TOP_K, SAMPLED]), st.booleans(), st.booleans())
def test_damage_that_the_checksum_hides_does_no_more_than_be_refused(
    at: int, value: int, settings: CaptureSettings, in_header: bool, cut: bool
) -> None:
    body = bytearray(captured(settings, rows(1, 500, 4, 2.0)).encoded()[:-4])
    at = 1 + at % ((HEADER.size if in_header else len(body)) - 1)
    body[at] = value
    if cut:
        del body[at:]
    try:
        found = decode(bytes(body) + struct.pack("<I", zlib.crc32(body)))
    except InvalidInput:
        return
    assert found.offsets[-1] == len(found.ids) == len(found.logprobs)
    assert found.ids.min() >= 0


@pytest.mark.parametrize("kept", [TOP_K, SAMPLED])
@pytest.mark.parametrize("logits", [[0.0, np.nan], [-np.inf, -np.inf], [0.0, np.inf]])
def test_logits_that_are_no_distribution_are_refused(kept: CaptureSettings, logits: list[float]) -> None:
    with pytest.raises(InvalidInput, match="logits"):
        Capture(kept, 2, seed=1).add(0, np.array(logits, np.float32))


@pytest.mark.parametrize("kept", [TOP_K, SAMPLED])
def test_an_answer_without_tokens_has_a_blob(kept: CaptureSettings) -> None:
    found = decode(Capture(kept, 9, seed=1).encoded())
    assert (len(found.tokens), len(found.ids), found.offsets.tolist()) == (0, 0, [0])


def test_ties_come_by_rising_id() -> None:
    ids, _, _ = top_k(np.array([0.0, 1.0, 0.0, 1.0, -np.inf], np.float32), 1.0, 4)
    assert ids.tolist() == [1, 3, 0, 2]


def test_the_first_positions_alone_and_a_copy_are_their_own() -> None:
    capture = captured(TOP_K, rows(2, 300, 5, 3.0))
    assert len(decode(capture.encoded(3)).tokens) == 3
    other = capture.copy()
    other.add(1, rows(4, 300, 1, 1.0)[0])
    assert [len(decode(one.encoded()).tokens) for one in (capture, other)] == [5, 6]


@pytest.mark.parametrize("kept", [TOP_K, SAMPLED])
@pytest.mark.parametrize(("vocabulary", "repeats"), [(300, 1), (5000, 30), (262_144, 12)])
def test_the_documents_example_reads_a_store(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    kept: CaptureSettings,
    vocabulary: int,
    repeats: int,
) -> None:
    path = tmp_path / "teacher.sqlite"
    blob = captured(kept, np.tile(rows(2, vocabulary, 2, 9.0), (repeats, 1))).encoded()
    assert bool(HEADER.unpack_from(blob)[6]) == (repeats > 1)  # ids as they are, or by their place among the distinct
    with Store(path) as store:
        store.add("ab" * 32, Completion("id", "hello", "stop", 1, 2 * repeats, 0.1, targets=blob))
    (example,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    exec(example, {"path": path})
    found = decode(blob)
    entries = np.split(found.ids, found.offsets[1:-1])
    expected = [" ".join(map(str, [token, *ids])) for token, ids in zip(found.tokens, entries, strict=True)]
    assert capsys.readouterr().out.splitlines() == expected
