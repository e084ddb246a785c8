"""Fixtures of every test: pico models made once, recipes on them, a machine without models or keys of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import settings
from openai_asking import faults, no_key, place
from opened_teachers import mute, opened, telling
from pico_recipe import PicoModels, pico_models, write_pico_recipe
from real_servers import LLAMA, MLX, llama_server_on, mlx_server_on
from required import must_be_imported, required_or_skipped

from edgedistill import run
from edgedistill.pipeline import RunSettings, run_recipe
from edgedistill.students.encode import Encoder

__all__ = ["faults", "mute", "no_key", "opened", "place", "telling"]
"""Fixtures that stand beside what they are used with."""
settings.register_profile("edgedistill", deadline=None)  # how long an example takes says how busy the machine is
settings.load_profile("edgedistill")
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
UNCOMPILED = "MLX_DISABLE_COMPILE"
COMPILED = bool(os.environ.get("EDGEDISTILL_COMPILED"))
"""Whether MLX compiles in every test."""
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")
"""Which of the processes that `make test` starts this one is: gw0, gw1, ...; nothing where there is only one."""


def pytest_configure(config: pytest.Config) -> None:
    """Keep out a warning that one library has for another, and processes out of each other's way.

    mlx compiles its kernels in the temporary folder, under names that do not change, and waits for no other process.
    torch starts processes that compile as soon as its compiler is imported; what is tested here needs none.
    """
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    if not COMPILED:
        os.environ[UNCOMPILED] = "1"
    if WORKER and config.cache is not None:
        os.environ["TMPDIR"] = str(config.cache.mkdir(f"kernels-{WORKER}"))
    config.addinivalue_line("filterwarnings", "ignore:llama_token_get_attr is deprecated:DeprecationWarning")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Give a test one core, each process its own: pico models are so small that sharing them out costs more."""
    if CORES:
        own = CORES[-1 - int(WORKER[2:] or 0) % len(CORES)]
        os.sched_setaffinity(0, CORES if item.get_closest_marker("slow") else [own])


@pytest.fixture(autouse=True)
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have MLX compile its steps only where that is looked at: on a CPU each formula is a run of the C++ compiler."""
    node = request.node
    if COMPILED or not (node.get_closest_marker("compiled") or node.get_closest_marker("slow")) or not find_spec("mlx"):
        yield
        return
    import mlx.core as mx

    monkeypatch.delenv(UNCOMPILED)
    mx.enable_compile()
    yield
    mx.disable_compile()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    must_be_imported(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    must_be_imported(report)
    return report


@pytest.fixture(autouse=True)
def own_cache(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keep what a test finds out about pico models out of the user's cache; slow tests read real models from there."""
    if not request.node.get_closest_marker("slow"):
        monkeypatch.setenv("EDGEDISTILL_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> PicoModels:
    """A pico teacher and a pico student, to be read only."""
    return pico_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def encoder(models: PicoModels) -> Encoder:
    """The tokenizer and template of the pico student."""
    pytest.importorskip("tokenizers")
    return Encoder(models.student)


@pytest.fixture(scope="session")
def llama_server(models: PicoModels, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """llama-cpp-python's own server on the pico teacher: its URL, and the model's id."""
    required_or_skipped("openai", LLAMA)
    with llama_server_on(models.teacher, tmp_path_factory.mktemp("llama_server")) as found:
        yield found


@pytest.fixture(scope="session")
def mlx_server(models: PicoModels, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """mlx_lm.server on the Hugging Face folder of the pico teacher: its URL, and the model's id."""
    required_or_skipped("openai", MLX)
    folder = models.teacher.with_name(f"{models.teacher.stem}-hf")
    with mlx_server_on(folder, tmp_path_factory.mktemp("mlx_server")) as found:
        yield found


@pytest.fixture
def pico_recipe(models: PicoModels, tmp_path: Path) -> Path:
    """The folder of a complete recipe on the pico models."""
    return write_pico_recipe(tmp_path / "recipe", models)


@pytest.fixture
def ask_to_stop(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """What the first Ctrl-C does, without the signal; undone after the test."""
    return lambda: monkeypatch.setattr(run, "_asked_to_stop", True)


@dataclass(frozen=True)
class Finished:
    """A recipe that was run from end to end, and its run."""

    recipe: Path
    runs: Path
    seen: tuple[str, ...]
    """What was reported on the way, each phase once."""

    @property
    def run(self) -> Path:
        return self.runs / "pico"

    def copied(self, folder: Path) -> Finished:
        """The same in a folder of one's own."""
        recipe, runs = Path(shutil.copytree(self.recipe, folder / "recipe")), folder / "runs"
        shutil.copytree(self.runs, runs)
        return Finished(recipe, runs, self.seen)


@pytest.fixture(scope="session")
def finished(models: PicoModels, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A whole run of the pico recipe, made once; tests that change anything take a copy."""
    needed = ("torch", "transformers", "peft", "llama_cpp")
    if any(find_spec(library) is None for library in needed) and not os.environ.get("EDGEDISTILL_REQUIRE"):
        pytest.skip("a whole run needs torch, transformers, peft and llama_cpp")
    folder = tmp_path_factory.mktemp("finished")
    recipe = write_pico_recipe(folder / "recipe", models)
    seen: list[str] = []

    def progress(what: str, done: int, total: int) -> None:
        assert 0 <= done <= total, what
        phase = what.partition(" (")[0]
        if phase not in seen:
            seen.append(phase)

    run_recipe(recipe, RunSettings(runs=folder / "runs", offline=True), progress)
    return Finished(recipe, folder / "runs", tuple(seen))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts a disk of so many bytes; only root may."""
    mounted: list[Path] = []

    def mount(size: int) -> Path:
        folder = tmp_path / "disk"
        folder.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, text=True
        )
        if done.returncode != 0:
            pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    if shutil.which("mount") is None:
        pytest.skip("a small disk cannot be mounted here: no mount")
    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", folder], check=True)


def fill(folder: Path) -> Path:
    """Write until the disk is full."""
    path = folder / "filler"
    with path.open("ab", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while True:
                    file.write(b"\0" * size)
            except OSError:
                continue
    return path


@pytest.fixture
def copy(finished: Finished, tmp_path: Path) -> Finished:
    """The whole run in a folder of the test's own."""
    return finished.copied(tmp_path)
