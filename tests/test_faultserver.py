"""What the other tests trust the fault server for: it notes what a client does wrong."""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.faultserver import FaultServer, On, hang

if TYPE_CHECKING:
    from collections.abc import Iterator

DATA = b"MAIL FROM:<a@x.test>\r\nRCPT TO:<b@x.test>\r\nDATA\r\n"


@contextmanager
def serving(*script: On) -> Iterator[tuple[FaultServer, socket.socket]]:
    """Serve in clear and without logins; give a connection after EHLO."""
    with FaultServer(script, tls=None, auth=()) as server:
        address = (server.host, server.port)
        with socket.create_connection(address, timeout=10) as client:
            client.sendall(b"EHLO test\r\n")
            while b"250 " not in client.recv(4096):
                pass
            yield server, client


@pytest.mark.parametrize(
    ("said", "violation"),
    [
        (b"NOOP\n", "bare CR or LF in b'NOOP\\n'"),
        (b"NOOP \0\r\n", "NUL in b'NOOP \\x00\\r\\n'"),
        (b"NOOP " + b"x" * 506 + b"\r\n", "b'NOOP' line of 513 octets"),
        (b"NOOP\r\nNOOP\r\n", "input behind b'NOOP', which must be the last"),
        (DATA + b"a\nb\r\n.\r\n", "bare CR or LF in content"),
        (DATA + b"a\0b\r\n.\r\n", "NUL in content"),
        (DATA + b"caf\xc3\xa9\r\n.\r\n", "8-bit content without BODY=8BITMIME"),
        (DATA + b"x" * 999 + b"\r\n.\r\n", "content line of 999 octets"),
        (DATA + b"a\r\n.b\r\n.\r\n", "content line with an unstuffed dot"),
    ],
)
def test_a_violation_of_the_protocol_is_noted(said: bytes, violation: str) -> None:
    with serving() as (server, client):
        client.sendall(said)
        noted = f"connection 1: {violation}"
        assert server.wait_for(
            lambda: any(each.startswith(noted) for each in server.violations)
        )


def test_the_server_stops_at_once_while_it_hangs() -> None:
    with serving(On("mail", do=hang())) as (server, client):
        client.sendall(DATA)
        assert server.wait_for(lambda: server.messages == 1)
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        assert client.recv(100) == b""
        stopping.join()
