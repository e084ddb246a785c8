"""A server's latency: when its first text came, and its last."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pico_recipe import PicoModels, rows

from edgedistill.cli import cli
from edgedistill.errors import EdgeDistillError, InvalidInput, Unsafe
from edgedistill.recipe import TeacherSettings
from edgedistill.records import Message, Prompt
from edgedistill.teachers.streaming import StreamedModel, StreamingTask

FIRST, EACH, PIECES = 0.06, 0.02, 5  # seconds before the first piece and between two


@dataclass
class Manners:
    """What the server does, and what it was asked."""

    refuses: tuple[str, ...] = ()
    streams: bool = True
    usage: bool = True
    breaks: bool = False
    pace: float = 1.0
    """Times FIRST and EACH."""
    bodies: list[dict[str, Any]] = field(default_factory=list)


@contextmanager
def server(manners: Manners) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self.reply({"data": [{"id": "pico"}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            manners.bodies.append(body)
            if refused := [name for name in manners.refuses if name in body]:
                self.reply({"error": {"message": f"unknown field {refused[0]}"}}, 400)
            elif body.get("stream") and manners.streams:
                self.stream(body)
            else:
                choice = {"message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}
                self.reply({"model": "pico", "choices": [choice], "usage": {"completion_tokens": 1}})

        def reply(self, data: dict[str, Any], status: int = 200) -> None:
            text = json.dumps(data).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def stream(self, body: dict[str, Any]) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            self.event({"choices": [{"delta": {"role": "assistant", "content": ""}}]})  # no text yet
            time.sleep(manners.pace * FIRST)
            for number in range(PIECES):
                time.sleep(manners.pace * EACH if number else 0)
                self.event({"choices": [{"delta": {"content": f"é{number} "}}]})
                if manners.breaks:
                    return self.event({"error": {"message": "out of memory"}})
            self.event({"choices": [{"delta": {}, "finish_reason": "stop"}]})
            if manners.usage and "stream_options" in body:
                self.event({"choices": [], "usage": {"prompt_tokens": 12, "completion_tokens": 2 * PIECES}})
            self.wfile.write(b"data: [DONE]\n\n")

        def event(self, data: dict[str, Any]) -> None:
            self.wfile.write(b"data: " + json.dumps(data, ensure_ascii=False).encode() + b"\n\n")
            self.wfile.flush()

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_port}/v1"
    finally:
        http.shutdown()
        http.server_close()


def task(url: str, **changes: Any) -> StreamingTask:
    prompts = [Prompt(f"{number:08x}", (Message("user", f"Say hello {number}."),)) for number in range(3)]
    asked = TeacherSettings(backend="openai", model="pico", url=url)
    return StreamingTask(
        **{"asked": asked, "preamble": (), "schema": None, "prompts": prompts, "max_tokens": 20, **changes}
    )


def test_the_first_text_the_steps_and_the_last_are_timed_as_they_come() -> None:
    with server(Manners()) as url, StreamedModel(task(url)) as timed:
        record = timed.ask(0)
        assert timed.close() == {"peak_memory_bytes": None}
    writing = 1000 * EACH * (PIECES - 1)
    assert 1000 * FIRST <= record["ttft_ms"] < record["e2e_ms"], "no less than the server has waited"
    assert record["e2e_ms"] >= 1000 * FIRST + writing
    between = record["tpot_ms"] * (2 * PIECES - 1)  # first and last text; the stream's end may come later
    assert 1000 * FIRST + writing - record["ttft_ms"] <= between + 0.01
    assert 0 < between <= record["e2e_ms"] - record["ttft_ms"] + 0.01
    assert (record["prompt_tokens"], record["completion_tokens"]) == (12, 2 * PIECES)


def test_what_a_server_does_not_know_is_left_out_unless_the_answer_needs_it() -> None:
    plain = Manners(refuses=("cache_prompt", "stream_options"))
    with server(plain) as url, StreamedModel(task(url, reuses_prefix=False)) as timed:
        record = timed.ask(1)
        assert timed.load["runtime"]["asked_with"] == []
    assert (record["prompt_tokens"], record["completion_tokens"]) == (None, PIECES)
    endless = Manners()
    with server(endless) as url, StreamedModel(task(url, endless=True, reuses_prefix=False)) as timed:
        timed.ask(1)
    assert {"ignore_eos": True, "cache_prompt": False, "max_tokens": 20}.items() <= endless.bodies[-1].items()
    with (
        server(Manners(refuses=("ignore_eos",))) as url,
        pytest.raises(InvalidInput, match=r"refuses a streamed answer with ignore_eos, which bench\.output_tokens"),
    ):
        StreamedModel(task(url, endless=True))


@pytest.mark.parametrize(
    ("manners", "words"),
    [(Manners(streams=False), "sent an answer in one piece"), (Manners(breaks=True), "sent an error where a streamed")],
)
def test_an_answer_that_is_no_stream_is_an_error(manners: Manners, words: str) -> None:
    with server(manners) as url, StreamedModel(task(url)) as timed, pytest.raises(EdgeDistillError, match=words):
        timed.ask(0)


def test_plain_http_to_another_machine_is_refused() -> None:
    with pytest.raises(Unsafe, match="another machine"):
        StreamedModel(task("http://192.0.2.1/v1"))


def test_a_server_is_judged_and_compared_with_a_file(
    models: PicoModels, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompts.jsonl").write_bytes(rows(tuple(f"Say hello {number}." for number in range(30))))
    common = ["--prompts", str(tmp_path / "prompts.jsonl"), "--percentile", "50", "--requests", "20", "-q", "--json"]
    common += ["--output-tokens", "5"]
    with server(Manners(pace=0.05)) as url:
        asked = ["bench", str(models.teacher), "--vs", url, "--model", "pico", "--target", "5000", *common]
        code, found = _run(asked, capsys)
        slow, judged = _run(["bench", url, "--model", "pico", "--target", "0.5-1", "--metric", "ttft", *common], capsys)
    assert (code, slow) == (0, 4)
    assert [one["verdict"] for one in found["candidates"]] == ["pass", "pass"]
    assert found["comparison"]["pairs"] == 20
    assert found["comparison"]["ci95"][0] <= found["comparison"]["ratio_of_medians"] <= found["comparison"]["ci95"][1]
    assert (judged["verdict"], judged["candidates"][0]["over"]) == ("fail", 20)


def _run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert isinstance(ended.value.code, int)
    return ended.value.code, json.loads(capsys.readouterr().out)
