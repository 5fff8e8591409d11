"""The fault server does what its scripts say: proven by smtplib and by raw sockets."""

from __future__ import annotations

import base64
import contextlib
import os
import smtplib
import socket
import ssl
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import get_args

import pytest

from tests.certificates import KINDS, OLD_PROTOCOLS, ca_file
from tests.deadends import blackhole, refused_port
from tests.faults import Phase
from tests.faultserver import (
    TOKEN,
    Action,
    Answer,
    FaultServer,
    On,
    accept_then,
    drop,
    endless,
    garble,
    gate,
    hang,
    inject,
    raw,
    reply,
    stall,
    trickle,
)

MAIL = b"Subject: hello\r\n\r\nbody\r\n"
ENVELOPE = b"MAIL FROM:<a@x.test>\r\nRCPT TO:<b@x.test>\r\n"
PLAIN = base64.b64encode(f"\0lettermint\0{TOKEN}".encode())


class Client:
    """A client that says just what the test says."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.file = sock.makefile("rb")

    def say(self, data: bytes, replies: int = 1) -> list[int]:
        self.sock.sendall(data)
        return [self.reply()[0] for _ in range(replies)]

    def reply(self) -> tuple[int, list[bytes]]:
        lines = [self.line()]
        while lines[-1][3:4] == b"-":
            lines.append(self.line())
        return int(lines[-1][:3] or 0), lines

    def line(self) -> bytes:
        return self.file.readline()

    def rest(self) -> bytes:
        return self.file.read()

    def close(self) -> None:
        self.file.close()
        self.sock.close()


@contextmanager
def raw_client(server: FaultServer) -> Iterator[Client]:
    """Connect to a plaintext server, without reading its greeting."""
    client = Client(socket.create_connection(("127.0.0.1", server.port), timeout=5))
    try:
        yield client
    finally:
        client.close()


@contextmanager
def greeted(server: FaultServer) -> Iterator[Client]:
    with raw_client(server) as client:
        client.reply()
        client.say(b"EHLO test\r\n")
        yield client


def plaintext(*script: On, **options: object) -> FaultServer:
    """Return a server for raw clients: no TLS, no AUTH."""
    return FaultServer(script, **{"tls": None, "auth": (), **options})  # type: ignore[arg-type]


def trusting() -> ssl.SSLContext:
    return ssl.create_default_context(cafile=ca_file())


@contextmanager
def smtp(server: FaultServer, tls: str | None = "implicit") -> Iterator[smtplib.SMTP]:
    """Connect and log in by smtplib; a test may lose the connection in any way."""
    client = (
        smtplib.SMTP_SSL("127.0.0.1", server.port, timeout=5, context=trusting())
        if tls == "implicit"
        else smtplib.SMTP("127.0.0.1", server.port, timeout=5)
    )
    try:
        if tls == "starttls":
            client.starttls(context=trusting())
        client.login("lettermint", TOKEN)
        yield client
    finally:
        client.close()


def send(client: smtplib.SMTP, *to: str, content: bytes = MAIL) -> None:
    client.sendmail("a@x.test", to or ("b@x.test",), content)


# Without a script.


@pytest.mark.parametrize("tls", ["implicit", "starttls", None])
def test_a_mail_is_delivered_once_in_each_way_of_connecting(tls: str | None) -> None:
    with FaultServer(tls=tls) as server, smtp(server, tls) as client:
        send(client, "b@x.test", "c@x.test")
    (delivery,) = server.deliveries
    assert delivery.mail_from == "a@x.test"
    assert delivery.recipients == ("b@x.test", "c@x.test")
    assert (delivery.content, delivery.key, delivery.connection) == (MAIL, None, 1)
    assert server.logins == [("PLAIN", "lettermint", True)]
    assert server.violations == []


def test_the_options_name_the_way_to_the_server() -> None:
    with FaultServer(tls="starttls") as server:
        assert server.options(retries=0) == {
            "api_token": TOKEN,
            "host": "127.0.0.1",
            "port": server.port,
            "security": "starttls",
            "ca_file": ca_file(),
            "idempotency": False,
            "retries": 0,
        }


def test_dots_are_unstuffed() -> None:
    with FaultServer() as server, smtp(server) as client:
        send(client, content=b".a\r\n..\r\n.\r\nb\r\n")
    assert server.deliveries[0].content == b".a\r\n..\r\n.\r\nb\r\n"
    assert server.violations == []


def test_empty_content_ends_at_once_even_with_a_command_behind_it() -> None:
    with plaintext() as server, greeted(server) as client:
        assert client.say(ENVELOPE + b"DATA\r\n", 3) == [250, 250, 354]
        assert client.say(b".\r\nNOOP\r\n", 2) == [250, 250]
    assert server.deliveries[0].content == b""


def test_helo_offers_nothing() -> None:
    with plaintext() as server, raw_client(server) as client:
        client.reply()
        assert client.say(b"HELO test\r\n") == [250]
        client.say(b"MAIL FROM:<a@x.test> SIZE=1\r\n")
    assert server.violations == ["connection 1: parameter b'SIZE' was not offered"]


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"RCPT TO:<b@x.test>", 503),
        (b"MAIL FROM:a@x.test", 501),
        (b"DATA", 503),
        (b"BDAT x", 501),
        (b"AUTH PLAIN x", 504),
        (b"STARTTLS", 502),
        (b"VRFY b", 252),
        (b"RSET", 250),
        (b"NOOP", 250),
        (b"QUIT", 221),
        (b"WHAT", 500),
    ],
)
def test_a_command_out_of_place_is_refused(line: bytes, code: int) -> None:
    with plaintext() as server, greeted(server) as client:
        assert client.say(line + b"\r\n") == [code]
    assert server.commands == [(1, b"EHLO test"), (1, line)]


def test_mail_needs_a_login_where_auth_is_offered() -> None:
    with plaintext(auth=("PLAIN",)) as server, greeted(server) as client:
        assert client.say(b"MAIL FROM:<a@x.test>\r\n") == [530]


def test_data_without_a_good_recipient_leaves_the_transaction_open() -> None:
    no = On("rcpt", do=reply(550))
    with plaintext(no) as server, greeted(server) as client:
        assert client.say(ENVELOPE + b"DATA\r\n", 3) == [250, 550, 554]
        assert client.say(b"MAIL FROM:<a@x.test>\r\n") == [503]
        assert client.say(b"RSET\r\nMAIL FROM:<a@x.test>\r\n", 2) == [250, 250]
    assert server.violations == ["connection 1: MAIL inside a transaction"]


def test_everything_received_is_kept_with_its_connection() -> None:
    with plaintext() as server:
        for name in (b"one", b"two"):
            with raw_client(server) as client:
                client.reply()
                client.say(b"EHLO " + name + b"\r\n")
    assert server.received == {1: b"EHLO one\r\n", 2: b"EHLO two\r\n"}


# Selectors.


def test_a_rule_can_be_about_one_recipient() -> None:
    rule = On("rcpt", match="BOB@", do=reply(550, "5.1.1 no such user"))
    with FaultServer([rule]) as server, smtp(server) as client:
        refused = client.sendmail("a@x.test", ["bob@x.test", "c@x.test"], MAIL)
    assert refused == {"bob@x.test": (550, b"5.1.1 no such user")}
    assert server.delivered == {"c@x.test": 1}


def test_a_rule_can_act_a_number_of_times() -> None:
    with (
        plaintext(On("noop", times=2, do=reply(450))) as server,
        greeted(server) as client,
    ):
        assert client.say(b"NOOP\r\n" * 3, 3) == [450, 450, 250]


def test_the_first_rule_that_fits_wins() -> None:
    script = (On("noop", times=1, do=reply(421)), On("noop", do=reply(450)))
    with plaintext(*script) as server, greeted(server) as client:
        assert client.say(b"NOOP\r\n" * 2, 2) == [421, 450]


def test_a_rule_can_be_about_one_connection() -> None:
    with plaintext(On("banner", connection=1, do=reply(554))) as server:
        codes = []
        for _ in range(2):
            with raw_client(server) as client:
                codes.append(client.reply()[0])
    assert codes == [554, 220]


def test_messages_are_counted_over_the_server_or_on_the_chosen_connection() -> None:
    script = (
        On("mail", message=3, do=reply(450)),
        On("mail", connection=2, message=2, do=reply(451)),
    )
    codes = []
    with plaintext(*script) as server:
        for _ in range(2):
            with greeted(server) as client:
                for _ in range(2):
                    codes += client.say(b"MAIL FROM:<a@x.test>\r\n")
                    client.say(b"RSET\r\n")
    assert codes == [250, 250, 450, 451]


def test_the_script_can_change_while_the_server_runs() -> None:
    with plaintext() as server, greeted(server) as client:
        assert client.say(b"NOOP\r\n") == [250]
        server.script.append(On("noop", do=reply(421)))
        assert client.say(b"NOOP\r\n") == [421]


def test_a_rule_for_an_unknown_phase_is_refused() -> None:
    with pytest.raises(ValueError, match="phase 'dott' is unknown"):
        On("dott", do=drop())  # type: ignore[arg-type]


def test_any_function_can_be_an_action() -> None:
    answers: list[int] = []

    def look(answer: Answer) -> Answer:
        answers.append(answer.code)
        return answer

    with plaintext(On("noop", do=look)) as server, greeted(server) as client:
        assert client.say(b"NOOP\r\n") == [250]
    assert answers == [250]


# Actions.


def test_a_reply_may_have_several_lines() -> None:
    rule = On("noop", do=reply(250, "one\ntwo"))
    with plaintext(rule) as server, greeted(server) as client:
        client.sock.sendall(b"NOOP\r\n")
        assert client.reply() == (250, [b"250-one\r\n", b"250 two\r\n"])


def test_a_reply_can_close_the_connection() -> None:
    rule = On("banner", do=reply(421, "4.3.2 later", close=True))
    with plaintext(rule) as server, raw_client(server) as client:
        assert client.rest() == b"421 4.3.2 later\r\n"


def test_raw_bytes_change_no_state() -> None:
    rule = On("dot", do=raw(b"250-queued\r\n", close=True))
    with plaintext(rule) as server, greeted(server) as client:
        client.say(ENVELOPE + b"DATA\r\n", 3)
        client.sock.sendall(MAIL + b".\r\n")
        assert client.rest() == b"250-queued\r\n"
    assert server.deliveries == []


def test_a_message_can_be_accepted_with_any_answer() -> None:
    rule = On("dot", do=accept_then(raw(b"250-queued\r\n", close=True)))
    with plaintext(rule) as server, greeted(server) as client:
        client.say(ENVELOPE + b"DATA\r\n", 3)
        client.sock.sendall(MAIL + b".\r\n")
        assert client.rest() == b"250-queued\r\n"
    assert server.delivered == {"b@x.test": 1}


@pytest.mark.parametrize(
    ("action", "answer", "deliveries"),
    [
        pytest.param(drop(), b"", 0, id="drop"),
        pytest.param(drop(deliver=True), b"", 1, id="deliver"),
        pytest.param(drop(after=True), b"250 2.0.0 queued\r\n", 1, id="after"),
        pytest.param(reply(450, "4.2.0 no"), b"450 4.2.0 no\r\n", 0, id="4xx"),
        pytest.param(reply(251, "yes"), b"251 yes\r\n", 1, id="2xx"),
    ],
)
def test_a_script_decides_at_the_dot_what_is_delivered(
    action: Action, answer: bytes, deliveries: int
) -> None:
    with plaintext(On("dot", do=action)) as server, greeted(server) as client:
        client.say(ENVELOPE + b"DATA\r\n", 3)
        client.sock.sendall(MAIL + b".\r\nQUIT\r\n")
        assert client.rest().replace(b"221 2.0.0 bye\r\n", b"") == answer
        assert len(server.deliveries) == deliveries


def test_a_drop_can_be_a_reset() -> None:
    with (
        plaintext(On("noop", do=drop(rst=True))) as server,
        greeted(server) as client,
        pytest.raises(ConnectionResetError),
    ):
        client.say(b"NOOP\r\n")


def test_a_gate_holds_the_answer_until_the_test_opens_it() -> None:
    release, reached = threading.Event(), threading.Event()
    rule = On("noop", do=gate(release, reached, then=reply(251)))
    with plaintext(rule) as server, greeted(server) as client:
        client.sock.sendall(b"NOOP\r\n")
        assert reached.wait(5)
        client.sock.settimeout(0)
        with pytest.raises(BlockingIOError):
            client.sock.recv(1)
        client.sock.settimeout(5)
        release.set()
        assert client.line() == b"251 scripted\r\n"


def test_a_stall_and_a_trickle_take_their_time() -> None:
    script = (On("noop", do=stall(0.05)), On("rset", do=trickle(b"250 x\r\n", 0.01)))
    with plaintext(*script) as server, greeted(server) as client:
        began = time.monotonic()
        assert client.say(b"NOOP\r\n") == [250]
        assert client.say(b"RSET\r\n") == [250]
        assert time.monotonic() - began >= 0.1


def test_an_endless_reply_ends_when_the_client_leaves() -> None:
    rule = On("ehlo", do=endless(b"250-more\r\n"))
    with plaintext(rule) as server:
        with raw_client(server) as client:
            client.reply()
            client.sock.sendall(b"EHLO test\r\n")
            assert all(client.line() == b"250-more\r\n" for _ in range(5000))
        assert server.wait_for(lambda: server.open_connections == 0)


def test_garble_breaks_the_tls_connection() -> None:
    with FaultServer([On("mail", do=garble())]) as server, smtp(server) as client:
        client.send(b"MAIL FROM:<a@x.test>\r\n")
        with pytest.raises(smtplib.SMTPServerDisconnected, match="SSL"):
            client.getreply()


@pytest.mark.parametrize("phase", [p for p in get_args(Phase) if p != "helo"])
def test_the_server_stops_at_once_while_it_hangs_at(phase: Phase) -> None:
    features = ("PIPELINING", "CHUNKING")
    tls = "starttls" if phase in ("starttls", "tls") else None
    auth = ("LOGIN",) if phase.startswith("auth") else ()
    commands = {"vrfy": b"VRFY b\r\n", "noop": b"NOOP\r\n", "rset": b"RSET\r\n"} | {
        "auth": b"AUTH LOGIN\r\nbGV0\r\nbGV0\r\n",
        "auth_cont": b"AUTH LOGIN\r\n",
        "bdat": ENVELOPE + b"BDAT 1\r\nx",
        "starttls": b"STARTTLS\r\n",
        "tls": b"STARTTLS\r\n",
        "quit": b"QUIT\r\n",
        "unknown": b"WHAT\r\n",
    }
    reached = threading.Event()

    def note(answer: Answer) -> Answer:
        reached.set()
        return hang()(answer)

    rule = On(phase, do=note)
    with (
        plaintext(rule, tls=tls, auth=auth, features=features) as server,
        raw_client(server) as client,
    ):
        mail = ENVELOPE + b"DATA\r\n" + MAIL + b".\r\n"
        client.sock.sendall(b"EHLO test\r\n" + commands.get(phase, mail))
        assert reached.wait(5)
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < 1


# TLS and AUTH.


@pytest.mark.parametrize("split", [False, True])
def test_plaintext_can_be_injected_behind_the_starttls_reply(*, split: bool) -> None:
    rule = On("starttls", do=inject(b"250 injected\r\n", split=split))
    with plaintext(rule, tls="starttls") as server, greeted(server) as client:
        client.sock.sendall(b"STARTTLS\r\n")
        assert client.line() == b"220 2.0.0 ready for TLS\r\n"
        if split:
            client.sock.sendall(b"\x16\x03\x01")
        assert client.line() == b"250 injected\r\n"


@pytest.mark.parametrize("kind", KINDS)
def test_a_careful_client_refuses_each_bad_certificate(kind: str) -> None:
    with FaultServer(cert=kind) as server:
        sock = socket.create_connection(("127.0.0.1", server.port), timeout=5)
        with (
            sock,
            trusting().wrap_socket(
                sock, server_hostname="127.0.0.1", do_handshake_on_connect=False
            ) as secure,
        ):
            if kind == "good":
                secure.do_handshake()
            else:
                with pytest.raises(ssl.SSLError):
                    secure.do_handshake()


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("wrong_host", "IP address mismatch"),
        ("self_signed", "self-signed certificate"),
        ("expired", "certificate has expired"),
        ("not_yet", "certificate is not yet valid"),
        ("untrusted", "unable to get local issuer certificate"),
    ],
)
def test_a_bad_certificate_is_bad_in_its_own_way_only(kind: str, text: str) -> None:
    with FaultServer(cert=kind) as server, pytest.raises(ssl.SSLError, match=text):
        smtplib.SMTP_SSL("127.0.0.1", server.port, timeout=5, context=trusting())


@pytest.mark.parametrize(("kind", "version"), OLD_PROTOCOLS.items())
def test_an_old_protocol_is_really_spoken(kind: str, version: str) -> None:
    context = trusting()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion[version]
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    with FaultServer(cert=kind) as server:
        sock = socket.create_connection(("127.0.0.1", server.port), timeout=5)
        with context.wrap_socket(sock, server_hostname="127.0.0.1") as secure:
            assert secure.version() == version.replace("_", ".")


def test_an_unknown_kind_of_certificate_is_refused() -> None:
    with pytest.raises(ValueError, match="certificate 'mouldy' is unknown"):
        FaultServer(cert="mouldy")


@pytest.mark.parametrize(
    ("action", "error"),
    [
        pytest.param(raw(b"junk!"), ssl.SSLError, id="raw"),
        pytest.param(hang(), TimeoutError, id="hang"),
        pytest.param(drop(rst=True), ConnectionResetError, id="drop"),
    ],
)
def test_the_handshake_can_fail(action: Action, error: type[Exception]) -> None:
    with FaultServer([On("tls", do=action)]) as server, pytest.raises(error):
        smtplib.SMTP_SSL("127.0.0.1", server.port, timeout=0.2, context=trusting())


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "CRAM-MD5"])
@pytest.mark.parametrize("token", [TOKEN, "wrong"])
def test_each_mechanism_knows_the_token(mechanism: str, token: str) -> None:
    code = 235 if token == TOKEN else 535
    with FaultServer(auth=(mechanism,)) as server:
        client = smtplib.SMTP_SSL("127.0.0.1", server.port, context=trusting())
        with client, contextlib.suppress(smtplib.SMTPAuthenticationError):
            assert client.login("lettermint", token)[0] == code
    assert server.logins == [(mechanism, "lettermint", token == TOKEN)]
    assert server.violations == []


@pytest.mark.parametrize("response", [b"*", b"%%%"])
def test_a_cancelled_or_broken_exchange_logs_nobody_in(response: bytes) -> None:
    with plaintext(auth=("PLAIN",)) as server, greeted(server) as client:
        assert client.say(b"AUTH PLAIN\r\n") == [334]
        assert client.say(response + b"\r\n") in ([501], [535])
    assert not any(login.ok for login in server.logins)


def test_a_login_by_a_mechanism_that_was_not_offered_is_noted() -> None:
    with plaintext() as server, greeted(server) as client:
        assert client.say(b"AUTH PLAIN " + PLAIN + b"\r\n") == [504]
    assert server.logins == [("PLAIN", "", False)]
    assert server.violations == ["connection 1: AUTH PLAIN was not offered"]


def test_the_script_decides_over_a_login() -> None:
    rule = On("auth", times=1, do=reply(454, "4.7.0 later"))
    with plaintext(rule, auth=("PLAIN",)) as server, greeted(server) as client:
        assert client.say(b"AUTH PLAIN " + PLAIN + b"\r\n") == [454]
        assert client.say(b"MAIL FROM:<a@x.test>\r\n") == [530]
        assert client.say(b"AUTH PLAIN " + PLAIN + b"\r\n") == [235]
    assert server.logins == [("PLAIN", "lettermint", True)] * 2
    assert server.commands[1] == (1, b"AUTH PLAIN " + PLAIN)


def test_challenges_can_go_on_for_ever() -> None:
    rule = On("auth", do=reply(334))
    with plaintext(rule, auth=("PLAIN",)) as server, greeted(server) as client:
        assert client.say(b"AUTH PLAIN " + PLAIN + b"\r\n") == [334]
        assert [client.say(b"eA==\r\n") for _ in range(20)] == [[334]] * 20


# Pipelining, content, BDAT.


def test_a_pipelined_group_is_answered_in_order() -> None:
    rule = On("rcpt", match="c@", do=reply(550))
    with plaintext(rule) as server, greeted(server) as client:
        group = ENVELOPE + b"RCPT TO:<c@x.test>\r\nDATA\r\n"
        assert client.say(group, 4) == [250, 250, 550, 354]
        # RFC 2920 section 3.1: the next group may ride behind the content.
        assert client.say(MAIL + b".\r\n" + group, 5) == [250, 250, 250, 550, 354]
        assert client.say(MAIL + b".\r\n") == [250]
    assert server.delivered == {"b@x.test": 2}
    assert server.violations == []


@pytest.mark.parametrize("received", [0, 10, 70_000])
def test_the_connection_can_break_within_the_content(received: int) -> None:
    rule = On("body", after_bytes=received, do=drop(rst=True))
    with plaintext(rule) as server, greeted(server) as client:
        client.say(ENVELOPE + b"DATA\r\n", 3)
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            client.say(b"x" * 8_000_000)
    assert server.deliveries == []


def test_the_server_can_answer_within_the_content_and_swallow_the_rest() -> None:
    rule = On("body", after_bytes=5, times=1, do=reply(552, "5.3.4 too big"))
    with plaintext(rule) as server, greeted(server) as client:
        client.say(ENVELOPE + b"DATA\r\n", 3)
        assert client.say(MAIL) == [552]
        assert client.say(b".\r\nNOOP\r\n") == [250]
        assert client.say(ENVELOPE + b"DATA\r\n", 3) == [250, 250, 354]
    assert server.deliveries == []


def test_a_small_receive_buffer_and_a_stall_block_the_client() -> None:
    rule = On("body", do=stall(60))
    with plaintext(rule, rcvbuf=4096) as server, greeted(server) as client:
        client.say(ENVELOPE + b"DATA\r\n", 3)
        client.sock.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.sock.sendall(b"x" * 8_000_000)


def test_chunks_are_put_together() -> None:
    with (
        plaintext(features=("PIPELINING", "CHUNKING")) as server,
        greeted(server) as client,
    ):
        group = ENVELOPE + b"BDAT 4\r\n.a\r\nBDAT 3 LAST\r\n.\r\n"
        assert client.say(group, 4) == [250] * 4
    assert server.deliveries[0].content == b".a\r\n.\r\n"
    assert server.violations == []


def test_a_refused_chunk_ends_the_transaction_but_not_the_dialogue() -> None:
    rule = On("bdat", times=1, do=reply(552))
    with (
        plaintext(rule, features=("PIPELINING", "CHUNKING")) as server,
        greeted(server) as client,
    ):
        group = ENVELOPE + b"BDAT 4\r\n.a\r\nBDAT 3 LAST\r\n.\r\nRSET\r\n"
        assert client.say(group, 5) == [250, 250, 552, 554, 250]
    assert server.deliveries == []


@pytest.mark.parametrize("phase", ["bdat", "dot"])
def test_the_last_chunk_obeys_rules_for_chunks_and_for_the_dot(phase: Phase) -> None:
    rule = On(phase, do=reply(450))
    with (
        plaintext(rule, features=("PIPELINING", "CHUNKING")) as server,
        greeted(server) as client,
    ):
        assert client.say(ENVELOPE + b"BDAT 2 LAST\r\n\r\n", 3) == [250, 250, 450]
    assert server.deliveries == []


# Violations.


@pytest.mark.parametrize(
    ("content", "violation"),
    [
        (b"a\nb\r\n", "bare CR or LF in content"),
        (b"a\rb\r\n", "bare CR or LF in content"),
        (b"a\r\n.\n\r\n", "bare CR or LF in content"),
        (b"a\0b\r\n", "NUL in content"),
        (b"caf\xc3\xa9\r\n", "8-bit content without BODY=8BITMIME"),
        (b"x" * 999 + b"\r\n", "content line of 999 octets"),
        (b"a\r\n.b\r\n", "content line with an unstuffed dot"),
    ],
)
def test_bad_content_is_noted(content: bytes, violation: str) -> None:
    with plaintext() as server, greeted(server) as client:
        client.say(ENVELOPE + b"DATA\r\n", 3)
        client.say(content + b".\r\n")
    assert f"connection 1: {violation}" in server.violations


@pytest.mark.parametrize(
    "content", [b"x" * 998 + b"\r\n", b".." + b"x" * 997 + b"\r\n"]
)
def test_lines_of_998_octets_are_no_violation(content: bytes) -> None:
    with plaintext() as server, greeted(server) as client:
        client.say(ENVELOPE + b"DATA\r\n", 3)
        client.say(content + b".\r\n")
    assert server.violations == []


@pytest.mark.parametrize(
    ("line", "violation"),
    [
        (b"NOOP\n", "bare CR or LF in b'NOOP\\n'"),
        (b"NOOP\rx\r\n", "bare CR or LF in b'NOOP\\rx\\r\\n'"),
        (b"NOOP \0\r\n", "NUL in b'NOOP \\x00\\r\\n'"),
        (b"NOOP " + b"x" * 506 + b"\r\n", "b'NOOP' line of 513 octets"),
        (b"RCPT TO:<\xff@x>\r\n", "8-bit command without SMTPUTF8: b'RCPT TO:<\\xff@x>\\r\\n'"),
        (b"MAIL FROM:<> NEW=1\r\n", "parameter b'NEW' was not offered"),
        (b"NOOP\r\nNOOP\r\n", "input behind b'NOOP', which must be the last of a group"),
    ],
)  # fmt: skip
def test_a_bad_command_is_noted(line: bytes, violation: str) -> None:
    with plaintext() as server, greeted(server) as client:
        client.say(line)
        assert server.violations[0] == f"connection 1: {violation}"


def test_declared_8_bit_content_and_addresses_are_no_violation() -> None:
    with plaintext() as server, greeted(server) as client:
        mail = b"MAIL FROM:<\xc3\xa9@x.test> SMTPUTF8 BODY=8BITMIME SIZE=9\r\n"
        client.say(mail + b"RCPT TO:<\xc3\xa9@x.test>\r\nDATA\r\n", 3)
        client.say(b"caf\xc3\xa9\r\n.\r\n")
    assert server.violations == []
    assert server.delivered == {"é@x.test": 1}


def test_pipelining_that_was_not_offered_is_noted() -> None:
    with plaintext(features=()) as server, greeted(server) as client:
        client.say(ENVELOPE, 2)
    assert server.violations == [
        "connection 1: input behind b'MAIL', and PIPELINING was not offered"
    ]


def test_content_ahead_of_the_go_ahead_is_noted() -> None:
    with plaintext() as server, greeted(server) as client:
        client.say(ENVELOPE + b"DATA\r\n" + MAIL + b".\r\n", 4)
    assert server.violations == [
        "connection 1: input behind b'DATA', which must be the last of a group"
    ]


def test_login_and_mail_in_clear_are_noted() -> None:
    with (
        plaintext(tls="starttls", auth=("PLAIN",)) as server,
        greeted(server) as client,
    ):
        client.say(b"AUTH PLAIN " + PLAIN + b"\r\n")
        client.say(b"MAIL FROM:<a@x.test>\r\n")
    assert server.violations == [
        "connection 1: AUTH in clear",
        "connection 1: MAIL in clear",
    ]


# Idempotency.


def keyed(body: bytes) -> bytes:
    return b"Subject: x\r\nidempotency-key: k-1\r\n\r\n" + body + b"\r\n.\r\n"


def attempt(client: Client, content: bytes) -> int:
    client.say(ENVELOPE + b"DATA\r\n", 3)
    return client.say(content)[0]


def test_a_used_key_replays_the_same_message_and_refuses_another() -> None:
    with plaintext(idempotency=True) as server, greeted(server) as client:
        codes = [attempt(client, keyed(body)) for body in (b"one", b"one", b"two")]
    assert codes == [250, 250, 554]
    assert [delivery.key for delivery in server.deliveries] == ["k-1"]
    assert server.replays == 1


def test_a_key_means_nothing_unless_the_server_honours_it() -> None:
    with plaintext() as server, greeted(server) as client:
        assert [attempt(client, keyed(b"one")) for _ in range(2)] == [250, 250]
    assert server.delivered == {"b@x.test": 2}


def test_a_key_in_progress_is_refused_for_now() -> None:
    release, reached = threading.Event(), threading.Event()
    rule = On("dot", connection=1, do=gate(release, reached))
    with (
        plaintext(rule, idempotency=True) as server,
        greeted(server) as first,
        greeted(server) as second,
    ):
        first.say(ENVELOPE + b"DATA\r\n", 3)
        first.sock.sendall(keyed(b"one"))
        assert reached.wait(5)
        assert attempt(second, keyed(b"one")) == 451
        release.set()
        assert first.reply()[0] == 250
        assert attempt(second, keyed(b"one")) == 250
    assert server.delivered == {"b@x.test": 1}


@pytest.mark.parametrize("deliver", [False, True])
def test_a_lost_attempt_frees_its_key_if_it_was_not_taken(*, deliver: bool) -> None:
    rule = On("dot", times=1, do=drop(deliver=deliver))
    with plaintext(rule, idempotency=True) as server:
        with greeted(server) as client:
            client.say(ENVELOPE + b"DATA\r\n", 3)
            client.sock.sendall(keyed(b"one"))
            assert client.rest() == b""
        with greeted(server) as client:
            assert attempt(client, keyed(b"one")) == 250
    assert server.delivered == {"b@x.test": 1}
    assert server.replays == deliver


# Connections.


def test_fifty_connections_are_served_at_once() -> None:
    barrier = threading.Barrier(50)

    def one(number: int) -> None:
        with smtp(server) as client:
            barrier.wait(20)
            send(client, f"{number}@x.test")
            client.quit()

    with FaultServer() as server, ThreadPoolExecutor(50) as threads:
        list(threads.map(one, range(50)))
        assert server.open_connections == 0
    assert server.delivered == {f"{number}@x.test": 1 for number in range(50)}
    assert (server.connections, server.peak_connections) == (50, 50)
    assert server.violations == []


def test_a_closed_connection_does_not_count_beside_the_next() -> None:
    with plaintext() as server:
        for _ in range(20):
            with raw_client(server) as client:
                client.reply()
            assert server.open_connections == 0
    assert (server.connections, server.peak_connections) == (20, 1)


def test_bytes_can_be_pushed_down_an_idle_connection() -> None:
    with plaintext() as server, greeted(server) as client:
        server.act(1, raw(b"421 4.4.2 bye\r\n"))
        client.sock.settimeout(0)
        assert client.sock.recv(100) == b"421 4.4.2 bye\r\n"


@pytest.mark.parametrize("tls", ["implicit", "starttls"])
def test_bytes_can_be_pushed_down_an_idle_tls_connection(tls: str) -> None:
    with FaultServer(tls=tls) as server, smtp(server, tls) as client:
        send(client)
        server.act(1, reply(421, "4.4.2 bye", close=True))
        assert client.getreply() == (421, b"4.4.2 bye")
        assert server.open_connections == 0


@pytest.mark.parametrize(
    ("rst", "error"), [(False, None), (True, ConnectionResetError)]
)
def test_an_idle_connection_can_be_closed(
    *, rst: bool, error: type[Exception] | None
) -> None:
    with plaintext() as server, greeted(server) as client:
        server.act(1, drop(rst=rst))
        client.sock.settimeout(0)
        if error is None:
            assert client.sock.recv(1) == b""
        else:
            with pytest.raises(error):
                client.sock.recv(1)


def test_all_idle_connections_can_be_closed_at_once() -> None:
    with plaintext() as server, greeted(server) as one, greeted(server) as two:
        server.act_on_all(drop())
        assert (one.rest(), two.rest()) == (b"", b"")
        with pytest.raises(LookupError, match="connection 1 is not open"):
            server.act(1, drop())


def test_an_idle_connection_can_fall_silent() -> None:
    with plaintext() as server, greeted(server) as client:
        server.act(1, hang())
        client.sock.sendall(b"NOOP\r\n")
        client.sock.settimeout(0.05)
        with pytest.raises(TimeoutError):
            client.sock.recv(1)


def test_a_rule_can_close_a_connection_behind_its_nth_message() -> None:
    rule = On("idle", message=2, do=drop())
    with plaintext(rule) as server, greeted(server) as client:
        assert [attempt(client, MAIL + b".\r\n") for _ in range(2)] == [250, 250]
        assert client.rest() == b""
    assert server.delivered == {"b@x.test": 2}


def test_a_closed_door_refuses_newcomers_only() -> None:
    with plaintext() as server, greeted(server) as client:
        server.close_door()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", server.port))
        assert client.say(b"NOOP\r\n") == [250]


def test_nothing_is_left_when_the_server_stops() -> None:
    def count() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    with FaultServer():
        pass  # certificates and the CA file are made once
    before = count()
    with FaultServer([On("mail", do=hang())]) as server:
        for _ in range(5):
            with smtp(server) as client:
                client.noop()
        with smtp(server) as client:
            client.send(b"MAIL FROM:<a@x.test>\r\n")
            assert server.wait_for(lambda: server.ledger.messages == 1)
            server.stop()
    assert count() == before


def test_a_client_of_the_wrong_kind_does_not_keep_the_server() -> None:
    with FaultServer() as server, raw_client(server) as client:
        client.sock.sendall(b"EHLO test\r\n")
        client.rest()
    with FaultServer(tls=None) as server, pytest.raises(ssl.SSLError):
        smtplib.SMTP_SSL("127.0.0.1", server.port, timeout=0.2, context=trusting())


def test_a_refused_port_refuses() -> None:
    with refused_port() as port, pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_a_blackhole_never_answers() -> None:
    with blackhole() as port, pytest.raises(TimeoutError):
        socket.create_connection(("127.0.0.1", port), timeout=0.2)
