"""The engine of the servers of our tests, as it is without any hook."""

from __future__ import annotations

import smtplib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from django_lettermint.testing.server import SMTPServer
from django_lettermint.testing.session import ServerConfig, ServerSession
from django_lettermint.testing.stream import ServerStream
from tests.certificates import server_context

CONFIG = ServerConfig(
    context=server_context("good"),
    features=("PIPELINING", "SIZE 1000", "SMTPUTF8"),
    mechanisms=(),
    requires_auth=False,
    max_size=1000,
)


def new_session(sock: socket.socket, security: str, number: int) -> ServerSession:
    return ServerSession(ServerStream(sock, timeout=10), security, number, CONFIG)


@contextmanager
def serving(host: str = "127.0.0.1") -> Iterator[SMTPServer]:
    server = SMTPServer(new_session, {"plaintext": 0}, host=host)
    server.listen()
    try:
        yield server
    finally:
        server.close_door()
        assert server.cut_connections()


@pytest.fixture
def client() -> Iterator[smtplib.SMTP]:
    with serving() as server:
        port = server.ports["plaintext"]
        with smtplib.SMTP("127.0.0.1", port, timeout=10) as connected:
            yield connected


def test_it_takes_mail_in_clear_from_anybody(client: smtplib.SMTP) -> None:
    client.ehlo()
    assert client.esmtp_features == {"pipelining": "", "size": "1000", "smtputf8": ""}
    client.mail("a@example.com", ["SIZE=10"])
    client.rcpt("b@example.com")
    assert client.data(b"Hello.") == (250, b"2.0.0 Queued")


def test_it_wants_ehlo_or_helo_first(client: smtplib.SMTP) -> None:
    assert client.docmd("MAIL FROM:<a@example.com>")[0] == 503
    client.helo()
    assert client.docmd("MAIL FROM:<a@example.com>")[0] == 250


def test_it_offers_no_tls_in_clear(client: smtplib.SMTP) -> None:
    client.ehlo()
    assert client.docmd("STARTTLS")[0] == 503


def ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.skipif(not ipv6(), reason="there is no ::1 on this machine")
def test_it_can_listen_on_ipv6() -> None:
    with serving("::1") as server:
        with smtplib.SMTP("::1", server.ports["plaintext"], timeout=10) as client:
            assert client.noop()[0] == 250
        assert server.accepted == 1


def test_it_waits_no_longer_than_it_is_told_for_a_thread_that_does_not_end() -> None:
    ends, entered = threading.Event(), threading.Event()

    class Busy(ServerSession):
        def noop(self, argument: bytes) -> None:
            entered.set()
            ends.wait(10)

    server = SMTPServer(
        lambda sock, security, number: Busy(
            ServerStream(sock), security, number, CONFIG
        ),
        {"plaintext": 0},
    )
    server.listen()
    with socket.create_connection(("127.0.0.1", server.ports["plaintext"])) as sock:
        sock.sendall(b"NOOP\r\n")
        assert entered.wait(10)
        server.close_door()
        assert not server.cut_connections(timeout=0.01)
        ends.set()
        assert server.cut_connections()
