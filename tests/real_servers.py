"""Real servers of OpenAI's API on the pico teacher, each a process of its own that the tests start and end."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

LLAMA = ("llama_cpp", "uvicorn", "fastapi", "sse_starlette", "starlette_context", "pydantic_settings")
MLX = ("mlx", "mlx_lm")
MODEL = "pico"
SECONDS = 60  # in which a server must have come up


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def llama_server_on(model: Path, folder: Path) -> Iterator[tuple[str, str]]:
    """llama-cpp-python's own server on a GGUF file: its URL, and the model's id."""
    arguments = ["llama_cpp.server", "--model", str(model), "--model_alias", MODEL, "--n_threads", "1"]
    with _running(arguments, folder / "log") as url:
        yield url, MODEL


@contextmanager
def mlx_server_on(model: Path, folder: Path) -> Iterator[tuple[str, str]]:
    """mlx_lm.server on a Hugging Face folder: its URL, and the model's id."""
    with _running(["mlx_lm", "server", "--model", str(model.resolve())], folder / "log") as url:
        yield url, str(model.resolve())


@contextmanager
def _running(arguments: list[str], log: Path) -> Iterator[str]:
    """The API's URL of a server that is started as a module, once it answers."""
    port = free_port()
    environment = {**os.environ, "HF_HUB_CACHE": str(log.parent), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with log.open("wb") as output:
        command = [sys.executable, "-m", *arguments, "--host", "127.0.0.1", "--port", str(port)]
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
    try:
        deadline = time.monotonic() + SECONDS
        while not _answers(f"http://127.0.0.1:{port}/v1/models"):
            assert process.poll() is None, f"the server has ended: {log.read_text()[-2000:]}"
            assert time.monotonic() < deadline, f"the server does not come up: {log.read_text()[-2000:]}"
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()


def _answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except (URLError, ConnectionError, TimeoutError):
        return False
