"""An OpenAI-compatible server whose answers a test decides."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Asked:
    path: str
    body: dict[str, Any]
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Reply:
    """body: an object to send as JSON, or text as it is. reset: the connection breaks instead."""

    body: Any = ""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    reset: bool = False


Answering = Callable[[Asked], Reply]


class FakeServer:
    """`asked` has what was posted; `models` is the list it gives, None for no list."""

    def __init__(self, answer: Answering, models: Sequence[Mapping[str, Any]] | None) -> None:
        self.answer, self.models = answer, models
        self.asked: list[Asked] = []
        self.busy = self.busiest = 0
        self.lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                if server.models is None:
                    self._send(Reply({"detail": "Not Found"}, 404))
                else:
                    self._send(Reply({"object": "list", "data": list(server.models)}))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                asked = Asked(self.path, body, dict(self.headers))
                with server.lock:
                    server.asked.append(asked)
                    server.busy += body.get("n", 1)
                    server.busiest = max(server.busy, server.busiest)
                try:
                    reply = server.answer(asked)
                finally:
                    with server.lock:
                        server.busy -= body.get("n", 1)
                self._send(reply)

            def _send(self, reply: Reply) -> None:
                if reply.reset:  # RST instead of an answer
                    linger = struct.pack("ii", 1, 0)
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    self.close_connection = True
                    self.connection.close()
                    return
                text = reply.body if isinstance(reply.body, str) else json.dumps(reply.body)
                self.send_response(reply.status)
                for name, value in {**reply.headers, "Content-Length": len(text.encode())}.items():
                    self.send_header(name, str(value))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: Any) -> None:
                """Nothing on stderr."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.handle_error = lambda *_: None  # type: ignore[method-assign]
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"

    @contextmanager
    def running(self) -> Iterator[FakeServer]:
        thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._http.shutdown()
            self._http.server_close()
            thread.join()


def completion(*texts: str, **more: Any) -> Reply:
    """What /v1/completions gives; five tokens a text."""
    choices = [{"index": i, "text": t, "finish_reason": "stop"} for i, t in enumerate(texts)]
    usage = {"prompt_tokens": 10, "completion_tokens": 5 * len(texts)}
    return Reply({"model": "m", "choices": choices, "usage": usage, **more})


def chat(*texts: str | None, **more: Any) -> Reply:
    """What /v1/chat/completions gives."""
    choices = [
        {"index": i, "message": {"role": "assistant", "content": t}, "finish_reason": "stop"}
        for i, t in enumerate(texts)
    ]
    usage = {"prompt_tokens": 10, "completion_tokens": 5 * len(texts)}
    return Reply({"model": "m", "choices": choices, "usage": usage, **more})
