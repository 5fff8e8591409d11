"""Another website: it keeps the webhooks that are posted to it, and what it is asked."""

from __future__ import annotations

import http.server
import json
import threading
from base64 import b64decode
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

SECRET = "whsec_test"
PNG = b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAA"
    "AABJRU5ErkJggg=="
)


@dataclass
class Receiver:
    url: str = ""
    #: The status of its answers.
    status: int = 200
    requests: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    #: The names that a browser asked for, with its Referer.
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    may_answer: threading.Event = field(default_factory=threading.Event)

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, body in self.requests]


@contextmanager
def receiving() -> Iterator[Receiver]:
    receiver = Receiver()
    receiver.may_answer.set()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            receiver.requests.append((dict(self.headers), body))
            receiver.may_answer.wait(10)
            self.send_response(receiver.status)
            self.send_header("Location", receiver.url)
            self.end_headers()

        def do_GET(self) -> None:
            name = self.path.rpartition("/")[2]
            receiver.asked.append((name, self.headers["Referer"]))
            image = name.endswith(".png")
            self.send_response(200)
            self.send_header("Content-Type", "image/png" if image else "text/html")
            self.end_headers()
            self.wfile.write(PNG if image else b"<title>Elsewhere</title>")

        def log_message(self, *args: object) -> None:
            """Keep the test's output clean."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        receiver.url = f"http://127.0.0.1:{server.server_port}/hook"
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        try:
            yield receiver
        finally:
            receiver.may_answer.set()
            server.shutdown()
            thread.join()
