"""Where a teacher may be: no metadata address, no plain http across a network, no certificate of another name."""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from fault_server import MODEL, stats_of
from openai_asking import CANARY, SHORT, all_answered, asked, task_of
from real_servers import free_port

from edgedistill.errors import InvalidInput, Unsafe
from edgedistill.teachers.address import Endpoint, refuse_address
from edgedistill.teachers.openai import OpenaiTeacher

BAD_ADDRESSES = (
    "169.254.169.254",
    "169.254.0.1",
    "::ffff:169.254.169.254",
    "2002:a9fe:a9fe::1",
    "64:ff9b::a9fe:a9fe",
    "fe80::1",
    "fe80::1%eth0",
    "fd00:ec2::254",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "0.0.0.0",
    "::",
    "224.0.0.1",
    "ff02::1",
    "not-an-address",
)


@pytest.mark.parametrize("address", BAD_ADDRESSES)
def test_a_name_at_a_metadata_address_is_refused_before_anything_connects(address: str, tmp_path: Path) -> None:
    for found in ([address], ["127.0.0.1", address]):
        task = task_of("https://teacher.example/v1", tmp_path, plain_http=True)
        teacher = OpenaiTeacher(task, SHORT, lambda host, port, found=found: found)  # type: ignore[misc]
        with pytest.raises(Unsafe, match=r"^teacher.url: teacher.example is at "):
            asked(teacher, 1)


@pytest.mark.parametrize("host", ["169.254.169.254", "[fe80::1]", "[fd00:ec2::254]", "2852039166", "0xa9fea9fe"])
def test_a_metadata_address_in_the_url_is_refused_however_it_is_written(host: str, tmp_path: Path) -> None:
    with pytest.raises(Unsafe, match="which no teacher may have"):
        asked(OpenaiTeacher(task_of(f"http://{host}/v1", tmp_path, plain_http=True), SHORT), 1)


def test_a_name_that_moves_to_a_metadata_address_is_refused(place: Callable[..., str], tmp_path: Path) -> None:
    url = place()
    lookups = 0

    def moving(host: str, port: int) -> list[str]:
        nonlocal lookups
        lookups += 1
        return ["127.0.0.1"] if lookups <= 5 else ["169.254.169.254"]

    teacher = OpenaiTeacher(task_of(url.replace("127.0.0.1", "teacher.example"), tmp_path), SHORT, moving)
    with pytest.raises(Unsafe):
        asked(teacher, 50)
    assert stats_of(url)["requests"] <= 5, "each connection went to the address that was looked at"


def test_plain_http_stays_on_this_machine_unless_it_is_allowed(tmp_path: Path) -> None:
    for address in ("10.0.0.5", "192.168.1.2", "8.8.8.8", "::ffff:8.8.8.8", "2001:db8::1"):
        with pytest.raises(Unsafe, match="plain http would send prompts and key in the clear"):
            asked(OpenaiTeacher(task_of("http://teacher.example/v1", tmp_path), SHORT, lambda h, p, a=address: [a]), 1)  # type: ignore[misc]
        refuse_address(Endpoint("http", "teacher.example", 80, "/v1", plain_http=True), address)
        refuse_address(Endpoint("https", "teacher.example", 443, "/v1"), address)
    for address in ("127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"):
        refuse_address(Endpoint("http", "teacher.example", 80, "/v1"), address)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("ftp://127.0.0.1/v1", "is not an http or https URL"),
        ("file:///etc/passwd", "is not an http or https URL"),
        ("127.0.0.1:8080/v1", "is not an http or https URL"),
        ("http:///v1", "is not an http or https URL"),
        ("http://[::1/v1", "is not a URL"),
        ("http://127.0.0.1:99999/v1", "is not a URL"),
        ("http://127.0.0.1:x/v1", "is not a URL"),
        (f"https://user:{CANARY}@host/v1", "holds a user or a password"),
        (f"https://{CANARY}@host/v1", "holds a user or a password"),
        (f"https://host/v1?key={CANARY}", "holds a query or a fragment"),
        (f"http://user:{CANARY}@[::1/v1", "is not a URL"),
    ],
)
def test_what_is_no_url_is_said(url: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=reason) as caught:
        OpenaiTeacher(task_of(url, tmp_path))
    assert CANARY not in "".join(traceback.format_exception(caught.value))


def test_proxies_and_passwords_of_the_environment_are_not_used(
    place: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login user password secret\n")
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    url = place()
    all_answered(OpenaiTeacher(task_of(url, tmp_path / "scratch")), 2)
    monkeypatch.undo()
    assert stats_of(url)["keys"] == [""]


@contextmanager
def secure_server(folder: Path) -> Iterator[tuple[int, list[str]]]:
    """An https server for teacher.example, and the Host headers that it was sent."""
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=teacher.example"]
    made += [
        "-addext",
        "subjectAltName=DNS:teacher.example",
        "-keyout",
        str(folder / "key"),
        "-out",
        str(folder / "pem"),
    ]
    subprocess.run(made, check=True, capture_output=True)
    hosts: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hosts.append(self.headers["Host"])
            self.send_response(404)
            self.end_headers()

        def do_POST(self) -> None:
            hosts.append(self.headers["Host"])
            length = int(self.headers["Content-Length"])
            text = json.loads(self.rfile.read(length))["messages"][-1]["content"]
            choice = {"message": {"content": f"answer to {text}"}, "finish_reason": "stop"}
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"model": MODEL, "choices": [choice]}).encode())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "pem", folder / "key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port, hosts
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="a certificate cannot be made here: no openssl")
def test_the_certificate_is_checked_against_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx2

    with secure_server(tmp_path) as (port, hosts):

        def asks(name: str) -> OpenaiTeacher:
            task = task_of(f"https://{name}:{port}/v1", tmp_path / "scratch")
            return OpenaiTeacher(task, SHORT, lambda host, port: ["127.0.0.1"])

        with pytest.raises(Unsafe, match=f"teacher.example:{port} shows a certificate that is not trusted"):
            asked(asks("teacher.example"), 1)
        assert not hosts, "nothing was sent"
        trusted = ssl.create_default_context(cafile=str(tmp_path / "pem"))
        monkeypatch.setattr(httpx2, "AsyncClient", partial(httpx2.AsyncClient, verify=trusted))
        with pytest.raises(Unsafe, match="not trusted"):
            asked(asks("another.example"), 1)
        assert not hosts
        all_answered(asks("teacher.example"), 2)
        assert set(hosts) == {f"teacher.example:{port}"}
