"""No login without verified TLS, and nothing but EHLO and STARTTLS in clear."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest

from django_lettermint.exceptions import ConnectFailed, TLSFailed
from django_lettermint.results import Phase
from tests.certificates import KINDS, ca_file
from tests.faults import once_spoken_to
from tests.faultserver import (
    Answer,
    FaultServer,
    On,
    drop,
    hang,
    inject,
    raw,
    reply,
    trickle,
)
from tests.sending import (
    SHORT,
    cases,
    relay,
    session,
    transaction,
)
from tests.smtp.helpers import (
    TLS_MODES,
    connect_with,
    failure,
    failure_with,
    verbs_before_login,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tests.faults import Action, Wire

IN_CLEAR = {"EHLO", "STARTTLS"}


# -- certificates ----------------------------------------------------------------------


@pytest.mark.parametrize("tls", TLS_MODES)
@pytest.mark.parametrize("kind", [each for each in KINDS if each != "good"])
def test_a_server_that_cannot_be_verified_gets_no_login(kind: str, tls: str) -> None:
    with FaultServer(cert=kind, tls=tls) as server:
        error = failure(server)
        assert server.connections == 1
        assert verbs_before_login(server) <= IN_CLEAR
        assert server.violations == []
    # A certificate is renewed within hours: a queue keeps the mail until then.
    assert error.transient
    assert error.step == "TLS"
    if kind.startswith("tls1"):
        assert isinstance(error, ConnectFailed)
        assert error.phase is Phase.TLS
    else:
        assert isinstance(error, TLSFailed)
        assert "certificate not accepted" in str(error)
        assert error.verify_code
        assert "check `host`, and `ca_file`" in str(error)


def test_the_reason_of_a_wrong_certificate_is_one_sentence() -> None:
    with FaultServer(cert="wrong_host") as server:
        error = failure(server)
    text = str(error)
    assert text.startswith(f"TLS with 127.0.0.1:{server.port} failed: certificate not")
    assert "not valid for '127.0.0.1'. Nothing was sent; check `host`" in text


def test_a_replaced_ca_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    shutil.copy(ca_file(), path)
    with FaultServer() as server:
        config = relay(server, ca_file=str(path))
        path.write_text("no certificate\n")
        assert "`ca_file` cannot be used: " in str(failure_with(config))
        path.unlink()
        error = failure_with(config)
        assert isinstance(error, TLSFailed)
        assert "ca.pem" in str(error)
        assert verbs_before_login(server) == set()
        shutil.copy(ca_file(), path)
        connect_with(config).close()


def test_a_replaced_system_bundle_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "bundle.pem"
    bundle.write_text("")
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    with FaultServer() as server:
        config = relay(server, ca_file=None)
        assert isinstance(failure_with(config), TLSFailed)
        shutil.copy(ca_file(), bundle)
        connect_with(config).close()
        bundle.write_text("")
        assert isinstance(failure_with(config), TLSFailed)


# -- where TLS begins ------------------------------------------------------------------

BUSY = b"421 Too many connections from this IP address\r\n"
CLOSED = b"554-5.7.1 Your network is blocked\r\n554 5.7.1 Ask us why\r\n"


def refuse_in_pieces(wire: Wire) -> None:
    for octet in BUSY:
        wire.write(bytes([octet]))
        wire.pause(0.002)
    wire.drop()


@pytest.mark.parametrize("tls", TLS_MODES)
@pytest.mark.parametrize(
    ("do", "code", "text"),
    [
        (raw(BUSY, close=True), 421, "Too many"),
        (raw(CLOSED, close=True), 554, "5.7.1 Ask us why"),
        (once_spoken_to(raw(BUSY, close=True)), 421, "Too many"),
        (once_spoken_to(raw(CLOSED)), 554, "5.7.1 Ask us why"),
        (lambda _: Answer(0, refuse_in_pieces), 421, "Too many"),
        (trickle(b"452 4.3.1 full\r\n", 0.002), 452, "4.3.1 full"),
        (raw(b"400\n", close=True), 400, ""),
    ],
    ids=[
        "before ClientHello",
        "before ClientHello, permanent",
        "after ClientHello",
        "after ClientHello, permanent and open",
        "octet by octet and closed",
        "octet by octet and open",
        "without text",
    ],
)
def test_a_refusal_in_clear_where_tls_begins_is_a_refused_connection(
    do: Action, code: int, text: str, tls: str
) -> None:
    with FaultServer([On("tls", do=do)], tls=tls) as server:
        error = failure(server)
        assert server.wait_for(lambda: server.open_connections == 0)
        assert verbs_before_login(server) <= IN_CLEAR
    assert isinstance(error, ConnectFailed)
    assert (error.smtp_code, error.transient) == (code, True)
    assert text in error.smtp_error.decode()
    assert error.step == ("greeting" if tls == "implicit" else "STARTTLS")


@pytest.mark.parametrize("tls", TLS_MODES)
@pytest.mark.parametrize(
    "said", [b"220 relay ESMTP\r\n", b"250 AUTH PLAIN\r\n", b"354 go ahead\r\n"]
)
@pytest.mark.parametrize("wait", cases(at_once=False, after_client_hello=True))
def test_no_reply_in_clear_but_a_refusal_counts_where_tls_begins(
    said: bytes, wait: Any, tls: str
) -> None:
    do = once_spoken_to(raw(said)) if wait else raw(said)
    with FaultServer([On("tls", do=do)], tls=tls) as server:
        error = failure(server)
        assert verbs_before_login(server) <= IN_CLEAR
    assert isinstance(error, TLSFailed)
    assert error.smtp_code == 0
    assert "465 is implicit TLS" in str(error) or "followed by plaintext" in str(error)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"421 cut of", "closed the connection"),
        (b"4 is no reply\r\n", "not an SMTP reply"),
        (b"421-more\r\n" * 101, "more than"),
        (b"", "the server closed the connection"),
    ],
    ids=["cut off", "no reply", "endless", "nothing"],
)
def test_a_broken_refusal_where_tls_begins_is_a_failed_connection(
    said: bytes, reason: str
) -> None:
    with FaultServer([On("tls", do=raw(said, close=True))]) as server:
        error = failure(server)
    assert isinstance(error, ConnectFailed)
    assert (error.smtp_code, error.phase) == (0, Phase.TLS)
    assert reason in str(error)


@pytest.mark.parametrize("tls", TLS_MODES)
@pytest.mark.parametrize(
    "do",
    cases(
        fin=drop(),
        rst=drop(rst=True),
        hang=hang(),
        junk=raw(b"junk\r\n" * 9),
        alert=raw(b"\x15\x03\x03\x00\x02\x02\x50"),  # fatal: internal_error
    ),
)
def test_a_broken_handshake_is_a_failed_connection(do: Action, tls: str) -> None:
    with FaultServer([On("tls", do=once_spoken_to(do))], tls=tls) as server:
        error = failure(server, timeout=SHORT)
        assert server.wait_for(lambda: server.open_connections == 0)
        assert verbs_before_login(server) <= IN_CLEAR
    assert isinstance(error, ConnectFailed)
    assert (error.transient, error.phase) == (True, Phase.TLS)


# -- STARTTLS --------------------------------------------------------------------------


def test_only_ehlo_and_starttls_are_sent_in_clear() -> None:
    with FaultServer(tls="starttls") as server, session(server) as held:
        held.send(transaction())
        # The server notes input behind STARTTLS, and AUTH or MAIL in clear.
        assert server.violations == []
        verbs = [line.split()[0] for _, line in server.commands]
        assert verbs[:4] == [b"EHLO", b"STARTTLS", b"EHLO", b"AUTH"]


EVIL = b"250-evil\r\n250 AUTH LOGIN\r\n"


@pytest.mark.parametrize(
    ("fault", "kind", "code", "shown"),
    [
        (
            On("ehlo", do=reply(250, "relay\nAUTH PLAIN")),
            TLSFailed,
            0,
            "is not offered",
        ),
        (On("starttls", do=reply(250)), TLSFailed, 0, "was refused (250"),
        (On("starttls", do=reply(500)), TLSFailed, 0, "was refused (500"),
        (On("starttls", do=reply(554)), TLSFailed, 0, "was refused (554"),
        (On("starttls", do=reply(400)), ConnectFailed, 400, "STARTTLS on"),
        (On("starttls", do=reply(421)), ConnectFailed, 421, "STARTTLS on"),
        (On("starttls", do=reply(454)), ConnectFailed, 454, "STARTTLS on"),
        # Plaintext in the segment of the reply, or behind it, is not read as TLS.
        (On("starttls", do=inject(EVIL)), TLSFailed, 0, "was followed by plaintext"),
        (On("starttls", do=inject(EVIL, split=True)), TLSFailed, 0, ""),
        (On("starttls", do=inject(BUSY)), ConnectFailed, 421, "STARTTLS on"),
        (On("starttls", do=inject(b"junk\r\n")), ConnectFailed, 0, "STARTTLS on"),
        (On("starttls", do=raw(b"220 go\r\n", close=True)), ConnectFailed, 0, "closed"),
    ],
)
def test_without_starttls_there_is_no_login(
    fault: On, kind: type[ConnectFailed | TLSFailed], code: int, shown: str
) -> None:
    with FaultServer([fault], tls="starttls") as server:
        error = failure(server)
        assert verbs_before_login(server) <= IN_CLEAR
        assert server.violations == []
    assert isinstance(error, kind)
    assert (error.smtp_code, error.transient) == (code, True)
    assert shown in str(error)
    if isinstance(error, ConnectFailed):
        assert error.phase is Phase.TLS
    elif shown:
        assert error.step == "STARTTLS"
        assert "security='tls' is safer" in str(error)
