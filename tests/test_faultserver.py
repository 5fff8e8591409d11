"""What the other tests trust the fault server for."""

from __future__ import annotations

import smtplib
import socket
import ssl
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.certificates import ca_file
from tests.faultserver import (
    TOKEN,
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

ENVELOPE = b"MAIL FROM:<a@x.test>\r\nRCPT TO:<b@x.test>\r\n"
DATA = ENVELOPE + b"DATA\r\n"


class Client:
    """A client in clear that writes exactly what the test says."""

    def __init__(self, server: FaultServer) -> None:
        address = (server.host, server.port)
        self.socket = socket.create_connection(address, timeout=10)
        self.file = self.socket.makefile("rb")

    def codes(self, data: bytes, replies: int = 1) -> list[int]:
        self.socket.sendall(data)
        return [self.code() for _ in range(replies)]

    def code(self) -> int:
        while (line := self.file.readline())[3:4] == b"-":
            pass
        return int(line[:3] or 0)


@contextmanager
def serving(*script: On) -> Iterator[tuple[FaultServer, Client]]:
    """Serve in clear and without logins; give a client after EHLO."""
    with FaultServer(script, tls=None, auth=()) as server:
        client = Client(server)
        with client.socket, client.file:
            assert client.codes(b"EHLO test\r\n", 2) == [220, 250]
            yield server, client


@pytest.mark.parametrize("tls", ["implicit", "starttls", None])
def test_a_mail_is_delivered_once_and_on_record(tls: str | None) -> None:
    context = ssl.create_default_context(cafile=ca_file())
    with FaultServer(tls=tls) as server:
        client = (
            smtplib.SMTP_SSL(server.host, server.port, timeout=10, context=context)
            if tls == "implicit"
            else smtplib.SMTP(server.host, server.port, timeout=10)
        )
        with client:
            if tls == "starttls":
                client.starttls(context=context)
            client.login("lettermint", TOKEN)
            client.sendmail("a@x.test", ["b@x.test", "c@x.test"], b".a\r\n..\r\n")
    (delivery,) = server.deliveries
    assert (delivery.mail_from, delivery.content) == ("a@x.test", b".a\r\n..\r\n")
    assert server.delivered == {"b@x.test": 1, "c@x.test": 1}
    assert server.logins == [("PLAIN", "lettermint", True)]
    assert b"data\r\n..a\r\n...\r\n.\r\n" in server.received[1]
    assert server.violations == []


def test_the_first_rule_that_fits_acts_in_place_of_the_server() -> None:
    script = [
        On("rcpt", match="BOB@", do=reply(550)),
        On("mail", message=3, do=reply(450)),
        On("mail", connection=1, message=2, times=1, do=reply(451)),
    ]
    with serving(*script) as (server, client):
        bob = DATA.replace(b"b@", b"bob@") + b"RSET\r\n"
        assert client.codes(bob, 4) == [250, 550, 554, 250]
        assert client.codes(ENVELOPE, 2) == [451, 503]
        assert client.codes(ENVELOPE, 2) == [450, 503]
        server.script.clear()
        assert client.codes(ENVELOPE, 2) == [250, 250]


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
        client.codes(DATA, 3)
        client.socket.sendall(b"x\r\n.\r\n")
        assert client.file.read() == answer
        assert len(server.deliveries) == taken


def test_the_server_stops_at_once_while_it_hangs() -> None:
    with serving(On("mail", do=hang())) as (server, client):
        client.socket.sendall(ENVELOPE)
        assert server.wait_for(lambda: server.messages == 1)
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        assert client.code() == 0
        stopping.join()


@pytest.mark.parametrize(
    ("said", "violation"),
    [
        (b"NOOP\n", "bare CR or LF in b'NOOP\\n'"),
        (b"NOOP \0\r\n", "NUL in b'NOOP \\x00\\r\\n'"),
        (b"NOOP " + b"x" * 506 + b"\r\n", "b'NOOP' line of 513 octets"),
        (b"RCPT TO:<\xff@x>\r\n", "8-bit command without SMTPUTF8"),
        (b"MAIL FROM:<> NEW=1\r\n", "parameter b'NEW' was not offered"),
        (ENVELOPE + ENVELOPE, "MAIL inside a transaction"),
        (b"NOOP\r\nNOOP\r\n", "input behind b'NOOP', which must be the last"),
        (b"BDAT 0\r\n", "BDAT was not offered"),
        (b"AUTH PLAIN eA==\r\n", "AUTH PLAIN was not offered"),
        (DATA + b"a\nb\r\n.\r\n", "bare CR or LF in content"),
        (DATA + b"a\0b\r\n.\r\n", "NUL in content"),
        (DATA + b"caf\xc3\xa9\r\n.\r\n", "8-bit content without BODY=8BITMIME"),
        (DATA + b"x" * 999 + b"\r\n.\r\n", "content line of 999 octets"),
        (DATA + b"a\r\n.b\r\n.\r\n", "content line with an unstuffed dot"),
    ],
)
def test_a_violation_of_the_protocol_is_noted(said: bytes, violation: str) -> None:
    with serving() as (server, client):
        client.socket.sendall(said)
        noted = f"connection 1: {violation}"
        assert server.wait_for(
            lambda: any(each.startswith(noted) for each in server.violations)
        )


def test_after_a_refused_chunk_only_rset_ends_the_transaction() -> None:
    script = [On("bdat", times=1, do=reply(552))]
    with FaultServer(script, tls=None, auth=(), features=["CHUNKING"]) as server:
        client = Client(server)
        with client.socket, client.file:
            assert client.codes(b"MAIL FROM:<>\r\nEHLO test\r\n", 3) == [220, 503, 250]
            for line in ENVELOPE.splitlines(keepends=True):
                client.codes(line)
            assert client.codes(b"BDAT 2\r\n\r\n") == [552]
            assert client.codes(b"BDAT 2 LAST\r\n\r\n") == [503]
            assert client.codes(b"MAIL FROM:<>\r\n") == [503]
            assert client.codes(b"RSET\r\n") == [250]
    assert server.deliveries == []
