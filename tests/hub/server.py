"""An HTTP server in this process that can resume, redirect, refuse, and hang up half-way."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote


@dataclass
class Resource:
    """cut: bytes to send before hanging up, one entry a GET, None for all; then as normal.

    stall: instead of hanging up, keep the connection open and say no more.
    """

    content: bytes = b""
    content_type: str = "application/octet-stream"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: list[int | None] = field(default_factory=list)
    ranges: bool = True
    stall: bool = False


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]


class LocalServer:
    """Serves `resources` (path without query -> Resource) and keeps all `requests`."""

    def __init__(self) -> None:
        self.resources: dict[str, Resource] = {}
        self.requests: list[Request] = []
        self.closing = threading.Event()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"

    def add(self, path: str, content: bytes | str = b"", **options: object) -> Resource:
        data = content.encode() if isinstance(content, str) else content
        self.resources[path] = Resource(data, **options)  # type: ignore[arg-type]
        return self.resources[path]

    def add_json(self, path: str, value: object, **options: object) -> Resource:
        options.setdefault("content_type", "application/json")
        return self.add(path, json.dumps(value), **options)

    def gets(self, ending: str = "") -> list[Request]:
        return [r for r in self.requests if r.method == "GET" and r.path.endswith(ending)]


@contextmanager
def running_server() -> Iterator[LocalServer]:
    server = LocalServer()
    thread = threading.Thread(target=server.http.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.http.shutdown()
        server.http.server_close()
        thread.join()


def _handler(server: LocalServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(send_body=True)

        def do_HEAD(self) -> None:
            self._answer(send_body=False)

        def log_message(self, *args: object) -> None:
            """Quiet."""

        def _answer(self, send_body: bool) -> None:
            path = unquote(self.path.partition("?")[0])
            server.requests.append(
                Request(self.command, path, {k.title(): v for k, v in self.headers.items()})
            )
            resource = server.resources.get(path)
            if resource is None:
                resource = Resource(b"not found", "text/plain", 404)
            start = self._range_start(resource)
            body = resource.content[start:]
            if start and not body:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(resource.content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206 if start else resource.status)
            if start:
                last = len(resource.content) - 1
                self.send_header("Content-Range", f"bytes {start}-{last}/{last + 1}")
            self.send_header("Content-Type", resource.content_type)
            self.send_header("Content-Length", str(len(body)))
            for name, value in resource.headers.items():
                self.send_header(name, value)
            self.end_headers()
            if not send_body:
                return
            cut = resource.cut.pop(0) if resource.cut else None
            self.wfile.write(body if cut is None else body[:cut])
            if cut is not None:
                if resource.stall:
                    self.wfile.flush()
                    server.closing.wait(60)
                self.close_connection = True

        def _range_start(self, resource: Resource) -> int:
            wanted = self.headers.get("Range", "")
            if not resource.ranges or not wanted.startswith("bytes="):
                return 0
            return int(wanted.removeprefix("bytes=").split("-")[0])

    return Handler


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class FakeHub:
    """The parts of the Hugging Face hub's HTTP interface that downloads use."""

    def __init__(self, server: LocalServer) -> None:
        self.server = server

    def add_repo(
        self,
        repo: str,
        files: dict[str, bytes],
        revision: str = "main",
        commit: str = "c" * 40,
        kind: str = "models",
    ) -> None:
        """Files of 1000 bytes and more are stored as the hub stores large files (LFS).

        kind: models or datasets.
        """
        at = repo if kind == "models" else f"{kind}/{repo}"
        siblings, tree = [], []
        for path, content in files.items():
            large = len(content) >= 1000
            etag = sha256(content) if large else git_blob_id(content)
            sibling: dict[str, object] = {
                "rfilename": path,
                "size": len(content),
                "blobId": git_blob_id(content),
            }
            entry: dict[str, object] = {
                "type": "file",
                "path": path,
                "size": len(content),
                "oid": git_blob_id(content),
            }
            if large:
                size = {"size": len(content), "pointerSize": 130}
                sibling["lfs"] = {"sha256": sha256(content), **size}
                entry["lfs"] = {"oid": sha256(content), **size}
            siblings.append(sibling)
            tree.append(entry)
            headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit}
            for name in {revision, commit}:
                self.server.add(f"/{at}/resolve/{name}/{path}", content, headers=headers)
        info = {"id": repo, "modelId": repo, "sha": commit, "siblings": siblings, "tags": []}
        for name in {revision, commit}:
            self.server.add_json(f"/api/{kind}/{repo}/revision/{name}", info)
            self.server.add_json(f"/api/{kind}/{repo}/tree/{name}", tree)
        if revision == "main":
            self.server.add_json(f"/api/{kind}/{repo}", info)

    def refuse(self, repo: str, status: int, code: str, message: str) -> None:
        """Answer for a repository as the hub does: X-Error-Code says why."""
        headers = {"X-Error-Code": code, "X-Error-Message": message}
        for path in (f"/api/models/{repo}", f"/api/models/{repo}/revision/main"):
            self.server.add_json(path, {"error": message}, status=status, headers=headers)
