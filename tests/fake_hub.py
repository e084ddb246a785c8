"""A small hub on loopback: what it holds, what goes wrong with it, and what it was asked."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import urlsplit

from model_bytes import WEIGHTS, gguf_bytes

COMMIT, NEXT_COMMIT = "a" * 40, "b" * 40
MODEL = gguf_bytes(data=300_000)
SHA256 = hashlib.sha256(MODEL).hexdigest()
FOLDER = {
    "config.json": b'{"model_type": "llama"}',
    "generation_config.json": b"{}",
    "tokenizer.json": b'{"version": "1.0"}',
    "tokenizer_config.json": b"{}",
    "model.safetensors": WEIGHTS,
    "README.md": b"---\nlicense: mit\n---\n",
    "LICENSE": b"MIT License\n",
}
LARGE = (".gguf", ".safetensors", ".bin")


@dataclass
class FakeHub:
    """What the hub holds, what goes wrong with it, and what it was asked."""

    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    licence: str = "mit"
    cut_at: int | None = None
    """The first download of a large file ends after so many bytes."""
    tamper: str | None = None
    """The name of a file that is served with one bit flipped."""
    move_to: dict[str, bytes] | None = None
    """What the branch holds, at another commit, as soon as it has been described."""
    gated: bool = False
    asked: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    commit: str = COMMIT

    def described(self, repo: str) -> dict[str, Any]:
        siblings = []
        for name, data in self.repos[repo].items():
            item: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": git_sha1(data)}
            if name.endswith(LARGE):
                item["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
            siblings.append(item)
        card = {"license": self.licence}
        return {"id": repo, "modelId": repo, "sha": self.commit, "siblings": siblings, "cardData": card, "tags": []}


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, format: str, *values: object) -> None:
        pass

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        self.hub.asked.append(f"{self.command} {path}")
        if path.startswith("/api/models/"):
            self.describe(path.removeprefix("/api/models/"))
        elif "/resolve/" in path:
            repo, _, rest = path[1:].partition("/resolve/")
            self.resolve(repo, *rest.split("/", 1))
        else:
            self.answer(404, b"", {})

    def describe(self, repo: str) -> None:
        if repo not in self.hub.repos:
            self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
            return
        self.answer(200, json.dumps(self.hub.described(repo)).encode(), {"Content-Type": "application/json"})
        if self.hub.move_to is not None:
            self.hub.commit = NEXT_COMMIT

    def resolve(self, repo: str, revision: str, name: str) -> None:
        if self.hub.gated:
            self.answer(403, b"", {"X-Error-Code": "GatedRepo"})
            return
        moved = self.hub.move_to is not None and revision != COMMIT
        files = self.hub.move_to if moved and self.hub.move_to is not None else self.hub.repos[repo]
        data = files[name]
        headers = {"X-Repo-Commit": NEXT_COMMIT if moved else COMMIT, "ETag": f'"{git_sha1(data)}"'}
        if name.endswith(LARGE):
            headers["X-Linked-Etag"] = f'"{hashlib.sha256(data).hexdigest()}"'
            headers["X-Linked-Size"] = str(len(data))
        if name == self.hub.tamper:
            data = data[:-1] + bytes([data[-1] ^ 1])
        if self.command == "HEAD":
            self.answer(200, data, headers)
        else:
            self.serve(name, data, headers)

    def serve(self, name: str, data: bytes, headers: dict[str, str]) -> None:
        asked = self.headers.get("Range")
        if asked:
            self.hub.ranges.append(asked)
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            content_range = f"bytes {start}-{len(data) - 1}/{len(data)}"
            self.answer(206, data[start:], {**headers, "Content-Range": content_range})
        elif self.hub.cut_at is not None and name.endswith(LARGE):
            self.answer(200, data[: self.hub.cut_at], {**headers, "Content-Length": str(len(data))})
            self.hub.cut_at = None
            self.close_connection = True
        else:
            self.answer(200, data, headers)
