"""Latency of one GGUF, measured as a user would see it: text in, text out, one request at a time.

Each model runs in a child process of its own, so that load time and peak memory are its alone:
`python -m edgedistill.llamacpp.timing`, the task as one line of JSON on standard input, then the number of a prompt a
line; a line of JSON for the load and for each request on standard output. A child that is not asked waits and takes no
time from the others, so that several models can be asked in turns.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import EdgeDistillError, InvalidInput
from ..hardware import peak_memory
from ..records import Message, Prompt, chat_row, messages_of, tools_of
from .child import child_environment, end_with_parent

if TYPE_CHECKING:
    from .engine import BatchEngine
    from .requests import Request

__all__ = ["Cache", "TimedModel", "TimingTask", "token_counter"]

Cache = Literal["warm", "cold", "cached-prefix"]


@dataclass(frozen=True)
class TimingTask:
    """What is timed."""

    model: Path
    preamble: Sequence[Message]
    schema: dict[str, Any] | None
    prompts: Sequence[Prompt]
    max_tokens: int
    threads: int
    gpu_layers: int
    sha256: str
    scratch: Path | None
    """Where prefix states may be kept, if anywhere."""
    cache: Cache = "cached-prefix"
    """What a request finds: the model and what all prompts begin with, the model alone, or (cold) neither."""
    endless: bool = False
    """Every answer has `max_tokens` tokens: an end token ends none, and no schema may."""
    skips_forced: bool = False
    """Tokens that the schema forces are appended in one chunk, unless a request says otherwise."""


class TimedModel:
    """A GGUF that is asked one prompt at a time; close it, or use it in a `with`.

    `load` has `load_ms`, `shared_tokens` (kept for every request) and `runtime` (llama.cpp's version, commit and what
    its build uses); where every request is cold, those of the last one. Raises EdgeDistillError where the child fails.
    """

    def __init__(self, task: TimingTask) -> None:
        self.load: dict[str, Any] = {}
        self._task = task
        self._child: subprocess.Popen[str] | None = None
        self._peak = 0
        if task.cache != "cold":
            self._open(task.prompts)

    def __enter__(self) -> TimedModel:
        return self

    def __exit__(self, *_: object) -> None:
        self._kill()

    def ask(self, number: int, jump: bool | None = None) -> dict[str, Any]:
        """What the prompt of that number took; `jump`, where it is said, instead of the task's `skips_forced`.

        `ttft_ms`, `e2e_ms`: from the text handed in (cold: from the beginning of the load) to the first text and to
        the last; `tpot_ms`: a step of writing; `prompt_tokens` that were computed, `completion_tokens`, and `steps`:
        calls of llama_decode.
        """
        jump = self._task.skips_forced if jump is None else jump
        if self._task.cache == "cold":
            self._open([self._task.prompts[number]])
            record = self._request(0, jump)
            self.close()
            return record
        return self._request(number, jump)

    def close(self) -> dict[str, Any]:
        """End the child; the record has `peak_memory_bytes`."""
        if self._child is not None and self._child.stdin is not None:
            with suppress(BrokenPipeError):
                self._child.stdin.close()
            self._peak = max(self._peak, self._read()["peak_memory_bytes"])
            self._child.wait()
            self._kill()
        return {"peak_memory_bytes": self._peak}

    def _request(self, number: int, jump: bool) -> dict[str, Any]:
        assert self._child is not None
        assert self._child.stdin is not None
        with suppress(BrokenPipeError):  # a child that ended says why in its exit code
            self._child.stdin.write(f"{number} {int(jump)}\n")
            self._child.stdin.flush()
        return self._read()

    def _open(self, prompts: Sequence[Prompt]) -> None:
        task = self._task
        data = {
            "model": str(task.model),
            "preamble": [message.as_dict() for message in task.preamble],
            "schema": task.schema,
            "prompts": [chat_row(prompt.messages, prompt.tools) for prompt in prompts],
            "max_tokens": task.max_tokens,
            "threads": task.threads,
            "gpu_layers": task.gpu_layers,
            "sha256": task.sha256,
            "scratch": str(task.scratch) if task.scratch else None,
            "cache": task.cache,
            "endless": task.endless,
        }
        self._child = subprocess.Popen(
            [sys.executable, "-m", "edgedistill.llamacpp.timing"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=child_environment(),
            start_new_session=True,  # the terminal's Ctrl-C is for the parent
        )
        try:
            assert self._child.stdin is not None
            with suppress(BrokenPipeError):
                self._child.stdin.write(json.dumps(data) + "\n")
                self._child.stdin.flush()
            self.load = self._read()
        except BaseException:
            self._kill()
            raise

    def _read(self) -> dict[str, Any]:
        """The child's next record. Raises the error that it met, or one for the way it ended."""
        child = self._child
        assert child is not None
        assert child.stdout is not None
        line = child.stdout.readline()
        if not line:
            code = child.wait()
            raise EdgeDistillError(f"{self._task.model}: timing ended with code {code}", "Is there enough memory?")
        record: dict[str, Any] = json.loads(line)
        if "error" in record:
            error = EdgeDistillError(record["error"], record["hint"])
            error.exit_code = record["exit_code"]
            raise error
        return record

    def _kill(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        if child.poll() is None:
            child.kill()
        with suppress(BrokenPipeError), child:  # closes its pipes and waits
            pass


@contextmanager
def token_counter(path: Path, preamble: Sequence[Message]) -> Iterator[Callable[[Prompt], int]]:
    """What counts the tokens of a whole prompt behind the preamble, template included; no weights are loaded."""
    from .answer import SharedPrompt
    from .model import LlamaModel

    def count(prompt: Prompt) -> int:
        kept, own = shared.split(prompt.messages, prompt.tools)
        return kept + len(own)

    with LlamaModel(path, vocab_only=True) as model:
        shared = SharedPrompt(model, preamble)
        yield count


def main() -> None:
    """Answer what standard input asks, request by request."""
    from .model import load_llama_cpp

    end_with_parent()
    task = json.loads(sys.stdin.readline())
    load_llama_cpp()  # the library itself is part of no figure, as its imports are not
    begun = time.perf_counter()
    engine, make, load = _loaded(task, begun)
    with engine:
        _tell(load)
        while line := sys.stdin.readline():
            asked = begun if task["cache"] == "cold" else time.perf_counter()
            number, jump = map(int, line.split())
            engine.jump = bool(jump)
            _tell(_timed(engine, make, task["prompts"][number], asked))
    _tell({"peak_memory_bytes": peak_memory()})


def _loaded(task: dict[str, Any], begun: float) -> tuple[BatchEngine, Callable[[Any], Request], dict[str, Any]]:
    """The engine, what makes a request of a conversation, and the record of the load."""
    from .answer import AnswererSettings, SharedPrompt, flash
    from .engine import BatchEngine, EngineSettings
    from .grammar import Grammar
    from .layout import Layout
    from .model import LlamaModel
    from .prefix import PrefixCache
    from .requests import Request
    from .sampling import Sampling

    model = LlamaModel(Path(task["model"]), task["gpu_layers"])
    before = messages_of("task", {"messages": task["preamble"]}) if task["preamble"] else ()
    shared = SharedPrompt(model, before, tools_of("task", task["prompts"][0].get("tools")))
    grammar = Grammar(model, task["schema"]) if task["schema"] and not task["endless"] else None
    sampling, keeps = Sampling(task["max_tokens"]), task["cache"] == "cached-prefix"

    def make(row: dict[str, Any]) -> Request:
        count, own = shared.split(messages_of("task", row), tools_of("task", row.get("tools")))
        return Request("", count, own, sampling) if keeps else Request("", 0, shared.tokens[:count] + own, sampling)

    loaded = time.perf_counter()
    longest = max(make(row).cells for row in task["prompts"])  # part of no figure
    opening = time.perf_counter()
    prefix = shared.tokens if keeps else []
    if len(prefix) + longest > model.context_limit:
        raise InvalidInput(
            f"{model.path}: the longest prompt and its answer need {len(prefix) + longest} tokens, the model knows "
            f"{model.context_limit}",
            "Shorten the prompt or the teacher's guide and examples, or use another model.",
        )
    settings = EngineSettings(
        slots=1,
        context=len(prefix) + longest,
        threads=task["threads"],
        prefix_cache=PrefixCache(Path(task["scratch"]), task["sha256"]) if task["scratch"] and keeps else None,
        jump=False,
        flash_attention=flash(AnswererSettings(task["threads"]), Layout(1, split=False)),
        endless=task["endless"],
    )
    engine = BatchEngine(model, settings, prefix, grammar)
    load_ms = (time.perf_counter() - opening + loaded - begun) * 1000
    return engine, make, {"load_ms": round(load_ms, 1), "shared_tokens": len(prefix), "runtime": _runtime()}


def _timed(engine: BatchEngine, make: Callable[[Any], Request], turns: Any, asked: float) -> dict[str, Any]:
    before = engine.steps
    request = make(turns)
    admitted = time.perf_counter()
    answer = next(engine.run([request]))
    ended = time.perf_counter()
    first = admitted + answer.first_seconds
    steps = engine.steps - before - -(-len(request.tokens) // engine.batch_tokens)  # those behind the first token
    return {
        "ttft_ms": round((first - asked) * 1000, 3),
        "e2e_ms": round((ended - asked) * 1000, 3),
        "tpot_ms": round((ended - first) * 1000 / steps, 3) if steps > 0 else None,
        "prompt_tokens": len(request.tokens),
        "completion_tokens": len(answer.tokens),
        "steps": engine.steps - before,
    }


def _runtime() -> dict[str, str]:
    """Which llama.cpp computes, and with what of the machine."""
    import ctypes
    from importlib import metadata

    from .model import load_llama_cpp

    lib = load_llama_cpp()
    found = {"llama-cpp-python": metadata.version("llama-cpp-python")}
    with suppress(AttributeError):  # older ones do not tell
        told = lib._lib.ggml_commit
        told.restype = ctypes.c_char_p
        found["commit"] = told().decode()
    return {**found, "system_info": lib.llama_print_system_info().decode().strip(" |")}


def _tell(record: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(record) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    try:
        main()
    except EdgeDistillError as failed:
        _tell({"error": failed.message, "hint": failed.hint, "exit_code": failed.exit_code})
        sys.exit(failed.exit_code)
