"""Quantizing in a child process: the types, and what a user sees where it fails."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pico import pico_gguf, silent

from edgedistill.contract import QUANT_TYPES
from edgedistill.errors import EdgeDistillError, InvalidInput, MissingRequirement, Stopped
from edgedistill.llamacpp import quantize as module
from edgedistill.llamacpp import reader, weights
from edgedistill.llamacpp.child import Ended, run_child
from edgedistill.llamacpp.comparison import ScoredText, importance_of
from edgedistill.llamacpp.importance import write_importance
from edgedistill.llamacpp.importer import import_gguf
from edgedistill.llamacpp.quantize import Mixture, quantize
from edgedistill.records import FILE_TYPES

needs_llama_cpp = pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason="llama_cpp is not installed")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pico_gguf(tmp_path_factory.mktemp("pico") / "pico.gguf", size=256)


def test_every_quant_type_of_a_recipe_has_a_number() -> None:
    assert set(QUANT_TYPES) <= set(FILE_TYPES)


@needs_llama_cpp
@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("Q8_0", {"F32", "Q8_0"}),
        ("Q4_K_M", {"F32", "Q4_K", "Q6_K"}),
        ("Q5_K_M", {"F32", "Q5_K", "Q6_K"}),
        ("Q2_K", {"F32", "Q2_K", "Q3_K", "Q6_K"}),
        ("BF16", {"F32", "BF16"}),
    ],
)
def test_a_quantized_file_loads_and_comes_back_near_its_source(
    tmp_path: Path, source: Path, name: str, kinds: set[str]
) -> None:
    out = tmp_path / "new" / f"pico-{name}.gguf"
    quantize(source, out, name, 2)
    gguf = reader.read_gguf(out)
    assert gguf.metadata["general.file_type"] == FILE_TYPES[name]
    assert {tensor.kind for tensor in gguf.tensors.values()} == kinds
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    import_gguf(out, tmp_path / "back", silent)
    ours, theirs = (
        weights.find_tensors(folder)["model.layers.0.mlp.down_proj.weight"]
        for folder in (tmp_path / "back", source.with_name("pico-hf"))
    )
    lost = weights.read_rows(ours, 0, 256) - weights.read_rows(theirs, 0, 256)
    assert np.abs(lost).mean() < 0.4 * np.abs(weights.read_rows(theirs, 0, 256)).mean()


@needs_llama_cpp
@pytest.mark.parametrize(
    ("architecture", "tied", "name", "mixture"),
    [
        ("llama", True, "Q4_K_M", Mixture()),
        ("qwen2", False, "Q5_0", Mixture()),
        ("qwen2", True, "Q2_K", Mixture(tensor_types={"attn_v": "Q6_K", "token_embd": "F16"})),
        ("llama", False, "IQ4_XS", None),
    ],
)
def test_a_few_rows_at_a_time_make_the_file_that_whole_tensors_make(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str, tied: bool, name: str, mixture: Mixture | None
) -> None:
    source = pico_gguf(tmp_path / "pico.gguf", architecture, tied, size=256)
    if mixture is None:
        mixture = Mixture(tmp_path / "imatrix.gguf")
        texts = [ScoredText(tuple(range(3, 60)), 20)]
        write_importance(importance_of(source, texts, 2, silent), tmp_path / "imatrix.gguf", "test")
    for slab in (0, 20_000):  # 0 is llama.cpp's own limit; the others are 10 rows or so, which end in no round place
        monkeypatch.setattr(module, "SLAB_BYTES", slab)
        quantize(source, tmp_path / f"{slab}.gguf", name, 2, mixture)
    assert (tmp_path / "0.gguf").read_bytes() == (tmp_path / "20000.gguf").read_bytes()


@needs_llama_cpp
def test_a_quantized_file_answers(tmp_path: Path, source: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    quantize(source, tmp_path / "q.gguf", "Q4_K_M", 2)
    model = llama_cpp.Llama(str(tmp_path / "q.gguf"), n_ctx=64, verbose=False)
    assert model.create_completion("hello", max_tokens=2)["usage"]["prompt_tokens"] > 0


def test_an_unknown_type_is_refused(tmp_path: Path, source: Path) -> None:
    with pytest.raises(InvalidInput, match="Q9_X"):
        quantize(source, tmp_path / "q.gguf", "Q9_X", 1)


def test_a_missing_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"no\.gguf"):
        quantize(tmp_path / "no.gguf", tmp_path / "q.gguf", "Q8_0", 1)


@pytest.mark.parametrize("link", ["itself", "dots", "symbolic", "hard"])
def test_the_source_is_never_the_output(tmp_path: Path, source: Path, link: str) -> None:
    path = tmp_path / "a.gguf"
    shutil.copy(source, path)
    out = {"itself": path, "dots": tmp_path / "x" / ".." / "a.gguf"}.get(link, tmp_path / "b.gguf")
    (tmp_path / "x").mkdir()
    if link == "symbolic":
        out.symlink_to(path)
    if link == "hard":
        os.link(path, out)
    with pytest.raises(InvalidInput, match="the source itself"):
        quantize(path, out, "Q8_0", 1)
    assert path.read_bytes() == source.read_bytes()


def test_without_llama_cpp_the_user_is_told_what_to_install(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingRequirement, match="needs llama-cpp-python") as raised:
        quantize(source, tmp_path / "q.gguf", "Q8_0", 1)
    assert raised.value.hint == "pip install llama-cpp-python"


@needs_llama_cpp
def test_a_damaged_source_is_named_and_the_earlier_output_stays(tmp_path: Path, source: Path) -> None:
    damaged, out = tmp_path / "damaged.gguf", tmp_path / "q.gguf"
    damaged.write_bytes(source.read_bytes()[:100000])
    out.write_bytes(b"earlier")
    with pytest.raises(
        EdgeDistillError, match=r"damaged\.gguf: llama\.cpp could not quantize it: .*incomplete"
    ) as raised:
        quantize(damaged, out, "Q8_0", 1)
    assert out.read_bytes() == b"earlier"
    assert f"llama.cpp's log: {out}.log" in raised.value.hint
    assert "error: " in (tmp_path / "q.gguf.log").read_text(encoding="utf-8")
    assert not list(tmp_path.glob("*.partial-*"))


@needs_llama_cpp
def test_a_quantized_source_is_not_quantized_again(tmp_path: Path, source: Path) -> None:
    quantize(source, tmp_path / "q4.gguf", "Q4_0", 2)
    with pytest.raises(EdgeDistillError, match="requantizing"):
        quantize(tmp_path / "q4.gguf", tmp_path / "q8.gguf", "Q8_0", 2)


@needs_llama_cpp
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="file size limits are a Linux test")
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, source: Path) -> None:
    code = (
        "import resource, sys\nfrom pathlib import Path\n"
        "from edgedistill.errors import Stopped\n"
        "from edgedistill.llamacpp.quantize import quantize\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (500000, 500000))\n"
        "try:\n    quantize(Path(sys.argv[1]), Path(sys.argv[2]), 'Q8_0', 1)\n"
        "except Stopped as error:\n    sys.exit(error.message)\n"
    )
    command = [sys.executable, "-c", code, str(source), str(tmp_path / "q.gguf")]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "q.gguf: No space left on device" in child.stderr
    assert not list(tmp_path.iterdir())


def test_a_child_that_is_killed_is_told_by_its_signal() -> None:
    ended = run_child(["-c", "import os, signal, sys; sys.stderr.write('last words'); os.kill(os.getpid(), 6)"])
    assert (ended.code, ended.signal, ended.log) == (-signal.SIGABRT, "SIGABRT", "last words")


@pytest.mark.parametrize(
    ("name", "log", "words"),
    [
        ("SIGSEGV", "", "ended llama.cpp's quantizer with SIGSEGV"),
        ("SIGABRT", "x.cpp:1: GGML_ASSERT(n == m) failed\n", "SIGABRT: x.cpp:1: GGML_ASSERT(n == m) failed"),
        ("SIGKILL", "loading\nerror: one\nmore\n", "SIGKILL: one"),
    ],
)
def test_a_crash_names_the_file(tmp_path: Path, name: str, log: str, words: str) -> None:
    error = module._failure(tmp_path / "a.gguf", tmp_path / "b.gguf", Ended(-9, name, log))
    assert f"{tmp_path / 'a.gguf'}: " in error.message
    assert words in error.message
    assert ("memory" in error.hint) == (name == "SIGKILL")
    assert (tmp_path / "b.gguf.log").read_text(encoding="utf-8") == log


def test_a_stop_kills_the_child(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop() -> None:
        raise Stopped("stopped")

    monkeypatch.setattr("edgedistill.run.stop_if_asked", stop)
    with pytest.raises(Stopped):
        run_child(["-c", "import time; time.sleep(60)"])


def test_a_module_in_the_working_folder_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.version_info < (3, 11):
        pytest.skip("Python 3.10 always looks in the working folder")
    (tmp_path / "llama_cpp.py").write_text("raise SystemExit('the wrong module')", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert "the wrong module" not in run_child(["-m", "edgedistill.llamacpp.quantize", "a", "b", "Q8_0", "1"]).log
