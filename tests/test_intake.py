"""The intake gate: what may be opened, and what is refused before any library sees it."""

from __future__ import annotations

import json
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgedistill.errors import EdgeDistillError, InvalidInput, Unsafe
from edgedistill.models import gguf_header
from edgedistill.models.intake import DENIED_KEYS, REFUSED, check_folder, check_gguf, folder_licence
from edgedistill.models.safetensors_header import read_safetensors_header

UINT8, UINT32, INT32, FLOAT32, STRING, ARRAY, UINT64 = 0, 4, 5, 6, 8, 9, 10


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def text(value: str) -> bytes:
    return u64(len(value.encode())) + value.encode()


def entry(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + u32(kind) + value


def array(key: str, kind: int, count: int, items: bytes) -> bytes:
    return entry(key, ARRAY, u32(kind) + u64(count) + items)


def tensor(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    return text(name) + u32(len(shape)) + b"".join(map(u64, shape)) + u32(kind) + u64(offset)


ARCHITECTURE = entry("general.architecture", STRING, text("llama"))
VOCABULARY = [
    array("tokenizer.ggml.tokens", STRING, 3, text("a") + text("b") + text("</s>")),
    array("tokenizer.ggml.scores", FLOAT32, 3, struct.pack("<3f", 0, -1, -2)),
    array("tokenizer.ggml.token_type", INT32, 3, struct.pack("<3i", 1, 1, 3)),
]
ENTRIES = [
    ARCHITECTURE,
    entry("general.name", STRING, text("Pico")),
    entry("general.license", STRING, text("apache-2.0")),
    entry("general.file_type", UINT32, u32(1)),
    entry("llama.block_count", UINT32, u32(1)),
    *VOCABULARY,
]
TENSORS = [tensor("token_embd.weight", (8, 3), 0, 0), tensor("output_norm.weight", (8,), 0, 96)]


def gguf_bytes(
    entries: list[bytes] = ENTRIES,
    tensors: list[bytes] = TENSORS,
    version: int = 3,
    alignment: int = 32,
    data: int = 128,
) -> bytes:
    head = b"GGUF" + u32(version) + u64(len(tensors)) + u64(len(entries)) + b"".join(entries) + b"".join(tensors)
    return head + bytes(-len(head) % alignment) + bytes(data)


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
    start = time.monotonic()
    with pytest.raises(Unsafe, match=r"pico\.gguf: a corrupt or hostile GGUF file"):
        check_gguf(write(HOSTILE[what]))
    assert time.monotonic() - start < 2


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


def safetensors_bytes(header: Any, data: int, raw: bytes | None = None) -> bytes:
    head = raw if raw is not None else json.dumps(header).encode()
    return u64(len(head)) + head + bytes(data)


def one(dtype: Any = "F16", shape: Any = (2, 3), extent: Any = (0, 12)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": extent}


WEIGHTS = safetensors_bytes({"__metadata__": {"format": "pt"}, "a": one(), "b": one("F32", (), (12, 16))}, 16)


def test_a_sound_safetensors_file_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(WEIGHTS)
    assert read_safetensors_header(path) == {"a": ("F16", (2, 3)), "b": ("F32", ())}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x02}q\x00.",
        u64(2**63) + bytes(100),
        u64(10) + b"{}",
        safetensors_bytes(None, 0, b"{" * 50_000),
        safetensors_bytes(None, 0, b"[" * 50_000),
        safetensors_bytes(None, 0, b"[1]"),
        safetensors_bytes(
            None, 12, b'{"a": {"dtype": "F16", "shape": [6], "data_offsets": [0, ' + b"9" * 5000 + b"]}}"
        ),
        safetensors_bytes(None, 24, b'{"a": %s, "a": %s}' % ((json.dumps(one()).encode(),) * 2)),
        safetensors_bytes({"a": one("F17")}, 12),
        safetensors_bytes({"a": one(["F16"])}, 12),
        safetensors_bytes({"a": 7}, 12),
        safetensors_bytes({"a": one(shape=(2, -3))}, 12),
        safetensors_bytes({"a": one(shape=(2, True, 3))}, 12),
        safetensors_bytes({"a": one(shape=(1,) * 40 + (6,))}, 12),
        safetensors_bytes({"a": one(shape=(2, 4))}, 12),
        safetensors_bytes({"a": one(extent=(0, 12, 1))}, 12),
        safetensors_bytes({"a": one(extent=(12, 0))}, 12),
        safetensors_bytes({"a": one(), "b": one(extent=(6, 18))}, 18),
        safetensors_bytes({"a": one(extent=(4, 16))}, 16),
        safetensors_bytes({"a": one()}, 11),
        safetensors_bytes({"a": one()}, 13),
    ],
    ids=range(22),
)
def test_a_hostile_safetensors_file_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(Unsafe, match=r"model\.safetensors: a corrupt or hostile"):
        read_safetensors_header(path)


