"""The server engine without the hooks of the relay."""

from __future__ import annotations

import smtplib
import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from django_lettermint.testing.server import SMTPServer
from django_lettermint.testing.session import ServerConfig, ServerSession
from django_lettermint.testing.stream import ServerStream
from tests.certificates import server_context

if TYPE_CHECKING:
    from collections.abc import Iterator

CONFIG = ServerConfig(
    context=server_context("good"),
    features=("PIPELINING", "SIZE 1000", "SMTPUTF8"),
    mechanisms=(),
    requires_auth=False,
    max_size=1000,
)


@contextmanager
def serving(session: type[ServerSession] = ServerSession) -> Iterator[SMTPServer]:
    def new_session(sock: socket.socket, security: str, number: int) -> ServerSession:
        return session(ServerStream(sock, timeout=10), security, number, CONFIG)

    server = SMTPServer(new_session, {"plaintext": 0})
    server.listen()
    try:
        yield server
    finally:
        server.close_door()
        assert server.cut_connections()


def test_it_takes_mail_in_clear_without_a_login() -> None:
    with serving() as server:
        port = server.ports["plaintext"]
        with smtplib.SMTP("127.0.0.1", port, timeout=10) as client:
            assert client.docmd("MAIL FROM:<a@example.com>")[0] == 503
            client.ehlo()
            features = {"pipelining": "", "size": "1000", "smtputf8": ""}
            assert client.esmtp_features == features
            assert client.docmd("STARTTLS")[0] == 503
            client.helo()
            client.mail("a@example.com")
            client.rcpt("b@example.com")
            assert client.data(b"Hello.") == (250, b"2.0.0 Queued")
        assert server.accepted == 1


def test_it_waits_no_longer_than_it_is_told_for_a_thread_that_does_not_end() -> None:
    ends, entered = threading.Event(), threading.Event()

    class Busy(ServerSession):
        def noop(self, argument: bytes) -> None:
            entered.set()
            ends.wait(10)

    with serving(Busy) as server:
        address = ("127.0.0.1", server.ports["plaintext"])
        with socket.create_connection(address) as sock:
            sock.sendall(b"NOOP\r\n")
            assert entered.wait(10)
            assert not server.cut_connections(timeout=0.01)
            ends.set()
