"""What the other tests trust the fault server for."""

from __future__ import annotations

import os
import smtplib
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.certificates import ca_file
from tests.deadends import blackhole, refused_port
from tests.faultserver import (
    TOKEN,
    Action,
    Answer,
    FaultServer,
    On,
    accept_then,
    drop,
    gate,
    hang,
    in_clear,
    raw,
    reply,
)

if TYPE_CHECKING:
    from tests.faults import Phase

MAIL = b"Subject: hello\r\n\r\nbody\r\n"
ENVELOPE = b"MAIL FROM:<a@x.test>\r\nRCPT TO:<b@x.test>\r\n"
DATA = ENVELOPE + b"DATA\r\n"
CHUNKING = ("PIPELINING", "CHUNKING")


class Client:
    """A client in clear that says just what the test says."""

    def __init__(self, server: FaultServer) -> None:
        address = (server.host, server.port)
        self.sock = socket.create_connection(address, timeout=5)
        self.file = self.sock.makefile("rb")

    def say(self, data: bytes, replies: int = 1) -> list[int]:
        self.sock.sendall(data)
        return [self.code() for _ in range(replies)]

    def code(self) -> int:
        while (line := self.file.readline())[3:4] == b"-":
            pass
        return int(line[:3] or 0)


@contextmanager
def greeted(server: FaultServer) -> Iterator[Client]:
    client = Client(server)
    with client.sock, client.file:
        assert client.code() == 220
        assert client.say(b"EHLO test\r\n") == [250]
        yield client


def plaintext(*script: On, **options: Any) -> FaultServer:
    """Return a server for raw clients: no TLS, no AUTH."""
    return FaultServer(script, **{"tls": None, "auth": (), **options})


def trusting() -> ssl.SSLContext:
    return ssl.create_default_context(cafile=ca_file())


@contextmanager
def smtp(server: FaultServer, tls: str | None = "implicit") -> Iterator[smtplib.SMTP]:
    """Connect and log in by smtplib."""
    client = (
        smtplib.SMTP_SSL(server.host, server.port, timeout=5, context=trusting())
        if tls == "implicit"
        else smtplib.SMTP(server.host, server.port, timeout=5)
    )
    try:
        if tls == "starttls":
            client.starttls(context=trusting())
        client.login("lettermint", TOKEN)
        yield client
    finally:
        client.close()


@pytest.mark.parametrize("tls", ["implicit", "starttls", None])
def test_a_mail_is_delivered_once_and_on_record(tls: str | None) -> None:
    with FaultServer(tls=tls) as server, smtp(server, tls) as client:
        client.sendmail("a@x.test", ["b@x.test", "c@x.test"], b".a\r\n..\r\n")
    (delivery,) = server.deliveries
    assert (delivery.mail_from, delivery.content) == ("a@x.test", b".a\r\n..\r\n")
    assert server.delivered == {"b@x.test": 1, "c@x.test": 1}
    assert server.logins == [("PLAIN", "lettermint", True)]
    assert server.commands[-1] == (1, b"data")
    assert b"data\r\n..a\r\n...\r\n.\r\n" in server.received[1]
    assert server.violations == []


def test_the_first_rule_that_fits_acts_in_place_of_the_server() -> None:
    script = [
        On("rcpt", match="BOB@", do=reply(550)),
        On("mail", message=3, do=reply(450)),
        On("mail", connection=1, message=2, times=1, do=reply(451)),
    ]
    with plaintext(*script) as server, greeted(server) as client:
        assert client.say(DATA.replace(b"b@", b"bob@") + b"RSET\r\n", 4)[1:3] == [
            *(550, 554)
        ]
        assert client.say(ENVELOPE, 2) == [451, 503]
        assert client.say(ENVELOPE, 2) == [450, 503]
        server.script.clear()
        assert client.say(ENVELOPE, 2) == [250, 250]