@settings(max_examples=300, deadline=2000)
@given(
    edits=st.lists(st.tuples(st.integers(0, len(WEIGHTS) - 1), st.integers(0, 255)), min_size=1, max_size=4),
    length=st.one_of(st.none(), st.integers(0, len(WEIGHTS))),
)
def test_a_mutated_safetensors_file_never_crashes_the_check(
    tmp_path_factory: pytest.TempPathFactory, edits: list[tuple[int, int]], length: int | None
) -> None:
    data = bytearray(WEIGHTS)
    for position, value in edits:
        data[position] = value
    path = tmp_path_factory.getbasetemp() / "mutant.safetensors"
    path.write_bytes(data[:length])
    try:
        read_safetensors_header(path)
    except EdgeDistillError as error:
        assert "mutant.safetensors" in error.message  # noqa: PT017 - either outcome is right


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "student"
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "llama", "rope": {"type": "default"}}')
    (path / "tokenizer.json").write_text("{}")
    (path / "model.safetensors").write_bytes(WEIGHTS)
    return path


def test_a_sound_folder_is_accepted_with_its_config(folder: Path) -> None:
    assert check_folder(folder)["model_type"] == "llama"


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_folder_that_lacks_a_file_is_invalid_and_says_which(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(InvalidInput, match=f"{folder}: no {'safetensors' if 'safe' in name else name}") as error:
        check_folder(folder)
    assert error.value.hint


@pytest.mark.parametrize("suffix", REFUSED)
@pytest.mark.parametrize("sound_weights", [True, False])
def test_a_file_that_can_run_code_is_refused_beside_sound_weights_and_without(
    folder: Path, suffix: str, sound_weights: bool
) -> None:
    (folder / "deep").mkdir()
    (folder / "deep" / f"weights{suffix.upper()}").write_bytes(b"x")
    if not sound_weights:
        (folder / "model.safetensors").unlink()
    with pytest.raises(Unsafe, match="can run code"):
        check_folder(folder)


def test_a_pickle_under_a_safetensors_name_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00cos\nsystem\n.")
    with pytest.raises(Unsafe, match=r"model\.safetensors"):
        check_folder(folder)


@pytest.mark.parametrize("key", sorted(DENIED_KEYS))
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_a_configuration_that_asks_for_code_is_refused_at_any_depth(
    folder: Path, key: str, depth: int, name: str
) -> None:
    value: Any = {key: "evil--repo"}
    for _ in range(depth - 1):
        value = {"text_config": [value]}
    (folder / name).write_text(json.dumps(value))
    with pytest.raises(Unsafe, match=f"{name}: has the key '{key}'"):
        check_folder(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "\xff", "nul"])
def test_a_configuration_that_is_no_json_object_is_invalid(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(InvalidInput, match=r"config\.json: not "):
        check_folder(folder)


def test_an_index_must_name_files_that_are_there_and_nothing_else(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model.safetensors", "b": "model-00002.safetensors"}}))
    with pytest.raises(InvalidInput, match=r"no model-00002\.safetensors"):
        check_folder(folder)
    for name in ("../model.safetensors", "/etc/model.safetensors", "a\\model.safetensors", "pytorch_model.bin"):
        index.write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(Unsafe, match="as a weight file"):
            check_folder(folder)


def test_an_adapter_is_no_student(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "org/other"}')
    with pytest.raises(InvalidInput, match="an adapter"):
        check_folder(folder)


@pytest.mark.parametrize(
    ("front", "licence"),
    [
        ("license: apache-2.0", "apache-2.0"),
        ("language:\n- en\nlicense: 'mit' # or so", "mit"),
        ("license:\n- gemma\ntags:\n- x", "gemma"),
        ("license: other\nlicense_name: llama3\nlicense_link: LICENSE", "llama3"),
        ("license: other", "other"),
        ("tags: [license]", None),
    ],
)
def test_the_licence_of_a_folder_is_in_its_readme(folder: Path, front: str, licence: str | None) -> None:
    (folder / "README.md").write_text(f"---\n{front}\n---\nlicense: no\n")
    assert folder_licence(folder) == licence


def test_a_readme_without_front_matter_states_no_licence(folder: Path) -> None:
    assert folder_licence(folder) is None
    (folder / "README.md").write_text("license: mit\n")
    assert folder_licence(folder) is None
