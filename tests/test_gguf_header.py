"""A GGUF file is looked at before anything else reads it: sound ones are described, hostile ones refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_bytes import (
    ARCHITECTURE,
    ARRAY,
    ENTRIES,
    STRING,
    UINT8,
    UINT32,
    UINT64,
    VOCABULARY,
    array,
    entry,
    gguf_bytes,
    tensor,
    text,
    u32,
    u64,
)

from edgedistill.errors import EdgeDistillError, InvalidInput, Unsafe
from edgedistill.models import gguf_header
from edgedistill.models.intake import check_gguf


@pytest.fixture
def write(tmp_path: Path) -> Callable[[bytes], Path]:
    def write_gguf(data: bytes) -> Path:
        path = tmp_path / "pico.gguf"
        path.write_bytes(data)
        return path

    return write_gguf


def test_a_sound_gguf_is_accepted_and_described(write: Callable[[bytes], Path]) -> None:
    header = check_gguf(write(gguf_bytes()))
    assert (header.architecture, header.name, header.license) == ("llama", "Pico", "apache-2.0")
    assert (header.tensor_count, header.file_type, header.metadata["llama.block_count"]) == (2, 1, 1)
    assert header.array_lengths["tokenizer.ggml.tokens"] == 3


def test_a_licence_or_name_that_could_steer_a_terminal_is_not_taken_over(write: Callable[[bytes], Path]) -> None:
    tricky = [entry("general.name", STRING, text("\x1b[2J")), entry("general.license", STRING, text("mit\n\x1b[1m"))]
    header = check_gguf(write(gguf_bytes([ARCHITECTURE, *tricky])))
    assert (header.name, header.license) == ("pico", None)


def test_a_gguf_of_the_gguf_library_is_accepted(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    np = pytest.importorskip("numpy")
    path = tmp_path / "written.gguf"
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_name("Written")
    writer.add_license("mit")
    writer.add_bool("tokenizer.ggml.add_bos_token", False)
    writer.add_token_list(["a", "b"])
    writer.add_token_types([1, 1])
    writer.add_tensor("token_embd.weight", np.zeros((2, 32), dtype=np.float16))
    quantized = gguf.quants.quantize(np.ones((4, 64), dtype=np.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("output.weight", quantized, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    header = check_gguf(path)
    assert (header.architecture, header.name, header.license, header.tensor_count) == ("qwen2", "Written", "mit", 2)
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(path.read_bytes()[:-80])
    with pytest.raises(Unsafe, match="its tensors end at byte"):
        check_gguf(cut)


def test_the_table_of_types_is_that_of_the_gguf_library() -> None:
    constants = pytest.importorskip("gguf.constants")
    assert {int(kind): sizes for kind, sizes in constants.GGML_QUANT_SIZES.items()} == gguf_header.BLOCKS


@pytest.mark.parametrize("start", [b"", b"GG", b"PK\x03\x04 and more", b'{"a": 1}'])
def test_a_file_that_is_no_gguf_is_refused_with_what_it_starts_with(
    write: Callable[[bytes], Path], start: bytes
) -> None:
    with pytest.raises(InvalidInput, match="not a GGUF file") as error:
        check_gguf(write(start))
    assert f"(starts with {start[:4]!r})" in error.value.message


def test_what_is_no_regular_file_is_refused_without_being_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    for path, why in ((tmp_path / "pipe.gguf", "not a regular"), (tmp_path, "a folder"), (tmp_path / "no", "no such")):
        with pytest.raises(InvalidInput, match=why):
            check_gguf(path)


def with_entry(*more: bytes) -> bytes:
    return gguf_bytes([*ENTRIES, *more])


def with_tensor(*tensors: bytes, data: int = 128) -> bytes:
    return gguf_bytes(tensors=list(tensors), data=data)


HOSTILE: dict[str, bytes] = {
    "version 1": gguf_bytes(version=1),
    "version 4": gguf_bytes(version=4),
    "big-endian": gguf_bytes(version=3 << 24),
    "2**63 tensors": b"GGUF" + u32(3) + u64(2**63) + u64(0) + bytes(64),
    "2**64-1 entries": b"GGUF" + u32(3) + u64(0) + u64(2**64 - 1) + bytes(64),
    "a key of 2**63 bytes": b"GGUF" + u32(3) + u64(0) + u64(1) + u64(2**63) + bytes(64),
    "a key of 70,000 bytes": with_entry(entry("k" * 70_000, UINT8, b"\1")),
    "a key that is not UTF-8": with_entry(u64(2) + b"\xff\xfe" + u32(UINT8) + b"\1"),
    "a text of 2**62 bytes": with_entry(text("k") + u32(STRING) + u64(2**62)),
    "an array of 2**62 numbers": with_entry(array("k", UINT64, 2**62, b"")),
    "an array of 2**61 texts": with_entry(array("k", STRING, 2**61, b"")),
    "an array whose last text is too long": with_entry(array("k", STRING, 2, text("a") + u64(2**40))),
    "an array in an array": with_entry(array("k", ARRAY, 1, u32(UINT8) + u64(1) + b"\1")),
    "an unknown type": with_entry(entry("k", 77, bytes(8))),
    "a flag of 7": with_entry(entry("k", 7, b"\7")),
    "a key twice": with_entry(entry("general.name", STRING, text("again"))),
    "alignment 0": with_entry(entry("general.alignment", UINT32, u32(0))),
    "alignment 48": with_entry(entry("general.alignment", UINT32, u32(48))),
    "alignment 2**30": with_entry(entry("general.alignment", UINT32, u32(2**30))),
    "an alignment that is a text": with_entry(entry("general.alignment", STRING, text("32"))),
    "fewer scores than tokens": gguf_bytes([ARCHITECTURE, VOCABULARY[0], array("tokenizer.ggml.scores", 6, 1, u32(0))]),
    "scores without tokens": gguf_bytes([ARCHITECTURE, VOCABULARY[1]]),
    "scores of one byte": gguf_bytes([ARCHITECTURE, VOCABULARY[0], array("tokenizer.ggml.scores", 0, 3, bytes(3))]),
    "tokens that are a number": gguf_bytes([ARCHITECTURE, entry("tokenizer.ggml.tokens", UINT32, u32(3))]),
    "no architecture": gguf_bytes(VOCABULARY),
    "a tensor beyond the end": with_tensor(tensor("t", (8, 3), 0, 64)),
    "a tensor of 2**62 rows": with_tensor(tensor("t", (8, 2**62), 0, 0)),
    "extents that overflow 64 bits": with_tensor(tensor("t", (2**32, 2**32), 0, 0)),
    "an offset of 2**63": with_tensor(tensor("t", (8,), 0, 2**63)),
    "an offset off the alignment": with_tensor(tensor("t", (8,), 0, 4)),
    "two tensors of one name": with_tensor(tensor("t", (8,), 0, 0), tensor("t", (8,), 0, 32)),
    "tensors that overlap": with_tensor(tensor("t", (16,), 0, 0), tensor("u", (8,), 0, 32)),
    "five dimensions": with_tensor(tensor("t", (1, 1, 1, 1, 1), 0, 0)),
    "no dimensions": with_tensor(tensor("t", (), 0, 0)),
    "an empty tensor": with_tensor(tensor("t", (0,), 0, 0)),
    "an unknown tensor type": with_tensor(tensor("t", (8,), 99, 0)),
    "a row that is no whole block": with_tensor(tensor("t", (33,), 8, 0)),
    "a cut in the header": gguf_bytes()[:200],
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_gguf_is_refused(write: Callable[[bytes], Path], what: str) -> None:
    with pytest.raises(Unsafe, match=r"pico\.gguf: a corrupt or hostile GGUF file"):
        check_gguf(write(HOSTILE[what]))


def test_what_is_sound_but_no_whole_model_is_invalid_rather_than_unsafe(write: Callable[[bytes], Path]) -> None:
    for data, why in (
        (with_entry(entry("split.count", UINT32, u32(4))), "one of 4 parts"),
        (with_entry(entry("general.type", STRING, text("adapter"))), "'adapter', not a model"),
        (gguf_bytes(tensors=[], data=0), "without weights"),
    ):
        with pytest.raises(InvalidInput, match=why):
            check_gguf(write(data))


SOUND = gguf_bytes()
EDITS = st.lists(
    st.tuples(
        st.integers(0, len(SOUND) - 1),
        st.one_of(st.binary(min_size=1, max_size=1), st.sampled_from([u64(2**63), u64(2**64 - 1), u32(0), u64(0)])),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=400, deadline=2000)
@given(edits=EDITS, length=st.one_of(st.none(), st.integers(0, len(SOUND))))
def test_a_mutated_gguf_is_accepted_or_refused_but_never_crashes(
    tmp_path_factory: pytest.TempPathFactory, edits: list[tuple[int, bytes]], length: int | None
) -> None:
    data = bytearray(SOUND)
    for position, value in edits:
        data[position : position + len(value)] = value
    path = tmp_path_factory.getbasetemp() / "mutant.gguf"
    path.write_bytes(data[:length])
    try:
        check_gguf(path)
    except EdgeDistillError as error:
        assert "mutant.gguf" in error.message  # noqa: PT017 - either outcome is right


def test_every_truncation_of_a_gguf_is_refused(write: Callable[[bytes], Path]) -> None:
    for length in range(len(SOUND)):
        with pytest.raises(EdgeDistillError):
            check_gguf(write(SOUND[:length]))