@pytest.mark.parametrize("phase", ["dot", "bdat"])
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
    phase: Phase, action: Action, answer: bytes, taken: int
) -> None:
    rule = On(phase, do=action)
    with plaintext(rule, features=CHUNKING) as server, greeted(server) as client:
        chunk = ENVELOPE + b"BDAT %d LAST\r\n" % len(MAIL) + MAIL
        if phase == "dot":
            client.say(DATA, 3)
            chunk = MAIL + b".\r\n"
        client.sock.sendall(chunk)
        assert client.file.read().endswith(answer)
        assert len(server.deliveries) == taken


def test_a_refused_chunk_leaves_a_transaction_that_only_rset_ends() -> None:
    rule = On("bdat", times=1, do=reply(552))
    with plaintext(rule, features=CHUNKING) as server, greeted(server) as client:
        group = ENVELOPE + b"BDAT 2\r\n\r\nBDAT 2 LAST\r\n\r\nMAIL FROM:<>\r\nRSET\r\n"
        assert client.say(group, 6) == [250, 250, 552, 503, 503, 250]
    assert server.delivered == {}


def test_a_repeated_key_is_confirmed_once_its_answer_was_on_the_way() -> None:
    release, reached = threading.Event(), threading.Event()
    rule = On("dot", times=1, do=gate(release, reached, then=drop(deliver=True)))
    content = b"Idempotency-Key: k\r\n\r\n.\r\n"
    with (
        plaintext(rule, idempotency=True) as server,
        greeted(server) as first,
        greeted(server) as second,
    ):
        first.say(DATA, 3)
        first.sock.sendall(content)
        assert reached.wait(5)
        second.say(DATA, 3)
        assert second.say(content) == [451]
        release.set()
        assert first.code() == 0
        second.say(DATA, 3)
        assert second.say(content) == [250]
        second.say(DATA, 3)
        assert second.say(content.replace(b"\r\n\r\n", b"\r\n\r\nx\r\n")) == [554]
    assert [each.key for each in server.deliveries] == ["k"]
    assert server.replays == 1


@pytest.mark.parametrize("phase", ["banner", "ehlo", "tls", "mail", "body", "idle"])
def test_the_server_stops_at_once_while_it_hangs(phase: Phase) -> None:
    reached = threading.Event()

    def note(answer: Answer) -> Answer:
        reached.set()
        return hang()(answer)

    with plaintext(
        On(phase, do=note), tls="starttls" if phase == "tls" else None
    ) as server:
        client = Client(server)
        with client.sock, client.file:
            said = b"STARTTLS\r\n" if phase == "tls" else DATA + MAIL + b".\r\n"
            client.sock.sendall(b"EHLO test\r\n" + said)
            assert reached.wait(5)
            began = time.monotonic()
            server.stop()
            assert time.monotonic() - began < 1


@pytest.mark.parametrize(
    ("said", "violation"),
    [
        (b"NOOP\n", "bare CR or LF in b'NOOP\\n'"),
        (b"NOOP \0\r\n", "NUL in b'NOOP \\x00\\r\\n'"),
        (b"NOOP " + b"x" * 506 + b"\r\n", "b'NOOP' line of 513 octets"),
        (b"RCPT TO:<\xff@x>\r\n", "8-bit command without SMTPUTF8"),
        (b"MAIL FROM:<> NEW=1\r\n", "parameter b'NEW' was not offered"),
        (ENVELOPE + ENVELOPE, "MAIL inside a transaction"),
        (b"NOOP\r\nNOOP\r\n", "input behind b'NOOP', which must be the last of a group"),
        (b"BDAT 0\r\n", "BDAT was not offered"),
        (b"AUTH PLAIN eA==\r\n", "AUTH PLAIN was not offered"),
        (DATA + b"a\nb\r\n.\r\n", "bare CR or LF in content"),
        (DATA + b"a\0b\r\n.\r\n", "NUL in content"),
        (DATA + b"caf\xc3\xa9\r\n.\r\n", "8-bit content without BODY=8BITMIME"),
        (DATA + b"x" * 999 + b"\r\n.\r\n", "content line of 999 octets"),
        (DATA + b"a\r\n.b\r\n.\r\n", "content line with an unstuffed dot"),
    ],
)  # fmt: skip
def test_what_a_client_may_not_do_is_noted(said: bytes, violation: str) -> None:
    with plaintext() as server, greeted(server) as client:
        client.sock.sendall(said)
        noted = f"connection 1: {violation}"
        assert server.wait_for(
            lambda: any(each.startswith(noted) for each in server.violations)
        )


