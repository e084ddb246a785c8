"""A teacher's distributions reach a student of another tokenizer by the bytes that both write, and by them alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pico import WORDS, pico_hf_folder, pico_tokenizer

from edgedistill.errors import InvalidInput
from edgedistill.students.alignment import Aligned, Aligner, require_aligned
from edgedistill.students.tokens import FolderTokens, Tokens
from edgedistill.targets import Targets

tokenizers = pytest.importorskip("tokenizers")

OTHER_WORDS = ("then", "android", "use", "lights", "kit", "turned", "o", "n", "hell", "wor", "ld", "the", "system")
CORPUS = [
    "turn on the kitchen light",
    "hello world, hello system",
    "Ünïcödé 日本語 emoji 😀 12 345",
    "the then there",
] * 3
END = 2
SEED = st.integers(0, 10_000)
TEXT = st.one_of(
    st.text(max_size=40),
    st.lists(st.sampled_from([*WORDS, *OTHER_WORDS, "  ", "\n", "ß", "日本", "😀", "1", "{"]), max_size=12).map(
        " ".join
    ),
)
KINDS = st.sampled_from(["smollm", "qwen2", "pieces"])


def sentencepiece() -> dict[str, Any]:
    """A tokenizer.json as of Llama 2: a marker for spaces, one before the text, bytes for what is not known."""
    model = tokenizers.models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    trained = tokenizers.Tokenizer(model)
    normalizers, decoders = tokenizers.normalizers, tokenizers.decoders
    trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", "<|im_start|>", "<|im_end|>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=360, special_tokens=special, show_progress=False)
    trained.train_from_iterator(CORPUS, trainer)
    trained.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    spelled: dict[str, Any] = json.loads(trained.to_str())
    # bytes are pieces of the vocabulary, not tokens that were added to it
    spelled["added_tokens"] = spelled["added_tokens"][:3]
    return spelled


@lru_cache(maxsize=3)
def tokens_of(kind: str) -> Tokens:
    """The tokens of a pico folder, with a vocabulary of its own kind."""
    made = {
        "smollm": lambda: pico_tokenizer("smollm", WORDS),
        "qwen2": lambda: pico_tokenizer("qwen2", OTHER_WORDS),
        "pieces": sentencepiece,
    }
    with TemporaryDirectory() as name:
        folder = pico_hf_folder(Path(name) / kind)
        (folder / "tokenizer.json").write_text(json.dumps(made[kind]()), encoding="utf-8")
        found = FolderTokens(folder)
        assert found.pieces  # read before the folder goes
        return found


def aligner(teacher: Tokens, student: Tokens) -> Aligner:
    return Aligner(teacher.pieces, student.pieces, {END: END})


def targets_of(tokens: Sequence[int], seed: int, size: int, profile: str = "top_k", keeps_own: bool = True) -> Targets:
    """Some distribution at each of a text's tokens, over a few of `size` tokens, the text's own among them or not."""
    source = np.random.default_rng(seed)
    ids, logprobs, offsets, tails = [], [], [0], []
    for token in tokens:
        others = source.choice(size, int(source.integers(1, 6)), replace=False)
        kept = others[others != token].tolist()
        if keeps_own or not kept or source.random() < 0.7:
            kept.append(token)
        shares = np.sort(source.dirichlet(np.ones(len(kept) + 1)))[::-1]
        if profile == "sampled":
            shares = np.append(shares[:-1] / shares[:-1].sum(), 0.0)
        ids += source.permutation(kept).tolist()
        logprobs += np.log(shares[:-1]).tolist()
        tails.append(shares[-1])
        offsets.append(len(ids))
    return Targets(
        profile,
        np.array(tokens, np.int32),
        np.array(offsets),
        np.array(ids, np.int32),
        np.array(logprobs, np.float32),
        np.array(tails, np.float32),
    )


def own_logprobs(targets: Targets) -> list[float | None]:
    """The log-probability of each token, found one by one."""
    found: list[float | None] = []
    for place, token in enumerate(targets.tokens.tolist()):
        kept = slice(*targets.offsets[place : place + 2])
        at = targets.ids[kept].tolist()
        found.append(float(targets.logprobs[kept][at.index(token)]) if token in at else None)
    return found


def ends_of(pieces: Sequence[bytes], tokens: Sequence[int]) -> list[int]:
    """How many bytes are written behind each token."""
    return [int(end) for end in np.cumsum([len(pieces[token]) for token in tokens])]


@given(KINDS, TEXT)
@settings(deadline=None)
def test_pieces_spell_what_was_tokenized(kind: str, text: str) -> None:
    tokens = tokens_of(kind)
    written = b"".join(tokens.pieces[token] for token in tokens.ids(text))
    plain = text.encode()
    for special in ("<|im_start|>", "<|im_end|>", "<unk>", "<|endoftext|>"):
        plain = plain.replace(special.encode(), b"")
    assert written == (b" " + plain if kind == "pieces" and plain else plain)


def test_bytes_and_pieces_of_sentencepiece_are_spelled_out() -> None:
    pieces = tokens_of("pieces").pieces
    assert pieces[:3] == [b"", b"", b""]
    assert pieces[3 : 3 + 256] == [bytes([byte]) for byte in range(256)]
    assert b" the" in pieces


def test_tokens_that_are_no_fixed_bytes_are_refused(tmp_path: Path) -> None:
    folder = pico_hf_folder(tmp_path / "m")
    changed = json.loads((folder / "tokenizer.json").read_text("utf-8")) | {
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": False}
    }
    (folder / "tokenizer.json").write_text(json.dumps(changed), encoding="utf-8")
    with pytest.raises(InvalidInput, match="WordPiece"):
        assert FolderTokens(folder).pieces


@given(KINDS, KINDS, TEXT, SEED, st.booleans())
@settings(deadline=None, max_examples=200)
def test_spans_cover_the_answer_and_distributions_sum_to_one(
    one: str, other: str, text: str, seed: int, keeps_own: bool
) -> None:
    teacher, student = tokens_of(one), tokens_of(other)
    written, tokens = [*teacher.ids(text), END], [*student.ids(text), END]
    targets = targets_of(written, seed, len(teacher.pieces), keeps_own=keeps_own)
    found = aligner(teacher, student).align(targets, tokens)

    masses = np.add.reduceat(np.exp(found.targets.logprobs), found.targets.offsets[:-1])
    assert masses + found.targets.tail == pytest.approx(1.0, abs=1e-5)
    assert np.diff(found.rows).min(initial=1) > 0
    assert found.targets.tokens.tolist() == [tokens[row] for row in found.rows]
    assert found.share == len(found.rows) / len(tokens)
    assert found.chunks.logprob.max(initial=0.0) <= 0.0

    told = [*found.rows.tolist(), *found.chunks.rows.tolist()]
    assert len(set(told)) == len(told)
    known = own_logprobs(targets)
    if known[-1] is not None:
        assert found.rows[-1] == len(tokens) - 1
    # SentencePiece has several tokens of the same bytes, and a space before a text, which may have no equal
    if None not in known and "pieces" not in (one, other):
        assert sorted(told) == list(range(len(tokens)))
        total = sum(value for value in known if value is not None)
        of_rows = sum(own_of(found, row, tokens) for row in range(len(found.rows)))
        assert of_rows + found.chunks.logprob.sum() == pytest.approx(total, abs=1e-3)
    # a run begins and ends where the teacher's tokens do, and none of both lies in between
    if student is not teacher and "pieces" not in (one, other):
        theirs, mine = {0, *ends_of(teacher.pieces, written)}, [0, *ends_of(student.pieces, tokens)]
        for first, last in found.chunks.bounds.tolist():
            assert [bound for bound in mine[first : last + 1] if bound in theirs] == [mine[first], mine[last]]


def own_of(found: Aligned, row: int, tokens: Sequence[int]) -> float:
    """What the student's token of a row is given, if it stands for one of the teacher's alone."""
    kept = slice(*found.targets.offsets[row : row + 2])
    at = found.targets.ids[kept].tolist().index(tokens[found.rows[row]])
    return float(found.targets.logprobs[kept][at])


@given(TEXT, SEED, st.sampled_from(["top_k", "sampled"]))
@settings(deadline=None)
def test_one_tokenizer_is_aligned_with_itself(text: str, seed: int, profile: str) -> None:
    same = tokens_of("smollm")
    tokens = [*same.ids(text), END]
    targets = targets_of(tokens, seed, len(same.pieces), profile)
    found = aligner(same, same).align(targets, tokens)
    assert found.share == 1.0
    assert not len(found.chunks)
    assert found.rows.tolist() == list(range(len(tokens)))
    for row in range(len(tokens)):
        kept, before = slice(*found.targets.offsets[row : row + 2]), slice(*targets.offsets[row : row + 2])
        expected = {
            int(token): float(share)
            for token, share in zip(targets.ids[before], np.exp(targets.logprobs[before]), strict=True)
            if same.pieces[token] or token == END
        }
        shares = np.exp(found.targets.logprobs[kept])
        assert dict(zip(found.targets.ids[kept].tolist(), shares.tolist(), strict=True)) == pytest.approx(expected)
        assert shares.tolist() == sorted(shares.tolist(), reverse=True)


TEACHER = [b"", b"a", b"b", b"ab", b" x", b"", b"c"]
STUDENT = [b"ab", b"a", b"", b"b", b"x", b" x", b"c"]
ENDS = {0: 2, 5: 2}
"""Two tokens of the teacher's that end an answer, one of the student's."""


def sparse(*rows: tuple[int, dict[int, float]]) -> Targets:
    """Targets given as the token at each position, and the probabilities that are kept there."""
    kept = [sorted(shares.items(), key=lambda item: -item[1]) for _, shares in rows]
    return Targets(
        "top_k",
        np.array([token for token, _ in rows], np.int32),
        np.cumsum([0, *map(len, kept)]),
        np.array([token for row in kept for token, _ in row], np.int32),
        np.log(np.array([share for row in kept for _, share in row], np.float32)),
        np.array([1 - sum(share for _, share in row) for row in kept], np.float32),
    )


def shares(found: Aligned, row: int) -> dict[int, float]:
    kept = slice(*found.targets.offsets[row : row + 2])
    ids, logs = found.targets.ids[kept].tolist(), found.targets.logprobs[kept]
    return dict(zip(ids, np.exp(logs).tolist(), strict=True))


def test_what_has_no_equal_goes_to_the_tail_and_ends_add_up() -> None:
    targets = sparse((6, {6: 0.5, 4: 0.2, 0: 0.1, 5: 0.15}), (0, {0: 0.6, 5: 0.3, 3: 0.05}))
    student = [b"", b"", b"", b"c"]
    found = Aligner(TEACHER, student, ENDS).align(targets, [3, 2])
    assert found.share == 1.0
    assert shares(found, 0) == pytest.approx({3: 0.5, 2: 0.25})
    assert shares(found, 1) == pytest.approx({2: 0.9})
    assert found.targets.tail == pytest.approx([0.25, 0.1])
    assert found.targets.ids.tolist() == [3, 2, 2]


def test_ids_past_the_tokenizer_are_no_tokens() -> None:
    found = Aligner(TEACHER, STUDENT, {**ENDS, 90: 2}).align(sparse((6, {6: 0.5, 99: 0.25}), (0, {0: 1.0})), [6, 2])
    assert shares(found, 0) == pytest.approx({6: 0.5})
    assert found.targets.tail == pytest.approx([0.5, 0.0])
    padded = Aligner(TEACHER, STUDENT, ENDS).align(sparse((6, {6: 0.5}), (99, {99: 0.5}), (0, {0: 1.0})), [6, 2])
    assert padded.rows.tolist() == [1]  # it belongs to what is before it
    assert np.exp(padded.chunks.logprob) == pytest.approx([0.25])


def test_runs_of_other_tokens_are_known_as_a_whole() -> None:
    found = Aligner(TEACHER, STUDENT, ENDS).align(
        sparse((6, {6: 0.9}), (1, {1: 0.5}), (2, {2: 0.25}), (3, {3: 0.5}), (5, {5: 1.0})), [6, 0, 1, 3, 2]
    )
    assert found.rows.tolist() == [0, 4]
    assert found.chunks.bounds.tolist() == [[1, 2], [2, 4]]
    assert np.exp(found.chunks.logprob) == pytest.approx([0.125, 0.5])
    assert found.share == 0.4


def test_a_token_that_the_teacher_did_not_keep_leaves_its_run_to_the_text() -> None:
    found = Aligner(TEACHER, STUDENT, ENDS).align(
        sparse((1, {1: 0.5}), (2, {4: 0.5, 6: 0.25}), (6, {1: 0.5}), (5, {5: 1.0})), [0, 6, 2]
    )
    assert found.rows.tolist() == [1, 2]
    assert not len(found.chunks)
    assert shares(found, 0) == pytest.approx({1: 0.5})  # the row has a distribution, though not of its own token


@pytest.mark.parametrize(
    ("written", "tokens", "rows", "bounds"),
    [
        ([4, 6, 5], [4, 6, 2], [1, 2], [[0, 1]]),  # " xc" and "xc": a space before the text
        ([6, 4, 5], [6, 5, 4, 2], [0, 1], []),  # "c x" and "c xx": up to where they differ
        ([6, 4, 5], [6, 2], [0], []),  # "c x" and "c": the end is of another text
        ([6, 4], [6, 5, 2], [0, 1], []),  # an end that was not scored: it does not count
        ([5], [2], [0], []),  # nothing but the end
        ([2, 1, 5], [1, 3, 2], [], []),  # "ba" and "ab"
    ],
)
def test_texts_that_are_not_quite_the_same_are_aligned_as_far_as_they_are(
    written: list[int], tokens: list[int], rows: list[int], bounds: list[list[int]]
) -> None:
    targets = sparse(*((token, {token: 0.75}) for token in written))
    found = Aligner(TEACHER, STUDENT, ENDS).align(targets, tokens)
    assert found.rows.tolist() == rows
    assert found.chunks.bounds.tolist() == bounds
    assert found.share == (1.0 if len(written) == 2 else len(rows) / len(tokens))


def test_little_in_common_warns_and_less_is_refused() -> None:
    assert require_aligned(0.93) is None
    assert "80%" in str(require_aligned(0.8))
    with pytest.raises(InvalidInput, match="69%"):
        require_aligned(0.69)
