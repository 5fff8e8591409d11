"""What the other tests trust the fault server for."""

from __future__ import annotations

import smtplib
import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.faultserver import (
    Action,
    FaultServer,
    On,
    accept_then,
    drop,
    hang,
    raw,
    reply,
)

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


def test_a_mail_is_delivered_once_and_on_record() -> None:
    with FaultServer(tls=None, auth=()) as server:
        with smtplib.SMTP(server.host, server.port, timeout=10) as client:
            client.sendmail("a@x.test", ["b@x.test", "c@x.test"], b".a\r\n..\r\n")
        (delivery,) = server.deliveries
        assert (delivery.mail_from, delivery.content) == ("a@x.test", b".a\r\n..\r\n")
        assert server.delivered == {"b@x.test": 1, "c@x.test": 1}
        assert b"data\r\n..a\r\n...\r\n.\r\n" in server.received[1]
        assert server.violations == []


def test_the_first_rule_that_fits_acts_in_place_of_the_server() -> None:
    script = [
        On("rcpt", match="BOB@", do=reply(550)),
        On("mail", message=3, do=reply(450)),
        On("mail", connection=1, message=2, times=1, do=reply(451)),
    ]
    with (
        FaultServer(script, tls=None, auth=()) as server,
        smtplib.SMTP(server.host, server.port, timeout=10) as client,
    ):
        client.ehlo()
        assert client.mail("<a@x.test>")[0] == 250
        assert client.rcpt("bob@x.test")[0] == 550
        client.rset()
        assert client.mail("<a@x.test>")[0] == 451
        assert client.mail("<a@x.test>")[0] == 450
        server.script.clear()
        assert client.mail("<a@x.test>")[0] == 250


@pytest.mark.parametrize(
    ("action", "answer", "taken"),
    [
        (drop(), b"", 0),
        (drop(deliver=True), b"", 1),
        (drop(after=True), b"250 2.0.0 queued\r\n", 1),
        (reply(450, "4.2.0 no", close=True), b"450 4.2.0 no\r\n", 0),
        (accept_then(reply(550, "no", close=True)), b"550 no\r\n", 1),
        (raw(b"250-queued\r\n", close=True), b"250-queued\r\n", 0),
    ],
)
def test_a_script_decides_what_is_delivered_whatever_is_answered(
    action: Action, answer: bytes, taken: int
) -> None:
    with serving(On("dot", do=action)) as (server, client):
        client.sendall(DATA + b"x\r\n.\r\n")
        received = b""
        while data := client.recv(4096):
            received += data
        assert received.partition(b"\r\n354 ")[2].partition(b"\r\n")[2] == answer
        assert len(server.deliveries) == taken


def test_the_server_stops_at_once_while_it_hangs() -> None:
    with serving(On("mail", do=hang())) as (server, client):
        client.sendall(DATA)
        assert server.wait_for(lambda: server.messages == 1)
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        assert client.recv(100) == b""
        stopping.join()


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