def test_login_mail_and_pipelining_that_the_server_did_not_ask_for_are_noted() -> None:
    with plaintext(tls="starttls", features=()) as server, greeted(server) as client:
        client.say(b"MAIL FROM:<a@x.test>\r\nAUTH PLAIN eA==\r\n", 2)
    assert server.violations == [
        "connection 1: MAIL in clear",
        "connection 1: input behind b'MAIL', and PIPELINING was not offered",
        "connection 1: AUTH in clear",
        "connection 1: AUTH PLAIN was not offered",
    ]


def test_an_idle_connection_can_be_acted_on() -> None:
    with FaultServer() as server, smtp(server) as one, smtp(server) as two:
        server.act(1, reply(421, "4.4.2 bye", close=True))
        assert one.getreply() == (421, b"4.4.2 bye")
        assert server.open_connections == 1
        server.act_on_all(drop(rst=True))
        with pytest.raises(smtplib.SMTPServerDisconnected):
            two.getreply()
        with pytest.raises(LookupError, match="connection 2 is not open"):
            server.act(2, drop())
    assert (server.connections, server.peak_connections) == (2, 2)


def test_a_closed_door_refuses_newcomers_only() -> None:
    with plaintext() as server, greeted(server) as client:
        server.close_door()
        with pytest.raises(ConnectionRefusedError):
            Client(server)
        assert client.say(b"NOOP\r\n") == [250]


def test_a_greeting_can_come_in_clear_where_tls_was_to_begin() -> None:
    greeting = b"421 4.7.0 too many connections\r\n"
    with FaultServer([On("tls", do=in_clear(greeting))]) as server:
        client = Client(server)
        with client.sock, client.file:
            assert client.file.readline() == greeting
            with trusting().wrap_socket(
                client.sock, server_hostname=server.host
            ) as secured:
                assert secured.recv(3) == b"220"


def test_servers_at_several_addresses_can_share_a_port() -> None:
    with FaultServer() as one, FaultServer(host="127.0.0.2", port=one.port) as two:
        assert two.options()["host"] == "127.0.0.2"
        assert two.port == one.port
        with smtp(two):
            pass
    assert (one.connections, two.connections) == (0, 1)


def test_a_server_can_lose_what_is_pipelined() -> None:
    with plaintext(one_command_per_segment=True) as server, greeted(server) as client:
        assert client.say(ENVELOPE + b"DATA\r\n") == [250]
        assert client.say(b"RCPT TO:<b@x.test>\r\n") == [250]
        assert client.say(b"DATA\r\n") == [354]
        assert client.say(MAIL + b".\r\nMAIL FROM:<a@x.test>\r\n") == [250]
        assert client.say(b"NOOP\r\n") == [250]
    assert server.delivered == {"b@x.test": 1}


@pytest.mark.procfs
def test_a_server_leaves_nothing_behind() -> None:
    def count() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    with FaultServer():
        pass  # certificates and the CA file are made once
    before = count()
    with FaultServer([On("mail", do=hang())]) as server, smtp(server) as client:
        client.send(b"MAIL FROM:<a@x.test>\r\n")
        assert server.wait_for(lambda: server.messages == 1)
    assert count() == before


def test_dead_ends_are_dead() -> None:
    with refused_port() as port, pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
    with blackhole() as port, pytest.raises(TimeoutError):
        socket.create_connection(("127.0.0.1", port), timeout=0.2)
