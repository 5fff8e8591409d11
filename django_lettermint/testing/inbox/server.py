"""The inbox as a server on 127.0.0.1: HTTP, its guards, and live streams."""

from __future__ import annotations

import contextlib
import re
import socket
import socketserver
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self

from django_lettermint.testing.webhooks import check_url

from .mailbox import Mailbox, Record
from .site import Response, Site, problem

if TYPE_CHECKING:
    from django_lettermint.testing.relay import Relay

KEEP = 500
MAX_OCTETS = 100 * 1024 * 1024
#: Octets of a request's body; the forms have some dozens.
_MAX_BODY = 64 * 1024
#: Seconds for a client to send its request, or to read.
_CLIENT_TIMEOUT = 10.0
#: Seconds between writes to an idle stream; a write fails if the client has left.
_HEARTBEAT = 15.0
#: Seconds that requests may take to end when the inbox is closed.
_PATIENCE = 5.0
#: Seconds within which the server notices that it is to end.
_POLL = 0.1
# A page elsewhere can let its own name point to 127.0.0.1, and so read what answers to
# any name (DNS rebinding). The port differs behind `ssh -L`, for example.
_HOST = re.compile(r"(127\.0\.0\.1|localhost)(:\d{1,5})?", re.IGNORECASE | re.ASCII)


class Inbox:
    """A website that shows what a relay receives, at http://127.0.0.1:8025/.

        with Relay() as relay, Inbox(relay) as inbox:
            print(inbox.url)

    It keeps the last 500 mails and refusals, 100 MiB of them at most, in memory. The
    buttons on a mail's page post signed webhooks to `webhook_url`.
    """

    def __init__(
        self,
        relay: Relay,
        *,
        port: int = 8025,
        webhook_url: str | None = None,
        webhook_secret: str | None = None,
    ) -> None:
        """Prepare an inbox; nothing listens before start().

        `port` 0 is any that is free. Raises ValueError for a URL that nothing can be
        posted to, or one without a secret.
        """
        if webhook_url:
            check_url(webhook_url)
            if not webhook_secret:
                raise ValueError(
                    "webhook_url needs webhook_secret, the LETTERMINT_SIGNING_SECRET "
                    "of the project."
                )
        self._relay = relay
        self._port = port
        self._mailbox = Mailbox(keep=KEEP, max_octets=MAX_OCTETS)
        self._site = Site(self._mailbox, relay, webhook_url, webhook_secret)
        self._server: _Server | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def start(self) -> None:
        """Listen, beginning with what the relay has received already.

        Raises RuntimeError if it is running, OSError if the port is taken.
        """
        if self._server:
            raise RuntimeError("The inbox is running already.")
        server = _Server(self._port, self._site, self._mailbox)
        self._port = server.server_port
        self._server = server
        self._mailbox.open()
        self._relay.add_listener(self._mailbox.add)
        earlier: list[Record] = [*self._relay.messages, *self._relay.refusals]
        for record in sorted(earlier, key=lambda record: record.received_at):
            self._mailbox.add(record)
        server.start()

    def close(self) -> None:
        """Stop listening and end all requests; does nothing if it is not running."""
        if self._server:
            self._relay.remove_listener(self._mailbox.add)
            self._mailbox.close()
            self._server.stop(_PATIENCE)
            self._server = None

    @property
    def url(self) -> str:
        """Where the inbox is; known once it has started."""
        return f"http://127.0.0.1:{self._port}/"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, port: int, site: Site, mailbox: Mailbox) -> None:
        self.site = site
        self.mailbox = mailbox
        self._ended = threading.Condition()
        self._open: set[Any] = set()
        super().__init__(("127.0.0.1", port), _Handler)
        self._thread = threading.Thread(
            target=self.serve_forever,
            args=(_POLL,),
            name="lettermint-inbox",
            daemon=True,
        )

    def server_bind(self) -> None:
        # HTTPServer looks up the host's name, which may take long without a network.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "127.0.0.1", int(self.server_address[1])

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Stop serving, and end all requests, also those of silent clients."""
        self.shutdown()
        self._thread.join()
        self.server_close()
        with self._ended:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            self._ended.wait_for(lambda: not self._open, timeout)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._ended:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request)
        with self._ended:
            self._open.discard(request)
            self._ended.notify_all()


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = _CLIENT_TIMEOUT
    server_version = "LettermintInbox"
    sys_version = ""

    def handle(self) -> None:
        # Clients may leave at any time.
        with contextlib.suppress(OSError):
            super().handle()

    def log_message(self, *args: object) -> None:
        """Leave the terminal to the relay's mails."""

    def do_GET(self) -> None:
        refusal = self._refuse_host()
        if refusal:
            self._send(refusal)
        elif self.path == "/live":
            self._stream()
        else:
            self._send(self.server.site.answer("GET", self.path))

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "0")
        if not re.fullmatch(r"[0-9]{1,9}", length) or int(length) > _MAX_BODY:
            self._send(problem(HTTPStatus(413), "The form is too large."))
            return
        # Read in any case: closing a socket with something unread may lose the answer.
        body = self.rfile.read(int(length))
        self._send(
            self._refuse_host()
            or self._refuse_origin()
            or self.server.site.answer("POST", self.path, body)
        )

    def _refuse_host(self) -> Response | None:
        hosts = self.headers.get_all("Host", [])
        if len(hosts) == 1 and _HOST.fullmatch(hosts[0]):
            return None
        return problem(
            HTTPStatus.FORBIDDEN,
            "This inbox answers as 127.0.0.1 and localhost only: open "
            f"http://127.0.0.1:{self.server.server_port}/.",
        )

    def _refuse_origin(self) -> Response | None:
        # Browsers send it with each POST; another site cannot change it.
        if (
            self.headers.get("Origin", "").lower()
            == f"http://{self.headers['Host']}".lower()
        ):
            return None
        return problem(
            HTTPStatus.FORBIDDEN,
            "Forms are taken from the inbox's own pages only: open "
            f"http://127.0.0.1:{self.server.server_port}/.",
        )

    def _send(self, response: Response) -> None:
        headers = {
            "Content-Type": response.content_type,
            "Content-Length": str(len(response.body)),
            "Content-Security-Policy": response.policy,
            "X-Content-Type-Options": "nosniff",
            "Cross-Origin-Resource-Policy": "same-origin",
            # A tab that a mail's link opens has no way back to this one.
            "Cross-Origin-Opener-Policy": "same-origin",
            # Not "no-referrer": forms would be sent with `Origin: null`.
            "Referrer-Policy": "same-origin",
            "Cache-Control": "no-store",
            **response.headers,
        }
        self.send_response(response.status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(response.body)

    def _stream(self) -> None:
        """Send the version of the mailbox at each change (server-sent events)."""
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Cache-Control", "no-store")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.end_headers()
        version = ""
        while version := self.server.mailbox.wait(version, _HEARTBEAT):
            self.wfile.write(f"data: {version}\n\n".encode())
